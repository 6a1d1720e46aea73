"""Tables (Markdown) and figures (PNG) made from result files alone."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from . import results

LABELS = {
    "default": "Spatial Diffusion (default)", "no-network": "· without the network", "no-polish": "· without polish",
    "diffusion": "· diffusion alone", "diffusion-search": "· diffusion alone, its own search",
    "reference": "· reference sampler, 65 steps",
    "ants-affine": "ANTs Affine", "ants-affinefast": "ANTs AffineFast", "elastix": "elastix rigid→affine",
    "greedy": "greedy", "greedy-search": "greedy -search", "mattes": "SimpleITK Mattes MI",
    "centers": "centers of mass",
}
#: From the largest number of methods down, as the report lists them.
ORDER = list(LABELS)


def _methods(records) -> list:
    found = {r["method"] for r in records}
    return [m for m in ORDER if m in found] + sorted(found - set(ORDER))


def _table(header, rows) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _pick(records, **wanted) -> list:
    return [r for r in records if all(r[k] == v for k, v in wanted.items())]


def _sweep_table(records, value, mark_subsets=True) -> str:
    """One row a method, one column a rotation; ``value`` turns records into text. Subsets show their number."""
    rotations = sorted({r["rotation"] for r in records})
    most = max(len(_pick(records, method=m, rotation=a)) for m in _methods(records) for a in rotations)
    rows = []
    for method in _methods(records):
        row = [LABELS.get(method, method)]
        for angle in rotations:
            found = _pick(records, method=method, rotation=angle)
            text = value(found) if found else "–"
            row.append(text + (f" ({len(found)})" if found and len(found) < most and mark_subsets else ""))
        rows.append(row)
    return _table(["", *(f"{a:g}°" for a in rotations)], rows)


def _common(records, methods, rotation) -> list:
    """Records at a rotation of the cases that all ``methods`` did."""
    at = _pick(records, rotation=rotation)
    shared = set.intersection(*({r["case"] for r in at if r["method"] == m} for m in methods))
    return [r for r in at if r["case"] in shared and r["method"] in methods]


def _mean_dice(found) -> str:
    return f"{np.mean([r['dice'] for r in found]):.3f}"


def _success(found) -> str:
    return f"{100 * np.mean([r['success'] for r in found]):.0f}"


def _cost_table(records) -> str:
    rows = []
    for method in _methods(records):
        found = _pick(records, method=method)
        timed = [r for r in found if "seconds" in r]
        if timed:
            wall, cpu = ([r[k] for r in timed] for k in ("seconds", "cpu_seconds"))
            cost = [f"{np.median(wall):.2f}", f"{np.percentile(wall, 95):.2f}", f"{np.median(cpu):.2f}",
                    f"{max(r['peak_mb'] for r in timed):.0f}"]
        else:
            cost = ["–"] * 4
        rows.append([LABELS.get(method, method), *cost, f"{len(found) - len(timed)} of {len(found)}"])
    return _table(["", "seconds, median", "95 %", "CPU seconds, median", "peak memory, MB", "crashed"], rows)


def _brains(records) -> list:
    every = _methods(records)
    cases = len({r["case"] for r in records})
    parts = [
        "## Brains from turned headers",
        f"Ten OASIS-1 scans that no model was trained on, {cases} pairs; the moving header is turned about a random "
        "axis and shifted by 20 mm. Mean Dice of 32 structures; (n) where a method did fewer pairs.",
        "**Mean Dice**", _sweep_table(records, _mean_dice),
        "**Worst pair**", _sweep_table(records, lambda found: f"{min(r['dice'] for r in found):.3f}"),
        "**Success (Dice at least 0.45), %**", _sweep_table(records, _success),
        "**Time and memory, one registration**", _cost_table(records),
    ]
    shared = [record for angle in sorted({r["rotation"] for r in records})
              for record in _common(records, [m for m in every if _pick(records, method=m, rotation=angle)], angle)]
    if len(shared) < len(records):
        parts += ["**Mean Dice on the pairs that every method in the column did**",
                  _sweep_table(shared, lambda found: f"{_mean_dice(found)} [{len(found)}]", mark_subsets=False)]
    return parts


def _hard(records) -> list:
    conditions = list(dict.fromkeys(r["case"].split("/")[0] for r in records))

    def table(value):
        rows = []
        for method in _methods(records):
            mine = _pick(records, method=method)
            groups = [[r for r in mine if r["case"].startswith(c + "/")] for c in conditions]
            rows.append([LABELS.get(method, method), *(value(g) if g else "–" for g in [*groups, mine]),
                         str(len(mine))])
        return _table(["", *conditions, "all", "n"], rows)

    def error(found, percent):
        # A crash is an error beyond any limit.
        return f"{np.percentile([r.get('error_mm', 999.0) for r in found], percent):.2f}"

    parts = [
        "## Known transforms, hard conditions",
        "Held-out scans; turned by up to 180°, shifted by up to 50 mm, scaled by 0.8–1.25, sheared; both volumes "
        "corrupted independently. Error: RMS distance over the head. A success is below 5 mm.",
        "**Success, %**", table(_success), "**Median error, mm**", table(lambda found: error(found, 50)),
        "**95th percentile of the error, mm**", table(lambda found: error(found, 95)),
        "**Time and memory, one registration**", _cost_table(records),
    ]
    rows = []
    for method in _methods(records):
        judged = [r for r in _pick(records, method=method) if r.get("spread_mm") is not None]
        if len(judged) >= 5:
            errors, spreads = (np.array([r[k] for r in judged]) for k in ("error_mm", "spread_mm"))
            wrong = errors > 10
            area = auroc(spreads, wrong)
            poor = [r["confidence"] == "poor" for r in judged]
            rows.append([LABELS.get(method, method), str(len(judged)), str(int(wrong.sum())),
                         "–" if area is None else f"{area:.2f}", f"{spearman(spreads, errors):.2f}",
                         f"{sum(p and w for p, w in zip(poor, wrong))} of {int(wrong.sum())}",
                         f"{sum(p and not w for p, w in zip(poor, wrong))} of {int((~wrong).sum())}"])
    if rows:
        parts += ["**The error bar**", _table(
            ["", "n", "errors > 10 mm", "AUROC of the spread", "Spearman", "wrong called poor", "right called poor"],
            rows)]
    return parts


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


def text(folder) -> str:
    """The whole report as Markdown."""
    everything = results.read(folder)
    records = results.registrations(everything)
    if not records:
        return "# Benchmark\n\nNo results yet.\n"
    parts = ["# Benchmark"]
    machines = list({(m["cpu"], m["cores"], m["threads"]): m for m in everything if m["task"] == "machine"}.values())
    for m in machines:
        parts.append(f"Measured on {m['cpu']}, {m['threads']} thread(s) of {m['cores']}; {m['system']}, Python "
                     f"{m['python']}, PyTorch {m['torch']}. Wall seconds without process start and file reading.")
    for task in ("brains", "hard"):
        builds = sorted({r["build"] for r in records if r["task"] == task and r.get("build")})
        if builds:
            parts.append(f"Model of the task {task}: {', '.join(builds)}." + (
                " **More than one model: its results do not belong together.**" if len(builds) > 1 else ""))
    for task, section in (("brains", _brains), ("hard", _hard)):
        mine = [r for r in records if r["task"] == task]
        if mine:
            parts += section(mine)
    return "\n\n".join(parts) + "\n"


def figure(folder, path) -> None:
    """Dice against rotation, and success on the hard conditions, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = results.registrations(results.read(folder))
    brains, hard = ([r for r in records if r["task"] == task] for task in ("brains", "hard"))
    panels = [p for p, r in ((_draw_sweep, brains), (_draw_hard, hard)) if r]
    drawing, axes = pyplot.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.2), squeeze=False)
    colors = dict(zip(ORDER, pyplot.get_cmap("tab20").colors))
    for panel, axis in zip(panels, axes[0]):
        panel(axis, brains if panel is _draw_sweep else hard, colors)
    drawing.tight_layout()
    drawing.savefig(path, dpi=90)
    pyplot.close(drawing)


def _draw_sweep(axis, records, colors):
    for method in _methods(records):
        angles = sorted({r["rotation"] for r in records if r["method"] == method})
        values = [np.mean([r["dice"] for r in _pick(records, method=method, rotation=a)]) for a in angles]
        strong = method == "default"
        axis.plot(angles, values, "o-", color=colors.get(method), lw=2.6 if strong else 1.3, ms=6 if strong else 4,
                  zorder=3 if strong else 2, label=LABELS.get(method, method))
    axis.set(xlabel="moving header turned by, degrees", ylabel="mean Dice of 32 structures", ylim=(0, 0.7),
             title="Brains from any pose")
    axis.legend(fontsize=7, loc="best")
    axis.grid(alpha=0.3)


def _draw_hard(axis, records, colors):
    conditions = list(dict.fromkeys(r["case"].split("/")[0] for r in records))
    methods = _methods(records)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        groups = [[r for r in records if r["method"] == method and r["case"].startswith(c + "/")] for c in conditions]
        heights = [100 * np.mean([r["success"] for r in g]) if g else np.nan for g in groups]
        axis.bar(np.arange(len(conditions)) + (index - (len(methods) - 1) / 2) * width, heights, width,
                 color=colors.get(method), label=LABELS.get(method, method))
    axis.set_xticks(range(len(conditions)), conditions, rotation=30, ha="right")
    axis.set(ylabel="success (< 5 mm), %", ylim=(0, 135), yticks=range(0, 101, 20),
             title="Known transforms, corrupted volumes")
    axis.legend(fontsize=7, loc="upper center", ncols=2)
    axis.grid(axis="y", alpha=0.3)


def write(folder) -> list:
    """Write report.md and report.png beside the results; returns their paths."""
    from SpatialDiffusionCore.errors import InputError

    folder = Path(folder)
    if not results.registrations(results.read(folder)):
        raise InputError(f"{folder} holds no results; run the benchmark first.")
    table, picture = folder / "report.md", folder / "report.png"
    table.write_text(text(folder), encoding="utf-8")
    figure(folder, picture)
    return [table, picture]
