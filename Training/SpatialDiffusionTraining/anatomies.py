"""Synthesised anatomies: volumes of random smooth label maps in random contrasts, for a model that is to know any
anatomy.

    python -m SpatialDiffusionTraining.anatomies --out SHAPES --count 500

Each is a body of random shape with parts in it: blobs, tubes, shells, layers and branching trees, some of them mirror
images of each other, bent by one smooth displacement. Every part has an intensity and a texture of its own. Sizes are
drawn over two decades, so that nothing is learned from millimeters. All work on voxels is done on the device; every
random number is drawn on the CPU from the seed, so that a volume is the same everywhere. The idea that a network
trained on such images knows what it never saw is that of SynthMorph (Hoffmann et al., arXiv 2004.10282); nothing else
is taken from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume
from SpatialDiffusionCore.spatial.volume_file import save

from . import command
from .augmentation import integers, normal, rotations, smooth_field, uniform, voxel_centers
from .datasets import Report
from .pairs import seeded

#: mm: the smallest and the largest size of the body (twice its RMS radius); between them the logarithm is uniform.
SIZES = 5.0, 500.0

#: Parts in a body, at least and at most.
PARTS = 5, 12

#: Share of the bodies that are mirror images of themselves, as most animals nearly are.
MIRRORED = 0.4

#: Segments of a tube, and branches of a tree.
SEGMENTS, BRANCHES = 10, 7


@dataclass
class Anatomy:
    """One synthesised anatomy. labels: D×H×W, 0 outside, 1 the body, 2… its parts; values: D×H×W in 0..1; size: mm,
    twice the RMS radius of the body; spacing: mm between voxels; kinds: what each part is, in the order of the
    labels."""

    labels: torch.Tensor
    values: torch.Tensor
    size: float
    spacing: float
    kinds: list[str]


def _field(generator: torch.Generator, points: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """A smooth random field of deviation about 1, D×H×W, of points³ control values."""
    controls = normal(generator, 1, points, points, points, 1, clip=2.5).to(device)
    return 1.5 * smooth_field(controls, shape)[0, ..., 0]  # splines smooth white noise to about two thirds


def _segments(points: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Distance of D×H×W×3 points to the nearest of N segments (N×2×3), D×H×W."""
    nearest = torch.full(points.shape[:3], 81.0, device=points.device)
    # Squared distances by the products alone: over twice as fast as vectors from every voxel to every segment.
    square = points.square().sum(dim=-1)
    for first, last in ends.unbind(0):
        along = last - first
        length = along.square().sum().clamp_min(1e-6)
        products = points @ torch.stack([along, first], dim=1)
        ahead = products[..., 0] - first @ along
        share = (ahead / length).clamp_(0, 1)
        far = square - 2 * products[..., 1] + first @ first + share * (share * length - 2 * ahead)
        nearest = torch.minimum(nearest, far)
    return nearest.clamp_min_(0).sqrt_()


def _center(generator: torch.Generator, device: torch.device) -> torch.Tensor:
    return uniform(generator, -0.45, 0.45, 3).to(device)


def _distance(generator: torch.Generator, points: torch.Tensor, reach: tuple[float, float]) -> torch.Tensor:
    """Distance from the middle of an ellipsoid of any orientation, in its radii: 1 on its surface, D×H×W."""
    radii = uniform(generator, *reach, 3).to(points.device)
    turn = rotations(generator, 1, 180.0)[0].to(points.device)
    return (((points - _center(generator, points.device)) @ turn.T) / radii).norm(dim=-1)


def _blob(generator: torch.Generator, points: torch.Tensor) -> torch.Tensor:
    """An ellipsoid with bumps."""
    bumps = 0.15 * _field(generator, 6, points.shape[:3], points.device)
    return _distance(generator, points, (0.08, 0.35)) + bumps < 1


def _shell(generator: torch.Generator, points: torch.Tensor) -> torch.Tensor:
    """A skin about a blob, as of a skull or a vessel's wall."""
    far = _distance(generator, points, (0.2, 0.5)) + 0.1 * _field(generator, 6, points.shape[:3], points.device)
    return (far - 1).abs() < float(uniform(generator, 0.06, 0.16, 1))


def _layers(generator: torch.Generator, points: torch.Tensor) -> torch.Tensor:
    """Parallel bent sheets within an ellipsoid, as of a retina, a cortex or a muscle."""
    way = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0).to(points.device)
    phase = (points @ way) * float(uniform(generator, 12, 30, 1))
    phase = phase + 0.8 * _field(generator, 5, points.shape[:3], points.device)
    return (torch.sin(phase) > float(uniform(generator, -0.2, 0.5, 1))) & (_distance(generator, points, (0.2, 0.5)) < 1)


def _walk(generator: torch.Generator, start: torch.Tensor, way: torch.Tensor, length: float) -> torch.Tensor:
    """Segments (SEGMENTS×2×3) of a path that bends at random."""
    places = [start]
    for _ in range(SEGMENTS):
        way = torch.nn.functional.normalize(way + 0.35 * torch.randn(3, generator=generator), dim=0)
        places.append(places[-1] + length / SEGMENTS * way)
    line = torch.stack(places)
    return torch.stack([line[:-1], line[1:]], dim=1)


def _tube(generator: torch.Generator, points: torch.Tensor) -> torch.Tensor:
    """A bent tube, as of a vessel, a bowel or a long bone."""
    way = torch.randn(3, generator=generator)
    path = _walk(generator, uniform(generator, -0.5, 0.5, 3), way, float(uniform(generator, 0.8, 1.8, 1)))
    return _segments(points, path.to(points.device)) < float(uniform(generator, 0.03, 0.12, 1))


def _tree(generator: torch.Generator, points: torch.Tensor) -> torch.Tensor:
    """A branching tree, as of airways or arteries: thinner with every fork."""
    trunk = _walk(generator, uniform(generator, -0.5, 0.5, 3), torch.randn(3, generator=generator), 1.0)
    thick = float(uniform(generator, 0.04, 0.08, 1))
    inside = _segments(points, trunk.to(points.device)) < thick
    for number in integers(generator, 1, SEGMENTS - 1, BRANCHES).tolist():
        start = trunk[number, 0]
        branch = _walk(generator, start, torch.randn(3, generator=generator), float(uniform(generator, 0.3, 0.7, 1)))
        inside |= _segments(points, branch.to(points.device)) < 0.6 * thick
    return inside


KINDS: dict[str, Callable[[torch.Generator, torch.Tensor], torch.Tensor]] = {
    "blob": _blob,
    "shell": _shell,
    "layers": _layers,
    "tube": _tube,
    "tree": _tree,
}


def _coordinates(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """D×H×W×3 normalized coordinates in the order of the axes."""
    return torch.stack(torch.meshgrid(*(voxel_centers(n, device) for n in shape), indexing="ij"), dim=-1)


def labels_of(
    generator: torch.Generator, shape: Sequence[int], device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, list[str]]:
    """(D×H×W labels, what each part is) of a random anatomy: 0 outside, 1 the body, 2… its parts."""
    device = torch.device(device)
    points = _coordinates(shape, device)
    bend = normal(generator, 1, 5, 5, 5, 3).to(device) * float(uniform(generator, 0.05, 0.18, 1))
    points = points + smooth_field(bend, shape)[0]
    if float(torch.rand(1, generator=generator)) < MIRRORED:
        # What lies on one side lies on the other, too; the bend has made the two a little unlike.
        points = torch.cat([points[..., :1].abs(), points[..., 1:]], dim=-1)
    radii = uniform(generator, 0.5, 0.8, 3).to(device)
    bumps = float(uniform(generator, 0.0, 0.25, 1)) * _field(generator, 5, shape, device)
    body = (points / radii).norm(dim=-1) + bumps < 1
    labels, kinds = body.long(), []
    names = list(KINDS)
    for number in range(int(integers(generator, *PARTS, 1))):
        kind = names[int(integers(generator, 0, len(names) - 1, 1))]
        inside = KINDS[kind](generator, points) & body
        labels = torch.where(inside, torch.full_like(labels, number + 2), labels)
        kinds.append(kind)
    return labels, kinds


def painted(generator: torch.Generator, labels: torch.Tensor) -> torch.Tensor:
    """Intensities (D×H×W in 0..1) of labels: each with a brightness and a texture of its own, air black."""
    count = int(labels.max()) + 1
    bright = uniform(generator, 0.15, 1.0, count).to(labels.device)
    bright[0] = 0.0
    rough = (uniform(generator, 0.0, 0.12, count) * (torch.rand(count, generator=generator) < 0.6)).to(labels.device)
    rough[0] = 0.0
    fine = _field(generator, max(4, min(labels.shape) // 3), labels.shape, labels.device)
    coarse = _field(generator, 6, labels.shape, labels.device)
    return (bright[labels] + rough[labels] * (fine + 0.5 * coarse)).clamp(0, 1)


def make(seed: int, edge: int = 64, device: str | torch.device = "cpu") -> Anatomy:
    """The anatomy of a seed on edge³ voxels; its labels, values and size are the same on every device (up to
    rounding)."""
    generator = seeded(11, seed)
    labels, kinds = labels_of(generator, (edge,) * 3, device)
    values = painted(generator, labels)
    places = (labels > 0).nonzero().double()
    radius = 2 * float(places.var(dim=0, correction=0).sum().sqrt())
    low, high = (float(np.log(size)) for size in SIZES)
    size = float(torch.exp(uniform(generator, low, high, 1)))
    return Anatomy(labels, values, size, size / max(radius, 1e-6), kinds)


def volume_of(anatomy: Anatomy, name: str = "") -> Volume:
    """An anatomy as a volume of 8 bits about the origin, RAS mm."""
    data = (anatomy.values * 255).round().to(torch.uint8).cpu().numpy()
    middle = -anatomy.spacing * (np.array(data.shape) - 1) / 2
    return Volume(data, geometry.from_parts(np.eye(3) * anatomy.spacing, middle), name)


def write(
    folder: str | Path,
    count: int,
    seed: int = 0,
    edge: int = 64,
    device: str = "cpu",
    report: Report = print,
) -> Path:
    """Write `count` anatomies into a folder, which is returned; those that are there already are not made again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(seed, seed + count):
        path = folder / f"anatomy{number:06d}.nii.gz"
        if not path.exists():
            save(volume_of(make(number, edge, device), path.name), path)
        if (number - seed + 1) % 100 == 0:
            report(f"made {number - seed + 1} of {count} anatomies")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.anatomies",
        description="Synthesised anatomies of random shape, contrast and size, to train a model that "
        "knows any anatomy: "
        "NIfTI files of 8 bits.",
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="volumes (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first one")
    parser.add_argument("--edge", type=int, default=64, metavar="N", help="voxels along each axis (default: 64)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda (default: cpu)")
    chosen = parser.parse_args(argv)

    def work() -> Path:
        if chosen.count < 1 or chosen.edge < 16 or chosen.seed < 0:
            raise InputError("--count expects 1 or more, --edge 16 or more, --seed 0 or more.")
        return write(chosen.out, chosen.count, chosen.seed, chosen.edge, chosen.device, report=command.say)

    return command.run("anatomies", work)


if __name__ == "__main__":
    raise SystemExit(main())
