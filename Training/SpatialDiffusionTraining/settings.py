"""Every setting of a training run, its help text, the presets and the command line made from them.

A run's settings are five small dataclasses. They are filled, each over the one before, from the defaults, a
preset (presets/NAME.json), a JSON file given with --config, the options of the command line, and --set.
"""
from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.errors import InputError

PRESETS = Path(__file__).parent / "presets"


def _option(default, text, **more):
    """A field with its help text; list defaults are copied for every instance."""
    metadata = {"help": text, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Data:
    """Scans and the grid they are put on."""

    train: list = _option([], "folders of NIfTI files (searched recursively) or text lists of files, one per data "
                              "set", metavar="DIR|LIST", type=str)
    dataset: list = _option([], "the modality of each --train, in the same order; class ids count from 1 in this "
                                "order", metavar="MODALITY", type=str)
    val: list = _option([], "validation folders or lists, one per --train; '-' holds out a part of the training "
                            "scans (the default), 'none' is no validation", metavar="DIR|LIST|-", type=str)
    weights: list = _option([], "share of the draws that each data set gets, whatever its size (default: all "
                                "alike)", metavar="W", type=float)
    held_out: float = _option(0.1, "part of the scans held out where --val is '-'")
    unconditional: bool = _option(False, "train without modality classes, also on several data sets")
    size: list = _option([64], "voxels along the axes of the model's grid: one number for a cube, or D H W",
                         metavar="N", type=int)
    spacing: list = _option([3.5], "mm between the voxels of the model's grid: one number, or three along D H W "
                                   "(right, front, up; for OCT lateral, depth, lateral)", metavar="MM", type=float)
    grids: dict = _option({}, "grids of some modalities: {modality: {size, spacing}}, by --set data.grids.NAME=…")
    loader: list = _option([], "how scans are put on the grid, one for all or one per --train: canonical (the "
                               "model's cube by the header, the default), or published (the published loading "
                               "of the modality)",
                           metavar="LOADER", type=str)
    masks: list = _option([], "folders of brain masks, one for all or one per --train ('-' for none); a mask is named "
                              "like its scan", metavar="DIR|-", type=str)
    partners: list = _option([], "lists of pairs of scans with their alignment, one for all or one per --train ('-' for "
                                 "none), beside a partners.tsv in the folder of the scans", metavar="FILE|-", type=str)
    cache: str = _option("", "folder of the preprocessed scans; runs with the same scans and grid may share it "
                             "(default: RUN/cache)", metavar="DIR")
    workers: int = _option(1, "processes that preprocess scans")


@dataclass
class Network:
    """The denoiser."""

    head: str = _option("matrix", "matrix: the published regression of a 3×4 matrix; points: corresponding "
                                  "feature points and weighted least squares; matches: places of both volumes "
                                  "matched all with all", choices=("matrix", "points", "matches"))
    channels: list = _option([], "channels of the encoder's stages (default: the network's own)", metavar="C",
                             type=int)
    class_dropout: float = _option(0.15, "probability with which a modality is hidden in training")
    options: dict = _option({}, "further arguments of the network, by --set network.options.NAME=VALUE")


@dataclass
class Diffusion:
    """The noise over affines."""

    timesteps: int = _option(65, "number of timesteps T")
    transform_range: list = _option([0.01, 0.07], "smallest and largest step deviation of the 3×3 part",
                                    metavar="S", type=float, nargs=2)
    translation_range: list = _option([0.5, 4.0], "smallest and largest step deviation of the translation, in "
                                                  "voxels of the model's grid", metavar="S", type=float, nargs=2)
    kind: str = _option("cosine", "how the steps grow", choices=("cosine", "linear"))
    by_modality: dict = _option({}, "other ranges of a modality with a grid of its own: {modality: {transform_range, "
                                    "translation_range}}")
    rigid_share: float = _option(0.2, "share of rigid (with scale) draws, the rest is affine")


@dataclass
class Augmentation:
    """What is done to both volumes of a pair; see augmentation.py for every artifact's parameters."""

    strength: float = _option(1.0, "one factor for the strength of all artifacts (0: none)")
    clean: float = _option(0.0, "share of the pairs without any artifact (the pose stays)")
    partner: float = _option(0.8, "share of the pairs made of two scans, of the scans that a list of partners pairs")
    pose: dict = _option({}, "pose shared by both volumes, by --set augmentation.pose.NAME=VALUE")
    artifacts: dict = _option({}, "artifacts, by --set augmentation.artifacts.NAME.PARAMETER=VALUE; "
                                  "NAME.probability=0 turns one off")
    by_modality: dict = _option({"octa": {"deformation": {"probability": 0.0}}},
                                "what differs for a modality: {modality: {artifact: {parameter: value}}}; \"pose\" "
                                       "counts as an artifact")


@dataclass
class Optimization:
    """Loss, optimizer and its schedule."""

    loss: str = _option("frobenius", "frobenius: norm of the matrix difference, as published; physical: RMS "
                                     "displacement error over the tissue in units of the timestep's expected "
                                     "displacement", choices=("frobenius", "physical"))
    matching: float = _option(0.2, "weight of the cross-entropy of the matches beside the loss (head matches)")
    loss_floor_voxels: float = _option(0.0, "voxels of the grid added in quadrature to that unit of the physical loss")
    steps: int = _option(115000, "optimizer steps (0: as many as --max-minutes allows)")
    max_minutes: float = _option(0.0, "end after so many minutes of training; the cosine then follows the larger "
                                      "of the fractions of steps and time, so the learning rate has come down "
                                      "at the end (0: no limit; with a limit a resumed run is not bit-for-bit)")
    batch: int = _option(4, "pairs per process and step")
    accumulate: int = _option(1, "batches per optimizer step")
    optimizer: str = _option("adam", "adam or adamw", choices=("adam", "adamw"))
    lr: float = _option(1e-4, "highest learning rate")
    final_lr: float = _option(0.0, "learning rate at the end of the cosine, as a fraction of --lr")
    warmup: int = _option(5000, "steps of linear warm-up")
    weight_decay: float = _option(0.0, "decoupled weight decay (adamw)")
    clip: float = _option(0.0, "largest gradient norm (0: no clipping)")
    precision: str = _option("auto", "auto: bf16 where the GPU has it and the head is matrix (feature points "
                                        "need exact sums), else 32", choices=("auto", "32", "bf16"))
    ema_decay: float = _option(0.995, "decay of the weights' running mean")
    ema_power: float = _option(0.75, "power of its warm-up")
    ema_start: int = _option(100, "steps before it begins")
    ema_every: int = _option(10, "steps between its updates")


@dataclass
class Run:
    """The run's folder, devices and reports."""

    output: str = _option("", "folder of the run", metavar="RUN", flags=("-o", "--output"))
    init: str = _option("", "start from the weights of this run or model file", metavar="RUN|FILE")
    seed: int = _option(0, "seed of everything random")
    device: str = _option("auto", "cpu, cuda, mps or auto")
    devices: int = _option(1, "devices (processes) per node")
    nodes: int = _option(1, "nodes; start the same command on each, or use torchrun")
    threads: int = _option(0, "CPU threads per process (0: leave to PyTorch)")
    log_every: int = _option(50, "steps between log lines")
    checkpoint_every: int = _option(500, "steps between checkpoints")
    keep: int = _option(2, "checkpoints kept (the best model is kept beside them)")
    validate_every: int = _option(1000, "steps between validations")
    validate_draws: int = _option(24, "fixed draws of held-out scans per validation")
    validate_steps: int = _option(4, "diffusion steps of the validation's registrations")
    picture_every: int = _option(5000, "steps between pictures of training pairs and predictions (0: none)")


SECTIONS = {"data": Data, "network": Network, "diffusion": Diffusion, "augmentation": Augmentation,
            "optimization": Optimization, "run": Run}


@dataclass
class Settings:
    """All sections together; `to_dict` and `from_dict` are JSON both ways."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    diffusion: Diffusion = field(default_factory=Diffusion)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Settings from nested dictionaries; raises InputError for names that do not exist."""
        settings = cls()
        settings.update(values, "the settings")
        return settings

    def update(self, values, origin):
        """Overwrite what `values` names; artifact and pose dictionaries are merged, not replaced."""
        if not isinstance(values, dict):
            raise InputError(f"{origin} must be a JSON object of sections.")
        for section, content in values.items():
            if section == "description":
                continue
            if section not in SECTIONS:
                raise InputError(f"{origin} has an unknown section {section!r}; known are {', '.join(SECTIONS)}.")
            known = {f.name: f for f in fields(SECTIONS[section])}
            for name, value in content.items():
                if name not in known:
                    raise InputError(f"{origin} has an unknown setting {section}.{name}; known are "
                                     f"{', '.join(known)}.")
                old = getattr(getattr(self, section), name)
                if isinstance(old, dict):
                    value = _merged(old, value, f"{origin}: {section}.{name}")
                setattr(getattr(self, section), name, _typed(old, value, f"{section}.{name}", origin))
        return self

    def update_all(self, given):
        """`update` with every (values, origin) of a list."""
        for values, origin in given:
            self.update(values, origin)
        return self

    def grid(self, modality=None):
        """{"size": (D, H, W), "spacing": mm, one number or a list of three along D, H, W} of the model's grid.

        modality: its own grid, where it has one. Raises InputError for what is no grid.
        """
        own = self.data.grids.get(modality, {})
        if not isinstance(own, dict) or not set(own) <= {"size", "spacing"}:
            raise InputError(f"data.grids: {modality} expects size and spacing, got {own!r}.")
        size, spacing = (np.atleast_1d(own.get(name, getattr(self.data, name))).tolist()
                         for name in ("size", "spacing"))
        if len(size) not in (1, 3) or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"--size expects one number or three (whole ones), got {size}.")
        if len(spacing) not in (1, 3) or not all(isinstance(n, (int, float)) and n > 0 for n in spacing):
            raise InputError(f"--spacing expects one or three positive numbers of mm, got {spacing}.")
        spacing = [float(n) for n in spacing]
        return {"size": tuple(size * 3 if len(size) == 1 else size),
                "spacing": spacing[0] if len(spacing) == 1 else spacing}


def _merged(old, new, what):
    if not isinstance(new, dict):
        raise InputError(f"{what} must be a JSON object.")
    out = dict(old)
    for key, value in new.items():
        out[key] = _merged(out[key], value, what) if isinstance(out.get(key), dict) else value
    return out


def _typed(old, value, name, origin):
    """`value` in the type of the setting's default; a bool is no number here."""
    wanted = type(old)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is tuple or wanted is list:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        wanted, value = list, [value] if number else list(value) if isinstance(value, (list, tuple)) else value
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"{origin}: {name} expects {wanted.__name__}, got {value!r}.")
    return value


def presets():
    """Names of the presets with their descriptions."""
    return {p.stem: json.loads(p.read_text(encoding="utf-8"))["description"] for p in sorted(PRESETS.glob("*.json"))}


def read_json(path, what):
    """The JSON object in a file; raises InputError with the reason."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{what} {path} is not JSON: {error}.") from None


def add_arguments(parser):
    """Add --preset, --config, --set and one option per setting, in one help group per section."""
    group = parser.add_argument_group("where settings come from (later ones win)")
    known = presets()
    group.add_argument("--preset", default="brain", choices=list(known), help="; ".join(
        f"{name}: {text}" for name, text in known.items()) + " (default: brain)")
    group.add_argument("--config", metavar="FILE.json", help="settings in the form of a preset")
    group.add_argument("--set", metavar="SECTION.NAME=VALUE", action="append", default=[], dest="assignments",
                       help="any setting, the value in JSON; may be repeated")
    for section, kind in SECTIONS.items():
        group = parser.add_argument_group(section, kind.__doc__)
        for item in fields(kind):
            default = getattr(kind(), item.name)
            if isinstance(default, dict):
                continue
            options = {k: v for k, v in item.metadata.items() if k in ("help", "metavar", "choices", "type", "nargs")}
            flags = item.metadata.get("flags", (f"--{item.name.replace('_', '-')}",))
            if isinstance(default, bool):
                options = {"help": options["help"], "action": argparse.BooleanOptionalAction}
            elif isinstance(default, list):
                options.setdefault("nargs", "+")
            else:
                options["type"] = type(default)
                if "choices" not in options:
                    options.setdefault("metavar", {int: "N", float: "X"}.get(type(default), "TEXT"))
            group.add_argument(*flags, dest=f"{section}.{item.name}", default=None, **options)
    return parser


def resolve(arguments):
    """Settings from parsed arguments (see add_arguments)."""
    settings = Settings()
    settings.update(read_json(PRESETS / f"{arguments.preset}.json", "The preset"), f"The preset {arguments.preset}")
    if arguments.config:
        settings.update(read_json(arguments.config, "The configuration"), f"The configuration {arguments.config}")
    return settings.update_all(given(arguments))


def given(arguments):
    """What the options of a command line say, as a list of (nested dictionary, origin)."""
    out = {}
    for name, value in vars(arguments).items():
        if value is not None and "." in name:
            section, setting = name.split(".", 1)
            out.setdefault(section, {})[setting] = value
    all_given = [(out, "The command line")]
    for assignment in arguments.assignments:
        name, equals, text = assignment.partition("=")
        if not equals or "." not in name:
            raise InputError(f"--set expects SECTION.NAME=VALUE, got {assignment!r}.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        for part in reversed(name.split(".")):
            value = {part: value}
        all_given.append((value, "--set"))
    return all_given
