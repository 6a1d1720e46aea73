"""The card in a model's file: everything needed to use its weights, as JSON, and what makes one valid."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..errors import ModelError
from ..method.schedule import Schedule

FORMAT = 1
KEY = "spatial_diffusion"
SUFFIX = ".safetensors"

#: What a model may have beside its network, for the modalities that its card names: where to look (focus.py), and which
#: side is left (sides.py). The card's entry holds what it is built with; the names of its weights begin with "PART.".
PARTS = ("focus", "sides")


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
    _check_grids(card, where)
    _check_schedules(card, where)
    for entry in (*PARTS, "agreement"):
        named = card.get(entry, {})
        named = named if entry == "agreement" else named.get("modalities", [])
        strange = [name for name in named if name not in card["modalities"]]
        if strange:
            raise ModelError(f"{where} has the entry {entry!r} for {strange[0]!r}, which is none of its modalities.")
    return card


def _check_grids(card: dict, where) -> None:
    others = card.get("grids", {})
    if not isinstance(others, dict) or not set(others) <= set(card["modalities"]):
        raise ModelError(f"{where} has the grids {others!r}; expected one for each of some of its modalities.")
    for grid in (card["grid"], *others.values()):
        _check_grid(grid, where)


def _check_schedules(card: dict, where) -> None:
    schedules = card.get("schedules", {})
    if not isinstance(schedules, dict) or not set(schedules) <= set(card["modalities"]):
        raise ModelError(f"{where} has the schedules {schedules!r}; expected one for each of some of its modalities.")
    try:
        steps = {Schedule(**schedule).timesteps for schedule in (card["schedule"], *schedules.values())}
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} has a schedule that does not fit ({error}).") from None
    if len(steps) > 1:
        raise ModelError(f"{where} has schedules of {sorted(steps)} timesteps; expected the same number in all.")


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


def serves(card: dict, *wanted: str) -> bool:
    """Whether a model takes volumes of these modalities: it was trained on each, or has the class for anything."""
    known = card["modalities"]
    return all(name in known or "any" in known for name in wanted)


def nearest(key: str, card: dict) -> str:
    """What a model takes volumes of a modality for: that, or what it has for anything, or the only one it knows."""
    known = card["modalities"]
    return key if key in known else "any" if "any" in known or len(known) > 1 else next(iter(known))
