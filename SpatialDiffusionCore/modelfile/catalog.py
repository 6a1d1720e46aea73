"""Which models are installed, and which of them serves two volumes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, ModelError
from ..modality import AUTO, MODALITIES, Modality
from .card import SUFFIX, ModelCard, read_card


def get(name: str, auto: bool = False) -> Modality:
    """The modality of that key or alias, in any case, or one that an installed model of the user's own brings.

    auto: whether AUTO is an answer, too. Raises InputError that lists the known ones.
    """
    wanted = str(name).strip().lower().replace("_", "-").replace(" ", "-")
    known = {**({AUTO.key: AUTO} if auto else {}), **MODALITIES}
    for modality in known.values():
        if wanted == modality.key or wanted in modality.aliases:
            return modality
    own: dict[str, Modality] = {}
    for _, card in catalog().values():
        for key in card.modalities:
            own.setdefault(key, Modality(key, key, f"A modality of the model {card.name}."))
    if wanted in own:
        return own[wanted]
    raise InputError(f"Unknown modality {name!r}; choose one of: {', '.join({**known, **own})}.")


BUNDLED = Path(__file__).parents[1] / "models"


class InstalledModel(NamedTuple):
    """A model's file and its card."""

    path: Path
    card: ModelCard


def user_folder() -> Path:
    """Where a user's own models live: $SPATIAL_DIFFUSION_MODELS, or the platform's data directory."""
    override = os.environ.get("SPATIAL_DIFFUSION_MODELS")
    if override:
        return Path(override).expanduser()
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in many containers
        home = Path(tempfile.gettempdir())
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", home / ".local" / "share"))
    return base / "spatial-diffusion" / "models"


def catalog() -> dict[str, InstalledModel]:
    """{name: file and card} of the installed models: bundled ones, then the user's own (which win on equal names).

    Files that are not models of this program are left out.
    """
    found: dict[str, InstalledModel] = {}
    for folder in (BUNDLED, user_folder()):
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
            try:
                card = read_card(path)
            except ModelError:
                continue
            found[card.name] = InstalledModel(path, card)
    return found


def find(name: str | os.PathLike) -> InstalledModel:
    """The file and the card of a model file or of an installed model's name. Raises ModelError that lists what there
    is.
    """
    if os.fspath(name).endswith(SUFFIX) or os.path.sep in os.fspath(name):
        return InstalledModel(Path(name), read_card(Path(name)))
    installed = catalog()
    if os.fspath(name) not in installed:
        listed = ", ".join(installed) or "none"
        raise ModelError(f"There is no model {name!r}; installed: {listed}. Give one of them or a {SUFFIX} file.")
    return installed[os.fspath(name)]


def choose(
    name: str | os.PathLike | None = None, moving_modality: str = "any", fixed_modality: str = "any"
) -> InstalledModel:
    """The file and the card of the model to use.

    ``name`` is a file, an installed model's name, or None for the installed one trained on both modalities and the
    fewest others; where just one of them is "any", on the most others (failing that, one for anything). Raises
    ModelError that lists what there is.
    """
    wanted = (moving_modality, fixed_modality)
    if name is not None:
        found = find(name)
        if not found.card.serves(*wanted):
            raise ModelError(
                f"The model {found.card.name} was not trained for {' and '.join(dict.fromkeys(wanted))}; "
                f"it knows: {', '.join(found.card.modalities)}."
            )
        return found
    installed = list(catalog().values())
    chosen = preferred(installed, wanted)
    if chosen is not None:
        return chosen
    known = sorted({key for one in installed for key in one.card.modalities})
    raise ModelError(
        f"No installed model was trained for {' and '.join(dict.fromkeys(wanted))}; "
        f"installed models know: {', '.join(known) or 'nothing'}."
    )


def preferred(models: Sequence[InstalledModel], wanted: tuple[str, str]) -> InstalledModel | None:
    """Which of them `choose` takes for two modalities; None if none serves them.

    models: as in `catalog`, the user's own last; among equals they win, since they were asked for when installed.
    """
    # Beside something else, what may be anything gets the model that has seen the most; else, as all, its own.
    sign = -1 if "any" in wanted and wanted[0] != wanted[1] else 1
    for exact in (True, False):
        for one in sorted(reversed(models), key=lambda one: sign * len(one.card.modalities)):
            if all(key in one.card.modalities for key in wanted) if exact else one.card.serves(*wanted):
                return one
    return None
