"""The card in a model's file: everything needed to use its weights, and what makes one valid.

Written in the file as JSON (``ModelCard.to_dict``), and read and written nowhere else::

    {"format": 1,
     "name": "t1-brain",
     "architecture": {"head": "matches", "volume_size": [64, 64, 64], …},
     "grid": {"size": [64, 64, 64], "spacing": 3.5, "loading": "canonical"},
     "grids": {"oct": {…}},
     "schedule": {"timesteps": 65, "transform_range": […], "translation_range": […], "kind": "cosine"},
     "schedules": {"oct": {…}},
     "modalities": {"any": 0, "t1-brain": 1},
     "sampler": "fast", "steps": 0,
     "focus": {"modalities": ["t1-brain"], …}, "sides": {…},
     "agreement": {"ct-head-neck": 0.6},
     "training": {…}, "license": "…", "accuracy": {…}, "created": "2026-11-24"}

"name", "architecture", "grid", "schedule" and "modalities" must be there. Entries that this version does not know are
kept and written again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ModelError
from ..method.schedule import Schedule

FORMAT = 1
KEY = "spatial_diffusion"
SUFFIX = ".safetensors"

#: What a model may have beside its network, for the modalities that its card names: where to look (networks/focus.py),
#: and which side is left (networks/symmetric_template.py). The names of a part's weights begin with "PART.".
PARTS = ("focus", "sides")

LOADINGS = ("canonical", "published")
SAMPLERS = ("fast", "reference")

#: What messages call a card of which no file is known.
THE_CARD = "The model's card"


@dataclass(frozen=True)
class ModelGrid:
    """The cube on which a model sees volumes.

    size: voxels (D, H, W). spacing: mm, one number for all axes or one for each; None where the published loading
    chooses it for each volume. loading: "canonical" (spatial/sampling.py) or "published" (method/published_loading.py).
    Raises ModelError that begins with ``where`` for what is no grid.
    """

    size: tuple[int, int, int]
    spacing: float | tuple[float, float, float] | None
    loading: str
    where: InitVar[Any] = THE_CARD

    def __post_init__(self, where: Any) -> None:
        size, spacing = self.size, self.spacing
        if not (isinstance(size, tuple) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
            _refuse(where, f"has the grid size {size!r}; expected three positive whole numbers")
        if self.loading not in LOADINGS:
            _refuse(where, f"has grid loading {self.loading!r}; expected canonical or published")
        numbers = spacing if isinstance(spacing, tuple) else (spacing,) * 3
        if self.loading == "canonical" and not (
            len(numbers) == 3 and all(isinstance(n, (int, float)) and 0 < n < math.inf for n in numbers)
        ):
            _refuse(where, f"has the grid spacing {spacing!r}; expected one or three positive numbers of mm")

    @classmethod
    def from_dict(cls, values: Any, where: Any = THE_CARD) -> ModelGrid:
        """From its JSON form; raises ModelError that begins with ``where``."""
        if not isinstance(values, dict):
            _refuse(where, f"has the grid {values!r}; expected its size, spacing and loading")
        given = {key: values.get(key) for key in ("size", "spacing", "loading")}
        parsed: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}
        return cls(**parsed, where=where)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        spacing = list(self.spacing) if isinstance(self.spacing, tuple) else self.spacing
        return {"size": list(self.size), "spacing": spacing, "loading": self.loading}


@dataclass(frozen=True)
class ModelPart:
    """One of PARTS: what it is built with (the constructor's arguments), and for which of the model's modalities it is;
    None: for all.
    """

    settings: Mapping[str, Any]
    modalities: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, values: Any, name: str, where: Any = THE_CARD) -> ModelPart:
        """From its JSON form; raises ModelError that begins with ``where``."""
        known = values.get("modalities") if isinstance(values, dict) else 0
        if not (known is None or isinstance(known, list) and all(isinstance(key, str) for key in known)):
            _refuse(where, f"has an entry {name!r} that is not a table of settings with a list of modalities")
        settings = {key: value for key, value in values.items() if key != "modalities"}
        return cls(settings, None if known is None else tuple(known))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**self.settings, **({} if self.modalities is None else {"modalities": list(self.modalities)})}


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to use a model's weights, and what there is to know about it.

    Attributes:
        name: in the catalog.
        architecture: {"head": a key of networks/build.py's NETWORKS, and its constructor's arguments}.
        grid: the cube on which volumes are seen.
        schedule: the diffusion that the network was trained on.
        modalities: {modality: class id of the network}; 0 is the class for anything, or the only one.
        grids, schedules: {modality: its own}, where that differs from the common one; all have as many timesteps.
        sampler: the one to use where nobody chose: "fast" or "reference".
        steps: of the diffusion, 0 for none; None: as many as the fast sampler takes.
        parts: {one of PARTS: what it is built with, and for which modalities}.
        agreement: {modality: 0…1}, from where on an answer with which the network agrees is right, as measured.
        training: how it was trained: "data", "steps", "settings", "scans", "limits".
        license: of the weights.
        accuracy: what was measured.
        created: date, YYYY-MM-DD.
        other: entries that this version does not know.

    Raises ModelError, where entries do not fit each other, that begins with ``where``: a file, or what else it is of.
    """

    name: str
    architecture: Mapping[str, Any]
    grid: ModelGrid
    schedule: Schedule
    modalities: Mapping[str, int]
    grids: Mapping[str, ModelGrid] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    sampler: str = "fast"
    steps: int | None = None
    parts: Mapping[str, ModelPart] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)
    where: InitVar[Any] = THE_CARD

    def __post_init__(self, where: Any) -> None:
        if not isinstance(self.name, str) or not self.name:
            _refuse(where, f"has the name {self.name!r}; expected a text")
        if not isinstance(self.modalities, dict) or not self.modalities:
            _refuse(where, "names no modalities")
        if not all(isinstance(number, int) and number >= 0 for number in self.modalities.values()):
            _refuse(where, f"has the modalities {self.modalities!r}; expected a whole number for each")
        if self.sampler not in SAMPLERS:
            _refuse(where, f"has the sampler {self.sampler!r}; expected fast or reference")
        counts = {schedule.timesteps for schedule in (self.schedule, *self.schedules.values())}
        if len(counts) > 1:
            _refuse(where, f"has schedules of {sorted(counts)} timesteps; expected the same number in all")
        most = self.schedule.timesteps
        if not (self.steps is None or isinstance(self.steps, int) and 0 <= self.steps <= most):
            _refuse(where, f"has {self.steps!r} steps of the diffusion; expected a whole number, 0 to {most}")
        named: dict[str, Any] = {"grids": self.grids, "schedules": self.schedules, "agreement": self.agreement}
        named.update({part: entry.modalities or () for part, entry in self.parts.items()})
        for entry, keys in named.items():
            strange = [key for key in keys if key not in self.modalities]
            if strange:
                _refuse(where, f"has the entry {entry!r} for {strange[0]!r}, which is none of its modalities")

    @classmethod
    def from_dict(cls, values: Any, where: Any = THE_CARD) -> ModelCard:
        """From its JSON form; raises ModelError that begins with ``where`` and says what is missing or wrong."""
        if not isinstance(values, dict):
            _refuse(where, "has a card that is not a table of settings")
        values = dict(values)
        version = values.pop("format", None)
        if version != FORMAT:
            _refuse(where, f"has format version {version}; this program reads version {FORMAT}: update one of them")
        for key in ("name", "architecture", "grid", "schedule", "modalities"):
            if key not in values:
                _refuse(where, f"lacks the entry {key!r}, so the model cannot be used")
        for key in ("architecture", "grids", "schedules", "agreement", "training", "accuracy"):
            if not isinstance(values.get(key, {}), dict):
                _refuse(where, f"has the {key} {values[key]!r}; expected a table")
        values["grid"] = ModelGrid.from_dict(values["grid"], where)
        values["grids"] = {key: ModelGrid.from_dict(grid, where) for key, grid in values.get("grids", {}).items()}
        try:
            values["schedule"] = Schedule(**values["schedule"])
            values["schedules"] = {key: Schedule(**one) for key, one in values.get("schedules", {}).items()}
        except (TypeError, ValueError) as error:
            _refuse(where, f"has a schedule that does not fit ({error})")
        parts = {name: ModelPart.from_dict(values.pop(name), name, where) for name in PARTS if name in values}
        known = {one.name for one in fields(cls)} - {"parts", "other"}
        other = {key: values.pop(key) for key in list(values) if key not in known}
        return cls(**values, parts=parts, other=other, where=where)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; entries that say nothing are left out."""
        said: dict[str, Any] = {"format": FORMAT, **{one.name: getattr(self, one.name) for one in fields(self)}}
        parts, other = said.pop("parts"), said.pop("other")
        said.update({key: said[key].to_dict() for key in ("grid", "schedule")})
        for key in ("grids", "schedules"):
            said[key] = {modality: one.to_dict() for modality, one in said[key].items()}
        for key, default in (("grids", {}), ("schedules", {}), ("steps", None), ("agreement", {})):
            if said[key] == default:
                del said[key]
        return {**said, **{name: part.to_dict() for name, part in parts.items()}, **other}

    @classmethod
    def from_json(cls, text: str, where: Any = THE_CARD) -> ModelCard:
        """From the text in a model's file; raises ModelError that begins with ``where``."""
        try:
            values = json.loads(text)
        except ValueError:
            raise ModelError(f"{where} has a card that is not valid JSON; the file is damaged.") from None
        return cls.from_dict(values, where)

    def to_json(self) -> str:
        """The text for a model's file."""
        return json.dumps(self.to_dict())

    def grid_of(self, modality: str) -> ModelGrid:
        """The cube on which the model sees a modality: its own, or the common one."""
        return self.grids.get(modality, self.grid)

    def schedule_of(self, modality: str) -> Schedule:
        """The diffusion that the model was trained on with scans of a modality: its own, or the common one."""
        return self.schedules.get(modality, self.schedule)

    def part_for(self, name: str, modality: str) -> ModelPart | None:
        """What one of PARTS is built with; None where there is none for a modality."""
        part = self.parts.get(name)
        if part is None or part.modalities is None:
            return part if modality in self.modalities else None
        return part if modality in part.modalities else None

    def serves(self, *wanted: str) -> bool:
        """Whether the model takes volumes of these modalities: trained on each, or with the class for anything."""
        return all(key in self.modalities or "any" in self.modalities for key in wanted)

    def nearest(self, modality: str) -> str:
        """What the model takes volumes of a modality for: that, or what it has for anything, or the only one it
        knows.
        """
        known = self.modalities
        if modality in known:
            return modality
        return next(iter(known)) if len(known) == 1 else "any"


def read_card(path: str | Path) -> ModelCard:
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
    return ModelCard.from_json(text, path)


def _refuse(where: Any, what: str) -> NoReturn:
    raise ModelError(f"{where} {what}.") from None
