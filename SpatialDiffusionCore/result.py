"""The answer of a registration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional

import numpy as np

from .modelfile import catalog
from .pipeline import confidence as quality_module
from .pipeline.step import Step
from .spatial import geometry
from .spatial.volume import Volume, resample


@dataclass
class Registration:
    """The answer.

    matrix: 4×4 float64, **moving → fixed** points in RAS mm ("to parent" in Slicer). Its inverse resamples.
    transform: "rigid", "similarity" or "affine". steps: what happened on the way. modality: what the moving and the fixed volume
    were taken for; recognized: whether by their looks, not because somebody said so. center: the fixed tissue's center,
    RAS mm, about which the decomposition is given.
    """

    matrix: np.ndarray
    transform: str
    steps: List[Step]
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

    @property
    def decomposition(self) -> geometry.Decomposition:
        """Rotation, translation of the tissue's center, scales and shears."""
        center = geometry.transform_points(np.linalg.inv(self.matrix), self.center[None])[0]
        return geometry.decompose(self.matrix, center)

    def save(self, path, moving: Optional[Volume] = None, fixed: Optional[Volume] = None) -> None:
        """Write the transform; the extension chooses the format (transform_file.py)."""
        from .spatial.transform_file import write_transform

        write_transform(self.matrix, path, moving=moving, fixed=fixed)

    def apply(self, volume: Volume, reference, interpolation: str = "linear") -> Volume:
        """``volume`` (anything that moves with the moving volume) on the voxels of ``reference``."""
        return resample(volume, reference, self.matrix, interpolation)

    def kinds(self) -> str:
        """What the volumes were taken for, in words."""
        words = [
            catalog.get(key).label + (" (recognized)" if seen and key != "any" else "")
            for key, seen in zip(self.modality, self.recognized)
        ]
        return words[0] if words[0] == words[1] else f"{words[0]} and {words[1]}"

    def report(self) -> dict:
        """Everything as JSON-ready numbers and words."""
        parts = self.decomposition
        return {
            "moving": self.moving,
            "fixed": self.fixed,
            "matrix_moving_to_fixed_ras": self.matrix.tolist(),
            "transform": self.transform,
            "rotation_deg": parts.rotation_deg,
            "rotations_xyz_deg": list(parts.rotations_deg),
            "translation_mm": list(parts.translation_mm),
            "scales_percent": list(parts.scales_percent),
            "shears": list(parts.shears),
            "in_words": parts.text(),
            "quality": self.quality.to_dict(),
            "model": self.model,
            "modality": {"moving": self.modality[0], "fixed": self.modality[1]},
            "recognized": {"moving": self.recognized[0], "fixed": self.recognized[1]},
            "sampler": self.sampler,
            "polished": self.polished,
            "steps": [{"index": s.index, "stage": s.stage} for s in self.steps],
            "seconds": self.seconds,
            **self.details,
        }
