"""What moves voxels: the pose, deformation, motion and stretch, and the one look at the source that applies them
all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from .draws import Draw, integers, normal, quaternion_rotation, rotations, turn, uniform
from .fields import smooth_field, spline_matrix, voxel_centers


@dataclass
class Pose:
    """The random pose that both volumes of a pair share, so that a network meets every orientation.

    rotation_degrees: largest angle; rotation_axis: "any", or "y" for turns in the x-z plane as published, with a tilt
    of up to tilt_degrees about an axis in that plane.
    shift: largest shift along each axis; scale: largest log scale (uniform in ±).
    free: share of the samples whose rotation is any of all rotations (uniform), whatever rotation_degrees.
    """

    rotation_degrees: float = 45.0
    rotation_axis: str = "any"
    tilt_degrees: float = 0.0
    shift: float = 0.06
    scale: float = 0.15
    free: float = 0.0

    def draw(
        self,
        count: int,
        generator: torch.Generator,
        shape: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
    ) -> torch.Tensor:
        """count×3×4 affines in normalized coordinates that sample a source of shape (D, H, W) and that spacing."""
        if self.rotation_axis == "y":
            angle = uniform(generator, -1, 1, count) * math.radians(self.rotation_degrees)
            zero, one = torch.zeros(count), torch.ones(count)
            rows = [angle.cos(), zero, angle.sin(), zero, one, zero, -angle.sin(), zero, angle.cos()]
            linear = torch.stack(rows, 1).view(-1, 3, 3)
            if self.tilt_degrees:
                # A turn about a random axis of the x-z plane by a random part of the largest tilt.
                way = uniform(generator, -math.pi, math.pi, count)
                tilt = uniform(generator, -1, 1, count) * math.radians(self.tilt_degrees)
                axis = torch.stack([way.cos(), zero, way.sin()], 1)
                linear = turn(axis, tilt) @ linear
        else:
            linear = rotations(generator, count, self.rotation_degrees)
            quaternion = F.normalize(torch.randn(count, 4, generator=generator), dim=1)
            free = torch.rand(count, generator=generator) < self.free
            linear = torch.where(free.view(-1, 1, 1), quaternion_rotation(quaternion), linear)
        linear = linear * uniform(generator, -self.scale, self.scale, count, 1, 1).exp()
        # A rotation of millimeters; on grids that are no cubes it is none of normalized coordinates.
        edges = torch.tensor(shape) * torch.broadcast_to(torch.tensor(spacing), (3,))
        half = edges.flip(0).float()
        linear = linear * half / half[:, None]
        shift = uniform(generator, -2 * self.shift, 2 * self.shift, count, 3, 1)
        return torch.cat([linear, linear @ shift], 2)


@dataclass
class Deformation:
    """Smooth random displacement with no net affine.

    controls: control points along D, H, W (published 14×7×7); amplitude: standard deviation of a control
    point's displacement (published 3/256), clipped at 2 standard deviations; spread: the amplitude of a
    sample is drawn uniformly between (1 - spread) and 1 of it.
    focus: standard deviation (normalized coordinates) of the Gaussian around the center of the cube over
    which the affine part is fitted and removed; 0 weighs the whole grid alike.
    """

    controls: tuple[int, int, int] = (14, 7, 7)
    amplitude: float = 3 / 256
    spread: float = 0.0
    focus: float = 0.0

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        control = normal(generator, count, *self.controls, 3) * (2 * self.amplitude * strength)
        part = uniform(generator, 1 - self.spread, 1, count, 1, 1, 1, 1)
        return {"controls": control * part}

    def settle(self, controls: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Remove the affine that fits the interpolated field best (least squares over the grid's voxels).

        Interpolation is linear in the control values and reproduces affine functions, so the fit is done
        exactly on the few control points, through the summed weight of each of them.
        """
        basis, inverse, places = _affine_basis(tuple(self.controls), tuple(shape), float(self.focus))
        basis, inverse, places = (m.to(controls.device) for m in (basis, inverse, places))
        flat = controls.view(len(controls), -1, 3)
        coefficients = inverse @ (basis @ flat)
        return (flat - places @ coefficients).view(controls.shape)

    def displace(self, draw: Draw, shape: Sequence[int]) -> torch.Tensor:
        """B×d×h×w×3 control displacements (normalized x, y, z) without an affine part."""
        return self.settle(draw["controls"], shape)


@lru_cache(maxsize=16)
def _affine_basis(
    controls: tuple[int, ...], shape: tuple[int, ...], focus: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(4×n weighted sums of the fine grid's 1, x, y, z over each control point, 4×4 inverse Gram, n×4)."""
    sums, moments = [], []
    for size, n in zip(shape, controls):
        center = voxel_centers(size).double()
        weight = torch.exp(-0.5 * (center / focus) ** 2) if focus > 0 else torch.ones_like(center)
        weight = weight / weight.sum()
        matrix = spline_matrix(size, n).double()
        sums.append((weight @ matrix, (weight * center) @ matrix))
        moments.append(float((weight * center**2).sum()))
    (d0, d1), (h0, h1), (w0, w1) = sums

    def outer(d: torch.Tensor, h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.einsum("i,j,k->ijk", d, h, w).reshape(-1)

    basis = torch.stack([outer(d0, h0, w0), outer(d0, h0, w1), outer(d0, h1, w0), outer(d1, h0, w0)])
    inverse = torch.diag(torch.tensor([1.0, *(1 / m for m in reversed(moments))], dtype=torch.float64))
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in controls), indexing="ij")
    places = torch.stack([torch.ones_like(x), x, y, z], -1).reshape(-1, 4)
    return basis.float(), inverse.float(), places.float()


def _slabs(
    generator: torch.Generator, count: int, most: int, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random slabs of an axis: starts and lengths (fractions), count×most, unused slabs with length 0."""
    number = integers(generator, 1, most, count, 1)
    length = uniform(generator, low, high, count, most)
    start = torch.rand(count, most, generator=generator) * (1 - length)
    used = torch.arange(most) < number
    return start, torch.where(used, length, torch.zeros_like(length))


@dataclass
class Motion:
    """Slabs of slices shifted in their plane along one of its two directions.

    most: largest number of slabs; thickness and shift: smallest and largest, fractions of the edge
    (published: up to 10 slabs of 5-17 slices by 5-30 voxels, at most 10 % of the edge here).
    axes: slab axes to choose from, 0, 1, 2 = D, H, W. roll: what leaves the volume on one side comes in on the other,
    as published; otherwise black comes in.
    """

    most: int = 10
    thickness: tuple[float, float] = (5 / 256, 17 / 256)
    shift: tuple[float, float] = (5 / 256, 30 / 256)
    axes: tuple[int, ...] = (0, 1, 2)
    roll: bool = False

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        start, length = _slabs(generator, count, self.most, *self.thickness)
        size = uniform(generator, *self.shift, count, self.most) * strength
        sign = integers(generator, 0, 1, count, self.most) * 2 - 1
        axis = torch.tensor(self.axes)[integers(generator, 0, len(self.axes) - 1, count)]
        direction = (axis + integers(generator, 1, 2, count)) % 3
        return {"start": start, "length": length, "shift": 2 * size * sign, "axis": axis, "direction": direction}

    def profile(self, draw: Draw, size: int) -> torch.Tensor:
        """B×3×size×3: displacement (normalized x, y, z) of every slice along each of the axes D, H, W.

        All axes are sampled at `size` places, the longest axis of the volume.
        """
        place = (voxel_centers(size, draw["start"].device) + 1) / 2
        inside = (place >= draw["start"][..., None]) & (place < (draw["start"] + draw["length"])[..., None])
        moved = (inside * draw["shift"][..., None]).sum(1).clamp(-0.5, 0.5)
        return _place_profile(moved, draw["axis"], draw["direction"])


@dataclass
class Stretch:
    """Slabs that repeat one slice (published: 3-6 slabs of 7-14 slices)."""

    most: int = 6
    thickness: tuple[float, float] = (7 / 256, 14 / 256)
    axes: tuple[int, ...] = (0, 1, 2)

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        start, length = _slabs(generator, count, self.most, *self.thickness)
        axis = torch.tensor(self.axes)[integers(generator, 0, len(self.axes) - 1, count)]
        return {"start": start, "length": length * strength, "axis": axis}

    def profile(self, draw: Draw, size: int) -> torch.Tensor:
        center = voxel_centers(size, draw["start"].device)
        place = (center + 1) / 2
        begin, end = draw["start"][..., None], (draw["start"] + draw["length"])[..., None]
        inside = (place >= begin) & (place < end)
        back = (inside * (begin - place)).amin(1)  # overlapping slabs repeat the first slice of all of them
        return _place_profile(2 * back, draw["axis"], draw["axis"])


def _place_profile(values: torch.Tensor, axis: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """B×size displacements along `direction` (0, 1, 2 = D, H, W) for slices of `axis`: B×3×size×3 (x, y, z)."""
    count, size = values.shape
    profile = values.new_zeros(count, 3, size, 3)
    rows = torch.arange(count, device=values.device)
    profile[rows, axis, :, 2 - direction] = values
    return profile


def warp(
    source: torch.Tensor,
    affine: torch.Tensor,
    controls: torch.Tensor | None = None,
    profile: torch.Tensor | None = None,
    rolled: torch.Tensor | None = None,
) -> torch.Tensor:
    """Read every volume once at affine(x + displacement(x)).

    source B×1×D×H×W; affine B×3×4 in normalized coordinates; controls B×d×h×w×3 (see Deformation) and
    profile B×3×S×3 (see Motion) displace the output coordinates before the affine. Outside is 0. rolled: the part of
    profile that takes voxels out of the volume on one side and in on the other, B×3×S×3.
    """
    shape = tuple(source.shape[2:])
    grid = F.affine_grid(affine, list(source.shape), align_corners=False)
    turn = affine[:, None, None, :, :3]
    if controls is not None:
        # The affine is applied to the few control values instead of to all voxels.
        moved = torch.matmul(turn.unsqueeze(1), controls[..., None])[..., 0]
        grid += smooth_field(moved, shape)
    if profile is not None:
        used = profile.abs().amax(dim=(0, 2, 3)).tolist()  # of a profile on the CPU: no wait for the device
        moved = torch.matmul(turn, profile.to(source.device)[..., None])[..., 0]
        for axis in (axis for axis in range(3) if used[axis]):
            spread = [len(grid), 1, 1, 1, 3]
            spread[axis + 1] = shape[axis]
            grid += moved[:, axis, _places(moved, shape[axis])].reshape(spread)
    if rolled is not None:
        _come_in_again(grid, affine, rolled, shape)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _places(profile: torch.Tensor, size: int) -> torch.Tensor:
    """Which of a profile's places (B×3×S×3) each of `size` slices takes."""
    return profile.shape[2] * torch.arange(size, device=profile.device) // size


def _come_in_again(grid: torch.Tensor, affine: torch.Tensor, rolled: torch.Tensor, shape: Sequence[int]) -> None:
    """Let what a profile moved out of the volume (B×3×S×3) come in on the other side; changes the grid, B×D×H×W×3."""
    used = (rolled != 0).any(dim=2).any(dim=0).nonzero().tolist()  # of a profile on the CPU: no wait for the device
    rolled = rolled.to(grid.device)
    for axis, component in used:
        along = 2 - component
        moved = rolled[:, axis, _places(rolled, shape[axis]), component]
        place = moved[:, :, None] + voxel_centers(shape[along], grid.device)
        back = 2.0 * (place < -1).float() - 2.0 * (place > 1).float()
        spread = [len(grid), 1, 1, 1, 1]
        spread[axis + 1], spread[along + 1] = shape[axis], shape[along]
        back = back if axis < along else back.transpose(1, 2)
        grid += back.reshape(spread) * affine[:, :, component].view(-1, 1, 1, 1, 3)
