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


class NetworkSearch(Ours):
    """The diffusion with a search of its own: no similarity of intensities anywhere.

    Of sixty rotations about the tissue's centers those stay from which the network sees least left to do; they go
    through the diffusion, and the one that it then wants to change least is the answer.
    """

    keep = 6

    def run(self, moving, fixed, seed):
        import torch

        from SpatialDiffusionCore import diffusion, geometry
        from SpatialDiffusionCore.cube import model_cube
        from SpatialDiffusionCore.registration import DEFAULT_STEPS

        cubes = [model_cube(v, None, key, self.model.card, "cpu")
                 for v, key in zip((fixed, moving), reversed(self.modality))]
        (fixed, moving), frames = ([c.values for c in cubes], [c.grid.normalized_to_ras for c in cubes])
        centers = [c.prepared.tissue_center for c in cubes]
        schedule, denoise = self.model.schedule, self.model.denoiser(*self.modality)
        starts = torch.as_tensor(np.array([
            geometry.world_to_theta(geometry.about(r, centers[0], centers[1] - centers[0]), *frames)
            for r in geometry.rotation_group()
        ]), dtype=torch.float32)

        def left_to_do(theta, t):
            """RMS displacement (normalized, over the fixed tissue) of the network's next prediction from each θ."""
            sizes = []
            place = np.linalg.inv(frames[0])
            mean = geometry.transform_points(place, centers[0][None])[0]
            covariance = place[:3, :3] @ cubes[0].prepared.tissue_covariance @ place[:3, :3].T
            for part in theta.split(10):
                batch = (len(part), -1, -1, -1, -1)
                moved = diffusion.warp(moving.expand(batch), part)
                with torch.no_grad():
                    prediction = denoise(fixed.expand(batch), moved, torch.full((len(part),), t))
                sizes += [geometry.displacement_rms(diffusion.homogeneous(p[None])[0].double().numpy(), np.eye(4),
                                                    mean, covariance) for p in prediction]
            return torch.tensor(sizes)

        best = left_to_do(starts, schedule.timesteps).argsort()[: self.keep]
        batch = (len(best), -1, -1, -1, -1)
        for step in diffusion.reverse(denoise, fixed.expand(batch), moving.expand(batch), schedule,
                                      steps=DEFAULT_STEPS, start=starts[best]):
            pass
        answer = step.theta[left_to_do(step.theta, 1).argmin()]
        return np.linalg.inv(geometry.theta_to_world(answer.double().numpy(), *frames)), {}


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
    "diffusion-search": NetworkSearch,
    "naive": Naive,
    "reference": _with(sampler="reference"),
}


def make(method: str, **options):
    """A method by its name; "diffusion@8" is "diffusion" with 8 steps."""
    base, _, steps = method.partition("@")
    return METHODS[base](**options, **({"steps": int(steps)} if steps else {}))
