"""Corrupt batches of volumes on their device, without a Python loop over the samples.

Volumes are B×1×D×H×W float tensors in 0..1. Lengths are fractions of the cube's edge, so that one set of
parameters serves every cube size; where the published recipe gives voxels, they are fractions of its 256.

Every random number comes from a CPU generator, as small tensors with one row per sample (`draw`), and the
work on voxels (`apply`, `displace`) is a pure function of these rows. So a batch is the same on every device,
a run resumes exactly, and a process that handles a part of a global batch takes just its rows.

Whatever moves voxels (pose, diffusion affine, deformation, motion, stretch) only describes a sampling grid:
`warp` composes it all and reads every volume once.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F

Draw = dict  # name -> tensor whose first axis is the sample


# ---------------------------------------------------------------------------------------------- helpers
def uniform(generator, low, high, *shape):
    """Uniform numbers in [low, high) of the given shape from the CPU generator."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def normal(generator, *shape, clip=2.0):
    """Standard normal numbers clipped at ±clip."""
    return torch.randn(shape, generator=generator).clamp_(-clip, clip)


def integers(generator, low, high, *shape):
    """Whole numbers in low..high, both included."""
    return torch.randint(low, high + 1, shape, generator=generator)


def rotations(generator, count, max_degrees):
    """count×3×3 rotations about random axes, the angle uniform in ±max_degrees."""
    axis = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    angle = uniform(generator, -1, 1, count) * math.radians(max_degrees)
    return _turn(axis, angle)


def _turn(axis, angle):
    """B×3×3 rotations by B angles (radians) about B×3 unit axes."""
    count = len(axis)
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(count, 3, 3)
    sine, cosine = angle.sin().view(-1, 1, 1), angle.cos().view(-1, 1, 1)
    return torch.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def compose(a, b):
    """The B×3×4 affine x → a(b(x)) of two B×3×4 affines."""
    linear = a[:, :, :3] @ b[:, :, :3]
    return torch.cat([linear, a[:, :, :3] @ b[:, :, 3:] + a[:, :, 3:]], 2)


def voxel_centers(size, device="cpu"):
    """Normalized coordinates of the voxel centers along an axis of `size` voxels, size."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1


@lru_cache(maxsize=64)
def _spline_matrix(size, controls):
    """size×controls cubic B-spline weights; the control points span the axis from face to face."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) / size * (controls - 1)
    distance = (position[:, None] - torch.arange(-1, controls + 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    # The two control points beyond the ends continue the line through the last two, so that controls that
    # lie on an affine function give exactly that function.
    inner = weights[:, 1:-1].clone()
    inner[:, 0] += 2 * weights[:, 0]
    inner[:, 1] -= weights[:, 0]
    inner[:, -1] += 2 * weights[:, -1]
    inner[:, -2] -= weights[:, -1]
    return inner.float()


def smooth_field(controls, shape):
    """Cubic B-spline of B×d×h×w×C control values on a grid of shape (D, H, W): B×D×H×W×C."""
    count, depth, height, width, channels = controls.shape
    device = controls.device
    z, y, x = (_spline_matrix(size, n).to(device) for size, n in zip(shape, (depth, height, width)))
    field = torch.einsum("xl,bijlc->bijxc", x, controls)
    field = torch.einsum("yj,bijxc->biyxc", y, field)
    field = torch.matmul(z, field.reshape(count, depth, -1))
    return field.view(count, *shape, channels)


def along_axes(volume, matrices):
    """Apply one square matrix per sample to each axis: matrices are B×D×D, B×H×H and B×W×W."""
    count, _, depth, height, width = volume.shape
    out = torch.bmm(matrices[0], volume.view(count, depth, height * width))
    out = torch.matmul(matrices[1][:, None], out.view(count, depth, height, width))
    out = torch.bmm(out.view(count, depth * height, width), matrices[2].transpose(1, 2))
    return out.view(volume.shape)


def renormalize(volume):
    """Scale every volume so that its smallest and largest value become 0 and 1 (a constant one stays)."""
    low, high = torch.aminmax(volume.view(len(volume), -1), dim=1)
    span = high - low
    span = torch.where(span > 1e-6, span, torch.ones_like(span))
    shape = (-1, 1, 1, 1, 1)
    return (volume - low.view(shape)) / span.view(shape)


# ------------------------------------------------------------------------------------------------- warps
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

    def draw(self, count, generator, shape, spacing=1.0):
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
                linear = _turn(axis, tilt) @ linear
        else:
            linear = rotations(generator, count, self.rotation_degrees)
            quaternion = F.normalize(torch.randn(count, 4, generator=generator), dim=1)
            free = torch.rand(count, generator=generator) < self.free
            linear = torch.where(free.view(-1, 1, 1), _quaternion_rotation(quaternion), linear)
        linear = linear * uniform(generator, -self.scale, self.scale, count, 1, 1).exp()
        # A rotation of millimeters; on grids that are no cubes it is none of normalized coordinates.
        edges = torch.tensor(shape) * torch.broadcast_to(torch.tensor(spacing), (3,))
        half = edges.flip(0).float()
        linear = linear * half / half[:, None]
        shift = uniform(generator, -2 * self.shift, 2 * self.shift, count, 3, 1)
        return torch.cat([linear, linear @ shift], 2)


def _quaternion_rotation(q):
    w, x, y, z = q.unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).view(-1, 3, 3)


@dataclass
class Deformation:
    """Smooth random displacement with no net affine.

    controls: control points along D, H, W (published 14×7×7); amplitude: standard deviation of a control
    point's displacement (published 3/256), clipped at 2 standard deviations; spread: the amplitude of a
    sample is drawn uniformly between (1 - spread) and 1 of it.
    focus: standard deviation (normalized coordinates) of the Gaussian around the center of the cube over
    which the affine part is fitted and removed; 0 weighs the whole grid alike.
    """

    controls: tuple = (14, 7, 7)
    amplitude: float = 3 / 256
    spread: float = 0.0
    focus: float = 0.0

    def draw(self, count, generator, strength=1.0):
        control = normal(generator, count, *self.controls, 3) * (2 * self.amplitude * strength)
        part = uniform(generator, 1 - self.spread, 1, count, 1, 1, 1, 1)
        return {"controls": control * part}

    def settle(self, controls, shape):
        """Remove the affine that fits the interpolated field best (least squares over the grid's voxels).

        Interpolation is linear in the control values and reproduces affine functions, so the fit is done
        exactly on the few control points, through the summed weight of each of them.
        """
        basis, inverse, places = _affine_basis(tuple(self.controls), tuple(shape), float(self.focus))
        basis, inverse, places = (m.to(controls.device) for m in (basis, inverse, places))
        flat = controls.view(len(controls), -1, 3)
        coefficients = inverse @ (basis @ flat)
        return (flat - places @ coefficients).view(controls.shape)

    def displace(self, draw, shape):
        """B×d×h×w×3 control displacements (normalized x, y, z) without an affine part."""
        return self.settle(draw["controls"], shape)


@lru_cache(maxsize=16)
def _affine_basis(controls, shape, focus):
    """(4×n weighted sums of the fine grid's 1, x, y, z over each control point, 4×4 inverse Gram, n×4)."""
    sums, moments = [], []
    for size, n in zip(shape, controls):
        center = voxel_centers(size).double()
        weight = torch.exp(-0.5 * (center / focus) ** 2) if focus > 0 else torch.ones_like(center)
        weight = weight / weight.sum()
        matrix = _spline_matrix(size, n).double()
        sums.append((weight @ matrix, (weight * center) @ matrix))
        moments.append(float((weight * center**2).sum()))
    (d0, d1), (h0, h1), (w0, w1) = sums

    def outer(d, h, w):
        return torch.einsum("i,j,k->ijk", d, h, w).reshape(-1)

    basis = torch.stack([outer(d0, h0, w0), outer(d0, h0, w1), outer(d0, h1, w0), outer(d1, h0, w0)])
    inverse = torch.diag(torch.tensor([1.0, *(1 / m for m in reversed(moments))], dtype=torch.float64))
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in controls), indexing="ij")
    places = torch.stack([torch.ones_like(x), x, y, z], -1).reshape(-1, 4)
    return basis.float(), inverse.float(), places.float()


def _slabs(generator, count, most, low, high):
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
    axes: slab axes to choose from, 0, 1, 2 = D, H, W.
    """

    most: int = 10
    thickness: tuple = (5 / 256, 17 / 256)
    shift: tuple = (5 / 256, 30 / 256)
    axes: tuple = (0, 1, 2)

    def draw(self, count, generator, strength=1.0):
        start, length = _slabs(generator, count, self.most, *self.thickness)
        size = uniform(generator, *self.shift, count, self.most) * strength
        sign = integers(generator, 0, 1, count, self.most) * 2 - 1
        axis = torch.tensor(self.axes)[integers(generator, 0, len(self.axes) - 1, count)]
        direction = (axis + integers(generator, 1, 2, count)) % 3
        return {"start": start, "length": length, "shift": 2 * size * sign, "axis": axis, "direction": direction}

    def profile(self, draw, size):
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
    thickness: tuple = (7 / 256, 14 / 256)
    axes: tuple = (0, 1, 2)

    def draw(self, count, generator, strength=1.0):
        start, length = _slabs(generator, count, self.most, *self.thickness)
        axis = torch.tensor(self.axes)[integers(generator, 0, len(self.axes) - 1, count)]
        return {"start": start, "length": length * strength, "axis": axis}

    def profile(self, draw, size):
        center = voxel_centers(size, draw["start"].device)
        place = (center + 1) / 2
        begin, end = draw["start"][..., None], (draw["start"] + draw["length"])[..., None]
        inside = (place >= begin) & (place < end)
        back = (inside * (begin - place)).amin(1)  # overlapping slabs repeat the first slice of all of them
        return _place_profile(2 * back, draw["axis"], draw["axis"])


def _place_profile(values, axis, direction):
    """B×size displacements along `direction` (0, 1, 2 = D, H, W) for slices of `axis`: B×3×size×3 (x, y, z)."""
    count, size = values.shape
    profile = values.new_zeros(count, 3, size, 3)
    rows = torch.arange(count, device=values.device)
    profile[rows, axis, :, 2 - direction] = values
    return profile


def warp(source, affine, controls=None, profile=None):
    """Read every volume once at affine(x + displacement(x)).

    source B×1×D×H×W; affine B×3×4 in normalized coordinates; controls B×d×h×w×3 (see Deformation) and
    profile B×3×S×3 (see Motion) displace the output coordinates before the affine. Outside is 0.
    """
    shape = tuple(source.shape[2:])
    grid = F.affine_grid(affine, list(source.shape), align_corners=False)
    turn = affine[:, None, None, :, :3]
    if controls is not None:
        # The affine is applied to the few control values instead of to all voxels.
        moved = torch.matmul(turn.unsqueeze(1), controls[..., None])[..., 0]
        grid += smooth_field(moved, shape)
    if profile is not None:
        moved = torch.matmul(turn, profile[..., None])[..., 0]
        for axis, used in enumerate(profile.abs().amax(dim=(0, 2, 3)).tolist()):
            if used:
                places = moved.shape[2] * torch.arange(shape[axis], device=moved.device) // shape[axis]
                spread = [len(grid), 1, 1, 1, 3]
                spread[axis + 1] = shape[axis]
                grid += moved[:, axis, places].reshape(spread)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# ------------------------------------------------------------------------------------------ on intensities
@dataclass
class Contrast:
    """Random map of the intensities: a piecewise linear curve, the same for the whole volume.

    knots: points of the curve; monotone: share of the samples whose curve never falls (another scanner or
    sequence of the same kind), the others get any curve (another kind of contrast); invert: share of the
    non-monotone samples that start from the inverted intensities. Background (0) stays 0.
    """

    knots: int = 6
    monotone: float = 0.5
    invert: float = 0.3

    def draw(self, count, generator, strength=1.0):
        line = torch.linspace(0, 1, self.knots).expand(count, -1)
        rising = torch.rand(count, self.knots, generator=generator) ** 2 + 0.02
        rising = rising.cumsum(1) - rising[:, :1]
        rising = rising / rising[:, -1:]
        free = torch.rand(count, self.knots, generator=generator)
        inverted = torch.rand(count, 1, generator=generator) < self.invert
        free = torch.where(inverted, 0.6 * (1 - line) + 0.4 * free, free)
        monotone = torch.rand(count, 1, generator=generator) < self.monotone
        curve = torch.where(monotone, rising, free)
        return {"curve": line + min(strength, 1.0) * (curve - line)}

    def apply(self, volume, draw):
        table = F.interpolate(draw["curve"][:, None], size=256, mode="linear", align_corners=True)[:, 0]
        table[:, 0] = 0  # air stays air; 1/256 of the range is below any tissue
        index = (volume.view(len(volume), -1) * 255).round_().clamp_(0, 255).long()
        return table.gather(1, index).view(volume.shape)


@dataclass
class Bias:
    """Smooth multiplicative field exp(f), as a coil gives. controls³ points; amplitude: deviation of f."""

    controls: int = 4
    amplitude: float = 0.4

    def draw(self, count, generator, strength=1.0):
        n = self.controls
        part = torch.rand(count, 1, 1, 1, 1, generator=generator)
        return {"field": normal(generator, count, n, n, n, 1) * part * self.amplitude * strength}

    def apply(self, volume, draw):
        return volume * smooth_field(draw["field"], volume.shape[2:]).exp_().view(volume.shape)


@dataclass
class Shadow:
    """Multiplied by a random smooth mask grown from a coarse grid (published 12×6×6), back to 0..1.

    dark: share of the grid's points in shadow; depth: how much of the light they lose at most.
    """

    controls: tuple = (12, 6, 6)
    dark: float = 0.35
    depth: float = 0.9

    def draw(self, count, generator, strength=1.0):
        dark = torch.rand(count, *self.controls, 1, generator=generator) < self.dark
        depth = uniform(generator, 0.3, 1, count, 1, 1, 1, 1) * self.depth * min(strength, 1.1)
        return {"mask": 1 - dark * depth}

    def apply(self, volume, draw):
        mask = smooth_field(draw["mask"], volume.shape[2:]).clamp_(0, 1)
        return renormalize(volume * mask.view(volume.shape))


@dataclass
class Lesion:
    """Ellipsoids of one intensity painted in: lesions, resections, implants.

    most: largest number; radius: smallest and largest, fractions of the edge.
    """

    most: int = 3
    radius: tuple = (0.02, 0.12)

    def draw(self, count, generator, strength=1.0):
        used = torch.arange(self.most) < integers(generator, 1, self.most, count, 1)
        radius = 2 * uniform(generator, *self.radius, count, self.most, 3) * strength
        return {"center": uniform(generator, -0.55, 0.55, count, self.most, 3), "radius": radius + 1e-3,
                "value": torch.rand(count, self.most, generator=generator) * used, "used": used.float()}

    def apply(self, volume, draw):
        # One Gaussian per axis; their product is 1/e on the ellipsoid's surface, and a ramp makes it an edge.
        bumps = [torch.exp(-(((voxel_centers(n, volume.device) - draw["center"][..., axis, None])
                              / draw["radius"][..., axis, None]) ** 2)) for axis, n in enumerate(volume.shape[2:])]
        for index in range(draw["value"].shape[1]):
            d, h, w = (bump[:, index] for bump in bumps)
            weight = d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :]
            weight = ((weight - 0.37) * 6 + 0.5).clamp_(0, 1) * draw["used"][:, index].view(-1, 1, 1, 1)
            volume = volume + weight[:, None] * (draw["value"][:, index].view(-1, 1, 1, 1, 1) - volume)
        return volume


@dataclass
class Blur:
    """Gaussian blur, another width along every axis. sigma: largest standard deviation."""

    sigma: float = 0.02

    def draw(self, count, generator, strength=1.0):
        return {"sigma": torch.rand(count, 3, generator=generator) * self.sigma * strength}

    def apply(self, volume, draw):
        matrices = []
        for axis, size in enumerate(volume.shape[2:]):
            place = torch.arange(size, device=volume.device, dtype=torch.float32)
            sigma = (draw["sigma"][:, axis] * size).clamp(min=0.1).view(-1, 1, 1)
            matrix = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
            matrices.append(matrix / matrix.sum(-1, keepdim=True))
        return along_axes(volume, matrices)


@dataclass
class ThickSlices:
    """Slices thicker than the model's voxels along one axis: averaged in slabs, then interpolated back.

    thickness: smallest and largest, fractions of the edge (6-9 mm of a 224 mm cube: 0.027-0.04).
    """

    thickness: tuple = (0.02, 0.045)

    def draw(self, count, generator, strength=1.0):
        return {"thickness": uniform(generator, *self.thickness, count) * strength,
                "phase": torch.rand(count, generator=generator), "axis": integers(generator, 0, 2, count)}

    def apply(self, volume, draw):
        matrices = []
        for axis, size in enumerate(volume.shape[2:]):
            same = torch.eye(size, device=volume.device)
            chosen = (draw["axis"] == axis).view(-1, 1, 1)
            matrices.append(torch.where(chosen, self._resample(draw, size), same))
        return along_axes(volume, matrices)

    @staticmethod
    def _resample(draw, size):
        """B×size×size: average in slabs and interpolate between their middles."""
        thick = (draw["thickness"] * size).clamp(min=1.0).view(-1, 1, 1)
        most = size + 2  # no slice is thinner than a voxel
        voxel = torch.arange(size, device=thick.device, dtype=torch.float32)
        middle = (torch.arange(most, device=thick.device) - 1 + draw["phase"].view(-1, 1)).unsqueeze(2) * thick
        overlap = ((thick + 1) / 2 - (voxel + 0.5 - middle).abs()).clamp(min=0, max=1)
        average = overlap / overlap.sum(-1, keepdim=True).clamp(min=1e-6)
        back = (1 - (voxel + 0.5 - middle).abs() / thick).clamp(min=0).transpose(1, 2)
        return (back / back.sum(-1, keepdim=True).clamp(min=1e-6)) @ average


@dataclass
class Doubling:
    """Blended with a copy of itself shifted by up to `shift` (published 25/256), weight up to `weight`."""

    shift: float = 25 / 256
    weight: float = 0.35

    def draw(self, count, generator, strength=1.0):
        return {"shift": uniform(generator, -self.shift, self.shift, count, 3),
                "weight": torch.rand(count, generator=generator) * min(self.weight * strength, 0.49)}

    def apply(self, volume, draw):
        matrices = []
        for axis, size in enumerate(volume.shape[2:]):
            place = torch.arange(size, device=volume.device, dtype=torch.float32)
            source = place + (draw["shift"][:, axis] * size).view(-1, 1)
            matrices.append((1 - (source[..., None] - place).abs()).clamp(min=0))
        weight = draw["weight"].view(-1, 1, 1, 1, 1)
        return volume * (1 - weight) + along_axes(volume, matrices) * weight


class Noise:
    """Gaussian noise. sigma: largest standard deviation; inside: share of samples with noise-free air.

    The noise of a sample is a random stretch of one pool of normal numbers: as good as fresh numbers here,
    cheaper, and the same on every device and for any split of the batch.
    """

    def __init__(self, sigma=0.08, inside=0.5):
        self.sigma, self.inside = sigma, inside
        self._pool = {}

    def draw(self, count, generator, strength=1.0):
        return {"sigma": torch.rand(count, generator=generator) * self.sigma * strength,
                "start": torch.rand(count, generator=generator, dtype=torch.float64),
                "inside": torch.rand(count, generator=generator) < self.inside}

    def apply(self, volume, draw):
        voxels = volume[0].numel()
        key = (voxels, volume.device)
        if key not in self._pool:
            pool = torch.randn(3 * voxels, generator=torch.Generator().manual_seed(0))
            self._pool[key] = pool.to(volume.device)
        starts = (draw["start"] * (2 * voxels)).long()
        windows = self._pool[key].unfold(0, voxels, 1)  # a view: nothing is copied before the selection
        noise = windows[starts] * draw["sigma"].float().view(-1, 1)
        air = (volume.view(len(volume), -1) <= 0) & draw["inside"].view(-1, 1)
        return (volume.view(len(volume), -1) + noise.masked_fill_(air, 0)).view(volume.shape).clamp_(0, 1)


@dataclass
class FieldOfView:
    """A window beyond which the volume is black.

    keep: the smallest part of every axis that is left (published 0.75 for OCT, 0.6 for MRI); axes: which of
    D, H, W may be cut; rotation_degrees: largest turn of the window, as when the header's axes are not the
    scanner's; one_sided: share of the samples that lose one end of one axis only (a neck, half a head).
    """

    keep: float = 0.6
    axes: tuple = (0, 1, 2)
    rotation_degrees: float = 45.0
    one_sided: float = 0.4

    def draw(self, count, generator, strength=1.0):
        keep = 1 - uniform(generator, 0, 1, count, 3) * min((1 - self.keep) * strength, 0.9)
        start = torch.rand(count, 3, generator=generator) * (1 - keep)
        chosen = torch.zeros(count, 3, dtype=torch.bool)
        chosen[:, list(self.axes)] = True
        single = torch.rand(count, 1, generator=generator) < self.one_sided
        pick = torch.tensor(self.axes)[integers(generator, 0, len(self.axes) - 1, count)]
        chosen &= ~single | F.one_hot(pick, 3).bool()
        at_end = integers(generator, 0, 1, count, 3) == 1
        start = torch.where(single, torch.where(at_end, 1 - keep, torch.zeros_like(keep)), start)
        low = torch.where(chosen & (start > 0), 2 * start - 1, torch.full_like(start, -9.0))
        end = start + keep
        high = torch.where(chosen & (end < 1), 2 * end - 1, torch.full_like(start, 9.0))
        turned = torch.rand(count, generator=generator) < 0.5
        turn = torch.where(turned.view(-1, 1, 1), rotations(generator, count, self.rotation_degrees), torch.eye(3))
        return {"low": low, "high": high, "turn": turn}

    def apply(self, volume, draw):
        # Turned in voxels, not in normalized coordinates: on a grid that is no cube they differ.
        scale = [n / max(volume.shape[2:]) for n in volume.shape[2:]]
        d, h, w = (voxel_centers(n, volume.device) * k for n, k in zip(volume.shape[2:], scale))
        keep = None
        for axis in range(3):
            weight = draw["turn"][:, axis] / scale[axis]
            place = ((weight[:, 0, None] * d)[:, :, None, None] + (weight[:, 1, None] * h)[:, None, :, None]
                     + (weight[:, 2, None] * w)[:, None, None, :])
            shape = (-1, 1, 1, 1)
            inside = (place >= draw["low"][:, axis].view(shape)) & (place <= draw["high"][:, axis].view(shape))
            keep = inside if keep is None else keep & inside
        return volume * keep[:, None]


@dataclass
class Intensity:
    """Gain and gamma: v → (gain · v)^gamma, cut at 1. gain and gamma: largest log factor (uniform in ±)."""

    gain: float = 0.3
    gamma: float = 0.4

    def draw(self, count, generator, strength=1.0):
        return {"gain": (uniform(generator, -1, 1, count) * self.gain * strength).exp(),
                "gamma": (uniform(generator, -1, 1, count) * self.gamma * strength).exp()}

    def apply(self, volume, draw):
        shape = (-1, 1, 1, 1, 1)
        return (volume.clamp(min=0) * draw["gain"].view(shape)).clamp_(max=1).pow_(draw["gamma"].view(shape))


@dataclass
class Strip:
    """Everything outside a brain mask set to 0, before anything else happens: skull or no skull.

    Samples without a mask stay as they are. smooth: deviation (fraction of the edge) of the blur after which the
    mask is cut anew at a random level between the two of `level`, so that its border moves in and out.
    """

    smooth: float = 0.015
    level: tuple = (0.15, 0.6)

    def draw(self, count, generator, strength=1.0):
        return {"level": uniform(generator, *self.level, count)}

    def apply(self, volume, mask, draw):
        """B×1×D×H×W volumes with their masks (0..1, same shape)."""
        sigma = torch.full((len(volume), 3), self.smooth, device=volume.device)
        level = draw["level"].to(volume.device).view(-1, 1, 1, 1, 1)
        return volume * (Blur().apply(mask, {"sigma": sigma}) > level)


# --------------------------------------------------------------------------------------------- the pipeline
WARPS = {"deformation": Deformation, "motion": Motion, "stretch": Stretch}
# In the order in which they happen: the tissue, the coil and the light, the scanner's sampling, the reader's
# window. The field of view is cut last but noise, which fills the cut-off part as in a real scan's padding.
FILTERS = {"contrast": Contrast, "lesion": Lesion, "bias": Bias, "shadow": Shadow, "doubling": Doubling,
           "blur": Blur, "thick_slices": ThickSlices, "intensity": Intensity, "noise": Noise,
           "field_of_view": FieldOfView}
ARTIFACTS = {"strip": Strip, **WARPS, **FILTERS}


class Corruption:
    """The artifacts of a training pair, each with its probability, and one knob for all their strengths.

    settings: name → {"probability": p, …parameters of the class…}; names as in ARTIFACTS; absent ones are
    off. strength scales every magnitude (0 turns everything off).
    """

    def __init__(self, settings, strength=1.0):
        unknown = set(settings) - set(ARTIFACTS)
        if unknown:
            raise ValueError(f"unknown artifacts {sorted(unknown)}; known are {sorted(ARTIFACTS)}")
        self.strength = float(strength)
        self.artifacts = {}
        for name, kind in ARTIFACTS.items():
            if name in settings:
                options = {k: tuple(v) if isinstance(v, list) else v for k, v in settings[name].items()}
                probability = float(options.pop("probability", 0.5))
                if not 0 <= probability <= 1:
                    raise ValueError(f"expected a probability of {name} in 0..1, got {probability}")
                self.artifacts[name] = (probability, kind(**options))

    def draw(self, count, generator):
        """All random numbers for `count` volumes: {name: {"on": count bools, …}}, on the CPU."""
        draws = {}
        for name, (probability, artifact) in self.artifacts.items():
            draw = artifact.draw(count, generator, self.strength)
            draw["on"] = (torch.rand(count, generator=generator) < probability) & (self.strength > 0)
            draws[name] = draw
        return draws

    def strip(self, source, masks, draws):
        """The source volumes without what lies outside their masks, where drawn. masks: (rows, their masks)."""
        rows, mask = masks
        on = draws["strip"]["on"][rows] if "strip" in draws else torch.zeros(len(rows), dtype=torch.bool)
        if not bool(on.any()):
            return source
        chosen, which = rows[on], on.nonzero()[:, 0].to(mask.device)  # chosen on the CPU: no wait for the device
        part = {"level": draws["strip"]["level"][chosen]}
        stripped = self.artifacts["strip"][1].apply(source[chosen.to(source.device)], mask[which], part)
        return source.index_copy(0, chosen.to(source.device), stripped)

    def warp(self, source, affine, draws):
        """The volumes under affine and the drawn displacements, by one look at every voxel."""
        shape, device = tuple(source.shape[2:]), source.device
        controls = profile = None
        if "deformation" in draws and bool(draws["deformation"]["on"].any()):
            artifact = self.artifacts["deformation"][1]
            controls = artifact.displace(draws["deformation"], shape)
            controls = (controls * draws["deformation"]["on"].view(-1, 1, 1, 1, 1)).to(device)
        for name in ("motion", "stretch"):
            if name in draws and bool(draws[name]["on"].any()):
                part = self.artifacts[name][1].profile(draws[name], max(shape))
                part = (part * draws[name]["on"].view(-1, 1, 1, 1)).to(device)
                profile = part if profile is None else profile + part
        return warp(source, affine, controls, profile)

    def filter(self, volume, draws):
        """The volumes with the drawn artifacts of intensity; only the chosen samples are touched."""
        for name in FILTERS:
            if name not in draws:
                continue
            chosen = draws[name]["on"].nonzero()[:, 0]  # on the CPU: no wait for the device
            if not len(chosen):
                continue
            part = {k: v[chosen].to(volume.device) for k, v in draws[name].items() if k != "on"}
            artifact = self.artifacts[name][1]
            if len(chosen) == len(volume):
                volume = artifact.apply(volume, part)
            else:
                rows = chosen.to(volume.device)
                volume = volume.index_copy(0, rows, artifact.apply(volume[rows], part))
        return volume.clamp_(0, 1)


def take(draws, rows):
    """The given rows of a drawn dictionary (a process's share of a global batch)."""
    return {k: take(v, rows) if isinstance(v, dict) else v[rows] for k, v in draws.items()}


def describe():
    """Every artifact with its parameters' defaults: {name: {parameter: value}}."""
    out = {}
    for name, kind in ARTIFACTS.items():
        out[name] = {f.name: f.default for f in fields(kind)} if kind is not Noise else {"sigma": 0.08, "inside": 0.5}
    return out
