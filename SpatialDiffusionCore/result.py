"""The answer of a registration."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import inputs
from . import report as words
from .errors import InputError
from .modelfile import catalog
from .pipeline import confidence as quality_module
from .pipeline.step import Step
from .spatial import geometry
from .spatial.volume import Volume, resample

#: What the process calls its details, in the words of the report.
_SEARCH = {"candidates": "poses_refined", "best": "answer_from"}


@dataclass(repr=False)
class Registration:
    """The answer.

    matrix: 4×4 float64, **moving → fixed** points in RAS mm ("to parent" in Slicer). Its inverse resamples.
    transform: "rigid", "similarity" or "affine". steps: what happened on the way. modality: what the moving and the
    fixed volume were taken for; recognized: whether by their looks, not because somebody said so. center: the fixed
    tissue's center, RAS mm, about which the decomposition is given. moving, fixed: names of the volumes. record: the
    settings, the device and the model's file, for the report. volumes: the moving and the fixed Volume, where they are
    still at hand (not after ``register_many``).
    """

    matrix: np.ndarray
    transform: str
    steps: list[Step]
    quality: quality_module.Quality
    model: str
    modality: tuple
    recognized: tuple
    sampler: str
    seconds: float
    polished: bool
    center: np.ndarray
    moving: str = ""
    fixed: str = ""
    details: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    volumes: tuple[Volume, Volume] | None = None

    def __repr__(self) -> str:
        return (
            f"Registration ({self.transform}) of {self.moving} to {self.fixed}: {self.decomposition.text()}\n"
            f"  {self.quality.confidence}: {self.quality.why()} "
            f"(similarity {self.quality.similarity_before:.2f} → {self.quality.similarity_after:.2f})"
        )

    @property
    def decomposition(self) -> geometry.Decomposition:
        """Rotation, translation of the tissue's center, scales and shears."""
        return geometry.decompose(self.matrix, self._moving_center())

    def _moving_center(self) -> np.ndarray:
        """The moving volume's point (RAS, mm) that comes to lie on the fixed tissue's center."""
        return geometry.transform_points(geometry.inverse(self.matrix), self.center[None])[0]

    def inverse(self) -> Registration:
        """The answer for the volumes with their roles exchanged: fixed → moving."""
        quality = replace(
            self.quality,
            overlap=None,  # of the other volume's tissue nobody asked
            sides=self.quality.sides and tuple(self.quality.sides[::-1]),
            warnings=[_exchanged(warning) for warning in self.quality.warnings],
        )
        files = {"moving_file": self.record.get("fixed_file"), "fixed_file": self.record.get("moving_file")}
        return replace(
            self,
            matrix=geometry.inverse(self.matrix),
            steps=[replace(step, matrix=geometry.inverse(step.matrix)) for step in self.steps],
            quality=quality,
            modality=self.modality[::-1],
            recognized=self.recognized[::-1],
            center=self._moving_center(),
            moving=self.fixed,
            fixed=self.moving,
            record={**self.record, **files},
            volumes=self.volumes and (self.volumes[1], self.volumes[0]),
        )

    def save(self, path: Any, format: str | None = None, moving: Any = None, fixed: Any = None) -> None:
        """Write the transform; the extension chooses the format, ``format`` where it fits several.

        path: .tfm, .h5 or .mat (ITK: 3D Slicer, ANTs, SimpleITK), .lta (FreeSurfer), .txt (4×4, RAS mm); with
        format="flirt" a .mat for FSL. moving, fixed: the volumes (as for ``register``), which FSL's and FreeSurfer's
        formats need; by default those that were registered. Raises InputError where the format, its volumes or the
        folder are no good.
        """
        from .spatial.transform_file import write_transform

        own = self.volumes or (None, None)
        pair = [
            one if given is None else inputs.as_volume(given, role, keep_type=True)
            for one, given, role in zip(own, (moving, fixed), ("moving", "fixed"))
        ]
        write_transform(self.matrix, path, moving=pair[0], fixed=pair[1], format=format)

    def apply(self, volume: Any = None, reference: Any = None, interpolation: str = "linear") -> Volume:
        """``volume`` (anything that moves with the moving volume) on the voxels of ``reference``.

        volume, reference: as for ``register``; by default the moving and the fixed volume. interpolation: "linear",
        "nearest" (label maps: type and values are kept) or "cubic". Returns a Volume; ``to_nibabel()`` and
        ``to_simpleitk()`` make images of it.
        """
        own = self.volumes or (None, None)
        if volume is None or reference is None:
            self._needs_volumes("apply(volume, reference)")
        source = inputs.as_volume(own[0] if volume is None else volume, "moving", interpolation == "nearest")
        grid = own[1] if reference is None else reference
        if not (hasattr(grid, "voxel_to_ras") and hasattr(grid, "shape")):
            grid = inputs.as_volume(grid, "reference", keep_type=True)
        return resample(source, grid, self.matrix, interpolation)

    def picture(self, moving: Any = None, fixed: Any = None, path: Any = None) -> Any:
        """A picture to judge the answer by (picture.draw) as a PIL image; ``path``: written there, too (.png).

        moving, fixed: as for ``register``; by default the volumes that were registered.
        """
        from .picture import draw

        if moving is None or fixed is None:
            self._needs_volumes("picture(moving, fixed)")
        own = self.volumes or (None, None)
        given = [mine if other is None else other for mine, other in zip(own, (moving, fixed))]
        pair = [inputs.as_volume(one, role) for one, role in zip(given, ("moving", "fixed"))]
        return draw(self, pair[0], pair[1], path=path)

    def _needs_volumes(self, call: str) -> None:
        if self.volumes is None:
            raise InputError(f"This result no longer has its volumes; give them: {call}.")

    def to_simpleitk(self) -> Any:
        """The SimpleITK.AffineTransform that ``SimpleITK.Resample`` takes (fixed → moving points, LPS)."""
        return inputs.to_simpleitk_transform(self.matrix)

    def kinds(self) -> str:
        """What the volumes were taken for, in words."""
        parts = [_kind(key, seen) for key, seen in zip(self.modality, self.recognized)]
        return parts[0] if parts[0] == parts[1] else f"{parts[0]} and {parts[1]}"

    def report(self) -> dict:
        """Everything as JSON-ready numbers and words; ``report.FIELDS`` says what each field means."""
        parts = self.decomposition
        files = dict.fromkeys(("moving_file", "fixed_file", "model_sha256", "device"))
        return {
            "schema_version": words.SCHEMA_VERSION,
            "program": _program(),
            "moving": self.moving,
            "fixed": self.fixed,
            **{name: self.record.get(name) for name in files},
            "transform": self.transform,
            "matrix_moving_to_fixed_ras": self.matrix.tolist(),
            "in_words": parts.text(),
            "rotation_deg": parts.rotation_deg,
            "rotations_xyz_deg": list(parts.rotations_deg),
            "translation_mm": list(parts.translation_mm),
            "translation_of_mm": self._moving_center().tolist(),
            "scales_percent": list(parts.scales_percent),
            "shears": list(parts.shears),
            "quality": _quality(self.quality),
            "modality": dict(zip(("moving", "fixed"), self.modality)),
            "recognized": dict(zip(("moving", "fixed"), self.recognized)),
            "model": self.model,
            "sampler": self.sampler,
            "polished": self.polished,
            "settings": dict(self.record.get("settings", {})),
            "search": {_SEARCH.get(name, name): value for name, value in self.details.items()},
            "steps": [{"index": step.index, "stage": step.stage} for step in self.steps],
            "seconds": self.seconds,
        }


def _quality(quality: quality_module.Quality) -> dict:
    return {
        "confidence": quality.confidence,
        "why": quality.why(),
        "probability": quality.probability,
        "similarity_before": quality.similarity_before,
        "similarity_after": quality.similarity_after,
        "overlap": quality.overlap,
        "spread_mm": quality.spread_mm,
        "network_agreement": quality.agreement,
        "template_detour_mm": quality.detour_mm,
        "template_confirms": quality.confirmed,
        "left_right": quality.sides and dict(zip(("moving", "fixed"), map(float, quality.sides))),
        "similarity_mirrored": quality.mirrored,
        "evidence": quality.evidence,
        "warnings": list(quality.warnings),
    }


def _program() -> dict:
    import torch

    from . import __version__

    return {
        "name": "spatial-diffusion-registration",
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def _kind(key: str, recognized: bool) -> str:
    """What one volume was taken for, and who said so."""
    if recognized and key == "any":
        return "a volume of any kind"  # nothing that is registered in a way of its own was recognized
    return catalog.get(key).label + (" (recognized)" if recognized else "")


def _exchanged(sentence: str) -> str:
    """A sentence with the words moving and fixed exchanged."""
    pairs = {"moving": "fixed", "fixed": "moving"}
    return " ".join(pairs.get(word, word) for word in sentence.split(" "))
