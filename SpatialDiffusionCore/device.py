"""The device that the work is done on."""

from __future__ import annotations

import os

from .errors import InputError
from .machine import survive_forks


def resolve_device(device: str = "auto") -> str:
    """ "auto" → "cuda" where there is one (this process's own under torchrun), else "cpu".

    Raises InputError for a device that is not there.
    """
    import torch

    survive_forks()
    device = str(device)
    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        local = os.environ.get("LOCAL_RANK")
        return "cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()) or (index and kind != "cuda"):
        raise InputError(f"Unknown device {device!r}; choose auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError("There is no CUDA device here (or PyTorch was built without CUDA); use device cpu.")
        if index and int(index) >= torch.cuda.device_count():
            raise InputError(f"There is no {device}; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("There is no MPS device here; use device cpu.")
    return device
