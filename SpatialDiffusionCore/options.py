"""The checked settings of a registration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from .modelfile import catalog


@dataclass(frozen=True)
class Options:
    """Checked settings of a registration; see ``register``."""

    moving_modality: str
    fixed_modality: str
    transform: str
    sampler: Optional[str]
    steps: Optional[int]
    bidirectional: bool
    polish: Optional[bool]
    device: str
    seed: int
    search: object
    init: Optional[np.ndarray]

    @property
    def rotations(self) -> str:
        """Which rotations are possible between the two modalities."""
        both = {catalog.get(key).rotations for key in (self.moving_modality, self.fixed_modality)}
        return both.pop() if len(both) == 1 else "all"

    @property
    def votes(self) -> bool:
        """Whether blocks that vote (blocks.py) may refine: between contrasts self-similarity is the better judge, T1 and FLAIR of
        one person end 2.6 mm off by them instead of 0.6."""
        same = self.moving_modality == self.fixed_modality != "any"
        return same and self.rotations == "all"

    def swapped(self) -> "Options":
        """The same with the two volumes' roles exchanged."""
        return replace(
            self,
            moving_modality=self.fixed_modality,
            fixed_modality=self.moving_modality,
            init=None if self.init is None else np.linalg.inv(self.init),
        )
