"""What a process runs with, once nothing is left open: the options, what volumes were taken for, and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..modelfile.model import Model
from ..options import RegistrationOptions, SearchMode
from ..strategies.base import Strategy
from ..strategies.registry import strategy_of
from .work_scale import in_work_units


@dataclass(frozen=True)
class Settings:
    """Everything decided. steps: None where the process chooses; init: 4×4 moving → fixed, RAS mm."""

    moving_modality: str
    fixed_modality: str
    strategy: Strategy
    transform: str
    sampler: str
    steps: int | None
    search: SearchMode
    bidirectional: bool
    polish: bool
    device: str
    seed: int
    init: np.ndarray | None

    @property
    def keys(self) -> tuple:
        """(moving modality, fixed modality)."""
        return self.moving_modality, self.fixed_modality

    def scaled(self, scale: float) -> Settings:
        """The same with the initial transform in units of the work."""
        return self if self.init is None else replace(self, init=in_work_units(self.init, scale))

    def swapped(self) -> Settings:
        """The same with the two volumes' roles exchanged."""
        init = None if self.init is None else np.linalg.inv(self.init)
        return replace(self, moving_modality=self.fixed_modality, fixed_modality=self.moving_modality, init=init)


def decided(options: RegistrationOptions, keys: tuple[str, str], model: Model, device: str) -> Settings:
    """The settings for a model: its card names the sampler where nobody chose one.

    keys: what the (moving, fixed) volumes are taken for. Raises InputError where options do not fit the model.
    """
    sampler = options.sampler or model.card.sampler
    if sampler == "reference" and options.steps is not None:
        raise InputError("The reference sampler visits every timestep; leave the number of steps out.")
    if options.steps is not None and options.steps > model.timesteps:
        raise InputError(f"The number of steps must be 0 (no diffusion) to {model.timesteps}, got {options.steps}.")
    return Settings(
        *keys, strategy_of(*keys), options.transform, sampler, options.steps, SearchMode.of(options.search),
        options.bidirectional, sampler == "fast" if options.polish is None else options.polish, device, options.seed,
        options.init,
    )  # fmt: skip
