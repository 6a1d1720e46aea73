"""This project as shipped, and with parts of it taken away."""
from __future__ import annotations

import os

import numpy as np


class Ours:
    """SpatialDiffusionCore.register with some options; the model is loaded before the clock starts."""

    def __init__(self, modality="t1-brain", model=None, **options):
        import torch

        from SpatialDiffusionCore.model import load_model

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.modality, self.options = modality, options
        self.model = load_model(model, modality, modality, "cpu")

    def load(self, array, voxel_to_ras):
        from SpatialDiffusionCore import Volume

        return Volume(array, voxel_to_ras)

    def run(self, moving, fixed, seed):
        from SpatialDiffusionCore import register

        result = register(
            moving, fixed, modality=self.modality, model=self.model, device="cpu", seed=seed, **self.options
        )
        quality = result.quality
        return result.matrix, {"spread_mm": quality.spread_mm, "confidence": quality.confidence,
                               "similarity": quality.similarity_after}


class NoNetwork(Ours):
    """Search and polish alone: the network's place is taken by one that never moves anything."""

    def __init__(self, **options):
        super().__init__(**options)
        from dataclasses import replace

        from SpatialDiffusionCore import diffusion

        def stay(fixed, moving, t, classes, preprocessing):
            return diffusion.identity(moving.shape[0], moving)

        self.model = replace(self.model, network=stay)


class DiffusionAlone(Ours):
    """The few-step diffusion from the tissue's centers: no search, no ranking, no polish, no similarity anywhere."""

    def run(self, moving, fixed, seed):
        from SpatialDiffusionCore import diffusion, geometry
        from SpatialDiffusionCore.cube import model_cube
        from SpatialDiffusionCore.registration import DEFAULT_STEPS

        card = self.model.card
        cubes = [model_cube(v, None, self.modality, card, "cpu") for v in (fixed, moving)]
        denoise = self.model.denoiser(self.modality, self.modality)
        steps = diffusion.reverse(
            denoise, cubes[0].values, cubes[1].values, self.model.schedule, steps=DEFAULT_STEPS
        )
        for step in steps:
            pass
        theta = step.theta[0].double().numpy()
        frames = [cube.grid.normalized_to_ras for cube in cubes]
        return np.linalg.inv(geometry.theta_to_world(theta, *frames)), {}


METHODS = {
    "default": Ours,
    "no-network": NoNetwork,
    "no-polish": lambda **options: Ours(polish=False, **options),
    "diffusion": DiffusionAlone,
    "reference": lambda **options: Ours(sampler="reference", **options),
}
