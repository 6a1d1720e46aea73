"""What is said of task ``anatomies``: right, wrong and silent answers by kind and collection."""

from __future__ import annotations

from functools import partial

import numpy as np

from . import calibration_report, tables

HEADER = (
    "kind",
    "collection",
    "n",
    "right",
    "wrong",
    "silent",
    "fair and wrong",
    "refused",
    "crashed",
    "good of right",
    "CPU s, median",
    "worst",
)


def word(record: dict) -> str:
    """What the method said of its answer; nothing where it gave none."""
    return record.get("word") or record.get("confidence") or ""


def silent(record: dict) -> bool:
    """Wrong, and called good."""
    return bool(record.get("wrong")) and word(record) == "good"


def refused(record: dict) -> bool:
    """Refused with a sentence for people, not with an internal error."""
    return record.get("error", "").startswith("InputError")


def row(found: list[dict]) -> list[str]:
    """The figures of some records, as HEADER has them from n on."""
    right = [r for r in found if r["success"]]
    cpu = [r["cpu_seconds"] for r in found if "cpu_seconds" in r]
    words = [word(r) for r in right]
    return [
        str(len(found)),
        str(len(right)),
        str(sum(r["wrong"] for r in found)),
        str(sum(map(silent, found))),
        str(sum(r["wrong"] and word(r) == "fair" for r in found)),
        str(sum(map(refused, found))),
        str(sum("error" in r and not refused(r) for r in found)),
        f"{words.count('good')}/{len(right)}",
        f"{np.median(cpu):.1f}" if cpu else "–",
        f"{max(cpu):.1f}" if cpu else "–",
    ]


def rows(records: list[dict]) -> list[list[str]]:
    """A row for each kind and collection, one for each kind, and one for all but hopeless pairs."""
    parts = [(*r["case"].split("/")[:2], r) for r in records]
    order = list(dict.fromkeys((kind, collection) for kind, collection, _ in parts))
    kinds = [kind for kind in "AKRCISPX" if any(kind == k for k, _ in order)]
    result = []
    for kind in kinds:
        for collection in sorted(c for k, c in order if k == kind):
            result.append([kind, collection, *row([r for k, c, r in parts if (k, c) == (kind, collection)])])
        result.append([kind, "all", *row([r for k, _, r in parts if k == kind])])
    hopeful = [r for k, _, r in parts if k != "X"]
    return result + ([["all but X", "all", *row(hopeful)]] if hopeful else [])


def text(records: list[dict]) -> str:
    """The table with aligned columns, for a terminal."""
    lines = [list(HEADER), *rows(records)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def section(records: list[dict]) -> list[str]:
    """The report's part."""
    parts = [
        "## Other organs, animals and sizes",
        "People and animals of the locked half. Copies of known truth, turned by 40–180° about any axis and shifted by "
        "a quarter of their size (twice the RMS radius of the fixed tissue): A header only; K longest axis cut to 65 % "
        "and the next to 80 %, gamma, noise; R other spacing, axis order and flips, noise; C contrast of the tissue "
        "inverted; S stretched by up to 25 % and one artifact; P pairs of two animals or people, visits and contrasts. "
        "Right: within 1 % of the size or half the coarsest voxel, wrong: beyond 3 %; pairs by Dice, landmarks or a "
        "consensus. Silent: wrong and called good.",
    ]
    for method in tables.methods(records):
        mine = tables.pick(records, method=method)
        parts += [f"**{tables.label(method).lstrip('· ')}**", tables.table(HEADER, rows(mine))]
        judged = calibration_report.judged_of(mine)
        if judged:
            parts += [
                "**Its probability of being right**: expected calibration error (ECE), Brier score beside a constant's",
                *calibration_report.text(judged),
            ]
    return [*parts, "**Time and memory, one registration**", tables.cost(records)]


def _rates(found: list[dict]) -> str:
    return f"{tables.success(found)} % ({100 * np.mean([r['wrong'] for r in found]):.0f} %)"


def panels(records: list[dict]) -> list:
    """The reliability diagram of the first method that says a probability."""
    for method in tables.methods(records):
        if calibration_report.judged_of(tables.pick(records, method=method)):
            return [partial(_reliability, method=method)]
    return []


def _reliability(axis, records: list[dict], *, method: str) -> None:
    calibration_report.panel(axis, calibration_report.judged_of(tables.pick(records, method=method)))


def summary(records: list[dict]) -> list[str]:
    """The README's part: a row a kind, a column a method."""
    return [
        "**Other organs, animals and sizes**: mouse brains and skulls, spines, chests, torsos, necks and heads from "
        "any pose; kinds as in the report. Right in %, wrong in brackets.",
        tables.groups_down(records, _rates, tuple("AKRCPX")),
        tables.cost(records),
    ]
