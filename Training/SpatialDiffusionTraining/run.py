"""A run from its settings: data sets found and split, caches, devices, the trainer begun or continued."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import distributed

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.modelfile import catalog
from SpatialDiffusionCore.modelfile.model import load_model

from . import checkpoint, data_report, datasets, loaders, people, scans, trainer
from .architecture import architecture, complete
from .checks import check, check_folder
from .datasets import Collection, Report, Source
from .sampler import Sampler
from .settings import Data, Settings


def modality_key(name: str) -> str:
    """A modality's key for its key or alias; any other name of small letters, digits and - is a modality of its own."""
    try:
        return catalog.get(name).key
    except InputError:
        if re.fullmatch(r"[a-z][a-z0-9-]*", name):
            return name
        raise InputError(
            f"The modality {name!r} is not known, and a name of your own may only have small letters, digits and '-'."
        ) from None


# ------------------------------------------------------------------------------------------------ data sets
def split_files(run: str | Path, index: int) -> tuple[Path, Path]:
    """The lists of a run's training and validation scans of data set `index`."""
    return Path(run) / f"train_{index + 1}.txt", Path(run) / f"val_{index + 1}.txt"


def keep_split(chosen: Settings) -> None:
    """Let a run go on with the scans that it began with, whatever has come into their folders since."""
    for index in range(len(chosen.data.train)):
        training, validation = split_files(chosen.run.output, index)
        if training.exists() and validation.exists():
            chosen.data.val = chosen.data.val or ["-"] * len(chosen.data.train)
            chosen.data.train[index] = str(training)
            chosen.data.val[index] = str(validation) if validation.stat().st_size else "none"


def _spread(data: Data) -> None:
    """One entry per data set in every list; raises InputError where they do not fit."""
    count = len(data.train)
    if len(data.dataset) != count:
        raise InputError(f"{count} --train but {len(data.dataset)} --dataset; give one modality for each.")
    for name in ("loader", "masks", "partners"):
        if len(getattr(data, name)) == 1:
            setattr(data, name, getattr(data, name) * count)
    data.dataset = [modality_key(name) for name in data.dataset]
    for name in ("val", "weights", "loader", "masks", "partners"):
        value = getattr(data, name)
        if value and len(value) != count:
            raise InputError(f"{count} --train but {len(value)} --{name}; give one for each, or none.")
    if any(not weight > 0 for weight in data.weights):
        raise InputError(f"--weights expects numbers above 0, got {' '.join(f'{w:g}' for w in data.weights)}.")


def _place(values: Sequence[str], index: int, exists: Callable[[str], bool], what: str) -> str:
    """An entry of a list of places, "" for none; raises InputError where it does not exist."""
    value = values[index] if values and values[index] != "-" else ""
    if value and not exists(value):
        raise InputError(f"{what} {value} does not exist.")
    return value


def sources(chosen: Settings, report: Report = print) -> list[Source]:
    """The data sets of the settings, found on disk and split by person; `report` is told how, and what looks odd."""
    data = chosen.data
    _spread(data)
    table = people.read_people(data.people) if data.people else None
    known: dict[str, bool] = {}
    out = []
    for index, (place, modality) in enumerate(zip(data.train, data.dataset)):
        loader = data.loader[index] if data.loader else "canonical"
        if loader not in loaders.LOADERS:
            raise InputError(f"Unknown --loader {loader}; choose from {', '.join(loaders.LOADERS)}.")
        masks = _place(data.masks, index, os.path.isdir, "The folder of masks")
        partners = _place(data.partners, index, os.path.isfile, "The list of partners")
        training, validation = _split(data, index, scans.find_scans(place), table, known, report)
        weight = data.weights[index] if data.weights else 1.0
        number = class_id(chosen, index)
        out.append(Source(modality, number, training, validation, weight, loader, masks, partners))
    return out


def class_id(chosen: Settings, index: int) -> int:
    """The class of data set number `index`: counted from 1, for 0 is no modality; from 0 where nothing is ever hidden,
    for the network then has no class for that."""
    if classes_of(chosen.data) == 1:
        return 0
    return index + 1 if chosen.network.class_dropout > 0 else index


def _split(
    data: Data,
    index: int,
    found: list[Path],
    table: dict[str, str] | None,
    known: dict[str, bool],
    report: Report,
) -> tuple[list[Path], list[Path]]:
    """(training, validation) scans of data set number `index`."""
    place, held = data.train[index], data.val[index] if data.val else "-"
    if held == "none":
        return found, []
    if held == "-":
        parts = people.split(found, data.held_out, table, known)
        report(f"{data.dataset[index]}: {parts.text()}")
        for sentence in parts.odd:
            report(f"Warning: {sentence}")
        return parts.train, parts.held_out
    validation = scans.find_scans(held)
    both = {os.path.realpath(p) for p in found} & {os.path.realpath(p) for p in validation}
    if both:
        raise InputError(
            f"{len(both)} scans are in both --train {place} and --val {held}, for example {sorted(both)[0]}."
        )
    return found, validation


def prepare(chosen: Settings, report: Report = print, lists: bool = False) -> list[Collection]:
    """The Collections of a run's settings, one per grid; with `lists` the split and a report on the data are written
    into the run."""
    found = sources(chosen, report)
    if lists:
        for index, source in enumerate(found):
            for file, paths in zip(split_files(chosen.run.output, index), (source.train, source.validation)):
                scans.write_list(paths, file)
    folder = Path(chosen.data.cache or Path(chosen.run.output) / "cache")
    by_grid: dict[str, tuple[dict[str, Any], list[Source]]] = {}
    for source in found:
        grid = chosen.grid(source.modality)
        by_grid.setdefault(json.dumps(grid), (grid, []))[1].append(source)
    out = []
    for number, (grid, those) in enumerate(by_grid.values(), start=1):
        place = folder / str(number) if len(by_grid) > 1 else folder
        cache = datasets.build(place, those, grid, chosen.data.workers, report)
        weight = sum(source.weight for source in those)
        out.append(Collection(cache, sampler_of(cache, those, chosen), cache.rows("validation"), weight))
    if lists:
        data_report.write(chosen.run.output, [collection.cache for collection in out], report)
    return out


def sampler_of(cache: datasets.Cache, found: Sequence[Source], chosen: Settings) -> Sampler:
    """One group of rows per data set (also where they share a class)."""
    row_of = {entry["file"]: entry["row"] for entry in cache.entries if entry["part"] == "train"}
    groups, weights = [], []
    for source in found:
        rows = [row_of[str(p)] for p in source.train if str(p) in row_of]
        if rows:
            groups.append(rows)
            weights.append(source.weight)
    return Sampler(groups, weights, chosen.run.seed)


# ------------------------------------------------------------------------------------------------- training
def make_fabric(chosen: Settings) -> Fabric:
    """Lightning Fabric on the devices of the settings (or of torchrun), launched."""
    run, optimization = chosen.run, chosen.optimization
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if run.threads > 0:
        torch.set_num_threads(run.threads)
    precision = optimization.precision
    if precision == "auto":
        able = device == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if able and chosen.network.head == "matrix" else "32"
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", run.devices))
    nodes = run.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        nodes = max(1, int(os.environ["WORLD_SIZE"]) // devices)
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


def train(chosen: Settings, resume: bool = False, report: Report | None = None) -> int:
    """Train with these settings; returns the exit code.

    All that can be refused is refused before anything is written: a run that cannot go on stays as it was.
    """
    check(chosen)
    run = Path(chosen.run.output)
    if not resume and checkpoint.checkpoints(run):
        raise InputError(f"{run} already holds a run; continue it with --resume {run} or choose another -o.")
    state = resumed(chosen, report or print) if resume else None
    check_folder(run)
    fabric = make_fabric(chosen)
    try:
        return _train(fabric, run, chosen, state, resume, report)
    finally:
        # Its threads must end before Python does: one that still lets go of a tensor then aborts the process.
        if distributed.is_available() and distributed.is_initialized():
            gc.collect()  # the wrapped network holds the group
            distributed.destroy_process_group()


def resumed(chosen: Settings, report: Report) -> dict[str, Any] | None:
    """The state to go on from; None where a run has no checkpoint yet.

    Raises InputError where the settings ask for another network, grid or data sets than the run was begun with.
    """
    state = checkpoint.newest(chosen.run.output, report)
    if state is None:
        return None
    begun = Settings.from_dict(state["settings"])
    keys = [modality_key(name) for name in chosen.data.dataset]
    for what, before, now in (
        ("the modalities", begun.data.dataset, keys),
        ("the grid", _grids(begun), _grids(chosen)),
        ("the loading", set(begun.data.loader), set(chosen.data.loader)),
        ("the timesteps", begun.diffusion.timesteps, chosen.diffusion.timesteps),
        ("the network", complete(state["architecture"]),
         architecture(chosen, classes_of(chosen.data))),
    ):  # fmt: skip
        if before != now:
            raise InputError(
                f"{chosen.run.output} was begun with {what} {before}, and the options ask for {now}; "
                f"leave them out, or "
                "begin another run (it may start from this one's weights: --init)."
            )
    return state


def _grids(settings: Settings) -> dict[str, Any]:
    return {name: settings.grid(name) for name in [None, *settings.data.dataset]}


def classes_of(data: Data) -> int:
    """Number of classes of a run's network."""
    return 1 if data.unconditional else len(data.dataset)


def _say_first(fabric: Fabric) -> Report:
    def say(text: str) -> None:
        if fabric.global_rank == 0:
            print(text, flush=True)

    return say


def _train(
    fabric: Fabric, run: Path, chosen: Settings, state: dict[str, Any] | None, resume: bool, report: Report | None
) -> int:
    report = report or _say_first(fabric)
    if fabric.global_rank == 0:  # the others find the finished cache
        prepare(chosen, report, lists=True)
    fabric.barrier()
    collections = prepare(chosen, (lambda text: None))
    weights = initial_weights(chosen) if chosen.run.init and state is None else None
    work = trainer.Trainer(chosen, collections, classes_of(chosen.data), fabric, report)
    if state is not None:
        work.restore(state)
        report(f"continuing {run} after step {work.step}")
    elif resume:
        report(f"{run} has no checkpoint yet; beginning")
    if weights is not None:
        work.plain.load_state_dict(fitted_weights(weights, work.plain, chosen.run.init))
        work.ema.copy_params_from_model_to_ema()
    if fabric.global_rank == 0:
        checkpoint.remove_leftovers(run / "checkpoints")
        with written_whole(run / "settings.json") as temporary:
            temporary.write_text(json.dumps(chosen.to_dict(), indent=1) + "\n", encoding="utf-8")
    for collection in collections:
        cache = collection.cache
        spacing = "×".join(f"{s:g}" for s in np.atleast_1d(cache.grid["spacing"]))
        report(
            f"{len(cache.rows('train'))} training and {len(collection.held_out)} validation scans, grid "
            f"{'×'.join(map(str, cache.shape))} at {spacing} mm"
        )
    report(f"{sum(p.numel() for p in work.plain.parameters()) / 1e6:.1f} M parameters")
    try:
        ended = work.fit()
    except trainer.TrainingStopped as error:
        print(f"spatial-diffusion-train: {error}", file=sys.stderr)
        return 1
    return 128 + ended if ended else 0


def initial_weights(chosen: Settings) -> dict[str, torch.Tensor]:
    """The weights that --init names: of a run folder (EMA of the best, else of the newest), a model file or an
    installed model. Where the run has one class and the source has several, its modality's (else no modality's) is made
    part of the others: what the class adds is a constant, as a bias is.
    """
    source = chosen.run.init
    if Path(source).is_dir():
        state = checkpoint.weights_of_run(source)
        begun = Settings.from_dict(state["settings"])
        weights = state["weights"]
        rows = {name: class_id(begun, index) for index, name in enumerate(begun.data.dataset)}
    else:
        card = catalog.find(source).card
        key = next(iter(card.modalities))
        network: Any = load_model(source, key, key).network
        weights, rows = network.state_dict(), dict(card.modalities)
    if classes_of(chosen.data) > 1:
        return weights
    row = int(rows.get(chosen.data.dataset[0]) or 0) if len(chosen.data.dataset) == 1 else 0
    return without_classes(weights, row)


def without_classes(weights: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """Weights without class embeddings, of which one row is added to the bias of the code that it was added to."""
    mark = "class_embedding.weight"
    out = {key: value for key, value in weights.items() if not key.endswith(mark)}
    for key, value in weights.items():
        if key.endswith(mark):
            bias = f"{key[: -len(mark)]}time_embed.1.bias"
            out[bias] = weights[bias] + value[row]
    return out


def fitted_weights(
    weights: dict[str, torch.Tensor], network: torch.nn.Module, source: str | Path
) -> dict[str, torch.Tensor]:
    """Weights of another model made to fit a network.

    A network with classes may start from one without, or with fewer: the first classes keep their rows, the others
    begin like no modality (at zero where there were no classes), so they are alike at first. Parts that the source
    lacks (``fine`` of the matches) begin anew, if all that it has is used. Raises InputError where tensors differ.
    """
    own = network.state_dict()
    if not any("class_embedding" in k for k in weights):
        weights = {**{k: torch.zeros_like(v) for k, v in own.items() if "class_embedding" in k}, **weights}
    for key, value in own.items():
        more = len(value) - len(weights[key]) if "class_embedding" in key else 0
        if more > 0:
            weights[key] = torch.cat([weights[key], weights[key][:1].expand(more, -1)])
    if weights.keys() <= own.keys():
        weights = {**own, **weights}
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    if wrong:
        raise InputError(f"{source} does not fit this network; the first tensor that differs is {wrong[0]}.")
    return {k: weights[k].float() for k in own}
