"""What a registration found, kept as JSON on the transform node so that a saved scene still knows it."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Optional

import numpy as np
from slicer.i18n import tr as _

from .scene import REPORT_ATTRIBUTE


@dataclass
class Result:
    """`before` and `after` are the 4x4 matrices from the moving volume's own coordinates to the world."""

    moving: str
    fixed: str
    similarityBefore: float
    similarityAfter: float
    overlap: Optional[float]
    spread: Optional[float]
    confidence: str
    warnings: list
    summary: str
    decomposition: str
    seconds: float
    model: str
    modality: str
    before: list
    after: list
    report: dict = field(default_factory=dict)
    kinds: str = ""
    """What the volumes were taken for, in words."""
    sameSides: bool = False

    @classmethod
    def of(cls, registration, moving, fixed, before, after, notes=()):
        """From the core's Registration."""
        quality = registration.quality
        return cls(
            moving=moving, fixed=fixed,
            similarityBefore=float(quality.similarity_before), similarityAfter=float(quality.similarity_after),
            overlap=_number(quality.overlap), spread=_number(quality.spread_mm), confidence=str(quality.confidence),
            warnings=[*map(str, quality.warnings), *notes], summary=quality.summary(),
            decomposition=describe(registration.decomposition, registration.transform),
            seconds=float(registration.seconds),
            model=str(getattr(registration.model, "name", registration.model)), modality=str(registration.modality),
            before=np.asarray(before).tolist(), after=np.asarray(after).tolist(),
            report=json.loads(json.dumps(registration.report(), default=str)), kinds=registration.kinds(),
            sameSides=bool(quality.same_sides))

    def store(self, transformNode):
        transformNode.SetAttribute(REPORT_ATTRIBUTE, json.dumps(asdict(self)))

    @classmethod
    def stored(cls, transformNode):
        """The result kept on a transform node, or None."""
        text = transformNode.GetAttribute(REPORT_ATTRIBUTE) if transformNode is not None else None
        if not text:
            return None
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):  # written by another version
            return None

    # For people

    def similarityText(self):
        return _("{before:.2f} → {after:.2f}").format(before=self.similarityBefore, after=self.similarityAfter)

    def confidenceText(self):
        words = {"good": _("Good"), "fair": _("Fair"), "poor": _("Poor: check the result in the views")}
        word = words.get(self.confidence, self.confidence)
        if self.spread is None:
            return word
        # Eyes are measured in micrometers.
        length = f"{self.spread:.1f} mm" if self.spread >= 0.1 else f"{1000 * self.spread:.0f} µm"
        if self.sameSides:
            return _("{word} (repeated runs agree within {length}; left and right agree)").format(word=word, length=length)
        return _("{word} (repeated runs agree within {length})").format(word=word, length=length)


def describe(parts, transform) -> str:
    """What a transform does, a line for each thing: `parts` is the core's Decomposition."""
    ends = (_("R"), _("L")), (_("A"), _("P")), (_("S"), _("I"))
    shift = ", ".join(f"{abs(mm):.1f} {pair[mm < 0]}" for mm, pair in zip(parts.translation_mm, ends))
    lines = [
        _("turned {degrees:.1f}°").format(degrees=parts.rotation_deg),
        _("shifted {length:.1f} mm ({parts})").format(length=float(np.linalg.norm(parts.translation_mm)), parts=shift)]
    scales = [f"{percent:.1f}" for percent in parts.scales_percent]
    if transform == "similarity":
        lines.append(_("scaled to {percent} %").format(percent=scales[0]))
    elif transform == "affine":
        lines.append(_("scaled to {percents} %").format(percents=", ".join(scales)))
        lines.append(_("sheared by {shears}").format(shears=", ".join(f"{shear:.3f}" for shear in parts.shears)))
    if getattr(parts, "mirrored", False):
        lines.append(_("mirrored"))
    return "\n".join(lines)


def _number(value):
    return None if value is None or not np.isfinite(value) else float(value)
