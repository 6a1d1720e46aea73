"""What a run's network is built with."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.networks.build import NETWORKS, build

from .settings import Settings


def architecture(settings: Settings, classes: int) -> dict[str, Any]:
    """What `networks.build.build` needs for the run's network with so many modality classes."""
    n = settings.network
    out: dict[str, Any] = {
        "head": n.head,
        "volume_size": list(settings.grid()["size"]),
        "n_classes": classes,
        "class_dropout": n.class_dropout,
    }
    if n.channels:
        out["channels"] = list(n.channels)
    return complete({**out, **n.options})


def build_network(described: dict[str, Any]) -> torch.nn.Module:
    """The network of an architecture; raises InputError where its parts do not fit each other."""
    try:
        return build(described)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"The network cannot be built ({str(error).splitlines()[0]}); see --channels and "
                         "network.options.") from None  # fmt: skip


def complete(described: dict[str, Any]) -> dict[str, Any]:
    """An architecture with its constructor's defaults written out, so that later defaults cannot change it."""
    parameters = inspect.signature(NETWORKS[described["head"]]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**{k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}, **described}
