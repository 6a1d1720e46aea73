"""How good a registration is and how far it can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Optional

import numpy as np

from ..spatial import geometry
from ..strategies.base import Limits, Strategy

#: mm of spread from which the search goes on: of 189 right answers between heads and brains 3 had more; a wrong
#: one that was alike enough (0.30, 96 mm off) had 2.4.
DISAGREEING = 2.0

#: Similarities below the first are poor whatever else is known, below the second unless the network agrees. A small
#: spread is no excuse: of answers below 0.3 whose repeated runs, then by intensities, agreed within 0.45 mm all were
#: 12 to 14 mm off.
SIMILARITY_LIMITS = (0.12, 0.28)

#: A measure of sides below this, the other way round, is a mirrored volume: 333 heads and mirrored heads, each measured by what
#: others had taught, had 0.19 or more on their own side.
MIRRORED = 0.1


@dataclass
class Quality:
    """Figures of one registration.

    similarity_before, similarity_after: mean local squared correlation over the tissue of one of the volumes (the one
    for which it is larger in either state), 0…1, blind to contrast.
    overlap: share of the fixed tissue inside the moving field of view. spread_mm: RMS distance over the head between
    repeated runs from perturbed starts (None where none were made). agreement: 0…1, how far what the network finds to
    correspond agrees (None where it was not asked). detour_mm, confirmed: how far
    from the answer the way round by a template ends, and whether that confirms or contradicts it (None where it was not asked,
    as the volumes are alike enough, and where it says neither). sides: of the moving and of the fixed volume, about 1 where left is
    left, about -1 where it is seen as in a mirror (None where it cannot be told). confidence: "good", "fair" or "poor".
    """

    similarity_before: float
    similarity_after: float
    overlap: float
    spread_mm: Optional[float] = None
    agreement: Optional[float] = None
    detour_mm: Optional[float] = None
    confirmed: Optional[bool] = None
    sides: Optional[tuple] = None
    confidence: str = "fair"
    warnings: list = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        line = f"similarity {self.similarity_before:.2f} → {self.similarity_after:.2f}, confidence {self.confidence}"
        if self.spread_mm is not None:
            agree = "; left and right agree" if self.same_sides else ""
            line += f" (repeated runs agree within {_length(self.spread_mm)}{agree})"
        return line

    @property
    def same_sides(self) -> bool:
        """Whether both volumes surely have left on the same side."""
        return self.sides is not None and (min(self.sides) > MIRRORED or max(self.sides) < -MIRRORED)

    def in_millimeters(self, scale: float) -> None:
        """Turn lengths in units of the work, ``scale`` of which are 1 mm, into mm."""
        self.spread_mm = None if self.spread_mm is None else self.spread_mm / scale
        self.detour_mm = None if self.detour_mm is None else self.detour_mm / scale

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)


def _length(mm: float) -> str:
    return f"{mm:.1f} mm" if mm >= 0.095 else f"{1000 * mm:.0f} µm"


def judge(
    quality: Quality,
    decomposition: geometry.Decomposition,
    limits: Limits = Strategy.limits,
    agreed: Optional[float] = None,
) -> Quality:
    """Fill in confidence and warnings from the figures; ``limits``: of the spread, ``agreed``: from which agreement on
    volumes need not be so similar."""
    warnings = []
    if quality.similarity_after < quality.similarity_before - 0.005:
        warnings.append("The volumes were more alike before the registration than after it.")
    if quality.overlap < 0.5:
        warnings.append(f"Only {100 * quality.overlap:.0f} % of the fixed tissue lies inside the moving field of view.")
    scales = np.array(decomposition.scales_percent)
    if scales.min() < 60 or scales.max() > 165:
        warnings.append("The scaling is larger than between two heads; the answer is probably wrong.")
    warnings += _mirrored(quality.sides)
    spread = quality.spread_mm
    confidence = "fair"
    if spread is not None:
        confidence = "good" if spread <= limits.good else "fair" if spread <= limits.fair else "poor"
        if confidence == "poor":
            warnings.append(f"Repeated runs disagree by {_length(spread)}; do not rely on this answer unseen.")
    told = quality.confirmed or agreed is not None and quality.agreement is not None and quality.agreement >= agreed
    unlike = SIMILARITY_LIMITS[0] if spread is None or told else SIMILARITY_LIMITS[1]
    if quality.similarity_after < unlike:
        warnings.append("The volumes are hardly alike where they now lie; look at the result before using it.")
        confidence = "poor"
    if quality.confirmed is False:
        warnings.append(
            f"By way of a template the answer is another one, {_length(quality.detour_mm)} away; look at the result "
            "before using it."
        )
        confidence = "poor"
    doubtful = quality.similarity_after < limits.convincing
    if confidence == "good" and (warnings or doubtful):
        confidence = "fair"
    if quality.similarity_after < quality.similarity_before - 0.005 or scales.min() < 60 or scales.max() > 165:
        confidence = "poor"
    if quality.sides is not None and min(quality.sides) < -MIRRORED and max(quality.sides) > MIRRORED:
        confidence = "poor"  # left lies on right
    quality.confidence, quality.warnings = confidence, warnings
    return quality


def _mirrored(sides) -> list:
    """What to say of volumes that are seen as in a mirror."""
    names = [name for name, side in zip(("moving", "fixed"), sides or ()) if side < -MIRRORED]
    if not names:
        return []
    which = "Both volumes look" if len(names) == 2 else f"The {names[0]} volume looks"
    return [f"{which} mirrored, with left and right swapped; check the header before using the answer."]
