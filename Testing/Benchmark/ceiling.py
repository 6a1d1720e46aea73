"""How well any affine can do: one that is fitted to the labels themselves (``python -m Benchmark ceiling``).

Of each pair of the task ``brains`` the mean Dice of the structures is maximized over the twelve numbers of an affine,
from the fit of the structures' centers. What is found is a lower bound of the best possible, and an upper one for what
a method that never sees the labels can be asked for. ceilings.json keeps it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume

from . import brains
from .cases import Arguments, Case, rng

#: Points of each structure over which the overlap is estimated.
POINTS = 4000

#: Standard deviations (mm) of the blur of the structures in the first and in the last round.
BLURS = (2.0, 0.5)


def centers(labels: Volume, count: int) -> np.ndarray:
    """The centers of structures 1…count, count×3 RAS mm; NaN where one is missing."""
    found = np.full((count, 3), np.nan)
    for number in range(1, count + 1):
        voxels = np.argwhere(labels.data == number)
        if len(voxels):
            found[number - 1] = voxels.mean(axis=0)
    return geometry.transform_points(labels.voxel_to_ras, found)


class _SoftDice:
    """Mean Dice of structures as a smooth function of a fixed → moving affine (12 numbers about the fixed center).

    Of the fixed structures points are sampled; where they land, the share of the eight voxels around that hold the same
    structure is what overlaps. The sizes of the moving structures follow from the determinant.
    """

    def __init__(self, moving: Volume, fixed: Volume, start: np.ndarray, blur: float, generator: np.random.Generator):
        import torch

        count = int(min(moving.data.max(), fixed.data.max()))
        sizes = [
            np.bincount(v.data.ravel(), minlength=count + 1)[1 : count + 1] * v.spacing.prod() for v in (fixed, moving)
        ]
        self.numbers = [n for n in range(1, count + 1) if sizes[0][n - 1] and sizes[1][n - 1]]
        points, owner = [], []
        for number in self.numbers:
            voxels = np.argwhere(fixed.data == number)
            chosen = voxels[generator.permutation(len(voxels))[:POINTS]]
            points.append(geometry.transform_points(fixed.voxel_to_ras, chosen))
            owner += [number] * len(chosen)
        place = np.concatenate(points)
        place = place + blur * generator.normal(size=place.shape)
        self.center = place.mean(axis=0)
        self.scale = place.std()
        self.place = torch.from_numpy((place - self.center) / self.scale)
        self.owner = torch.from_numpy(np.array(owner))
        self.start, self.to_voxel = start, np.linalg.inv(moving.voxel_to_ras)
        self.labels = torch.from_numpy(np.pad(moving.data, 1).astype(np.int64))
        self.sizes = [torch.from_numpy(np.array([s[n - 1] for n in self.numbers], float)) for s in sizes]

    def matrix(self, values: np.ndarray) -> np.ndarray:
        """4×4 fixed → moving of the 12 numbers; all 0 is the start."""
        change = np.eye(4)
        change[:3] += np.asarray(values, float).reshape(3, 4) * [1, 1, 1, self.scale]
        move = geometry.from_parts(np.eye(3), self.center)
        return self.start @ move @ change @ np.linalg.inv(move)

    def __call__(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        """(minus the mean Dice, its gradient)."""
        import torch

        numbers = torch.from_numpy(np.asarray(values, float)).requires_grad_()
        change = numbers.reshape(3, 4)
        moved = self.place + self.place @ change[:, :3].T + change[:, 3]
        base = self.to_voxel @ self.start @ geometry.from_parts(self.scale * np.eye(3), self.center)
        voxel = moved @ torch.from_numpy(base[:3, :3].T.copy()) + torch.from_numpy(base[:3, 3].copy()) + 1
        held = self._held(voxel)
        index = torch.searchsorted(torch.tensor(self.numbers), self.owner)
        shares = torch.zeros(len(self.numbers), dtype=torch.float64).index_add(0, index, held)
        shares = shares / torch.bincount(index, minlength=len(self.numbers))
        volume = torch.linalg.det(torch.eye(3, dtype=torch.float64) + change[:, :3]) * np.linalg.det(self.start[:3, :3])
        dice = 2 * shares * self.sizes[0] / (self.sizes[0] + self.sizes[1] / volume)
        loss = -dice.mean()
        loss.backward()
        return float(loss.detach()), numbers.grad.numpy()

    def _held(self, voxel):
        """How much of each point's own structure lies around its place in the moving voxels, 0…1."""
        import torch

        last = torch.tensor(self.labels.shape) - 1
        low = voxel.detach().floor().long()
        part = voxel - low
        total = torch.zeros(len(voxel), dtype=torch.float64)
        for corner in np.ndindex(2, 2, 2):
            place = torch.minimum((low + torch.tensor(corner)).clamp_min(0), last)
            same = self.labels[place[:, 0], place[:, 1], place[:, 2]] == self.owner
            weights = [part[:, axis] if corner[axis] else 1 - part[:, axis] for axis in range(3)]
            total = total + same * weights[0] * weights[1] * weights[2]
        return total


def best_affine(moving: Volume, fixed: Volume, generator: np.random.Generator) -> np.ndarray:
    """4×4 moving → fixed RAS that lays labelled structures (numbers from 1) on each other as well as an affine can."""
    from scipy.optimize import minimize

    count = int(max(moving.data.max(), fixed.data.max()))
    both = [centers(labels, count) for labels in (fixed, moving)]
    known = np.isfinite(both[0]).all(axis=1) & np.isfinite(both[1]).all(axis=1)
    to_moving = geometry.fit(both[0][known], both[1][known])
    for blur in BLURS:
        dice = _SoftDice(moving, fixed, to_moving, blur, generator)
        found = minimize(dice, np.zeros(12), jac=True, method="L-BFGS-B", options={"maxiter": 60})
        to_moving = dice.matrix(found.x)
    return np.linalg.inv(to_moving)


def ceiling(case: Case, measure) -> float:
    """The mean Dice of a case under the affine that its own labels give."""
    (moving, _), (fixed, _) = (measure.labels(path) for path in case.labels)
    to_fixed = best_affine(moving, fixed, rng("ceiling", case.name))
    return measure.dice(case.labels, np.eye(4), to_fixed)


def make_ceilings(data: str, path: Path = brains.CEILINGS) -> None:
    """Fit every pair of the task that the file lacks."""
    arguments = Arguments(data=Path(data), scratch=Path(data), rotations=(0,))
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    measure = brains.structures(arguments)
    for todo in brains.TASKS[0].cases(arguments):
        if todo.name not in table:
            table[todo.name] = round(ceiling(todo.make(), measure), 4)
            path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            print(f"{todo.name}: {table[todo.name]:.3f}", flush=True)
