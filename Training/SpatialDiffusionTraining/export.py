"""A finished (or running) run → one model file with its card, and its way to where programs look for it."""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.method.schedule import Schedule
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.modelfile.card import PARTS, ModelCard, ModelGrid, ModelPart, read_card
from SpatialDiffusionCore.modelfile.catalog import BUNDLED, InstalledModel, catalog, preferred, user_folder
from SpatialDiffusionCore.modelfile.model import load_model
from SpatialDiffusionCore.modelfile.safetensors_file import save_model

from . import datasets, measure
from .architecture import build_network, complete
from .checkpoint import save_whole, weights_of_run
from .command import say
from .pairs import make_schedule
from .settings import Settings

#: Weights that a run can be exported with: see checkpoint.weights_of_run.
WHICH = ("best", "last", "raw", "average")


def modalities(settings: Settings) -> dict[str, int]:
    """{modality: class id} of a run; class 0 is "any", unless nothing was ever hidden: then there is no class for
    that."""
    data = settings.data
    if data.unconditional or len(data.dataset) == 1:
        return {"any": 0, **{name: 0 for name in data.dataset}}
    if settings.network.class_dropout == 0:
        return {name: index for index, name in enumerate(data.dataset)}
    return {"any": 0, **{name: index for index, name in enumerate(data.dataset, start=1)}}


def card(state: dict[str, Any], name: str, licence: str = "", data: str = "") -> ModelCard:
    """The model's card from a run's state (see checkpoint.weights_of_run)."""
    settings = Settings.from_dict(state["settings"])
    published = "published" in settings.data.loader
    training: dict[str, Any] = {"data": data, "steps": state["step"], "settings": settings.to_dict()}
    counts = _scans(settings)
    if counts:
        training["scans"] = {f"{modality} {part}": n for (modality, part), n in sorted(counts.items())}
    _forget_places(training["settings"])
    common, grids = _grids(settings, published)
    schedule, schedules = _schedules(settings)
    return ModelCard(
        name=name,
        architecture=complete(state["architecture"]),
        grid=common,
        grids=grids,
        schedule=schedule,
        schedules=schedules,
        modalities=modalities(settings),
        sampler="reference" if published else "fast",
        training=training,
        license=licence,
        accuracy={"validation": state["validation"]} if state["validation"] else {},
        created=date.today().isoformat(),
    )


def _scans(settings: Settings) -> Counter[tuple[str, str]]:
    """{(modality, part): number of scans} of the run's cache, where it is still there."""
    for place in (settings.data.cache, f"{settings.run.output}/cache"):
        folders = [index.parent for index in Path(place).rglob("index.json")] if place else []
        counts = Counter((e["modality"], e["part"]) for folder in folders for e in datasets.open_cache(folder).entries)
        if counts:
            return counts
    return Counter()


def _forget_places(settings: dict[str, Any]) -> None:
    """Folders of the training machine are nobody's business: of each place only the name stays."""
    for section, names in (
        ("data", ("train", "val", "cache", "masks", "partners", "people")),
        ("run", ("output", "init")),
    ):
        for key in names:
            value = settings[section][key]
            kept = [Path(v).name or v for v in value] if isinstance(value, list) else Path(value).name
            settings[section][key] = kept


def _grids(settings: Settings, published: bool) -> tuple[ModelGrid, dict[str, ModelGrid]]:
    """The common grid, and {modality: its own} where that differs."""

    def grid(modality: str | None = None) -> ModelGrid:
        found = settings.grid(modality)
        spacing, loading = (None, "published") if published else (found["spacing"], "canonical")
        return ModelGrid.from_dict({"size": list(found["size"]), "spacing": spacing, "loading": loading})

    return grid(), {name: grid(name) for name in settings.data.dataset if grid(name) != grid()}


def _schedules(settings: Settings) -> tuple[Schedule, dict[str, Schedule]]:
    """The common diffusion, and {modality: its own} where that differs."""
    common = make_schedule(settings)
    own = {name: make_schedule(settings, name) for name in settings.data.dataset}
    return common, {name: schedule for name, schedule in own.items() if schedule != common}


def export(
    run: str | Path,
    output: str | Path | None = None,
    *,
    half: bool = False,
    which: str = "best",
    name: str | None = None,
    licence: str = "",
    data: str = "",
) -> Path:
    """Write the model file of a run and return its path. Raises InputError where the run holds no weights."""
    run = Path(run)
    state = weights_of_run(run, which)
    name = name or run.resolve().name
    output = Path(output) if output else run / "model.safetensors"
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors.")
    network = build_network(state["architecture"])
    network.load_state_dict(state["weights"])
    save_model(output, network, card(state, name, licence, data), half=half)
    return output


def export_published(run: str | Path, output: str | Path, which: str = "best") -> Path:
    """Write a run's weights as the published implementation's checkpoint: its state dictionary alone.

    `spatial-diffusion models import` reads it back. Raises InputError where the network is not the published one.
    """
    state = weights_of_run(run, which)
    described = complete(state["architecture"])
    if described["head"] != "matrix" or (described["n_classes"] > 1 and described["class_dropout"] == 0):
        raise InputError(
            f"{run} trains a network that the published implementation does not have; only --head matrix (with class "
            "dropout, where there are several modalities) fits its checkpoints."
        )
    weights: dict[str, torch.Tensor] = {key: value.float().contiguous() for key, value in state["weights"].items()}
    save_whole(weights, output)
    return Path(output)


def attach(
    model: str | Path,
    name: str,
    part: torch.nn.Module,
    settings: dict[str, Any],
    output: str | Path | None = None,
    accuracy: dict[str, Any] | None = None,
    modality: str | None = None,
) -> Path:
    """Write a model file (in half precision) with one of card.PARTS in it, new or in place of its last; return the
    path.

    settings: what the part is built with. output: may be the file itself (default). modality: the one
    it is for (None: all that the model knows).
    """
    key = next(iter(read_card(model).modalities))
    loaded = load_model(model, key, key)
    entry = ModelPart(settings, (modality,) if modality else None)
    changed = replace(
        loaded.card,
        parts={**loaded.card.parts, name: entry},
        accuracy={**loaded.card.accuracy, **(accuracy or {})},
    )
    output = Path(output or model)
    parts = {**{known: getattr(loaded, known) for known in PARTS}, name: part}
    save_model(output, loaded.network, changed, half=True, **parts)
    return output


# --------------------------------------------------------------------------------------------- installing
def displaced(found: ModelCard) -> dict[str, str]:
    """{modality: bundled model} whose place a model with this card would take, by its name or by what it is for."""
    models = list(catalog().values())
    new = InstalledModel(user_folder() / f"{found.name}.safetensors", found)
    out = {}
    for modality in MODALITIES:
        now = preferred(models, (modality, modality))
        if now is None or now.path.parent != BUNDLED or modality not in now.card.modalities:
            continue
        if found.name == now.card.name or preferred([*models, new], (modality, modality)) is new:
            out[modality] = now.card.name
    return out


def install(path: str | Path, replace_bundled: bool = False) -> Path:
    """Copy a model file into the user's model folder, where Slicer and the shell list it; return its new path.

    Raises InputError where it would take the place of a bundled model and `replace_bundled` does not say that it may.
    """
    path, folder = Path(path), user_folder()
    found = read_card(path)
    taken = displaced(found)
    if taken and not replace_bundled:
        what = "; ".join(
            f"{modality} is now registered with the bundled model {name}" for modality, name in taken.items()
        )
        raise InputError(
            f"{path} is not installed: {what}, and this one would take its place. Add --replace if it is "
            f"to, or give it "
            "another --name and --dataset; it can always be used with --model FILE."
        )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{found.name}.safetensors"
    if target.resolve() != path.resolve():
        with written_whole(target) as temporary:
            shutil.copyfile(path, temporary)
    return target


# ------------------------------------------------------------------------------------------- the command
def parser() -> argparse.ArgumentParser:
    """The parser of `spatial-diffusion-train export`."""
    out = argparse.ArgumentParser(
        prog="spatial-diffusion-train export",
        description="Write a run's model with everything needed to use it, and measure it on held-out scans.",
    )
    out.add_argument("run", metavar="RUN")
    out.add_argument("-o", "--output", metavar="FILE.safetensors", help="default: RUN/model.safetensors")
    out.add_argument("--half", action="store_true", help="weights in half precision")
    out.add_argument(
        "--which",
        choices=WHICH,
        default="best",
        help="running mean of the weights with the best validation (default); of the newest step (last); "
        "the newest weights "
        "themselves (raw); mean over the checkpoints kept (average)",
    )
    out.add_argument("--name", help="the model's name (default: the run's folder)")
    out.add_argument("--license", default="", help="licence of the model, for its card")
    out.add_argument("--data", default="", help="what the model was trained on, for its card")
    out.add_argument("--install", action="store_true", help="also put it where Slicer and the shell find it")
    out.add_argument("--replace", action="store_true", help="install it also where a bundled model serves now")
    out.add_argument("--published", metavar="FILE.pth", help="also write the published implementation's checkpoint")
    out.add_argument(
        "--measure",
        type=int,
        default=measure.PAIRS,
        metavar="N",
        help=f"pairs of held-out scans for the table (default: {measure.PAIRS}; 0: no table)",
    )
    return out


def export_command(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    chosen = parser().parse_args(argv)
    if chosen.measure < 0:
        raise InputError(f"--measure expects 0 or more, got {chosen.measure}.")
    path = export(
        chosen.run,
        chosen.output,
        half=chosen.half,
        which=chosen.which,
        name=chosen.name,
        licence=chosen.license,
        data=chosen.data,
    )
    say(str(path))
    if chosen.published:
        say(str(export_published(chosen.run, chosen.published, chosen.which)))
    if chosen.measure:
        settings = Settings.from_dict(weights_of_run(chosen.run, chosen.which)["settings"])
        for comparison in measure.of_run(settings, path, chosen.measure, say):
            say(comparison.text())
    if chosen.install:
        say(str(install(path, chosen.replace)))
        say("Slicer and the shell list it now; remove that file to undo this.")
    return 0
