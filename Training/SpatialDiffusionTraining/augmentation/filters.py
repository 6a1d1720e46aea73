"""What changes intensities and leaves voxels in their places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .draws import Draw, integers, normal, rotations, uniform
from .fields import along_axes, renormalize, smooth_field, voxel_centers


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

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
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

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        table = F.interpolate(draw["curve"][:, None], size=256, mode="linear", align_corners=True)[:, 0]
        table[:, 0] = 0  # air stays air; 1/256 of the range is below any tissue
        index = (volume.view(len(volume), -1) * 255).round_().clamp_(0, 255).long()
        return table.gather(1, index).view(volume.shape)


@dataclass
class Bias:
    """Smooth multiplicative field exp(f), as a coil gives. controls³ points; amplitude: deviation of f."""

    controls: int = 4
    amplitude: float = 0.4

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        n = self.controls
        part = torch.rand(count, 1, 1, 1, 1, generator=generator)
        return {"field": normal(generator, count, n, n, n, 1) * part * self.amplitude * strength}

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        return volume * smooth_field(draw["field"], volume.shape[2:]).exp_().view(volume.shape)


@dataclass
class Shadow:
    """Multiplied by a random smooth mask grown from a coarse grid (published 12×6×6), back to 0..1.

    dark: share of the grid's points in shadow; depth: how much of the light they lose at most.
    """

    controls: tuple[int, int, int] = (12, 6, 6)
    dark: float = 0.35
    depth: float = 0.9

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        dark = torch.rand(count, *self.controls, 1, generator=generator) < self.dark
        depth = uniform(generator, 0.3, 1, count, 1, 1, 1, 1) * self.depth * min(strength, 1.1)
        return {"mask": 1 - dark * depth}

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        mask = smooth_field(draw["mask"], volume.shape[2:]).clamp_(0, 1)
        return renormalize(volume * mask.view(volume.shape))


@dataclass
class Lesion:
    """Ellipsoids of one intensity painted in: lesions, resections, implants.

    most: largest number; radius: smallest and largest, fractions of the edge.
    """

    most: int = 3
    radius: tuple[float, float] = (0.02, 0.12)

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        used = torch.arange(self.most) < integers(generator, 1, self.most, count, 1)
        radius = 2 * uniform(generator, *self.radius, count, self.most, 3) * strength
        return {
            "center": uniform(generator, -0.55, 0.55, count, self.most, 3),
            "radius": radius + 1e-3,
            "value": torch.rand(count, self.most, generator=generator) * used,
            "used": used.float(),
        }

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        # One Gaussian per axis; their product is 1/e on the ellipsoid's surface, and a ramp makes it an edge.
        bumps = [
            torch.exp(
                -(
                    (
                        (voxel_centers(n, volume.device) - draw["center"][..., axis, None])
                        / draw["radius"][..., axis, None]
                    )
                    ** 2
                )
            )
            for axis, n in enumerate(volume.shape[2:])
        ]
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

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        return {"sigma": torch.rand(count, 3, generator=generator) * self.sigma * strength}

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
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

    thickness: tuple[float, float] = (0.02, 0.045)

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        return {
            "thickness": uniform(generator, *self.thickness, count) * strength,
            "phase": torch.rand(count, generator=generator),
            "axis": integers(generator, 0, 2, count),
        }

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        matrices = []
        for axis, size in enumerate(volume.shape[2:]):
            same = torch.eye(size, device=volume.device)
            chosen = (draw["axis"] == axis).view(-1, 1, 1)
            matrices.append(torch.where(chosen, self._resample(draw, size), same))
        return along_axes(volume, matrices)

    @staticmethod
    def _resample(draw: Draw, size: int) -> torch.Tensor:
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

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        return {
            "shift": uniform(generator, -self.shift, self.shift, count, 3),
            "weight": torch.rand(count, generator=generator) * min(self.weight * strength, 0.49),
        }

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
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

    def __init__(self, sigma: float = 0.08, inside: float = 0.5) -> None:
        self.sigma, self.inside = sigma, inside
        self._pool: dict[tuple[int, torch.device], torch.Tensor] = {}

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        return {
            "sigma": torch.rand(count, generator=generator) * self.sigma * strength,
            "start": torch.rand(count, generator=generator, dtype=torch.float64),
            "inside": torch.rand(count, generator=generator) < self.inside,
        }

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
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
    axes: tuple[int, ...] = (0, 1, 2)
    rotation_degrees: float = 45.0
    one_sided: float = 0.4

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
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

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        # Turned in voxels, not in normalized coordinates: on a grid that is no cube they differ.
        scale = [n / max(volume.shape[2:]) for n in volume.shape[2:]]
        d, h, w = (voxel_centers(n, volume.device) * k for n, k in zip(volume.shape[2:], scale))
        keep = torch.ones((), dtype=torch.bool, device=volume.device)
        for axis in range(3):
            weight = draw["turn"][:, axis] / scale[axis]
            place = (
                (weight[:, 0, None] * d)[:, :, None, None]
                + (weight[:, 1, None] * h)[:, None, :, None]
                + (weight[:, 2, None] * w)[:, None, None, :]
            )
            shape = (-1, 1, 1, 1)
            inside = (place >= draw["low"][:, axis].view(shape)) & (place <= draw["high"][:, axis].view(shape))
            keep = keep & inside
        return volume * keep[:, None]


@dataclass
class Intensity:
    """Gain and gamma: v → (gain · v)^gamma, cut at 1. gain and gamma: largest log factor (uniform in ±)."""

    gain: float = 0.3
    gamma: float = 0.4

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        return {
            "gain": (uniform(generator, -1, 1, count) * self.gain * strength).exp(),
            "gamma": (uniform(generator, -1, 1, count) * self.gamma * strength).exp(),
        }

    def apply(self, volume: torch.Tensor, draw: Draw) -> torch.Tensor:
        shape = (-1, 1, 1, 1, 1)
        return (volume.clamp(min=0) * draw["gain"].view(shape)).clamp_(max=1).pow_(draw["gamma"].view(shape))


@dataclass
class Strip:
    """Everything outside a brain mask set to 0, before anything else happens: skull or no skull.

    Samples without a mask stay as they are. smooth: deviation (fraction of the edge) of the blur after which the
    mask is cut anew at a random level between the two of `level`, so that its border moves in and out.
    """

    smooth: float = 0.015
    level: tuple[float, float] = (0.15, 0.6)

    def draw(self, count: int, generator: torch.Generator, strength: float = 1.0) -> Draw:
        return {"level": uniform(generator, *self.level, count)}

    def apply(self, volume: torch.Tensor, mask: torch.Tensor, draw: Draw) -> torch.Tensor:
        """B×1×D×H×W volumes with their masks (0..1, same shape)."""
        sigma = torch.full((len(volume), 3), self.smooth, device=volume.device)
        level = draw["level"].to(volume.device).view(-1, 1, 1, 1, 1)
        return volume * (Blur().apply(mask, {"sigma": sigma}) > level)
