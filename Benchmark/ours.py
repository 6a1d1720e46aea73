"""This project as shipped, and with parts of it taken away."""
from __future__ import annotations

import os

import numpy as np


class Ours:
    """SpatialDiffusionCore.register with some options; the model is loaded before the clock starts."""

    def __init__(self, model=None, **options):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.file, self.options = model, options
        self.prepare("t1-brain", "t1-brain")

    def prepare(self, moving_modality, fixed_modality):
        """Load the model for what the next volumes are."""
        from SpatialDiffusionCore.model import load_model

        self.modality = moving_modality, fixed_modality
        self.model = load_model(self.file, *self.modality, "cpu")

    def load(self, array, voxel_to_ras):
        from SpatialDiffusionCore import Volume

        return Volume(array, voxel_to_ras)

    def run(self, moving, fixed, seed):
        from SpatialDiffusionCore import register

        result = register(
            moving, fixed, moving_modality=self.modality[0], fixed_modality=self.modality[1], model=self.model,
            device="cpu", seed=seed, **self.options,
        )
        quality = result.quality.to_dict()
        quality.pop("warnings", None)
        return result.matrix, quality


def _with(**fixed):
    return lambda **options: Ours(**fixed, **options)


class Naive(Ours):
    """The network's prediction for the last timestep applied whole, again and again, from the tissue's centers."""

    def run(self, moving, fixed, seed):
        import torch

        from SpatialDiffusionCore import diffusion, geometry
        from SpatialDiffusionCore.cube import model_cube
        from SpatialDiffusionCore.registration import DEFAULT_STEPS

        fixed, moving = (model_cube(v, None, key, self.model.card, "cpu")
                         for v, key in zip((fixed, moving), reversed(self.modality)))
        denoise, last = self.model.denoiser(*self.modality), torch.tensor([self.model.schedule.timesteps])
        theta = diffusion.identity(1)
        for _ in range(self.options.get("steps", DEFAULT_STEPS)):
            with torch.no_grad():
                prediction = denoise(fixed.values, diffusion.warp(moving.values, theta), last)
            theta = diffusion.compose(theta, prediction.float())
        frames = fixed.grid.normalized_to_ras, moving.grid.normalized_to_ras
        return np.linalg.inv(geometry.theta_to_world(theta[0].double().numpy(), *frames)), {}


METHODS = {
    "default": Ours,
    "no-network": _with(steps=0),
    "no-polish": _with(polish=False),
    # From the tissue's centers: no search, no ranking, no polish, no similarity anywhere.
    "diffusion": _with(search=False, polish=False),
    "diffusion-search": _with(search="network", polish=False),
    "naive": Naive,
    "reference": _with(sampler="reference"),
}


def make(method: str, **options):
    """A method by its name; "diffusion@8" is "diffusion" with 8 steps."""
    base, _, steps = method.partition("@")
    return METHODS[base](**options, **({"steps": int(steps)} if steps else {}))
