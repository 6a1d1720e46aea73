"""How an eye is scanned: field of view, raster, tilt, offset, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass
class Acquisition:
    """How an eye is scanned. Lengths in mm, angles in degrees.

    extent: lateral field of view along A-scans and B-scans; shape: (A-scans, B-scans, depth pixels); axial: mm per
    pixel. turn, shift, scale (2), shear: of the raster on the retina; tilt (2): along its axes; offset: mm from the
    array's start to Bruch's membrane below the fovea. speckle: factor of the measured one.

    Artifacts, 0 for none. motion: axial jumps between neighboring B-scans, pixels; saccades: number of slabs of B-scans
    that are shifted laterally; doubling: weight of a shifted copy; stretch: number of slabs that repeat a B-scan;
    banding: deviation of the B-scans' brightness; blink: share of the B-scans that are black; shadow: largest share of
    the light that is lost; defocus: pixels of blur; crop: share of the lateral field that is black.
    """

    extent: tuple[float, float] = (5.7, 5.7)
    shape: tuple[int, int, int] = (160, 96, 192)
    axial: float = 0.01
    turn: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    offset: float = 1.0
    speckle: float = 1.0
    motion: float = 0.6
    saccades: int = 0
    doubling: float = 0.0
    stretch: int = 0
    banding: float = 0.05
    blink: float = 0.0
    shadow: float = 0.0
    defocus: float = 0.0
    crop: float = 0.0
    seed: int = field(default=0, repr=False)

    @property
    def spacing(self) -> np.ndarray:
        """mm between A-scans, B-scans and depth pixels."""
        return np.array([self.extent[0] / self.shape[0], self.extent[1] / self.shape[1], self.axial])

    @property
    def header(self) -> np.ndarray:
        """Voxel → world of the file: spacings only."""
        return np.diag([*self.spacing, 1.0])

    def to_eye(self) -> np.ndarray:
        """World of the file (mm) → eye coordinates, 4×4."""
        angle = np.radians(self.turn)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        lateral = turn @ np.array([[self.scale[0], self.shear], [0, self.scale[1]]])
        matrix = np.eye(4)
        matrix[:2, :2] = lateral
        matrix[2, :2] = -np.tan(np.radians(self.tilt))
        middle = (np.array(self.shape[:2]) - 1) / 2 * self.spacing[:2]
        matrix[:2, 3] = np.array(self.shift) - lateral @ middle
        matrix[2, 3] = -self.offset - matrix[2, :2] @ middle
        return matrix


#: What a healthy session looks like, and what may go wrong, each with its probability: name → (probability, low, high).
TROUBLES = {
    "motion": (0.3, 1.0, 4.0),
    "saccades": (0.3, 1, 4),
    "doubling": (0.12, 0.15, 0.4),
    "stretch": (0.12, 1, 4),
    "banding": (0.5, 0.05, 0.23),
    "blink": (0.1, 0.02, 0.1),
    "shadow": (0.25, 0.3, 0.8),
    "defocus": (0.25, 0.5, 1.5),
    "crop": (0.2, 0.1, 0.35),
}


def draw_acquisition(
    random: np.random.Generator,
    kind: str = "oct",
    turn: float = 180.0,
    troubles: bool = True,
    near: Acquisition | None = None,
) -> Acquisition:
    """A random acquisition; ``turn``: largest angle of the raster in degrees. ``near``: an acquisition of the same eye,
    whose field of view is then shifted by at most 1.2 mm against it."""
    spread = random.uniform(3.0, 6.4) if kind == "octa" else random.uniform(4.3, 6.8)
    fov = (spread, spread * random.uniform(0.75, 1.0))
    shape = (int(random.integers(112, 192)), int(random.integers(56, 128)), int(random.integers(144, 208)))
    axial = random.uniform(1.7, 2.4) / shape[2]
    angle = random.uniform(-turn, turn)
    if random.random() < 0.25 and turn >= 90:
        angle = 90.0 * random.choice([-1, 1]) + random.uniform(-5, 5)  # the orthogonal raster
    middle = np.zeros(2) if near is None else np.array(near.shift)
    acquisition = Acquisition(
        extent=fov,
        shape=shape,
        axial=axial,
        turn=float(angle),
        tilt=tuple(random.normal(0, 2.5, 2).clip(-6, 6)),
        shift=tuple(np.clip(middle + random.uniform(-0.85, 0.85, 2), -1.8, 1.8)),
        scale=tuple(random.uniform(0.94, 1.06) * random.uniform(0.98, 1.02, 2)),
        shear=random.uniform(-0.03, 0.03),
        offset=axial * shape[2] * random.uniform(0.4, 0.65),
        speckle=random.uniform(0.8, 2.5),
        motion=random.uniform(0.2, 1.0),
        banding=random.uniform(0.0, 0.05),
        seed=int(random.integers(2**31)),
    )
    if troubles:
        for name, (probability, low, high) in TROUBLES.items():
            if random.random() < probability:
                drawn = random.uniform(low, high)
                changed: dict[str, Any] = {name: int(round(drawn)) if isinstance(low, int) else float(drawn)}
                acquisition = replace(acquisition, **changed)
    return acquisition


def true_transform(source: Acquisition, target: Acquisition) -> np.ndarray:
    """World of one scan's file → world of another one of the same eye, 4×4 mm."""
    return np.linalg.inv(target.to_eye()) @ source.to_eye()
