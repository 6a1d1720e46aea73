"""A trained model: one .safetensors file with the weights and everything needed to use them.

The file's metadata holds a JSON card, so loading never needs retyped settings: format version, name, architecture,
grid, schedule, modalities and their classes, focus, sides and agreement (where it has them), training data and
license, measured accuracy, creation.
"""
from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from . import modality as modalities
from .errors import ModelError
from .files import written_whole
from .schedule import Schedule

FORMAT = 1
KEY = "spatial_diffusion"
SUFFIX = ".safetensors"

#: What a model may have beside its network, for the modalities that its card names: where to look (focus.py), and which side
#: is left (sides.py). The card's entry holds what it is built with; the names of its weights begin with "PART.".
PARTS = ("focus", "sides")
BUNDLED = Path(__file__).parent / "models"


def user_folder() -> Path:
    """Where a user's own models live: $SPATIAL_DIFFUSION_MODELS, or the platform's data directory."""
    override = os.environ.get("SPATIAL_DIFFUSION_MODELS")
    if override:
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    return base / "spatial-diffusion" / "models"


# --- cards -------------------------------------------------------------------------------------------------


def read_card(path) -> dict:
    """A model file's card, without loading its weights. Raises ModelError where the file is not a model."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist; give a model file or the name of an installed model.")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= 100_000_000:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        text = header.get("__metadata__", {}).get(KEY)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path} is not a safetensors file ({error}); import checkpoints with 'models import'."
        ) from None
    if text is None:
        raise ModelError(f"{path} holds weights but no card of this program; import it with 'models import'.")
    try:
        card = json.loads(text)
    except ValueError:
        raise ModelError(f"{path} has a card that is not valid JSON; the file is damaged.") from None
    return check_card(card, path)


def check_card(card: dict, where="the card") -> dict:
    """Return the card if this version can use it; raises ModelError that says what is missing or wrong."""
    if not isinstance(card, dict):
        raise ModelError(f"{where} has a card that is not a table of settings.")
    version = card.get("format")
    if version != FORMAT:
        raise ModelError(
            f"{where} has format version {version}; this program reads version {FORMAT}: update one of them."
        )
    for key in ("name", "architecture", "grid", "schedule", "modalities"):
        if key not in card:
            raise ModelError(f"{where} lacks the entry {key!r}, so the model cannot be used.")
    if not isinstance(card["modalities"], dict) or not card["modalities"]:
        raise ModelError(f"{where} names no modalities.")
    others = card.get("grids", {})
    if not isinstance(others, dict) or not set(others) <= set(card["modalities"]):
        raise ModelError(f"{where} has the grids {others!r}; expected one for each of some of its modalities.")
    for grid in (card["grid"], *others.values()):
        _check_grid(grid, where)
    schedules = card.get("schedules", {})
    if not isinstance(schedules, dict) or not set(schedules) <= set(card["modalities"]):
        raise ModelError(f"{where} has the schedules {schedules!r}; expected one for each of some of its modalities.")
    try:
        steps = {Schedule(**schedule).timesteps for schedule in (card["schedule"], *schedules.values())}
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} has a schedule that does not fit ({error}).") from None
    if len(steps) > 1:
        raise ModelError(f"{where} has schedules of {sorted(steps)} timesteps; expected the same number in all.")
    for entry in (*PARTS, "agreement"):
        named = card.get(entry, {})
        strange = [name for name in (named if entry == "agreement" else named.get("modalities", []))
                   if name not in card["modalities"]]
        if strange:
            raise ModelError(f"{where} has the entry {entry!r} for {strange[0]!r}, which is none of its modalities.")
    return card


def _check_grid(grid, where) -> None:
    if not isinstance(grid, dict):
        raise ModelError(f"{where} has the grid {grid!r}; expected its size, spacing and loading.")
    size = grid.get("size")
    if not (isinstance(size, list) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ModelError(f"{where} has the grid size {size!r}; expected three positive whole numbers.")
    if grid.get("loading") not in ("canonical", "published"):
        raise ModelError(f"{where} has grid loading {grid.get('loading')!r}; expected canonical or published.")
    spacing = grid.get("spacing")
    numbers = spacing if isinstance(spacing, list) else [spacing] * 3
    if grid["loading"] == "canonical" and not (
        len(numbers) == 3 and all(isinstance(n, (int, float)) and 0 < n < math.inf for n in numbers)
    ):
        raise ModelError(f"{where} has the grid spacing {spacing!r}; expected one or three positive numbers of mm.")


def grid_of(card: dict, key: str) -> dict:
    """{"size", "spacing", "loading"} of the cube on which a model sees a modality: its own, or the common one."""
    return card.get("grids", {}).get(key, card["grid"])


def catalog() -> dict:
    """{name: (path, card)} of the installed models: bundled ones, then the user's own (which win on equal names).

    Files that are not models of this program are left out.
    """
    found = {}
    for folder in (BUNDLED, user_folder()):
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
            try:
                card = read_card(path)
            except ModelError:
                continue
            found[card["name"]] = (path, card)
    return found


def serves(card: dict, *wanted: str) -> bool:
    """Whether a model takes volumes of these modalities: it was trained on each, or has the class for anything."""
    known = card["modalities"]
    return all(name in known or "any" in known for name in wanted)


def find(name):
    """(path, card) of a model file or an installed model's name. Raises ModelError that lists what there is."""
    if os.fspath(name).endswith(SUFFIX) or os.path.sep in os.fspath(name):
        return Path(name), read_card(name)
    installed = catalog()
    if name not in installed:
        listed = ", ".join(installed) or "none"
        raise ModelError(f"There is no model {name!r}; installed: {listed}. Give one of them or a {SUFFIX} file.")
    return installed[name]


def nearest(key: str, card: dict) -> str:
    """What a model takes volumes of a modality for: that, or what it has for anything, or the only one that it knows."""
    known = card["modalities"]
    return key if key in known else "any" if "any" in known or len(known) > 1 else next(iter(known))


def choose(name=None, moving_modality: str = "any", fixed_modality: str = "any"):
    """(path, card) of the model to use.

    ``name`` is a file, an installed model's name, or None for the installed one trained on both modalities and the
    fewest others, where one of them is "any" on the most others (failing that, one for anything). Raises ModelError that
    lists what there is.
    """
    wanted = (moving_modality, fixed_modality)
    if name is not None:
        path, card = find(name)
        if not serves(card, *wanted):
            raise ModelError(
                f"The model {card['name']} was not trained for {' and '.join(dict.fromkeys(wanted))}; "
                f"it knows: {', '.join(card['modalities'])}."
            )
        return path, card
    installed = catalog()
    # For what may be anything, the model that has seen the most; else the one that has seen the least beside it.
    sign = -1 if "any" in wanted else 1
    for exact in (True, False):
        for path, card in sorted(installed.values(), key=lambda entry: sign * len(entry[1]["modalities"])):
            if all(w in card["modalities"] for w in wanted) if exact else serves(card, *wanted):
                return path, card
    known = sorted({m for _, card in installed.values() for m in card["modalities"]})
    raise ModelError(
        f"No installed model was trained for {' and '.join(dict.fromkeys(wanted))}; "
        f"installed models know: {', '.join(known) or 'nothing'}."
    )


# --- models ------------------------------------------------------------------------------------------------


def exact():
    """A context in which convolutions on a GPU keep single precision, as on the CPU: of 24 registrations of brains 14 then
    gave the CPU's answer, with 10 bits of mantissa, the default there, 6 (the others up to 1.3 mm from it, both ways)."""
    from torch.backends import cudnn

    return cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic,
                       allow_tf32=False)


@dataclass
class Model:
    """A network ready to predict, its card, and its PARTS or None for each: focus, a FocusNetwork; sides, a Sides."""

    network: object
    card: dict
    device: str = "cpu"
    focus: object = None
    sides: object = None

    @property
    def name(self) -> str:
        """Name in the catalog."""
        return self.card["name"]

    @property
    def timesteps(self) -> int:
        """Number of timesteps of its diffusion."""
        return Schedule(**self.card["schedule"]).timesteps

    def schedule(self, key: str = "any") -> Schedule:
        """The diffusion it was trained on with scans of a modality: its own, or the model's common one."""
        return Schedule(**self.card.get("schedules", {}).get(key, self.card["schedule"]))

    @property
    def size(self) -> tuple:
        """(D, H, W) of the cube it sees."""
        return tuple(self.card["grid"]["size"])

    def preprocessing(self, key: str) -> str:
        """What is done to volumes of a modality before the network sees them (a name of network.PREPROCESSING, or "front",
        see network.front_view)."""
        modality = modalities.get(key)
        # Enhancement to black and white is part of the published recipe; other models see intensities.
        if grid_of(self.card, key)["loading"] == "published":
            return modality.preprocessing
        return "front" if self.card["architecture"].get("front") and modality.rotations == "depth" else "none"

    def focus_on(self, key: str):
        """The network that says where to look in volumes of a modality; None where there is none for it."""
        return self._part("focus", key)

    def sides_of(self, *keys: str):
        """What tells left from right in volumes of all these modalities; None where there is nothing for one of them."""
        return self.sides if all(self._part("sides", key) is not None for key in keys) else None

    def _part(self, name: str, key: str):
        known = self.card.get(name, {}).get("modalities", self.card["modalities"])
        return getattr(self, name) if key != "any" and key in known else None

    def agreement_from(self, moving_modality: str, fixed_modality: str):
        """From where on, 0…1, an answer is right with which the network agrees (search.agreement), as measured for two
        volumes of a modality; None where it cannot tell."""
        return self.card.get("agreement", {}).get(moving_modality) if moving_modality == fixed_modality else None

    def class_id(self, moving_modality: str, fixed_modality: str) -> int:
        """Class of a pair: the modality's own if both are alike and known, else 0 (no modality)."""
        if moving_modality != fixed_modality:
            return 0
        return int(self.card["modalities"].get(moving_modality) or 0)

    def denoiser(self, moving_modality: str, fixed_modality: str):
        """The function (fixed, moving, t) → θ that diffusion.reverse takes, for these modalities."""
        import torch

        class_id = self.class_id(moving_modality, fixed_modality)
        preprocessing = tuple(self.preprocessing(m) for m in (fixed_modality, moving_modality))

        def denoise(fixed, moving, t):
            classes = torch.full((moving.shape[0],), class_id, device=moving.device, dtype=torch.long)
            with exact():
                return self.network(fixed, moving, t, classes, preprocessing)

        return denoise

    def correspondences(self, moving_modality: str, fixed_modality: str):
        """(describe, correspond) of the last timestep: what the network sees in volumes, and which places of two of them
        belong together (network.PointTransformer, MatchTransformer).

        None for a network that finds no places, or that sees the two modalities differently enhanced.
        """
        import torch

        first, second = (self.preprocessing(m) for m in (fixed_modality, moving_modality))
        if not hasattr(self.network, "describe") or first != second:
            return None
        class_id, last = self.class_id(moving_modality, fixed_modality), self.timesteps

        @torch.no_grad()
        def describe(volumes):
            ones = torch.ones(len(volumes), device=volumes.device, dtype=torch.long)
            with exact():
                return self.network.describe(volumes, last * ones, class_id * ones, first)

        def correspond(fixed_described, moving_described):
            with torch.no_grad():
                return self.network.correspond(fixed_described, moving_described)

        return describe, correspond


_loaded = {}

#: How many models stay loaded: a list of volumes may need one for some and another one for others.
KEPT = 2


def templates(device: str = "cpu") -> list:
    """[(modality, its Sides)] of the installed models that have them."""
    return [(key, load_model(name, key, key, device).sides)
            for name, (_, card) in catalog().items() for key in card.get("sides", {}).get("modalities", ())]


def load_model(name=None, moving_modality: str = "any", fixed_modality: str = "any", device: str = "cpu") -> Model:
    """Load a model (see ``choose``) onto a device. The KEPT loaded last are kept, so that a second call is free.

    Raises ModelError where the weights do not fit the architecture in the card, naming the key.
    """
    path, card = choose(name, moving_modality, fixed_modality)
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size, str(device))
    if key not in _loaded:
        weights = read_weights(path)
        parts = {}
        for name in PARTS:
            if name in card:
                parts[name] = _build_part(name, card[name], path)
                mine = [key for key in weights if key.startswith(f"{name}.")]
                _fill(parts[name], {key[len(name) + 1:]: weights.pop(key) for key in mine}, path)
                parts[name] = parts[name].to(device).eval()
        network = _build(card["architecture"], path)
        _fill(network, weights, path)
        while len(_loaded) >= KEPT:
            _loaded.pop(next(iter(_loaded)))
        _loaded[key] = Model(network.to(device).eval(), card, str(device), **parts)
    return _loaded[key]


def read_weights(path) -> dict:
    """{key: tensor} of a safetensors file, with torch alone: Slicer does not bundle the safetensors package.

    The format: 8 bytes with the header's length (little endian), a JSON header of types, shapes and byte ranges, the
    bytes (https://github.com/huggingface/safetensors). Raises ModelError where a range does not fit the file.
    """
    import torch

    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
             "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
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


def _build(architecture: dict, where):
    from .network import build

    try:
        return build(architecture)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where} describes a network that cannot be built ({error}).") from error


def _build_part(name: str, settings: dict, where):
    from .focus import FocusNetwork
    from .sides import Sides

    kinds = {"focus": FocusNetwork, "sides": Sides}
    try:
        return kinds[name](**{key: value for key, value in settings.items() if key != "modalities"})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where} has an entry {name!r} that cannot be built ({error}).") from error


def _fill(network, weights: dict, where) -> None:
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


def save_model(path, network, card: dict, half: bool = False, **parts) -> None:
    """Write weights and card as one file, whole or not at all; ``half`` stores float16 (loaded as float32).

    parts: focus and sides, which belong to the model, or None; the card's entries hold the arguments they are built with.
    """
    import torch
    from safetensors.torch import save_file

    card = check_card({"format": FORMAT, **card})
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
        save_file(weights, os.fspath(temporary), metadata={KEY: json.dumps(card)})


def describe(model: Model) -> dict:
    """Layers, parameters and floating-point operations (one pass, one pair; a multiply-add counts as 2)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = model.network
    layers = sum(1 for m in network.modules() if not list(m.children()))
    volume = torch.zeros(1, 1, *model.size, device=model.device)
    with FlopCounterMode(display=False) as counter:  # with gradients, for PyTorch does not count oneDNN's operations
        network(volume, volume, torch.ones(1, dtype=torch.long, device=model.device))
    return {
        "layers": layers,
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops": counter.get_total_flops(),
    }


# --- published checkpoints ---------------------------------------------------------------------------------


def import_checkpoint(
    path, output, *, volume_size, modality=(), schedule: Optional[Schedule] = None, groups: Optional[int] = None,
    name: Optional[str] = None,
) -> dict:
    """Turn a published checkpoint (a plain dictionary of tensors) into a model file; returns the card.

    Channels, time width, classes and head are inferred from the tensors. ``volume_size`` (D, H, W) and the order of
    the modalities cannot be; the schedule defaults to the published one. Raises ModelError that names the key or
    shape that is wrong; pickles with anything but tensors are refused.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} is not a plain dictionary of tensors, so it is refused for safety; save the network's state_dict "
            f"alone and import that."
        ) from error
    if not isinstance(state, dict) or not state or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise ModelError(f"{path} is not a plain dictionary of tensors; save the network's state_dict alone.")
    architecture = infer_architecture(state, volume_size, path)
    if groups is not None:
        architecture["groups"] = int(groups)
    rows = state["encoder.encoder.0.class_embedding.weight"].shape[0] if architecture["n_classes"] > 1 else 0
    names = [modalities.get(m).key for m in ([modality] if isinstance(modality, str) else modality)]
    if rows:
        if len(names) != rows - 1:
            raise ModelError(
                f"{path} has {rows - 1} modalities (and a class for none); name them in the order of training with "
                f"--modality, got {len(names)}."
            )
        classes = {"any": 0, **{key: index for index, key in enumerate(names, start=1)}}
    else:
        if len(names) > 1:
            raise ModelError(f"{path} is an unconditional model; give at most one --modality, got {len(names)}.")
        classes = {key: 0 for key in names or ["any"]}
    card = {
        "format": FORMAT,
        "name": name or Path(output).stem,
        "architecture": architecture,
        "grid": {"size": [int(n) for n in volume_size], "spacing": None, "loading": "published"},
        "schedule": (schedule or Schedule()).to_dict(),
        "modalities": classes,
        "sampler": "reference",
        "training": {"data": f"imported from {path.name}; see its publication"},
        "license": "that of the imported checkpoint",
        "accuracy": {},
        "created": _today(),
    }
    network = _build(architecture, path)
    _fill(network, state, path)
    save_model(output, network, card)
    return card


def infer_architecture(state: dict, volume_size, where="the checkpoint") -> dict:
    """The published network's settings from its tensors; raises ModelError naming the key that is missing or wrong."""
    from .network import remaining_grid

    def shape(key, dimensions):
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
    rows = shape("encoder.encoder.0.class_embedding.weight", 2)[0] if (
        "encoder.encoder.0.class_embedding.weight" in state
    ) else 0
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
