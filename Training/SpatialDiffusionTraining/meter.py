"""Sums of losses and times between two lines of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .validation import BANDS


@dataclass
class Meter:
    """Sums since the last log line."""

    loss: list[float] = field(default_factory=lambda: [0.0] * BANDS)
    count: list[int] = field(default_factory=lambda: [0] * BANDS)
    affine: float = 0.0
    nothing: float = 0.0
    seconds: float = 0.0
    data_seconds: float = 0.0
    samples: int = 0
    last: float = 0.0

    def add(self, each: Sequence[float], bands: Sequence[int]) -> None:
        """Take in the losses of a batch."""
        self.last = sum(each) / len(each)
        for value, index in zip(each, bands):
            self.loss[index] += value
            self.count[index] += 1

    def summary(self) -> dict[str, Any]:
        """What is logged. relative: the affine loss in units of that of a network that has learned nothing."""
        per_band = [s / n if n else None for s, n in zip(self.loss, self.count)]
        return {
            "loss": sum(self.loss) / max(1, sum(self.count)),
            "relative": self.affine / max(1e-9, self.nothing),
            "loss_by_band": per_band,
            "samples_per_second": self.samples / max(1e-9, self.seconds),
            "data_share": self.data_seconds / max(1e-9, self.seconds),
        }
