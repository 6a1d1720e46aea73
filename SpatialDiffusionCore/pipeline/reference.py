"""The published reverse process, whole."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from ..alignment.pair import Pair
from ..method import diffusion
from ..modelfile.model import Model
from .settings import Settings
from .stages import Answer, Candidate, Course
from .step import Outcome, Step


def reference(pair: Pair, model: Model, settings: Settings) -> Generator[Step, None, Outcome]:
    """Every timestep of the diffusion from where the volumes lie; refined only where somebody asked for it."""
    course = Course(pair, model, settings)
    moving, fixed = pair.moving, pair.fixed
    denoise = model.denoiser(*settings.keys)
    schedule = model.schedule(settings.fixed_modality)
    start = None if settings.init is None else pair.to_theta(np.linalg.inv(settings.init))[None]
    if settings.bidirectional:
        back = model.denoiser(*settings.keys[::-1])
        steps = diffusion.reverse_bidirectional(denoise, back, fixed.values, moving.values, schedule, start=start)
    else:
        steps = diffusion.reverse(denoise, fixed.values, moving.values, schedule, start=start)
    for step in steps:
        world = pair.from_theta(step.theta[0])
        course.count = step.count + settings.polish
        yield course.step("Diffusion", world)
    answer = Answer(world, "diffusion")
    if settings.polish:
        answer = yield from course.refine(Candidate(world, "diffusion"))
    return course.outcome(course.verified(answer))
