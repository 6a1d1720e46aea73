"""Published checkpoints made into model files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..method.schedule import Schedule
from . import catalog as catalog_module
from .card import ModelCard, ModelGrid
from .model import _build
from .safetensors_file import _fill, save_model


def import_checkpoint(
    path: str | Path,
    output: str | Path,
    *,
    volume_size: Sequence[int],
    modality: str | Sequence[str] = (),
    schedule: Schedule | None = None,
    groups: int | None = None,
    name: str | None = None,
) -> ModelCard:
    """Turn a published checkpoint (a plain dictionary of tensors) into a model file; returns the card.

    Channels, time width, classes and head are inferred from the tensors. ``volume_size`` (D, H, W) and the order of
    the modalities cannot be; the schedule defaults to the published one. Raises ModelError that names the key or
    shape that is wrong; pickles with anything but tensors are refused.
    """
    path = Path(path)
    state = _read_checkpoint(path)
    architecture = infer_architecture(state, volume_size, path)
    if groups is not None:
        architecture["groups"] = int(groups)
    rows = state["encoder.encoder.0.class_embedding.weight"].shape[0] if architecture["n_classes"] > 1 else 0
    names = [catalog_module.get(m).key for m in ([modality] if isinstance(modality, str) else modality)]
    classes = _classes(path, rows, names)
    card = ModelCard(
        name=name or Path(output).stem,
        architecture=architecture,
        grid=ModelGrid(size=tuple(architecture["volume_size"]), spacing=None, loading="published"),
        schedule=schedule or Schedule(),
        modalities=classes,
        sampler="reference",
        training={"data": f"imported from {path.name}; see its publication"},
        license="that of the imported checkpoint",
        created=_today(),
    )
    network = _build(architecture, path)
    _fill(network, state, path)
    save_model(output, network, card)
    return card


def _read_checkpoint(path: Path) -> dict:
    """{key: tensor} of a checkpoint. Raises ModelError where it holds anything else."""
    import torch

    if not path.is_file():
        raise ModelError(f"{path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} is not a plain dictionary of tensors, so it is refused for safety; save the network's state_dict "
            f"alone and import that."
        ) from error
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    ):
        raise ModelError(f"{path} is not a plain dictionary of tensors; save the network's state_dict alone.")
    return state


def _classes(path: Path, rows: int, names: list) -> dict:
    """{modality: class id}; ``rows``: of the class embedding, 0 for a model without classes."""
    if not rows:
        if len(names) > 1:
            raise ModelError(f"{path} is an unconditional model; give at most one --modality, got {len(names)}.")
        return {key: 0 for key in names or ["any"]}
    if len(names) != rows - 1:
        raise ModelError(
            f"{path} has {rows - 1} modalities (and a class for none); name them in the order of training with "
            f"--modality, got {len(names)}."
        )
    return {"any": 0, **{key: index for index, key in enumerate(names, start=1)}}


def infer_architecture(state: dict, volume_size: Sequence[int], where: Any = "the checkpoint") -> dict:
    """The published network's settings from its tensors; raises ModelError naming the key that is missing or wrong."""
    from ..networks.layers import remaining_grid

    def shape(key: str, dimensions: int) -> Sequence[int]:
        if key not in state:
            raise ModelError(f"{where} lacks {key!r}, so it is not a checkpoint of the published network.")
        if state[key].dim() != dimensions:
            raise ModelError(f"{where}: {key!r} has {state[key].dim()} dimensions, expected {dimensions}.")
        return state[key].shape

    stem = shape("encoder.in_conv.weight", 5)
    channels, block = [stem[1], stem[0]], 0
    while f"encoder.encoder.{block}.conv1.2.weight" in state:
        channels.append(shape(f"encoder.encoder.{block}.conv1.2.weight", 5)[0])
        block += 1
    if not block:
        raise ModelError(f"{where} lacks 'encoder.encoder.0.conv1.2.weight', so it is not the published network.")
    head = shape("output_head.2.weight", 5)
    size = tuple(int(n) for n in volume_size)
    if len(size) != 3 or min(size) < 1:
        raise ModelError(f"The volume size must be three positive whole numbers D H W, got {volume_size}.")
    grid = remaining_grid(size, block)
    if tuple(head[2:]) != grid:
        raise ModelError(
            f"{where}: 'output_head.2.weight' covers a grid of {'×'.join(map(str, head[2:]))}, but volumes of "
            f"{'×'.join(map(str, size))} leave {'×'.join(map(str, grid))}; check the volume size."
        )
    rows = (
        shape("encoder.encoder.0.class_embedding.weight", 2)[0]
        if ("encoder.encoder.0.class_embedding.weight" in state)
        else 0
    )
    return {
        "head": "matrix",
        "volume_size": list(size),
        "channels": [int(c) for c in channels],
        "n_classes": rows - 1 if rows else 1,
        "class_dropout": 0.15,
        "groups": 32,
        "time_width": int(shape("time_mlp.0.weight", 2)[1]),
    }


def _today() -> str:
    from datetime import date

    return date.today().isoformat()
