"""Does a model help? The same pairs of held-out scans registered without a network, by the bundled model and by
another.

Pairs are made as in training from scans that nobody trained on: both volumes corrupted, under a known affine of the
last timestep. Errors are RMS mm over the tissue. An answer is *right* within 1 % of the size of the tissue (twice its
RMS radius) or half a voxel, whichever is larger, and *wrong* beyond 3 %.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SpatialDiffusionCore import register
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.method import diffusion
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.modelfile.card import read_card
from SpatialDiffusionCore.modelfile.catalog import choose
from SpatialDiffusionCore.modelfile.model import load_model
from SpatialDiffusionCore.modelfile.model_cube import model_cube
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume

from .datasets import Cache, Report, open_cache
from .pairs import PairMaker, seeded
from .settings import Settings

#: Pairs of a table where nobody asks for more.
PAIRS = 8

#: Right and wrong, shares of the size of the tissue.
RIGHT, WRONG = 0.01, 0.03

#: A network is worth installing where held-out pairs end nearer by this factor.
GAIN = 0.9

#: A pair of which the transform took more than this share of the tissue out of view has no answer and is drawn again,
#: so often at most; voxels brighter than TISSUE count.
KEPT, ATTEMPTS, TISSUE = 0.5, 20, 0.05

#: Diffusion steps of a network alone.
ALONE_STEPS = 4

#: Where the core looks for a user's models.
MODELS = "SPATIAL_DIFFUSION_MODELS"

ALONE, WHOLE = "the network alone", "the whole registration"


@dataclass
class Pair:
    """Two volumes with the affine that takes fixed points to moving ones (4×4, RAS mm), and the fixed one's tissue."""

    fixed: Volume
    moving: Volume
    truth: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    @property
    def size(self) -> float:
        """Twice the RMS radius of the tissue, mm."""
        return 2 * float(np.sqrt(np.trace(self.covariance)))

    @property
    def right_within(self) -> float:
        """mm within which an answer is right."""
        return max(RIGHT * self.size, 0.5 * float(np.max(self.fixed.spacing)))

    def error(self, fixed_to_moving: np.ndarray) -> float:
        """RMS mm over the tissue between an answer and the truth."""
        return geometry.displacement_rms(fixed_to_moving, self.truth, self.mean, self.covariance)


@dataclass
class Row:
    """How one method did: mm of every pair, and how many are right and wrong."""

    part: str
    method: str
    errors: list[float]
    right: int
    wrong: int

    @property
    def median(self) -> float:
        """Median error, mm."""
        return float(np.median(self.errors))

    def text(self) -> str:
        """A line of the table."""
        worst = float(np.max(self.errors))
        return (
            f"  {self.part:24} {self.method:28} {self.median:8.2f} {worst:8.2f} {self.right:5d} of {len(self.errors)} "
            f"{self.wrong:5d}"
        )


@dataclass
class Comparison:
    """The table of one modality, and whether the model is worth installing."""

    modality: str
    rows: list[Row] = field(default_factory=list)

    def of(self, part: str, method: str) -> Row | None:
        """The row of a method, where it was measured."""
        return next((row for row in self.rows if row.part == part and row.method.startswith(method)), None)

    @property
    def helps(self) -> bool:
        """Whether the model does better than what was there, and nothing worse.

        In whole registrations no fewer may be right and no more wrong than without it; and either more are right, or
        they end nearer by the factor GAIN, or as near while the network alone ends nearer by that factor than the
        bundled one.
        """
        mine, bundled, none = (self.of(WHOLE, name) for name in ("this model", "bundled", "no network"))
        others = [row for row in (bundled, none) if row is not None]
        if mine is None or not others:
            return False
        if any(mine.right < row.right or mine.wrong > row.wrong for row in others):
            return False
        best = min(others, key=lambda row: (-row.right, row.wrong, row.median))
        if mine.right > best.right or mine.median < GAIN * best.median:
            return True
        alone, before = self.of(ALONE, "this model"), self.of(ALONE, "bundled") or self.of(ALONE, "no network")
        nearer = alone is not None and before is not None and alone.median < GAIN * before.median
        return nearer and mine.median <= best.median / GAIN

    def sentence(self) -> str:
        """Whether it helped, in words."""
        mine, bundled, none = (self.of(WHOLE, name) for name in ("this model", "bundled", "no network"))
        before = bundled or none
        if mine is None or before is None:
            return "Nothing could be compared."
        figures = (
            f"{mine.right} of {len(mine.errors)} held-out pairs are right (median {mine.median:.2f} mm), "
            f"{before.right} "
            f"(median {before.median:.2f} mm) with what was there ({before.method})"
        )
        return f"It helps: {figures}." if self.helps else f"It does not help: {figures}."

    def text(self) -> str:
        """The table with its sentence."""
        head = f"  {'':24} {'':28} {'median':>8} {'worst':>8} {'right':>10} {'wrong':>5}"
        title = f"Held-out scans of {self.modality}, mm over the tissue:"
        return "\n".join([title, head, *(row.text() for row in self.rows), self.sentence()])


def make_pairs(cache: Cache, settings: Settings, rows: Sequence[int], count: int) -> list[Pair]:
    """Pairs of held-out rows of a cache, the same at every call."""
    maker = PairMaker(cache, settings)
    last = maker.schedule.timesteps
    header = _centered(cache.shape, cache.spacing)
    to_ras = header @ geometry.normalized_to_voxel(cache.shape)
    out = []
    for number in range(count):
        row = rows[number % len(rows)]
        for attempt in range(ATTEMPTS):
            made = maker.make([row], seeded(7, 8, number, attempt), t=[last], enhance=False)
            shown, kept = ((volume > TISSUE).float().mean() for volume in (made.fixed, made.moving))
            if kept >= KEPT * shown:
                break
        truth = geometry.theta_to_world(made.target[0].double().numpy(), to_ras, to_ras)
        mean = geometry.transform_points(to_ras, made.mean.double().numpy())[0]
        linear = to_ras[:3, :3]
        covariance = linear @ made.covariance[0].double().numpy() @ linear.T
        fixed, moving = (
            Volume(np.round(volume[0, 0].numpy() * 255).astype(np.float32), header, f"{name} {number}")
            for name, volume in (("fixed", made.fixed), ("moving", made.moving))
        )
        out.append(Pair(fixed, moving, truth, mean, covariance))
    return out


def _centered(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """The header of a grid about the origin."""
    scale = np.asarray(spacing, float)
    return geometry.from_parts(np.diag(scale), -scale * (np.asarray(shape) - 1) / 2)


def known_without(modality: str) -> str:
    """What volumes of a modality are taken for where its own model is not installed: a user's own one is "any"."""
    return modality if modality in MODALITIES else "any"


@contextmanager
def installed(*models: str | Path) -> Iterator[None]:
    """Let the core list the bundled models and these files, and no other of the user's, while the block runs."""
    before = os.environ.get(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            shutil.copyfile(model, Path(folder) / Path(model).name)
        os.environ[MODELS] = folder
        try:
            yield
        finally:
            os.environ.pop(MODELS)
            if before is not None:
                os.environ[MODELS] = before


def alone(model: str | Path | None, key: str, steps: int | None) -> Callable[[Pair], np.ndarray]:
    """Fixed → moving (4×4) by the network's diffusion steps alone: no search, no refinement."""
    loaded = load_model(model, key, key)
    denoise, schedule = loaded.denoiser(key, key), loaded.schedule(key)

    def answer(pair: Pair) -> np.ndarray:
        fixed, moving = (model_cube(v, None, key, loaded.card, "cpu") for v in (pair.fixed, pair.moving))
        theta = torch.eye(3, 4)[None]
        for step in diffusion.reverse(denoise, fixed.values, moving.values, schedule, steps=steps):
            theta = step.theta
        ras = (cube.grid.normalized_to_ras for cube in (fixed, moving))
        return geometry.theta_to_world(theta[0].double().numpy(), *ras)

    return answer


def whole(model: str | Path | None, key: str, **options: Any) -> Callable[[Pair], np.ndarray]:
    """Fixed → moving (4×4) by the default registration."""

    def answer(pair: Pair) -> np.ndarray:
        found = register(pair.moving, pair.fixed, modality=key, model=model, device="cpu", **options)
        return geometry.inverse(found.matrix)

    return answer


def _row(part: str, method: str, answer: Callable[[Pair], np.ndarray], pairs: Sequence[Pair]) -> Row:
    errors = []
    for pair in pairs:
        try:
            errors.append(pair.error(answer(pair)))
        except InputError:  # refused: as far off as it was
            errors.append(pair.error(np.eye(4)))
    right = sum(error <= pair.right_within for error, pair in zip(errors, pairs))
    wrong = sum(error > max(WRONG * pair.size, pair.right_within) for error, pair in zip(errors, pairs))
    return Row(part, method, errors, right, wrong)


def compare(modality: str, model: str | Path, pairs: Sequence[Pair], report: Report = print) -> Comparison:
    """No network, the bundled model and this one on the same pairs; `report` is told how far it is."""
    out, key = Comparison(modality), known_without(modality)
    steps = None if read_card(model).sampler == "reference" else ALONE_STEPS
    with installed():
        before = choose(None, key, key).card
        named = f"bundled {before.name}"
        out.rows.append(_row(ALONE, "no network (as given)", lambda pair: np.eye(4), pairs))
        if before.architecture["head"] != "none":
            out.rows.append(_row(ALONE, named, alone(before.name, key, ALONE_STEPS), pairs))
        out.rows.append(_row(WHOLE, "no network", whole(before.name, key, sampler="fast", steps=0), pairs))
        out.rows.append(_row(WHOLE, named, whole(before.name, key), pairs))
    report(f"measured what is there on {len(pairs)} held-out pairs of {modality}; now this model")
    with installed(model):
        out.rows.append(_row(ALONE, "this model", alone(model, modality, steps), pairs))
        out.rows.append(_row(WHOLE, "this model", whole(model, modality), pairs))
    out.rows.sort(key=lambda row: row.part != ALONE)
    return out


def of_run(settings: Settings, model: str | Path, count: int, report: Report = print) -> list[Comparison]:
    """The tables of a run's model, one for each modality with held-out scans; none where its cache is gone."""
    folder = Path(settings.data.cache or Path(settings.run.output) / "cache")
    out = []
    for index in sorted(folder.rglob("index.json")):
        cache = open_cache(index.parent)
        for modality in dict.fromkeys(entry["modality"] for entry in cache.entries):
            rows = [row for row in cache.rows("validation") if cache.entries[row]["modality"] == modality]
            if rows:
                out.append(compare(modality, model, make_pairs(cache, settings, rows, count), report))
    if not out:
        report("no held-out scans are left to measure on (the run's cache is gone, or nothing was held out)")
    return out
