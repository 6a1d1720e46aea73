"""What is wrong with the settings of a run, said in one sentence before any work starts."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.networks.build import NETWORKS

from .augmentation import ARTIFACTS, Pose
from .pairs import changed, make_schedule
from .settings import SECTIONS, Settings

DEVICES = ("auto", "cpu", "cuda", "mps")

#: Given by a run itself, not by network.options.
_OF_THE_RUN = ("volume_size", "n_classes", "class_dropout", "channels")


def check(settings: Settings) -> Settings:
    """The settings, if a run can begin with them. Raises InputError that names what is wrong and what would be
    right."""
    _check_limits(settings)
    sizes = {settings.grid(name)["size"] for name in [*settings.data.dataset, *settings.data.grids]}
    if len(sizes) > 1 and settings.network.head == "matrix":
        raise InputError(
            "Modalities with grids of their own (data.grids) need a network that takes any size: --head points."
        )
    _check_names(settings)
    for modality in {None, *settings.diffusion.by_modality}:
        try:
            make_schedule(settings, modality)
        except (TypeError, ValueError) as error:
            raise InputError(f"The diffusion's settings do not fit: {error}.") from None
    _check_augmentation(settings)
    _check_device(settings)
    o = settings.optimization
    if not o.steps and not o.max_minutes:
        raise InputError("--steps 0 needs an end by the clock: give --max-minutes, too.")
    return settings


def _check_limits(settings: Settings) -> None:
    """Numbers within the limits that their options name; choices among those they name."""
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            value = getattr(getattr(settings, section), item.name)
            option = f"--{item.name.replace('_', '-')}"
            choices = item.metadata.get("choices")
            if choices and value not in choices:
                raise InputError(f"{option} expects one of {', '.join(choices)}, got {value!r}.")
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            least, most, above = (item.metadata.get(name) for name in ("least", "most", "above"))
            if value != value or (least is not None and value < least) or (most is not None and value > most):
                limits = f"{least} to {most}" if most is not None else f"{least} or more"
                raise InputError(f"{option} expects {limits}, got {value:g}.")
            if above is not None and value <= above:
                raise InputError(f"{option} expects more than {above}, got {value:g}.")


def _refuse(strange: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise InputError for a name that is not known, with the one that was probably meant."""
    known = sorted(known)
    for name in strange:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}."
            raise InputError(f"{where} has no {name!r}{meant}")


def _parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _check_names(settings: Settings) -> None:
    """Names inside of the dictionaries, which the sections do not know."""
    allowed = [name for name in _parameters(NETWORKS[settings.network.head]) if name not in _OF_THE_RUN]
    _refuse(settings.network.options, allowed, f"network.options of the head {settings.network.head}")
    for modality, own in settings.diffusion.by_modality.items():
        _refuse(_dictionary(own, f"diffusion.by_modality.{modality}"), ("transform_range", "translation_range"),
                f"diffusion.by_modality.{modality}")  # fmt: skip
    _check_artifacts(settings.augmentation.artifacts, "augmentation.artifacts")
    _refuse(settings.augmentation.pose, _parameters(Pose), "augmentation.pose")
    for modality, own in settings.augmentation.by_modality.items():
        where = f"augmentation.by_modality.{modality}"
        values = dict(_dictionary(own, where))
        _refuse(_dictionary(values.pop("pose", {}), f"{where}.pose"), _parameters(Pose), f"{where}.pose")
        _check_artifacts(values, where)


def _check_artifacts(artifacts: Mapping[str, Any], where: str) -> None:
    _refuse(artifacts, ARTIFACTS, where)
    for name, values in artifacts.items():
        _refuse(_dictionary(values, f"{where}.{name}"), ["probability", *_parameters(ARTIFACTS[name])],
                f"{where}.{name}")  # fmt: skip


def _dictionary(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} expects a JSON object, got {value!r}.")
    return value


def _check_augmentation(settings: Settings) -> None:
    """Values of poses and artifacts, tried out on one small draw."""
    augmentation = settings.augmentation
    for modality in {None, *augmentation.by_modality}:
        try:
            pose, corruption = changed(augmentation, modality)
            generator = torch.Generator().manual_seed(0)
            pose.draw(1, generator, (8, 8, 8))
            corruption.draw(1, generator)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            of = f" of {modality}" if modality else ""
            raise InputError(f"The augmentation{of} does not fit: {str(error).splitlines()[0]}.") from None


def _check_device(settings: Settings) -> None:
    device = settings.run.device
    if device not in DEVICES:
        raise InputError(f"--device expects one of {', '.join(DEVICES)}, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here; leave --device out to train on the CPU.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: PyTorch finds no Metal device here; leave --device out to train on the CPU.")
    found = torch.cuda.device_count()
    if device == "cuda" and settings.run.devices > found:
        raise InputError(f"--devices {settings.run.devices}: PyTorch finds {found} CUDA devices here.")


def check_folder(folder: str | Path) -> Path:
    """The folder, made if need be. Raises InputError where files cannot be written into it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"The folder {os.fspath(folder)} cannot be written to ({reason}); choose another.") from None
    return folder
