"""The next batch made while the device still works on the last one.

On a GPU, launching takes the processor longer than drawing a batch takes the device: the next batch is launched on a
stream of its own before anybody waits for the loss of the last. What a batch holds depends on its number alone, so
nothing changes but the time. On a CPU batches are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from .pairs import Pairs

#: A batch by its number: (number of the collection, pairs).
Make = Callable[[int], tuple[int, Pairs]]


class Ahead:
    """Batches by number, the next one begun where that is worth it."""

    def __init__(self, make: Make, device: torch.device, enabled: bool | None = None) -> None:
        self.make = make
        self.enabled = device.type == "cuda" if enabled is None else enabled
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.begun: tuple[int, tuple[int, Pairs], Any] | None = None

    def take(self, number: int) -> tuple[int, Pairs]:
        """Batch `number`, ready for the current stream."""
        if self.begun is None or self.begun[0] != number:
            return self.make(number)
        _, (index, pairs), event = self.begun
        self.begun = None
        if event is not None:
            current = torch.cuda.current_stream(pairs.fixed.device)
            current.wait_event(event)
            for item in fields(pairs):
                value = getattr(pairs, item.name)
                if isinstance(value, torch.Tensor) and value.is_cuda:
                    value.record_stream(current)  # its memory is not given to others before this stream is done
        return index, pairs

    def begin(self, number: int) -> None:
        """Launch batch `number`."""
        if not self.enabled:
            return
        if self.stream is None:
            self.begun = number, self.make(number), None
            return
        with torch.cuda.stream(self.stream):
            made = self.make(number)
            event = torch.cuda.Event()
            event.record(self.stream)
        self.begun = number, made, event
