"""A finished (or running) run → one model file with its card, and its way to where programs look for it."""
from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import date
from pathlib import Path

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.modelfile.card import PARTS, read_card
from SpatialDiffusionCore.modelfile.catalog import user_folder
from SpatialDiffusionCore.modelfile.model import load_model
from SpatialDiffusionCore.modelfile.safetensors_file import save_model
from SpatialDiffusionCore.networks.build import build

from . import datasets
from .pairs import make_schedule
from .settings import Settings
from .trainer import complete


def modalities(data):
    """{modality: class id} of the settings; class 0 is "any"."""
    if data.unconditional or len(data.dataset) == 1:
        return {"any": 0, **{name: 0 for name in data.dataset}}
    return {"any": 0, **{name: index for index, name in enumerate(data.dataset, start=1)}}


def card(state, name, licence="", data=""):
    """The model's card from a run's state (see train.weights_of_run)."""
    settings = Settings.from_dict(state["settings"])
    published = "published" in settings.data.loader
    training = {"data": data, "steps": state["step"], "settings": settings.to_dict()}
    for place in (settings.data.cache, f"{settings.run.output}/cache"):
        folders = [index.parent for index in Path(place).rglob("index.json")] if place else []
        counts = Counter((e["modality"], e["part"]) for folder in folders for e in datasets.open_cache(folder).entries)
        if counts:
            training["scans"] = {f"{modality} {part}": n for (modality, part), n in sorted(counts.items())}
            break
    # Folders of the training machine are nobody's business.
    for section, names in (("data", ("train", "val", "cache", "masks", "partners")), ("run", ("output", "init"))):
        for key in names:
            value = training["settings"][section][key]
            kept = [Path(v).name or v for v in value] if isinstance(value, list) else Path(value).name
            training["settings"][section][key] = kept
    return {
        "name": name,
        "architecture": complete(state["architecture"]),
        **_grids(settings, published),
        **_schedules(settings),
        "modalities": modalities(settings.data),
        "sampler": "reference" if published else "fast",
        "training": training,
        "license": licence,
        "accuracy": {"validation": state["validation"]} if state["validation"] else {},
        "created": date.today().isoformat(),
    }


def _grids(settings, published):
    """The entries "grid" and "grids" of the card."""
    def grid(modality=None):
        found = settings.grid(modality)
        return {"size": list(found["size"]), "spacing": None if published else found["spacing"],
                "loading": "published" if published else "canonical"}

    own = {name: grid(name) for name in settings.data.dataset if grid(name) != grid()}
    return {"grid": grid(), **({"grids": own} if own else {})}


def _schedules(settings):
    """The entries "schedule" and "schedules" of the card."""
    common = make_schedule(settings).to_dict()
    own = {name: make_schedule(settings, name).to_dict() for name in settings.data.dataset}
    own = {name: schedule for name, schedule in own.items() if schedule != common}
    return {"schedule": common, **({"schedules": own} if own else {})}


def export(run, output=None, *, half=False, which="best", name=None, licence="", data=""):
    """Write the model file of a run and return its path."""
    from .train import weights_of_run

    run = Path(run)
    state = weights_of_run(run, which)
    name = name or run.resolve().name
    output = Path(output) if output else run / "model.safetensors"
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors.")
    network = build(state["architecture"])
    network.load_state_dict(state["weights"])
    save_model(output, network, card(state, name, licence, data), half=half)
    return output


def attach(model, name, part, settings, output=None, accuracy=None, modality=None):
    """Write a model file (in half precision) with one of model.PARTS in it, new or in place of its last; return the path.

    settings: the card's entry, what the part is built with. output: may be the file itself (default). modality: the one it
    is for (None: all that the model knows).
    """
    loaded = load_model(model, *[next(iter(read_card(model)["modalities"]))] * 2)
    card = {**loaded.card, name: {**settings, **({"modalities": [modality]} if modality else {})}}
    if accuracy:
        card["accuracy"] = {**card.get("accuracy", {}), **accuracy}
    output = Path(output or model)
    parts = {**{known: getattr(loaded, known) for known in PARTS}, name: part}
    save_model(output, loaded.network, card, half=True, **parts)
    return output


def without_network(output, modalities, size, spacing, training, accuracy, licence="Apache-2.0"):
    """Write a model file without weights: it lets modalities be searched and refined on their own grid before anyone
    has trained a network for them. Arguments as the entries of a card; returns the path."""
    network = build({"head": "none", "volume_size": list(size)})
    save_model(output, network, {
        "name": Path(output).stem, "architecture": network.architecture,
        "grid": {"size": list(size), "spacing": list(spacing), "loading": "canonical"},
        "schedule": make_schedule(Settings()).to_dict(), "modalities": dict.fromkeys(modalities, 0), "sampler": "fast",
        "steps": 0, "training": training, "license": licence, "accuracy": accuracy, "created": date.today().isoformat(),
    })
    return Path(output)


def install(path):
    """Copy a model file into the user's model folder, where Slicer and the shell list it; return its new path."""
    path, folder = Path(path), user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{read_card(path)['name']}.safetensors"
    if target.resolve() != path.resolve():
        with written_whole(target) as temporary:
            shutil.copyfile(path, temporary)
    return target


def read_settings(run):
    """The settings that a run folder holds."""
    return Settings.from_dict(json.loads((Path(run) / "settings.json").read_text(encoding="utf-8")))
