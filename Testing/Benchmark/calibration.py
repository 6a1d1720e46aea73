"""The mathematics of a calibrated probability: a monotone logistic fit, and how true its probabilities are.

Nothing here knows volumes. Conventions of the figures are scikit-learn's (brier_score_loss, calibration_curve with
bins of one width, roc_auc_score).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from SpatialDiffusionCore.pipeline.confidence import ABOVE, bent

from . import tables

#: The penalty on squared weights of standardized figures, as of a Gaussian of standard deviation 1 around no weight: it
#: keeps weights finite where right and wrong are separated. Chosen, untested.
PENALTY = 1.0

#: Bins of the reliability diagram and of the expected calibration error.
BINS = 10

#: Decimals of the coefficients that are written.
DECIMALS = 5

#: A figure is bent at this share of the wrong answers that it is known of, where there are so many: beyond it wrong
#: ones are rare, and how far beyond tells less or more than below. Chosen among none, 50, 75 and 90 %
#: by fits to other people (NOTES, "Stretched copies").
BEND, ENOUGH_FOR_BEND = 0.9, 20

Figures = dict[str, Optional[float]]


def fit(rows: Sequence[Figures], right: Sequence[bool]) -> dict:
    """{"intercept", "bends", "usual": {figure: value}, "weights": {figure: weight ≥ 0}} of a logistic regression.

    Every figure is the larger the likelier an answer is right, so no weight may be negative; figures with a bend are in
    two parts (pipeline/confidence.py). An unknown figure (None)
    counts as the usual one, the mean of those known. Figures without a weight are left out. Raises ValueError where all
    answers are right or all wrong.
    """
    from scipy.optimize import minimize

    truth = np.asarray(right, float)
    if not len(truth) or truth.min() == truth.max():
        raise ValueError("a fit needs right and wrong answers")
    bends = _bends(rows, truth)
    rows = [bent(row, bends) for row in rows]
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = np.array([[np.nan if row[name] is None else row[name] for name in names] for row in rows], float)
    usual, scale = np.nanmean(table, axis=0), np.maximum(np.nanstd(table, axis=0), 1e-6)
    design = np.nan_to_num((table - usual) / scale)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        margin = values[0] + design @ values[1:]
        wrong = 1 / (1 + np.exp(-margin)) - truth
        value = np.logaddexp(0, margin).sum() - truth @ margin + PENALTY / 2 * values[1:] @ values[1:]
        return float(value), np.concatenate([[wrong.sum()], design.T @ wrong + PENALTY * values[1:]])

    bounds = [(None, None), *[(0, None)] * len(names)]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 5000}
    found = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = {name: w / s for name, w, s in zip(names, found[1:], scale) if w > 1e-4}
    return {
        "intercept": round(float(found[0]), DECIMALS),
        "bends": {name: bend for name, bend in bends.items() if name in weights or name + ABOVE in weights},
        "usual": {n: round(float(u), DECIMALS) for n, u in zip(names, usual) if n in weights},
        "weights": {name: round(float(weight), DECIMALS) for name, weight in weights.items()},
    }


def _bends(rows: Sequence[Figures], truth: np.ndarray) -> dict[str, float]:
    """{figure: where it is bent}."""
    bends = {}
    for name in rows[0]:
        values = [row[name] for row, right in zip(rows, truth) if not right and row[name] is not None]
        if len(values) >= ENOUGH_FOR_BEND:
            bends[name] = round(float(np.quantile(values, BEND)), DECIMALS)
    return bends


def probabilities(fitted: dict, rows: Sequence[Figures]) -> np.ndarray:
    """What a fit says of rows."""
    totals = []
    for row in rows:
        parts = bent(row, fitted["bends"])
        known = [(name, value) for name, value in parts.items() if name in fitted["weights"] and value is not None]
        totals.append(sum(fitted["weights"][name] * (value - fitted["usual"][name]) for name, value in known))
    return 1 / (1 + np.exp(-(fitted["intercept"] + np.array(totals, float))))


def left_out(rows: Sequence[Figures], right: Sequence[bool], people: Sequence[set[str]], folds: int = 5) -> np.ndarray:
    """The probability of each row by a fit to rows that share no person with its fold; NaN where none can be made.

    people: whose volumes a row is of. Folds are of people, in the order of their names.
    """
    every = sorted(set().union(*people))
    fold_of = {person: index % folds for index, person in enumerate(every)}
    found = np.full(len(rows), np.nan)
    for fold in range(folds):
        inside = [any(fold_of[p] == fold for p in persons) for persons in people]
        others = [i for i, within in enumerate(inside) if not within]
        # A row of two people of two folds belongs to that of the first by name.
        mine = [i for i, persons in enumerate(people) if fold_of[min(persons)] == fold]
        labels = [right[i] for i in others]
        if mine and len(set(labels)) == 2:
            found[mine] = probabilities(fit([rows[i] for i in others], labels), [rows[i] for i in mine])
    return found


# --- how true probabilities are ----------------------------------------------------------------------------


def reliability(chances: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean probability, share of right answers, number) of each bin of one width that has any."""
    place = np.minimum((chances * bins).astype(int), bins - 1)
    found = [(chances[place == b], right[place == b]) for b in range(bins)]
    return [(float(c.mean()), float(r.mean()), len(c)) for c, r in found if len(c)]


def calibration_error(chances: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the bins' distances between probability and share, weighted by their numbers."""
    return sum(n * abs(chance - share) for chance, share, n in reliability(chances, right, bins)) / len(chances)


def brier(chances: np.ndarray, right: np.ndarray) -> float:
    """Mean squared difference between probability and what came."""
    return float(np.mean((chances - right) ** 2))


def constant_brier(right: np.ndarray) -> float:
    """The Brier score of the share of right answers, said of every one."""
    return float(np.mean(right) * (1 - np.mean(right)))


def upper_bound(wrong: int, count: int, level: float = 0.95) -> float:
    """One-sided upper bound of a share (Clopper and Pearson, Biometrika 26:404, 1934); 1 where there is nothing."""
    from scipy.stats import beta

    return 1.0 if wrong >= count else float(beta.ppf(level, wrong + 1, count - wrong))


def cut_off(chances: np.ndarray, right: np.ndarray, most: float, bound: bool = True) -> float | None:
    """The lowest probability from which on the share of wrong ones, or its upper 95 % bound, is at most ``most``.

    None where no probability reaches that; then there are too few answers to tell.
    """
    order = np.argsort(-chances, kind="stable")
    wrong = np.cumsum(1 - right[order].astype(int))
    best = None
    for count in range(1, len(order) + 1):
        last_of_its_chance = count == len(order) or chances[order[count]] < chances[order[count - 1]]
        share = upper_bound(int(wrong[count - 1]), count) if bound else wrong[count - 1] / count
        if last_of_its_chance and share <= most:
            best = float(chances[order[count - 1]])
    return best


def summary(chances: np.ndarray, right: np.ndarray) -> list[str]:
    """n, wrong, mean probability, expected calibration error, Brier score and that of a constant, AUROC, as text."""
    area = tables.auroc(chances, right)
    return [
        str(len(right)),
        str(int((~right.astype(bool)).sum())),
        f"{chances.mean():.3f}",
        f"{calibration_error(chances, right):.3f}",
        f"{brier(chances, right):.3f}",
        f"{constant_brier(right):.3f}",
        "–" if area is None else f"{area:.3f}",
    ]
