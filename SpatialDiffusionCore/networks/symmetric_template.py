"""A template that is the same on both sides, as a model file holds it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class SymmetricTemplate(nn.Module):
    """A template and what the difference between its sides is measured by; what is done with it:
    strategies/head_template.py.

    size: voxels along R, A, S, the first even; spacing: mm. Of both the left half is kept: template, 0…1, the same on
    the right; weights, by which a volume's differences from its right count.
    """

    template: torch.Tensor
    weights: torch.Tensor

    def __init__(self, size: Sequence[int], spacing: float):
        super().__init__()
        self.size, self.spacing = [int(n) for n in size], float(spacing)
        if len(self.size) != 3 or min(self.size) < 2 or self.size[0] % 2 or not self.spacing > 0:
            raise ValueError(f"expected three sizes, the first of them even, and a spacing, got {size} and {spacing}")
        half = self.size[0] // 2, *self.size[1:]
        self.register_buffer("template", torch.zeros(half))
        self.register_buffer("weights", torch.zeros(half))
