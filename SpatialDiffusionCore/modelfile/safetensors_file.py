"""Weights in a .safetensors file: read with torch alone, written with the model's card."""

from __future__ import annotations

import hashlib
import json
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..files import written_whole
from .card import KEY, PARTS, ModelCard


def read_weights(path: str | os.PathLike) -> dict:
    """{key: tensor} of a safetensors file, with torch alone: Slicer does not bundle the safetensors package.

    The format: 8 bytes with the header's length (little endian), a JSON header of types, shapes and byte ranges, the
    bytes (https://github.com/huggingface/safetensors). Raises ModelError where a range does not fit the file.
    """
    import torch

    types = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    try:
        content = Path(path).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        weights = {}
        for key, entry in header.items():
            dtype, (first, last) = types[entry["dtype"]], entry["data_offsets"]
            part = bytearray(content[start + first : start + last])
            count = math.prod(entry["shape"])
            if first < 0 or len(part) != last - first or len(part) != count * dtype.itemsize:
                raise ValueError(f"the bytes of {key!r} are not all there")
            flat = torch.frombuffer(part, dtype=dtype) if part else torch.zeros(0, dtype=dtype)
            weights[key] = flat.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read ({str(error).splitlines()[0]}); the file is damaged.") from error
    return weights


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a model's file, in hexadecimal digits: which weights an answer is from."""
    state = os.stat(path)
    return _file_hash(os.fspath(path), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _file_hash(path: str, modified: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _fill(network: Any, weights: dict, where: Any) -> None:
    """Put weights (any floating type) into a network; raises ModelError that names the first key that does not fit."""
    expected = network.state_dict()
    for key, tensor in expected.items():
        if key not in weights:
            raise ModelError(f"{where} lacks the weights {key!r} ({'×'.join(map(str, tensor.shape))}).")
        if weights[key].shape != tensor.shape:
            raise ModelError(
                f"{where}: {key!r} has shape {'×'.join(map(str, weights[key].shape)) or 'scalar'}, "
                f"the network needs {'×'.join(map(str, tensor.shape))}."
            )
        if not weights[key].isfinite().all():
            raise ModelError(f"{where}: the weights {key!r} contain NaN or infinite numbers.")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise ModelError(f"{where} holds weights {extra[0]!r} that the network does not have.")
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in weights.items()})


def save_model(path: str | os.PathLike, network: Any, card: ModelCard, half: bool = False, **parts: Any) -> None:
    """Write weights and card as one file, whole or not at all; ``half`` stores float16 (loaded as float32).

    parts: focus and sides, which belong to the model, or None; the card's ``parts`` say what they are built
    with.
    """
    import torch
    from safetensors.torch import save_file

    everything = dict(network.state_dict())
    for name in PARTS:
        if parts.get(name) is not None:
            everything.update({f"{name}.{key}": value for key, value in parts[name].state_dict().items()})
    weights = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in everything.items()
    }
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"The weights {key!r} contain NaN or infinite numbers; the model was not saved.")
    with written_whole(path) as temporary:
        save_file(weights, os.fspath(temporary), metadata={KEY: card.to_json()})
