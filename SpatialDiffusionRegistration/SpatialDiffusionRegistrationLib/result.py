"""What a registration found, kept as JSON on the transform node so that a saved scene still knows it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
from slicer.i18n import tr as _

from . import engine, scene
from .change import REPORT_ATTRIBUTE
from .landmarks import LandmarkErrors

SAME_PLACE_MILLIMETERS = 1e-3
"""Saved files keep matrices to about this; what is moved by people moves more."""


@dataclass
class Result:
    """`before` and `after` are the 4x4 matrices from the moving volume's own coordinates to the world."""

    moving: str
    fixed: str
    similarityBefore: float
    similarityAfter: float
    overlap: float | None
    spread: float | None
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
    probability: float | None = None
    """That the answer is right, 0..1; None where the core does not say."""
    landmarks: dict | None = None
    """Fields of LandmarkErrors, where landmarks were chosen."""
    movingHeader: list | None = None
    """4x4, voxel to the moving volume's own coordinates during the registration (hardening changes a header)."""
    movingSize: list | None = None
    """Number of voxels of the moving volume along i, j, k."""
    fixedPlace: list | None = None
    """4x4, voxel of the fixed volume to the world during the registration."""

    @classmethod
    def of(cls, registration, movingNode, fixedNode, before, after, notes=(), landmarkErrors=None):
        """From the core's Registration."""
        quality = registration.quality
        return cls(
            moving=movingNode.GetName(),
            fixed=fixedNode.GetName(),
            similarityBefore=float(quality.similarity_before),
            similarityAfter=float(quality.similarity_after),
            overlap=_number(quality.overlap),
            spread=_number(quality.spread_mm),
            confidence=str(quality.confidence),
            warnings=[*map(str, quality.warnings), *notes],
            summary=quality.summary(),
            decomposition=describe(registration.decomposition, registration.transform),
            seconds=float(registration.seconds),
            model=str(getattr(registration.model, "name", registration.model)),
            modality=str(registration.modality),
            before=np.asarray(before).tolist(),
            after=np.asarray(after).tolist(),
            report=json.loads(json.dumps(registration.report(), default=str)),
            kinds=registration.kinds(),
            sameSides=bool(quality.same_sides),
            probability=_number(getattr(quality, "probability", None)),
            landmarks=asdict(landmarkErrors) if landmarkErrors is not None else None,
            movingHeader=scene.voxelToOwn(movingNode).tolist(),
            movingSize=list(movingNode.GetImageData().GetDimensions()),
            fixedPlace=scene.voxelToWorld(fixedNode).tolist(),
        )

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

    # Whether it is still true

    def untrue(self, movingNode, fixedNode, transformNode) -> str:
        """One sentence if the volumes are no longer where the registration left them, or "".

        :param transformNode: the output transform; None if the only output was a volume.
        """
        if movingNode is None or fixedNode is None:
            return _("A volume of this registration is not in the scene any more.")
        if transformNode is not None:
            if not scene.isUnder(movingNode, transformNode):
                return _("“{name}” is not under the transform any more: it was hardened or taken out.").format(
                    name=movingNode.GetName()
                )
            if self._moved(movingNode, np.array(self.after), self.movingHeader, self.movingSize):
                return _("“{transform}” or what it moves was changed after the registration.").format(
                    transform=transformNode.GetName()
                )
        if self.fixedPlace is not None and apart(
            scene.voxelToWorld(fixedNode), np.array(self.fixedPlace), fixedNode.GetImageData()
        ):
            return _("“{name}” was moved after the registration.").format(name=fixedNode.GetName())
        return ""

    def _moved(self, node, place, header, size):
        image = node.GetImageData()
        if header is None or image is None or list(image.GetDimensions()) != list(size):
            return header is not None
        return apart(scene.voxelToWorld(node), place @ np.array(header), image)

    def knowsBefore(self, movingNode) -> bool:
        """Whether the moving volume still has the voxels that it had, so that it can be shown where it was."""
        image = movingNode.GetImageData() if movingNode is not None else None
        return image is not None and (self.movingSize is None or list(image.GetDimensions()) == list(self.movingSize))

    # For people

    def pairText(self):
        return _("{moving} → {fixed}").format(moving=self.moving, fixed=self.fixed)

    def similarityText(self):
        return _("{before:.2f} → {after:.2f}").format(before=self.similarityBefore, after=self.similarityAfter)

    def landmarkErrors(self):
        """LandmarkErrors, or None."""
        return (
            LandmarkErrors(**{key: tuple(values) for key, values in self.landmarks.items()}) if self.landmarks else None
        )

    def confidenceText(self):
        words = {"good": _("Good"), "fair": _("Fair"), "poor": _("Poor: check the result in the views")}
        word = words.get(self.confidence, self.confidence)
        remarks = [engine.odds(self.probability)] if self.probability is not None else []
        if self.spread is not None:
            # Eyes are measured in micrometers.
            length = f"{self.spread:.1f} mm" if self.spread >= 0.1 else f"{1000 * self.spread:.0f} µm"
            remarks.append(_("repeated runs agree within {length}").format(length=length))
            if self.sameSides:
                remarks.append(_("left and right agree"))
        return _("{word} ({remarks})").format(word=word, remarks="; ".join(remarks)) if remarks else word


def describe(parts, transform) -> str:
    """What a transform does, a line for each thing: `parts` is the core's Decomposition."""
    ends = (_("R"), _("L")), (_("A"), _("P")), (_("S"), _("I"))
    shift = ", ".join(f"{abs(mm):.1f} {pair[mm < 0]}" for mm, pair in zip(parts.translation_mm, ends))
    lines = [
        _("turned {degrees:.1f}°").format(degrees=parts.rotation_deg),
        _("shifted {length:.1f} mm ({parts})").format(length=float(np.linalg.norm(parts.translation_mm)), parts=shift),
    ]
    scales = [f"{percent:.1f}" for percent in parts.scales_percent]
    if transform == "similarity":
        lines.append(_("scaled to {percent} %").format(percent=scales[0]))
    elif transform == "affine":
        lines.append(_("scaled to {percents} %").format(percents=", ".join(scales)))
        lines.append(_("sheared by {shears}").format(shears=", ".join(f"{shear:.3f}" for shear in parts.shears)))
    if getattr(parts, "mirrored", False):
        lines.append(_("mirrored"))
    return "\n".join(lines)


def pairOf(transformNode):
    """The moving and the fixed volume that an output transform was made for; None for one that is not there."""
    return (
        transformNode.GetNodeReference(transformNode.GetMovingNodeReferenceRole()),
        transformNode.GetNodeReference(transformNode.GetFixedNodeReferenceRole()),
    )


def apart(place, other, image) -> bool:
    """Whether two 4x4 voxel-to-world matrices put a corner of an image to different places."""
    if image is None:
        return True
    size = image.GetDimensions()
    corners = np.array([[i, j, k, 1] for i in (0, size[0]) for j in (0, size[1]) for k in (0, size[2])], float).T
    return float(np.abs(((place - other) @ corners)[:3]).max()) > SAME_PLACE_MILLIMETERS


def _number(value):
    return None if value is None or not np.isfinite(value) else float(value)
