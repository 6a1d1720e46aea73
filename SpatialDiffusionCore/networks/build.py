"""The network that a model's card describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .affine_transformer import AffineTransformer
from .matches import MatchTransformer
from .points import PointTransformer


class NoNetwork(nn.Module):
    """Predicts that nothing is left to do: stands in a model file that only says on which grid its modalities are
    searched and refined."""

    def __init__(self, volume_size: Sequence[int]) -> None:
        super().__init__()
        self.volume_size = tuple(int(n) for n in volume_size)

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        t: torch.Tensor,
        class_id: torch.Tensor | None = None,
        preprocessing: tuple[str, str] = ("none", "none"),
    ) -> torch.Tensor:
        """B identities, B×3×4."""
        return torch.eye(3, 4, device=fixed.device).repeat(fixed.shape[0], 1, 1)


NETWORKS = {"matrix": AffineTransformer, "points": PointTransformer, "matches": MatchTransformer, "none": NoNetwork}


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """The network described by {"head": a key of NETWORKS, and the constructor's arguments}."""
    settings = dict(architecture)
    head = settings.pop("head", "matrix")
    if head not in NETWORKS:
        raise ValueError(f"unknown network head {head!r}; known: {', '.join(NETWORKS)}")
    network = NETWORKS[head](**settings)
    network.architecture = dict(architecture)
    return network
