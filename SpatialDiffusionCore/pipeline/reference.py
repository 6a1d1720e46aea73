"""The published reverse process, whole."""

from __future__ import annotations

import numpy as np

from ..alignment.pair import Pair
from ..spatial import geometry
from .refinement import refined
from .settings import Settings
from .step import Outcome, Step


def reference(pair: Pair, model, options: Settings):
    """The published reverse process, whole."""
    from ..method import diffusion

    moving, fixed = pair.moving, pair.fixed
    denoise = model.denoiser(options.moving_modality, options.fixed_modality)
    schedule = model.schedule(options.fixed_modality)
    start = None if options.init is None else pair.to_theta(np.linalg.inv(options.init))[None]
    if options.bidirectional:
        back = model.denoiser(options.fixed_modality, options.moving_modality)
        steps = diffusion.reverse_bidirectional(denoise, back, fixed.values, moving.values, schedule, start=start)
    else:
        steps = diffusion.reverse(denoise, fixed.values, moving.values, schedule, start=start)
    extra = 1 if options.polish else 0
    for step in steps:
        world = pair.from_theta(step.theta[0])
        yield Step(step.index, step.count + extra, "Diffusion", geometry.inverse(world))
    polished = False
    if options.polish:
        world, polished = refined(pair, world, options)
        yield Step(step.count + 1, step.count + 1, "Refining", geometry.inverse(world))
    return Outcome(world, polished)
