"""Registrations of held-out scans from known affines, the same at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from SpatialDiffusionCore.method import diffusion
from SpatialDiffusionCore.networks.affine_transformer import preprocess

from . import losses
from .pairs import PairMaker, Pairs, seeded

#: Equal parts of the timesteps of which losses and errors are told apart.
BANDS = 4

#: Pairs at once.
BATCH = 4

Spread = dict[str, Any]
Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Interrupted(Exception):
    """A signal came; what was measured so far counts for nothing."""


@dataclass
class Task:
    """What is validated together: held-out rows of one modality.

    denoise: class ids (B) → the network's (fixed, moving, t) → θ on volumes as it wants them. steps: diffusion steps
    (None: the published process with all of its timesteps and shares).
    """

    name: str
    maker: PairMaker
    rows: Sequence[int]
    count: int
    steps: int | None
    denoise: Callable[[torch.Tensor], Denoise]
    preprocessing: str = "none"

    def predict(self, class_id: torch.Tensor) -> Denoise:
        """(fixed, moving, t) → θ on volumes in 0..1 that are not enhanced yet: warped first, enhanced then, as in
        training and in registration."""
        network = self.denoise(class_id)
        if self.preprocessing == "none":
            return network
        return lambda fixed, moving, t: network(
            preprocess(fixed, self.preprocessing), preprocess(moving, self.preprocessing), t
        )


def band(t: int, timesteps: int) -> int:
    """Index 0..BANDS-1 of the equal part of 1..T in which t lies."""
    return (t - 1) * BANDS // timesteps


def spread(values: Sequence[float]) -> Spread:
    """Median and 95th percentile, or None twice for no values."""
    if not values:
        return {"median": None, "p95": None}
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def text(found: Spread) -> str:
    """The two figures of a spread for people."""
    return "-" if found["median"] is None else f"{found['median']:.2f} ({found['p95']:.2f})"


def error(theta: torch.Tensor, pairs: Pairs, maker: PairMaker) -> list[float]:
    """RMS mm over the tissue of affines, B."""
    half = maker.half.to(theta.device)
    return losses.displacement(theta, pairs.target, pairs.mean, pairs.covariance, half).tolist()


def _checked(steps: Iterable[Any], stop: Callable[[], bool]) -> Any:
    """The last of some steps; raises Interrupted as soon as `stop` says so."""
    last = None
    for step in steps:
        if stop():
            raise Interrupted
        last = step
    return last


@torch.no_grad()
def validate(task: Task, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Errors in mm over the tissue on the same draws of held-out scans at every call.

    "single": one pass at the drawn timestep, by band; "registration": diffusion steps from timestep T; "start": before
    anything is done; each with (corrupted) and without (clean) artifacts: {"median", "p95"}. "self_test": mean absolute
    intensity error after volumes under 1.2 times the largest transforms were registered to themselves.
    """
    maker = task.maker
    rows = [task.rows[i % len(task.rows)] for i in range(task.count)]
    result: dict[str, Any] = {
        name: _errors(task, rows, corrupt, stop) for name, corrupt in (("clean", False), ("corrupted", True))
    }
    few = rows[: min(BATCH, task.count)]
    classes = maker.classes[torch.tensor(few)].to(maker.device)
    volumes = maker.cache.read(few, maker.device)
    # The test draws on the volumes' device; seeded there, it is the same at every validation.
    generator = torch.Generator(maker.device).manual_seed(8)
    denoise = task.predict(classes)

    def watched(fixed: torch.Tensor, moving: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if stop():
            raise Interrupted
        return denoise(fixed, moving, t)

    result["self_test"] = diffusion.self_test(watched, volumes, maker.schedule, generator=generator, steps=task.steps)
    return result


def _errors(task: Task, rows: Sequence[int], corrupt: bool, stop: Callable[[], bool]) -> dict[str, Any]:
    """The figures of `validate` with or without artifacts."""
    maker, count = task.maker, task.count
    timesteps = maker.schedule.timesteps
    spread_t = [1 + (i * timesteps) // count for i in range(count)]
    single: list[float] = []
    start: list[float] = []
    final: list[float] = []
    for first in range(0, count, BATCH):
        part = slice(first, min(first + BATCH, count))
        options: dict[str, Any] = {"corrupt": corrupt, "enhance": False}
        pairs = maker.make(rows[part], seeded(7, 3, first, int(corrupt)), t=spread_t[part], **options)
        single += error(task.predict(pairs.class_id)(pairs.fixed, pairs.moving, pairs.t), pairs, maker)
        full = [timesteps] * len(pairs.rows)
        pairs = maker.make(rows[part], seeded(7, 4, first, int(corrupt)), t=full, **options)
        start += error(diffusion.identity(len(pairs.rows), pairs.target), pairs, maker)
        predict = task.predict(pairs.class_id)
        process = diffusion.reverse(predict, pairs.fixed, pairs.moving, maker.schedule, steps=task.steps)
        final += error(_checked(process, stop).theta, pairs, maker)
    bands = [[e for e, t in zip(single, spread_t) if band(t, timesteps) == b] for b in range(BANDS)]
    return {
        "single": spread(single),
        "single_by_band": [spread(b) for b in bands],
        "registration": spread(final),
        "start": spread(start),
    }
