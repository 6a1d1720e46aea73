"""Checkpoints of a run: written whole or not at all, read without trusting them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole

CHECKPOINT = "step-{:08d}.pt"


class _Writer:
    """A file that remembers why it could not be written: PyTorch raises a RuntimeError without the reason."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_whole(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint whole or not at all. Raises InputError or OSError, with the reason, where that is not
    possible."""
    with written_whole(path) as part, open(part, "wb") as file:
        writer = _Writer(file)
        try:
            torch.save(state, cast("BinaryIO", writer))
        except RuntimeError as error:
            if writer.error is not None:
                raise writer.error from None
            raise OSError(None, str(error).splitlines()[0]) from None
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint file; only plain tensors and values are ever unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"The checkpoint {path} cannot be read ({type(error).__name__}).") from None


def checkpoints(run: str | Path) -> list[Path]:
    """Checkpoint files of a run, oldest first."""
    return sorted((Path(run) / "checkpoints").glob("step-*.pt"))


def newest(run: str | Path, report: Callable[[str], Any] = print) -> dict[str, Any] | None:
    """The state of the newest checkpoint that can be read; None where a run has none.

    A damaged one (cut off by a crash of the machine, say) costs the steps since the one before, and is reported. Raises
    InputError where all are damaged.
    """
    files = checkpoints(run)
    error = None
    for file in reversed(files):
        try:
            return load_checkpoint(file)
        except InputError as problem:
            error = problem
            if file != files[0]:
                report(f"{problem} The one before it is used.")
    if error is not None:
        raise error
    return None


def remove_leftovers(folder: str | Path) -> None:
    """Remove what processes that were killed have left half-written in a folder (files.written_whole)."""
    for file in Path(folder).glob(".????????????.part*"):
        file.unlink(missing_ok=True)


def ema_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The running mean of the weights in a checkpoint's state."""
    prefix = "ema_model."
    return {k[len(prefix) :]: v for k, v in state["ema"].items() if k.startswith(prefix)}


def weights_of_run(run: str | Path, which: str = "best") -> dict[str, Any]:
    """{"weights", "architecture", "settings", "step", "validation"} of a run.

    which: "best", the running mean with the best validation (else the newest); "last", the newest running mean;
    "raw", the newest weights as they are; "average", the mean of the running means of all checkpoints that are kept.
    Raises InputError where the run holds none.
    """
    run = Path(run)
    if which == "best" and (run / "best.pt").exists():
        return load_checkpoint(run / "best.pt")
    state = newest(run)
    if state is None:
        raise InputError(f"{run} holds no checkpoint to export.")
    weights = state["model"] if which == "raw" else ema_weights(state)
    if which == "average":
        kept = [ema_weights(load_checkpoint(file)) for file in checkpoints(run)]
        weights = {key: _mean([each[key] for each in kept]) for key in weights}
    return {
        "weights": weights,
        "architecture": state["architecture"],
        "settings": state["settings"],
        "step": state["step"],
        "validation": None,
    }


def _mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    if not tensors[0].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
