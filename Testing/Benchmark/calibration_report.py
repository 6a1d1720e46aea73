"""How true the probabilities are that were said of answers: a table by kind and collection, the reliability diagram.

Hopeless pairs (kind X of task ``anatomies``) stand apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import calibration, tables

HEADER = ("kind", "collection", "n", "wrong", "mean P", "ECE", "Brier", "constant", "AUROC")


@dataclass(frozen=True)
class Judged:
    """The probability that was said of an answer, and whether it was right."""

    case: str
    chance: float
    right: bool


def judged_of(records: Sequence[dict]) -> list[Judged]:
    """Of a run's records what the product itself said; an answer that is neither right nor wrong takes no side."""
    told = [r for r in records if r.get("probability") is not None and (r["success"] or r["wrong"])]
    return [Judged(r["case"], float(r["probability"]), bool(r["success"])) for r in told]


def _arrays(judged: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([j.chance for j in judged]), np.array([j.right for j in judged])


def _hopeful(judged: Sequence[Judged]) -> list[Judged]:
    return [j for j in judged if not j.case.startswith("X/")]


def table(judged: Sequence[Judged]) -> list[list[str]]:
    """HEADER's figures of each kind and collection, of all that have a right answer, and of hopeless pairs."""
    by_group: dict[tuple, list[Judged]] = {}
    for one in judged:
        by_group.setdefault(tuple(one.case.split("/")[:2]), []).append(one)
    parts = [(*group, by_group[group]) for group in sorted(by_group)]
    parts.append(("all but X", "all", _hopeful(judged)))
    parts.append(("X", "all", [j for j in judged if j.case.startswith("X/")]))
    return [[kind, where, *calibration.summary(*_arrays(mine))] for kind, where, mine in parts if mine]


def bins(judged: Sequence[Judged]) -> list[list[str]]:
    """The reliability diagram as rows: probability, share of right answers, n; hopeless pairs left out."""
    points = calibration.reliability(*_arrays(_hopeful(judged)))
    return [[f"{chance:.3f}", f"{share:.3f}", str(count)] for chance, share, count in points]


def text(judged: Sequence[Judged]) -> list[str]:
    """Markdown parts: the table and the reliability diagram's numbers."""
    return [
        tables.table(HEADER, table(judged)),
        "**Reliability**, bins of one width, hopeless pairs left out",
        tables.table(["mean P", "right", "n"], bins(judged)),
    ]


def panel(axis, judged: Sequence[Judged]) -> None:
    """The reliability diagram with n at each point, on matplotlib's axis."""
    mine = _hopeful(judged)
    points = calibration.reliability(*_arrays(mine))
    axis.plot([0, 1], [0, 1], color="gray", lw=1)
    axis.plot([p[0] for p in points], [p[1] for p in points], "o-")
    for chance, share, count in points:
        axis.annotate(f"n = {count}", (chance, share), (4, -10), textcoords="offset points", fontsize=7)
    axis.set(xlabel="probability that was said", ylabel="share of right answers")
    axis.set(xlim=(-0.03, 1.12), ylim=(-0.03, 1.05), title=f"Reliability, n = {len(mine)}")
    axis.grid(alpha=0.3)


def draw(judged: Sequence[Judged], path: Path) -> None:
    """The reliability diagram in a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axis = pyplot.subplots(figsize=(4.6, 4.4))
    panel(axis, judged)
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)
    pyplot.close(drawing)
