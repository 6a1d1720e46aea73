"""The probability that an answer is right, the word for it, and what people should know beside it.

One logistic regression a strategy, monotone in every figure of the Evidence, fitted on final answers of known truth
(``python -m Benchmark calibrate``; confidence.json says on how many, of which subjects, and when).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..spatial import geometry
from .evidence import VERSION, Evidence

#: The coefficients, and the three cut-offs of the probability: an answer is "good" from the first on, "fair" from the
#: second on, and the search goes on below the third.
COEFFICIENTS = Path(__file__).with_name("confidence.json")

#: A measure of sides below this, the other way round, is a mirrored volume: 333 heads and mirrored heads, each measured
#: by what others had taught, had 0.19 or more on their own side.
MIRRORED = 0.1

#: The probability that an answer in which left lies on right is right after all: none of the 333 was told wrongly, so
#: at most 1 % (95 % bound, rule of three).
LEFT_ON_RIGHT = 0.01


#: Strain that says nothing against an answer. Individuals differ by 0.02 to 0.11 (26 right answers), copies by up to
#: 0.03, wrong answers in the right place by 0.08 to 0.15 (8); freeing 0.2, as before, called two cut chests good.
FREE_STRAIN = 0.05


def features(evidence: Evidence) -> dict[str, float | None]:
    """The figures that the regression weighs, each the larger the likelier an answer is right; None where unknown."""

    def logit(share: float | None) -> float | None:
        return None if share is None else float(np.log(share / (1 - share))) if 0.01 < share < 0.99 else np.sign(
            share - 0.5
        ) * 4.6  # fmt: skip

    def small(length: float | None) -> float | None:
        return None if length is None else -float(np.log(np.clip(length, 1e-3, 1.0)))

    return {
        "similarity": logit(evidence.similarity),
        "least_similarity": logit(evidence.least_similarity),
        "correlation": logit(evidence.correlation),
        "information": logit(evidence.information),
        "overlap": min(evidence.overlap, 0.5),  # parts of an object may have half of it in common
        "strain": -float(np.clip(evidence.strain - FREE_STRAIN, 0.0, 1.0)),
        "spread": small(1.0 if evidence.spread is None else evidence.spread),
        "margin": None if evidence.margin is None else float(np.clip(evidence.margin, -0.2, 0.4)),
        "lead": None if evidence.lead is None else float(np.clip(evidence.lead, -0.2, 0.4)),
        "searches": evidence.searches or 0.0,  # where nobody searched, nothing speaks for the answer
        "refined": evidence.refined,
        # Where the network was not asked, or cannot tell, nothing speaks for the answer; at chance it agrees by half.
        "agreement": 0.0 if evidence.agreement is None else float(np.clip(2 * evidence.agreement - 1, 0.0, 1.0)),
        "detour": small(evidence.detour),
    }


@lru_cache(maxsize=1)
def coefficients() -> dict:
    """What confidence.json holds. Raises ValueError where it was fitted to figures of another version."""
    found = json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
    if found["evidence_version"] != VERSION:
        raise ValueError(
            f"confidence.json was fitted to version {found['evidence_version']} of the evidence, this is {VERSION}; "
            "run python -m Benchmark calibrate"
        )
    return found


def probability(evidence: Evidence, strategy: str) -> float:
    """That an answer with this evidence is right, 0…1; a strategy without rows of its own is judged as any."""
    fitted = coefficients()["strategies"]
    return apply(fitted.get(strategy, fitted["any"]), evidence)


def apply(fit: dict, evidence: Evidence) -> float:
    """The logistic of one strategy: an unknown figure counts as the usual one."""
    total = fit["intercept"]
    for name, value in features(evidence).items():
        if name in fit["weights"] and value is not None:
            total += fit["weights"][name] * (value - fit["usual"][name])
    return float(1 / (1 + np.exp(-total)))


def accept_from() -> float:
    """The probability from which the search ends."""
    return coefficients()["cutoffs"]["good"]


def word(probability_: float) -> str:
    """ "good", "fair" or "poor"."""
    cutoffs = coefficients()["cutoffs"]
    return "good" if probability_ >= cutoffs["good"] else "fair" if probability_ >= cutoffs["fair"] else "poor"


@dataclass
class Quality:
    """Figures of one registration.

    similarity_before, similarity_after: mean local squared correlation over the tissue of one of the volumes (the one
    for which it is larger in either state), 0…1, blind to contrast. overlap: share of the fixed tissue inside the
    moving field of view. spread_mm: RMS distance over the tissue between repeated refinements from perturbed starts
    (None where the volumes do not meet). agreement: 0…1, how far what the network finds to correspond agrees (None
    where it cannot tell). detour_mm, confirmed: how far from the answer the way round by a template ends, and whether
    that confirms or contradicts it (None where it was not asked, as the volumes are alike enough, and where it says
    neither). sides: of the moving and of the fixed volume, about 1 where left is left, about -1 where it is seen as in
    a mirror (None where it cannot be told). evidence: all figures from which the probability follows. probability: that
    the answer is right, 0…1. mirrored: the similarity if one of the volumes is seen as in a mirror, where that is far
    larger than as it is (else None). confidence: "good", "fair" or "poor", by the probability.
    """

    similarity_before: float
    similarity_after: float
    overlap: float | None
    spread_mm: float | None = None
    agreement: float | None = None
    detour_mm: float | None = None
    confirmed: bool | None = None
    sides: tuple | None = None
    evidence: dict | None = None
    probability: float = 0.0
    mirrored: float | None = None
    confidence: str = "poor"
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        line = f"similarity {self.similarity_before:.2f} → {self.similarity_after:.2f}, confidence {self.confidence}"
        return f"{line} ({'; '.join(self._notes())})"

    def why(self) -> str:
        """What the word of confidence rests on: what speaks against the answer, else what speaks for it."""
        against = [warning.split(";")[0].rstrip(".") for warning in self.warnings]
        against = [reason[:1].lower() + reason[1:] for reason in against]
        return "; ".join([*against, odds(self.probability)] if against else self._notes())

    def _notes(self) -> list[str]:
        notes = [odds(self.probability)]
        if self.spread_mm is not None:
            notes.append(f"repeated runs agree within {_length(self.spread_mm)}")
        if self.same_sides:
            notes.append("left and right agree")
        return notes

    @property
    def same_sides(self) -> bool:
        """Whether both volumes surely have left on the same side."""
        return self.sides is not None and (min(self.sides) > MIRRORED or max(self.sides) < -MIRRORED)

    @property
    def left_on_right(self) -> bool:
        """Whether left of one volume surely lies on right of the other."""
        return self.sides is not None and min(self.sides) < -MIRRORED and max(self.sides) > MIRRORED

    def in_millimeters(self, scale: float) -> None:
        """Turn lengths in units of the work, ``scale`` of which are 1 mm, into mm."""
        self.spread_mm = None if self.spread_mm is None else self.spread_mm / scale
        self.detour_mm = None if self.detour_mm is None else self.detour_mm / scale

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)


#: Less is not claimed: none of 331 calibrating answers that said so was wrong, so at most 0.9 % are (95 % bound).
LEAST_ODDS = 0.01


def odds(probability_: float) -> str:
    """How often such an answer is wrong, for people."""
    wrong = 1 - probability_
    if wrong >= 0.2:
        return f"{100 * wrong:.0f} of 100 such answers are wrong"
    if wrong < LEAST_ODDS:
        return "fewer than 1 in 100 such answers is wrong"
    return f"about 1 in {round(1 / wrong)} such answers is wrong"


def _length(mm: float) -> str:
    return f"{mm:.1f} mm" if mm >= 0.095 else f"{1000 * mm:.0f} µm"


def judge(quality: Quality, decomposition: geometry.Decomposition) -> Quality:
    """Fill in confidence and warnings from the figures, lengths in mm."""
    warnings = list(quality.warnings)
    evidence = Evidence.from_dict(quality.evidence) if quality.evidence else None
    if quality.similarity_after < quality.similarity_before - 0.005:
        warnings.append("The volumes were more alike before the registration than after it.")
    if quality.overlap is not None and quality.overlap < 0.5:
        warnings.append(f"Only {100 * quality.overlap:.0f} % of the fixed tissue lies inside the moving field of view.")
    scales = np.array(decomposition.scales_percent)
    if scales.min() < 60 or scales.max() > 165:
        warnings.append("The scaling is larger than between two individuals; the answer is probably wrong.")
    warnings += _mirrored(quality.sides)
    if quality.mirrored is not None:
        warnings.append(
            "One of the two volumes looks like a mirror image: in a mirror they are alike by "
            f"{quality.mirrored:.2f}, as they are "
            f"by {quality.similarity_after:.2f}; check both headers before using the answer."
        )
    if quality.left_on_right or quality.mirrored is not None:
        quality.probability = min(quality.probability, LEFT_ON_RIGHT)
    quality.confidence = word(quality.probability)
    if quality.confidence == "good" and quality.sides is not None and min(quality.sides) < -MIRRORED:
        quality.confidence = "fair"  # laid on each other as they should be, but seen as in a mirror
    elif quality.confidence != "good":
        warnings += _reasons(quality, evidence)
    quality.warnings = warnings
    return quality


def _reasons(quality: Quality, evidence: Evidence | None) -> list[str]:
    """Why an answer is not good, the strongest reason first."""
    found = []
    if quality.similarity_after < 0.3:
        found.append("The volumes are hardly alike where they now lie; look at the result before using it.")
    if quality.confirmed is False:
        found.append(
            f"By way of a template the answer is another one, {_length(quality.detour_mm or 0)} away; look at the "
            "result before using it."
        )
    if evidence is not None and evidence.spread is not None and evidence.spread > 0.01:
        found.append(f"Repeated runs disagree by {_length(quality.spread_mm or 0)}; do not rely on this answer unseen.")
    if evidence is not None and evidence.margin is not None and evidence.margin < 0.05:
        found.append("Another pose makes the volumes nearly as alike; look whether this is the right one.")
    if evidence is not None and not evidence.refined:
        found.append("The refinement led away and was undone; look at the result before using it.")
    return found or ["Nothing speaks for this answer strongly enough; look at the result before using it."]


def _mirrored(sides: tuple | None) -> list[str]:
    """What to say of volumes that are seen as in a mirror."""
    names = [name for name, side in zip(("moving", "fixed"), sides or ()) if side < -MIRRORED]
    if not names:
        return []
    which = "Both volumes look" if len(names) == 2 else f"The {names[0]} volume looks"
    return [f"{which} mirrored, with left and right swapped; check the header before using the answer."]
