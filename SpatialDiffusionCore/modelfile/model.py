"""A trained model: one .safetensors file with the weights and everything needed to use them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Callable

from ..errors import ModelError
from ..method.schedule import Schedule
from . import catalog as catalog_module
from .card import PARTS, ModelCard, ModelPart
from .catalog import catalog, choose
from .safetensors_file import _fill, read_weights


def exact() -> AbstractContextManager:
    """A context in which convolutions on a GPU keep single precision, as on the CPU: of 24 registrations of brains 14
    then gave the CPU's answer, with 10 bits of mantissa, the default there, 6 (the others up to 1.3 mm from it, both
    ways).
    """
    from torch.backends import cudnn

    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


#: What Model.correspondences returns: volumes → their description, a tuple of tensors; two descriptions → places of the
#: fixed and of the moving volume (B×N×3, normalized x, y, z), log-weights (B×N), and how sure that is (B).
Correspondences = tuple[Callable[..., tuple], Callable[..., tuple]]


@dataclass
class Model:
    """A network ready to predict, its card, and its PARTS or None for each: focus, a FocusNetwork; sides, a
    SymmetricTemplate.
    """

    network: Any
    card: ModelCard
    device: str = "cpu"
    focus: Any = None
    sides: Any = None

    @property
    def name(self) -> str:
        """Name in the catalog."""
        return self.card.name

    @property
    def timesteps(self) -> int:
        """Number of timesteps of its diffusion."""
        return self.card.schedule.timesteps

    def schedule(self, key: str = "any") -> Schedule:
        """The diffusion it was trained on with scans of a modality: its own, or the model's common one."""
        return self.card.schedule_of(key)

    @property
    def size(self) -> tuple[int, int, int]:
        """(D, H, W) of the cube it sees."""
        return self.card.grid.size

    def preprocessing(self, key: str) -> str:
        """What is done to volumes of a modality before the network sees them: a name of PREPROCESSING
        (networks/affine_transformer.py), or "front" (networks/front.py).
        """
        modality = catalog_module.get(key)
        # Enhancement to black and white is part of the published recipe; other models see intensities.
        if self.card.grid_of(key).loading == "published":
            return modality.preprocessing
        return "front" if self.card.architecture.get("front") and not modality.oriented else "none"

    def focus_on(self, key: str) -> Any:
        """The network that says where to look in volumes of a modality; None where there is none for it."""
        return self._part("focus", key)

    def sides_of(self, *keys: str) -> Any:
        """What tells left from right in volumes of all these modalities; None where one of them has nothing."""
        return self.sides if all(self._part("sides", key) is not None for key in keys) else None

    def _part(self, name: str, key: str) -> Any:
        return getattr(self, name) if key != "any" and self.card.part_for(name, key) else None

    def agreement_from(self, moving_modality: str, fixed_modality: str) -> float | None:
        """The network's agreement with an answer, 0…1 (correspondence_search.agreement), from which on answers are
        right, as measured for two volumes of one modality; None where it cannot tell.
        """
        return self.card.agreement.get(moving_modality) if moving_modality == fixed_modality else None

    def class_id(self, moving_modality: str, fixed_modality: str) -> int:
        """Class of a pair: the modality's own if both are alike and known, else 0 (no modality)."""
        if moving_modality != fixed_modality:
            return 0
        return self.card.modalities.get(moving_modality, 0)

    def denoiser(self, moving_modality: str, fixed_modality: str) -> Callable[..., Any]:
        """The function (fixed, moving, t) → θ that diffusion.reverse takes, for these modalities."""
        import torch

        class_id = self.class_id(moving_modality, fixed_modality)
        preprocessing = tuple(self.preprocessing(m) for m in (fixed_modality, moving_modality))

        def denoise(fixed: torch.Tensor, moving: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            classes = torch.full((moving.shape[0],), class_id, device=moving.device, dtype=torch.long)
            with exact():
                return self.network(fixed, moving, t, classes, preprocessing)

        return denoise

    def correspondences(self, moving_modality: str, fixed_modality: str) -> Correspondences | None:
        """(describe, correspond) of the last timestep: what the network sees in volumes, and which places of two of
        them belong together (networks/points.py, networks/matches.py).

        None for a network that finds no places, or that sees the two modalities differently enhanced.
        """
        import torch

        first, second = (self.preprocessing(m) for m in (fixed_modality, moving_modality))
        if not hasattr(self.network, "describe") or first != second:
            return None
        class_id, last = self.class_id(moving_modality, fixed_modality), self.timesteps

        @torch.no_grad()
        def describe(volumes: torch.Tensor) -> tuple:
            ones = torch.ones(len(volumes), device=volumes.device, dtype=torch.long)
            with exact():
                return self.network.describe(volumes, last * ones, class_id * ones, first)

        def correspond(fixed_described: tuple, moving_described: tuple) -> tuple:
            with torch.no_grad():
                return self.network.correspond(fixed_described, moving_described)

        return describe, correspond


class LoadedModels:
    """Models that stay loaded, so that loading one again is free; threads may share it.

    A model is loaded anew where its file has changed.

    Args:
        most: how many are kept, those used last.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, RLock()
        self._models: OrderedDict[tuple, Model] = OrderedDict()

    def get(self, path: Path, card: ModelCard, device: str = "cpu") -> Model:
        """The model of a file with its card, on a device; raises ModelError where weights and card do not fit."""
        status = path.stat()
        key = (str(path.resolve()), status.st_mtime_ns, status.st_size, str(device))
        with self._lock:
            if key not in self._models:
                model = _read_model(path, card, device)
                while len(self._models) >= self._most:
                    self._models.popitem(last=False)
                self._models[key] = model
            self._models.move_to_end(key)
            return self._models[key]

    def clear(self) -> None:
        """Forget all, so that their memory is free once nobody uses them."""
        with self._lock:
            self._models.clear()


#: What load_model has loaded. Two: a list of volumes may need one model for some and another one for others.
LOADED = LoadedModels(most=2)


def templates(device: str = "cpu") -> list:
    """[(modality, its SymmetricTemplate)] of the installed models that have them."""
    return [
        (key, load_model(name, key, key, device).sides)
        for name, installed in catalog().items()
        if "sides" in installed.card.parts
        for key in installed.card.parts["sides"].modalities or ()
    ]


def load_model(
    name: str | os.PathLike | None = None,
    moving_modality: str = "any",
    fixed_modality: str = "any",
    device: str = "cpu",
) -> Model:
    """Load a model (see ``choose``) onto a device. Those used last stay in ``LOADED``, so that a second call is free.

    Raises ModelError where the weights do not fit the architecture in the card, naming the key.
    """
    path, card = choose(name, moving_modality, fixed_modality)
    return LOADED.get(path, card, device)


def _read_model(path: Path, card: ModelCard, device: str) -> Model:
    """The model of a file, on a device."""
    weights = read_weights(path)
    parts = {}
    for name in PARTS:
        if name in card.parts:
            parts[name] = _build_part(name, card.parts[name], path)
            mine = [key for key in weights if key.startswith(f"{name}.")]
            _fill(parts[name], {key[len(name) + 1 :]: weights.pop(key) for key in mine}, path)
            parts[name] = parts[name].to(device).eval()
    network = _build(card.architecture, path)
    _fill(network, weights, path)
    return Model(network.to(device).eval(), card, str(device), **parts)


def _build(architecture: Mapping[str, Any], where: Any) -> Any:
    from ..networks.build import build

    try:
        return build(architecture)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where} describes a network that cannot be built ({error}).") from error


def _build_part(name: str, part: ModelPart, where: Any) -> Any:
    from ..networks.focus import FocusNetwork
    from ..networks.symmetric_template import SymmetricTemplate

    kinds = {"focus": FocusNetwork, "sides": SymmetricTemplate}
    try:
        return kinds[name](**part.settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where} has an entry {name!r} that cannot be built ({error}).") from error


def describe(model: Model) -> dict:
    """Layers, parameters and floating-point operations (one pass, one pair; a multiply-add counts as 2)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = model.network
    layers = sum(not list(m.children()) for m in network.modules())
    volume = torch.zeros(1, 1, *model.size, device=model.device)
    with FlopCounterMode(display=False) as counter:  # with gradients, for PyTorch does not count oneDNN's operations
        network(volume, volume, torch.ones(1, dtype=torch.long, device=model.device))
    return {
        "layers": layers,
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops": counter.get_total_flops(),
    }
