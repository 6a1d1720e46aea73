"""Whether the method knows when it is wrong: its spread, similarity and words against the error, over all tasks."""

from __future__ import annotations

import numpy as np

from SpatialDiffusionCore.pipeline.confidence import MIRRORED

from . import tables

#: An answer further off than this is wrong, mm.
WRONG_MM = 10.0

#: Scores of a registration and the direction in which they warn: 1 where a large value does, −1 where a small one does.
SCORES = {"spread_mm": ("spread", 1), "similarity_after": ("similarity", -1)}

#: Bounds of the error in the table of words, mm.
_BOUNDS = (0.0, 2.0, 5.0, WRONG_MM, np.inf)


def mirrored(record) -> bool:
    """Whether the case is a mirrored head, for which no transform without a reflection is right."""
    return tables.group(record).startswith("mirror")


def wrong(record) -> bool:
    """Whether the answer is wrong: too far off, labels that miss each other, or nothing that could be right."""
    if "error_mm" in record:
        return record["error_mm"] > WRONG_MM
    return not record["success"]


def _score(record, name: str, sign: int) -> float:
    value = record.get(name)
    return np.inf if value is None else sign * value  # what could not be told is the strongest warning


def _area(records, name: str) -> str:
    if not any(r.get(name) is not None for r in records):
        return "–"
    area = tables.auroc([_score(r, name, SCORES[name][1]) for r in records], [wrong(r) for r in records])
    return "–" if area is None else f"{area:.2f}"


def _judged(records) -> list:
    """Records that carry a spread, without retinas and anatomies (of which 10 mm is more than all, or next to nothing),
    other numbers of steps, and pairs that stand beside mirrored ones for comparison (the brains task has them)."""
    return [
        r
        for r in records
        if r.get("spread_mm") is not None
        and r["task"] not in ("oct", "octa", "anatomies")
        and r["method"] == tables.parse(r["method"]).base
        and tables.group(r) != "true"
    ]


def section(records) -> list:
    """The report's part about confidence; nothing where no method said any."""
    judged = _judged(records)
    true = [r for r in judged if not mirrored(r)]
    table = _areas(true)
    if table is None:
        return []
    main = tables.methods(true)[0]
    return [
        "## The error bar",
        "Made by `python -m Benchmark report RESULTS` from all tasks but anatomies and the retinas.",
        f"Wrong: more than {WRONG_MM:g} mm off; where only labels judge, a failure "
        "of that task; where nothing could be right, every answer. Spearman: of spread and error, where that is known.",
        table,
        f"**Words against errors, {tables.label(main)}**",
        words(tables.pick(judged, method=main)),
        *sides(tables.pick(records, method=main)),
    ]


def summary(records) -> list:
    """The README's part: the default's figures."""
    judged = tables.pick(_judged(records), method="default")
    table = _areas([r for r in judged if not mirrored(r)])
    if table is None:
        return []
    return [
        f"**The error bar**, over all tasks but anatomies and the retinas. Wrong: more than {WRONG_MM:g} mm off, or "
        "where labels judge, failed, or where nothing could be right. Below: how often each word went with which "
        "error. Made by `python -m Benchmark report RESULTS`.",
        table,
        words(judged),
        *sides(tables.pick(records, method="default")),
    ]


def _areas(true):
    """The table of how well each method's scores tell wrong from right; None where no method gives any."""
    scores = [name for name in SCORES if any(r.get(name) is not None for r in true)]
    rows = []
    for method in tables.methods(true):
        mine = tables.pick(true, method=method)
        far = [r for r in mine if r.get("spread_mm") is not None and "error_mm" in r]
        poor = [(r["confidence"] == "poor", wrong(r)) for r in mine]
        bad = sum(w for _, w in poor)
        rows.append(
            [
                tables.label(method),
                str(len(mine)),
                str(bad),
                *(_area(mine, name) for name in scores),
                f"{tables.spearman([r['spread_mm'] for r in far], [r['error_mm'] for r in far]):.2f}"
                if len(far) > 2
                else "–",
                f"{sum(p and w for p, w in poor)} of {bad}",
                f"{sum(p and not w for p, w in poor)} of {len(mine) - bad}",
            ]
        )
    if not rows:
        return None
    return tables.table(
        [
            "",
            "n",
            "wrong",
            *(f"AUROC of the {SCORES[name][0]}" for name in scores),
            "Spearman",
            "wrong called poor",
            "right called poor",
        ],
        rows,
    )


def sides(records) -> list:
    """A sentence: how often a volume was called mirrored, where it was and where not; none without measures."""
    measured = {True: [], False: []}
    for record in records:
        if record.get("sides") is not None:
            measured[mirrored(record)].append(min(record["sides"]) < -MIRRORED)
    if not any(measured.values()):
        return []
    all_mirrored = sum(mirrored(record) for record in records)
    return [
        f"Of {all_mirrored} pairs with a mirrored head {sum(measured[True])} were called mirrored, of "
        f"{len(measured[False])} others "
        f"in which both heads' sides could be measured {sum(measured[False])}."
    ]


def words(records) -> str:
    """How often each word went with which error; mirrored heads in a column of their own."""
    heads = ["< 2 mm", "2–5 mm", "5–10 mm", "> 10 mm", "labels overlap", "labels miss", "no right answer", "mirrored"]

    def column(record) -> str:
        if mirrored(record):
            return "mirrored"
        if "error_mm" in record:
            return heads[int(np.searchsorted(_BOUNDS, record["error_mm"], side="right")) - 1]
        if "dice" in record:
            return "labels overlap" if record["success"] else "labels miss"
        return "no right answer"

    rows = []
    for word in ("good", "fair", "poor"):
        found = [column(r) for r in records if r["confidence"] == word]
        rows.append([word, *(str(found.count(h)) for h in heads)])
    return tables.table(["", *heads], rows)
