"""Every setting of a training run, its help text, the presets and the command line made from them.

A run's settings are six small dataclasses. They are filled, each over the one before, from the defaults, a
preset (presets/NAME.json), a JSON file given with --config, the options of the command line, and --set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.errors import InputError

PRESETS = Path(__file__).parent / "presets"


def _option(default: Any, text: str, **more: Any) -> Any:
    """A field with its help text; list defaults are copied for every instance.

    more: what argparse is told, and the limits that checks.py holds values to: least and most (both allowed), above
    (not allowed itself).
    """
    metadata = {"help": text, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Data:
    """Scans and the grid they are put on."""

    train: list = _option(
        [],
        "folders of volumes (searched recursively) or text lists of files, one per data set",
        metavar="DIR|LIST",
        type=str,
    )
    dataset: list = _option(
        [],
        "the modality of each --train, in the same order; class ids count from 1 in this order",
        metavar="MODALITY",
        type=str,
    )
    val: list = _option(
        [],
        "validation folders or lists, one per --train; '-' holds out a part of the training "
        "scans (the default), 'none' is no validation",
        metavar="DIR|LIST|-",
        type=str,
    )
    weights: list = _option(
        [],
        "share of the draws that each data set gets, whatever its size (default: all alike)",
        metavar="W",
        type=float,
    )
    held_out: float = _option(0.1, "part of the scans held out where --val is '-'", least=0, most=0.9)
    people: str = _option(
        "",
        "a table that says who is shown in which scan, two columns (scan, person); by default names "
        "of files and folders tell",
        metavar="FILE.tsv",
    )
    unconditional: bool = _option(False, "train without modality classes, also on several data sets")
    size: list = _option(
        [64], "voxels along the axes of the model's grid: one number for a cube, or D H W", metavar="N", type=int
    )
    spacing: list = _option(
        [3.5],
        "mm between the voxels of the model's grid: one number, or three along D H W "
        "(right, front, up; for OCT lateral, depth, lateral)",
        metavar="MM",
        type=float,
    )
    grids: dict = _option({}, "grids of some modalities: {modality: {size, spacing}}, by --set data.grids.NAME=…")
    loader: list = _option(
        [],
        "how scans are put on the grid, one for all or one per --train: canonical (the "
        "model's cube by the header, the default), or published (the published loading "
        "of the modality)",
        metavar="LOADER",
        type=str,
    )
    masks: list = _option(
        [],
        "folders of brain masks, one for all or one per --train ('-' for none); a mask is named like its scan",
        metavar="DIR|-",
        type=str,
    )
    partners: list = _option(
        [],
        "lists of pairs of scans with their alignment, one for all or one per --train ('-' for "
        "none), beside a partners.tsv in the folder of the scans",
        metavar="FILE|-",
        type=str,
    )
    cache: str = _option(
        "",
        "folder of the preprocessed scans; runs with the same scans and grid may share it (default: RUN/cache)",
        metavar="DIR",
    )
    workers: int = _option(0, "processes that preprocess scans (0: as many as the machine has processors)", least=0)


@dataclass
class Network:
    """The denoiser."""

    head: str = _option(
        "matrix",
        "matrix: the published regression of a 3×4 matrix; points: corresponding "
        "feature points and weighted least squares; matches: places of both volumes "
        "matched all with all",
        choices=("matrix", "points", "matches"),
    )
    channels: list = _option([], "channels of the encoder's stages (default: the network's own)", metavar="C", type=int)
    class_dropout: float = _option(0.15, "probability with which a modality is hidden in training", least=0, most=0.99)
    options: dict = _option({}, "further arguments of the network, by --set network.options.NAME=VALUE")


@dataclass
class Diffusion:
    """The noise over affines."""

    timesteps: int = _option(65, "number of timesteps T", least=1)
    transform_range: list = _option(
        [0.01, 0.07], "smallest and largest step deviation of the 3×3 part", metavar="S", type=float, nargs=2
    )
    translation_range: list = _option(
        [0.5, 4.0],
        "smallest and largest step deviation of the translation, in voxels of the model's grid",
        metavar="S",
        type=float,
        nargs=2,
    )
    kind: str = _option("cosine", "how the steps grow", choices=("cosine", "linear"))
    by_modality: dict = _option(
        {}, "other ranges of a modality with a grid of its own: {modality: {transform_range, translation_range}}"
    )
    rigid_share: float = _option(0.2, "share of rigid (with scale) draws, the rest is affine", least=0, most=1)


@dataclass
class Augmentation:
    """What is done to both volumes of a pair; see augmentation/ for every artifact's parameters."""

    strength: float = _option(1.0, "one factor for the strength of all artifacts (0: none)", least=0)
    clean: float = _option(0.0, "share of the pairs without any artifact (the pose stays)", least=0, most=1)
    partner: float = _option(
        0.8, "share of the pairs made of two scans, of the scans that a list of partners pairs", least=0, most=1
    )
    pose: dict = _option({}, "pose shared by both volumes, by --set augmentation.pose.NAME=VALUE")
    artifacts: dict = _option(
        {}, "artifacts, by --set augmentation.artifacts.NAME.PARAMETER=VALUE; NAME.probability=0 turns one off"
    )
    by_modality: dict = _option(
        {"octa": {"deformation": {"probability": 0.0}}},
        'what differs for a modality: {modality: {artifact: {parameter: value}}}; "pose" counts as an artifact',
    )


@dataclass
class Optimization:
    """Loss, optimizer and its schedule."""

    loss: str = _option(
        "frobenius",
        "frobenius: norm of the matrix difference, as published; physical: RMS "
        "displacement error over the tissue in units of the timestep's expected "
        "displacement",
        choices=("frobenius", "physical"),
    )
    matching: float = _option(0.2, "weight of the cross-entropy of the matches beside the loss (head matches)", least=0)
    loss_floor_voxels: float = _option(
        0.0, "voxels of the grid added in quadrature to that unit of the physical loss", least=0
    )
    steps: int = _option(115000, "optimizer steps (0: as many as --max-minutes allows)", least=0)
    max_minutes: float = _option(
        0.0,
        "end after so many minutes of training; the cosine then follows the larger "
        "of the fractions of steps and time, so the learning rate has come down "
        "at the end (0: no limit; with a limit a resumed run is not bit-for-bit)",
        least=0,
    )
    batch: int = _option(4, "pairs per process and step", least=1)
    accumulate: int = _option(1, "batches per optimizer step", least=1)
    optimizer: str = _option("adam", "adam or adamw", choices=("adam", "adamw"))
    lr: float = _option(1e-4, "highest learning rate", least=0)
    final_lr: float = _option(0.0, "learning rate at the end of the cosine, as a fraction of --lr", least=0, most=1)
    warmup: int = _option(5000, "steps of linear warm-up, at most a twentieth of --max-minutes", least=0)
    weight_decay: float = _option(0.0, "decoupled weight decay (adamw)", least=0)
    clip: float = _option(0.0, "largest gradient norm (0: no clipping)", least=0)
    patience: int = _option(0, "end after so many validations without a better one (0: never)", least=0)
    precision: str = _option(
        "auto",
        "auto: bf16 where the GPU has it and the head is matrix (feature points need exact sums), else 32",
        choices=("auto", "32", "bf16"),
    )
    ema_decay: float = _option(0.995, "decay of the weights' running mean", least=0, most=0.999999)
    ema_power: float = _option(0.75, "power of its warm-up", above=0)
    ema_start: int = _option(100, "steps before it begins", least=0)
    ema_every: int = _option(10, "steps between its updates", least=1)


@dataclass
class Run:
    """The run's folder, devices and reports."""

    output: str = _option("", "folder of the run", metavar="RUN", flags=("-o", "--output"))
    init: str = _option(
        "", "start from the weights of this run, model file or installed model (fine-tuning)", metavar="RUN|FILE|NAME"
    )
    seed: int = _option(0, "seed of everything random", least=0)
    device: str = _option("auto", "cpu, cuda, mps or auto")
    devices: int = _option(1, "devices (processes) per node", least=1)
    nodes: int = _option(1, "nodes; start the same command on each, or use torchrun", least=1)
    threads: int = _option(0, "CPU threads per process (0: leave to PyTorch)", least=0)
    log_every: int = _option(50, "steps between log lines", least=1)
    checkpoint_every: int = _option(500, "steps between checkpoints", least=1)
    keep: int = _option(2, "checkpoints kept (the best model is kept beside them)", least=1)
    validate_every: int = _option(1000, "steps between validations", least=1)
    validate_draws: int = _option(24, "fixed draws of held-out scans per validation", least=1)
    validate_steps: int = _option(4, "diffusion steps of the validation's registrations", least=1)
    minutes_between: float = _option(5.0, "most minutes between two drawings of loss.png and the pictures", above=0)
    logger: str = _option(
        "tensorboard",
        "where figures also go: tensorboard, csv, none, or a logger of Lightning as "
        "package.module.Class (it is given save_dir=RUN)",
    )
    picture_every: int = _option(5000, "steps between pictures of training pairs and predictions (0: none)", least=0)


SECTIONS: dict[str, Any] = {
    "data": Data,
    "network": Network,
    "diffusion": Diffusion,
    "augmentation": Augmentation,
    "optimization": Optimization,
    "run": Run,
}


@dataclass
class Settings:
    """All sections together; `to_dict` and `from_dict` are JSON both ways."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    diffusion: Diffusion = field(default_factory=Diffusion)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from nested dictionaries; raises InputError for names that do not exist."""
        settings = cls()
        settings.update(values, "the settings")
        return settings

    def update(self, values: Any, origin: str) -> Settings:
        """Overwrite what `values` names; artifact and pose dictionaries are merged, not replaced."""
        if not isinstance(values, dict):
            raise InputError(f"{origin} must be a JSON object of sections.")
        for section, content in values.items():
            if section == "description":
                continue
            if section not in SECTIONS:
                raise InputError(f"{origin} has an unknown section {section!r}; known are {', '.join(SECTIONS)}.")
            if not isinstance(content, dict):
                raise InputError(f"{origin}: {section} must be a JSON object of settings, got {content!r}.")
            known = {f.name: f for f in fields(SECTIONS[section])}
            for name, value in content.items():
                if name not in known:
                    raise InputError(f"{origin} has an unknown setting {section}.{name}; known are {', '.join(known)}.")
                old = getattr(getattr(self, section), name)
                if isinstance(old, dict):
                    value = _merged(old, value, f"{origin}: {section}.{name}")
                setattr(getattr(self, section), name, _typed(old, value, f"{section}.{name}", origin))
        return self

    def update_all(self, given: Sequence[tuple[dict[str, Any], str]]) -> Settings:
        """`update` with every (values, origin) of a list."""
        for values, origin in given:
            self.update(values, origin)
        return self

    def grid(self, modality: str | None = None) -> dict[str, Any]:
        """{"size": (D, H, W), "spacing": mm, one number or a list of three along D, H, W} of the model's grid.

        modality: its own grid, where it has one. Raises InputError for what is no grid.
        """
        own = self.data.grids.get(modality, {})
        if not isinstance(own, dict) or not set(own) <= {"size", "spacing"}:
            raise InputError(f"data.grids: {modality} expects size and spacing, got {own!r}.")
        size, spacing = (
            np.atleast_1d(own.get(name, getattr(self.data, name))).tolist() for name in ("size", "spacing")
        )
        if len(size) not in (1, 3) or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"--size expects one number or three (whole ones), got {size}.")
        if len(spacing) not in (1, 3) or not all(isinstance(n, (int, float)) and n > 0 for n in spacing):
            raise InputError(f"--spacing expects one or three positive numbers of mm, got {spacing}.")
        spacing = [float(n) for n in spacing]
        return {
            "size": tuple(size * 3 if len(size) == 1 else size),
            "spacing": spacing[0] if len(spacing) == 1 else spacing,
        }


def _merged(old: dict[str, Any], new: Any, what: str) -> dict[str, Any]:
    if not isinstance(new, dict):
        raise InputError(f"{what} must be a JSON object.")
    out = dict(old)
    for key, value in new.items():
        out[key] = _merged(out[key], value, what) if isinstance(out.get(key), dict) else value
    return out


def _typed(old: Any, value: Any, name: str, origin: str) -> Any:
    """`value` in the type of the setting's default; a bool is no number here."""
    wanted: type = type(old)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is tuple or wanted is list:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        wanted, value = list, [value] if number else list(value) if isinstance(value, (list, tuple)) else value
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"{origin}: {name} expects {wanted.__name__}, got {value!r}.")
    return value


def presets() -> dict[str, str]:
    """Names of the presets with their descriptions."""
    return {p.stem: json.loads(p.read_text(encoding="utf-8"))["description"] for p in sorted(PRESETS.glob("*.json"))}


def read_json(path: str | Path, what: str) -> Any:
    """The JSON object in a file; raises InputError with the reason."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{what} {path} is not JSON: {error}.") from None


def settings_of_run(run: str | Path) -> Settings:
    """The settings that a run folder holds."""
    return Settings.from_dict(read_json(Path(run) / "settings.json", "The run's settings"))


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --preset, --config, --set and one option per setting, in one help group per section."""
    group = parser.add_argument_group("where settings come from (later ones win)")
    known = presets()
    group.add_argument(
        "--preset",
        default="brain",
        choices=list(known),
        help="; ".join(f"{name}: {text}" for name, text in known.items()) + " (default: brain)",
    )
    group.add_argument("--config", metavar="FILE.json", help="settings in the form of a preset")
    group.add_argument(
        "--set",
        metavar="SECTION.NAME=VALUE",
        action="append",
        default=[],
        dest="assignments",
        help="any setting, the value in JSON; may be repeated",
    )
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


def resolve(arguments: argparse.Namespace) -> Settings:
    """Settings from parsed arguments (see add_arguments)."""
    settings = Settings()
    settings.update(read_json(PRESETS / f"{arguments.preset}.json", "The preset"), f"The preset {arguments.preset}")
    if arguments.config:
        settings.update(read_json(arguments.config, "The configuration"), f"The configuration {arguments.config}")
    return settings.update_all(given(arguments))


def given(arguments: argparse.Namespace) -> list[tuple[dict[str, Any], str]]:
    """What the options of a command line say, as a list of (nested dictionary, origin)."""
    out: dict[str, Any] = {}
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
        all_given.append((value, f"--set {name}"))
    return all_given
