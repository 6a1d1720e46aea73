"""This project as shipped, and with parts of it taken away."""

from __future__ import annotations

import os
from dataclasses import replace

from .tables import parse


class Ours:
    """SpatialDiffusionCore.register with some options; the model is loaded before the clock starts.

    model: name or file. classless: the model is not told the modality, which still says how volumes are loaded. focus:
    whether its network that says where to look takes part. device: where it works.
    """

    def __init__(self, model=None, classless=False, focus=True, device="cpu", **options):
        import torch

        from SpatialDiffusionCore.modelfile.catalog import catalog

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.file, self.classless, self.focus, self.device, self.options = model, classless, focus, device, options
        installed = catalog().get(model)
        known = list(installed.card.modalities) if installed else ["t1-brain"]
        self.prepare(known[-1], known[-1])

    def prepare(self, moving_modality, fixed_modality):
        """Load the model for what the next volumes are."""
        from SpatialDiffusionCore.modelfile.model import load_model

        self.modality = moving_modality, fixed_modality
        self.model = load_model(self.file, *self.modality, self.device)
        if self.classless:
            card = self.model.card
            self.model = replace(self.model, card=replace(card, modalities=dict.fromkeys(card.modalities, 0)))
        if not self.focus:
            self.model = replace(self.model, focus=None)

    def load(self, array, voxel_to_ras):
        from SpatialDiffusionCore import Volume

        return Volume(array, voxel_to_ras)

    def run(self, moving, fixed, seed):
        from SpatialDiffusionCore import register

        result = register(
            moving,
            fixed,
            moving_modality=self.modality[0],
            fixed_modality=self.modality[1],
            model=self.model,
            device=self.device,
            seed=seed,
            **self.options,
        )
        quality = result.quality.to_dict()
        quality.pop("warnings", None)
        return result.matrix, quality


def _with(**fixed):
    return lambda **options: Ours(**fixed, **options)


class Naive(Ours):
    """The network's prediction for the last timestep, whatever timestep is visited: the single shot again and again."""

    def prepare(self, moving_modality, fixed_modality):
        super().prepare(moving_modality, fixed_modality)
        import torch

        class Again(type(self.model)):
            def denoiser(self, *modality):
                denoise = super().denoiser(*modality)
                return lambda fixed, moving, t: denoise(fixed, moving, torch.full_like(t, self.timesteps))

        self.model = Again(**vars(self.model))


class Untold(Ours):
    """What the volumes show is left to their looks, and with it the choice of the model."""

    def run(self, moving, fixed, seed):
        self.model, self.modality = None, ("auto", "auto")
        return super().run(moving, fixed, seed)


METHODS = {
    "default": Ours,
    "untold": Untold,
    "cuda": _with(device="cuda"),
    # No network anywhere: search and polish alone.
    "no-network": _with(steps=0, focus=False),
    # Nor votes, nor any further search: sixty rotations screened, the best refined.
    "screen": _with(steps=0, focus=False, search="screen"),
    "no-focus": _with(focus=False),
    "no-polish": _with(polish=False),
    # From the tissue's centers: no search, no ranking, no polish, no similarity anywhere.
    "diffusion": _with(search=False, polish=False),
    "diffusion-search": _with(search="network", polish=False),
    "naive": lambda **options: Naive(search=False, polish=False, **options),
    "reference": _with(sampler="reference"),
}


def make(method: str, **options):
    """A method by its name (see tables.parse)."""
    base, steps, model, classless = parse(method)
    more = {"steps": steps, "model": model, "classless": classless}
    return METHODS[base](**options, **{name: value for name, value in more.items() if value})
