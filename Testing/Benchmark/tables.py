"""What the sections of the report share: rows of methods, columns of rotations or groups, cost, lines of a figure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LABELS = {
    "default": "Spatial Diffusion (default)",
    "cuda": "Spatial Diffusion (on a GPU)",
    "untold": "· not told the modality",
    "no-network": "· without any network",
    "screen": "· screening and polish only",
    "no-focus": "· without the focus",
    "no-polish": "· without polish",
    "diffusion": "· diffusion alone",
    "diffusion-search": "· diffusion alone, its own search",
    "naive": "· the single shot again and again",
    "reference": "· reference sampler, 65 steps",
    "ants-affine": "ANTs Affine",
    "ants-affinefast": "ANTs AffineFast",
    "elastix": "elastix rigid→affine",
    "greedy": "greedy",
    "greedy-search": "greedy -search",
    "mattes": "SimpleITK Mattes MI",
    "reg-aladin": "NiftyReg reg_aladin",
    "cmtk": "CMTK registration",
    "centers": "centers of mass",
}
#: Those that are not this project's.
PEERS = (
    *("ants-affine", "ants-affinefast", "elastix", "greedy", "greedy-search", "mattes", "reg-aladin", "cmtk"),
    "centers",
)

#: As the report lists them.
ORDER = list(LABELS)

#: Stands for the link to a task's figure in its summary.
FIGURE = "{figure}"

#: A registration that failed counts as an error of this many mm.
FAILED_MM = 999.0


class Method(NamedTuple):
    """A method's name in parts, "BASE@STEPS:MODEL:any": number of steps and model where named, and whether the model
    is not told the modality."""

    base: str
    steps: int | None = None
    model: str | None = None
    classless: bool = False


def parse(method: str) -> Method:
    """The parts of a method's name; raises ValueError where it is none."""
    name, *more = method.split(":")
    base, at, count = name.partition("@")
    if len(more) > 2 or more[1:] not in ([], ["any"]) or (at and not count.isdigit()):
        raise ValueError(f"{method} is not NAME, NAME@STEPS, NAME:MODEL or NAME:MODEL:any")
    return Method(base, int(count) if count else None, more[0] if more else None, len(more) == 2)


def label(method: str) -> str:
    """What people read for a method."""
    base, count, model, classless = parse(method)
    text = LABELS.get(base, base) + (f", {count} step{'s' * (count > 1)}" if count else "")
    return text + (f", {model}" if model else "") + (" (any)" if classless else "")


def methods(records) -> list:
    """Methods among the records, in the report's order."""

    def place(method):
        base, count, model, classless = parse(method)
        return ORDER.index(base) if base in ORDER else len(ORDER), base, count or 0, model or "", classless

    return sorted({r["method"] for r in records}, key=place)


def group(record) -> str:
    """What stands before the slash of a case's name."""
    return record["case"].split("/")[0]


def pick(records, **wanted) -> list:
    """Records with those values."""
    return [r for r in records if all(r[k] == v for k, v in wanted.items())]


def table(header, rows) -> str:
    """A Markdown table; the first column is text."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def grid(records, column, columns, value, headers=None, subsets=True, last=()) -> str:
    """One row a method, one column each of ``columns`` (values of ``column(record)``); ``value`` turns records to text.

    Where a method did fewer cases than others in the column, their number follows. last: (header, function of a
    method's records) of further columns.
    """
    every = methods(records)
    cells = {(m, c): [r for r in records if r["method"] == m and column(r) == c] for m in every for c in columns}
    most = {c: max(len(cells[m, c]) for m in every) for c in columns}
    rows = []
    for method in every:
        row = [label(method)]
        for c in columns:
            found = cells[method, c]
            few = f" ({len(found)})" if subsets and 0 < len(found) < most[c] else ""
            row.append((value(found) if found else "–") + few)
        rows.append(row + [text(pick(records, method=method)) for _, text in last])
    return table(["", *(headers or columns), *(name for name, _ in last)], rows)


def by_rotation(records, value, subsets=True) -> str:
    """One column a rotation."""
    angles = sorted({r["rotation"] for r in records})
    return grid(records, lambda r: r["rotation"], angles, value, [f"{a:g}°" for a in angles], subsets)


def by_group(records, value, order=()) -> str:
    """One column a group of cases, then all of them, then their number."""
    found = dict.fromkeys(group(r) for r in records)
    groups = [g for g in order if g in found] + [g for g in found if g not in order]
    return grid(records, group, groups, value, last=(("all", value), ("n", lambda mine: str(len(mine)))))


def groups_down(records, value, order=()) -> str:
    """One row a group of cases and one for all of them, one column a method, with the number of its cases."""
    found = dict.fromkeys(group(r) for r in records)
    groups = [g for g in order if g in found] + [g for g in found if g not in order]
    every = methods(records)
    mine = {m: pick(records, method=m) for m in every}
    rows = []
    for name in (*groups, "all"):
        cells = [[r for r in mine[m] if name in ("all", group(r))] for m in every]
        most = max(len(c) for c in cells)
        rows.append([name] + [(value(c) if c else "–") + (f" ({len(c)})" if 0 < len(c) < most else "") for c in cells])
    return table(["", *(f"{label(m)} ({len(mine[m])})" for m in every)], rows)


def shared(records) -> list:
    """Records of the cases that all methods of their rotation did."""
    kept = []
    for angle in sorted({r["rotation"] for r in records}):
        at = pick(records, rotation=angle)
        cases = set.intersection(*({r["case"] for r in pick(at, method=m)} for m in methods(at)))
        kept += [r for r in at if r["case"] in cases]
    return kept


def mean_dice(found) -> str:
    """Mean Dice as text."""
    return f"{np.mean([r['dice'] for r in found]):.3f}"


def success(found) -> str:
    """Success rate in per cent as text."""
    return f"{100 * np.mean([r['success'] for r in found]):.0f}"


def failed(found) -> str:
    """Failure rate in per cent as text."""
    return f"{100 * np.mean([not r['success'] for r in found]):.0f}"


def rate_and_median(found) -> str:
    """Success rate and median error as text."""
    return f"{success(found)} % · {error(50)(found)}"


def error(percent: float):
    """A function: records → that percentile of their errors, in mm, as text; a failure is beyond any limit."""

    def text(found):
        value = np.percentile([r.get("error_mm", FAILED_MM) for r in found], percent)
        return "failed" if value >= FAILED_MM else f"{value:.2f}" if value < 10 else f"{value:.0f}"

    return text


def cost(records) -> str:
    """CPU seconds and memory of one registration, a row a method.

    Wall seconds are in the records, too; on a machine that does other work they say more about that. Records that were
    made on a slower or faster machine than the others have no seconds.
    """
    rows = []
    for method in methods(records):
        found = pick(records, method=method)
        timed = [r for r in found if "cpu_seconds" in r]
        if timed:
            cpu = [r["cpu_seconds"] for r in timed]
            values = [
                f"{np.median(cpu):.2f}",
                f"{np.percentile(cpu, 95):.2f}",
                f"{max(r['peak_mb'] for r in timed):.0f}",
            ]
        else:
            values = ["–"] * 3
        rows.append([label(method), *values, f"{sum('error' in r for r in found)} of {len(found)}"])
    return table(["", "CPU seconds, median", "95 %", "peak memory, MB", "failed"], rows)


def color(method: str):
    """The same color for a method in every panel."""
    from matplotlib import pyplot

    colors = pyplot.get_cmap("tab20").colors
    return colors[ORDER.index(method) % len(colors)] if method in ORDER else "black"


def line(axis, method: str, x, y, more: str = "") -> None:
    """A method's line in a panel, `more` behind its name; the default is broad, so that one on top is seen, too."""
    strong = method == "default"
    axis.plot(
        x,
        y,
        "o-",
        color=color(method),
        lw=4 if strong else 1.3,
        ms=8 if strong else 4,
        zorder=2 if strong else 3,
        label=label(method).lstrip("· ") + more,
    )


def of_artifact(records, name: str) -> list:
    """The records of cases that are named artifact@severity/…, of one artifact."""
    return [r for r in records if group(r).split("@")[0] == name]


def severity(record) -> float:
    """The severity in a case's name artifact@severity/…"""
    return float(group(record).split("@")[1])


def severity_panels(artifacts, severities, success_label: str):
    """A function: records → one panel for each artifact that has records, success against severity, a line a method."""

    def panel_of(name):
        def panel(axis, records):
            mine = of_artifact(records, name)
            for method in methods(mine):
                points = pick(mine, method=method)
                levels = sorted({severity(r) for r in points})
                rates = [100 * np.mean([r["success"] for r in points if severity(r) == level]) for level in levels]
                subjects = {r["case"].split("/")[-1] for r in points}
                line(axis, method, levels, rates, f" (n = {len(subjects)})")
            axis.set(title=name, xlabel="severity", ylabel=success_label, ylim=(-3, 103), xticks=severities)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)

        return panel

    return lambda records: [panel_of(name) for name in artifacts if of_artifact(records, name)]


def paired_difference(records, ours: str, other: str) -> str:
    """Mean Dice of one method less that of another on the pairs that both did, with a 95 % interval (Student's t)."""
    from scipy.stats import t

    values = [{r["case"]: r["dice"] for r in pick(records, method=method)} for method in (ours, other)]
    apart = np.array([values[0][case] - values[1][case] for case in values[0] if case in values[1]])
    if len(apart) < 2:
        return "–"
    half = t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
    return f"{apart.mean():+.3f} [{apart.mean() - half:+.3f}, {apart.mean() + half:+.3f}] ({len(apart)})"


def auroc(scores, positive):
    """Area under the ROC curve of scores against a boolean array; None where there is one kind only."""
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    a, b = scores[positive], scores[~positive]
    if not len(a) or not len(b):
        return None
    return float(((a[:, None] > b).sum() + 0.5 * (a[:, None] == b).sum()) / (len(a) * len(b)))


def _ranks(values):
    values = np.asarray(values, float)
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def spearman(a, b) -> float:
    """Rank correlation."""
    a, b = _ranks(a), _ranks(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
