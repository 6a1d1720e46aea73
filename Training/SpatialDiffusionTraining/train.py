"""`spatial-diffusion-train`: from folders of unlabelled scans to a model that registers them."""
from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
from pathlib import Path

import numpy as np

DESCRIPTION = """Train a Spatial Diffusion model on unlabelled scans.

  spatial-diffusion-train --train SCANS --dataset t1-brain -o RUN       train (interrupt it at will)
  spatial-diffusion-train --resume RUN                                  go on where it stopped
  spatial-diffusion-train export RUN -o MODEL.safetensors --half        make the model file
  spatial-diffusion-train preview --train SCANS --dataset t1-brain -o PAIRS.png   look at training pairs
"""


def parser():
    """The parser of the training command itself."""
    from . import settings

    out = argparse.ArgumentParser(prog="spatial-diffusion-train", description=DESCRIPTION,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--resume", metavar="RUN", help="continue a run from its newest checkpoint with its own "
                     "settings; options given beside it (more steps, another device) overwrite them")
    return settings.add_arguments(out)


def main(argv=None):
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 128 + n ended by signal n."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"export": export_command, "preview": preview_command}
    from SpatialDiffusionCore.errors import InputError

    try:
        if argv and argv[0] in commands:
            return commands[argv[0]](argv[1:])
        return train_command(argv)
    except InputError as error:
        print(f"spatial-diffusion-train: {error}", file=sys.stderr)
        return 2


# -------------------------------------------------------------------------------------------------- train
def train_command(argv):
    from SpatialDiffusionCore.errors import InputError

    from . import settings as settings_module

    arguments = parser().parse_args(argv)
    if arguments.resume:
        run = Path(arguments.resume)
        chosen = settings_module.Settings.from_dict(
            settings_module.read_json(run / "settings.json", "The run's settings"))
        chosen.run.output = str(run)
        keep_split(chosen)
        chosen.update_all(settings_module.given(arguments))
    else:
        chosen = settings_module.resolve(arguments)
        if not chosen.data.train:
            raise InputError("Give the training scans: --train FOLDER (or a text list), with --dataset MODALITY.")
        if not chosen.run.output:
            raise InputError("Give the run's folder: -o RUN.")
    return train(chosen, resume=bool(arguments.resume))


def modality_key(name):
    """A modality's key for its key or alias; any other name of small letters, digits and - is a modality of its own."""
    from SpatialDiffusionCore.errors import InputError
    from SpatialDiffusionCore.modelfile import catalog

    try:
        return catalog.get(name).key
    except InputError:
        if re.fullmatch(r"[a-z][a-z0-9-]*", name):
            return name
        raise InputError(f"The modality {name!r} is not known, and a name of your own may only have small letters, "
                         "digits and '-'.") from None


def split_files(run, index):
    """The lists of a run's training and validation scans of data set `index`."""
    return Path(run) / f"train_{index + 1}.txt", Path(run) / f"val_{index + 1}.txt"


def keep_split(chosen):
    """Let a run go on with the scans that it began with, whatever has come into their folders since."""
    for index in range(len(chosen.data.train)):
        training, validation = split_files(chosen.run.output, index)
        if training.exists() and validation.exists():
            chosen.data.val = chosen.data.val or ["-"] * len(chosen.data.train)
            chosen.data.train[index] = str(training)
            chosen.data.val[index] = str(validation) if validation.stat().st_size else "none"


def sources(data):
    """The data sets of the settings, found on disk and split."""
    from SpatialDiffusionCore.errors import InputError

    from . import datasets, loaders

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
    out = []
    for index, (place, modality) in enumerate(zip(data.train, data.dataset)):
        loader = data.loader[index] if data.loader else "canonical"
        if loader not in loaders.LOADERS:
            raise InputError(f"Unknown --loader {loader}; choose from {', '.join(loaders.LOADERS)}.")
        masks = data.masks[index] if data.masks and data.masks[index] != "-" else ""
        if masks and not Path(masks).is_dir():
            raise InputError(f"The folder of masks {masks} does not exist.")
        partners = data.partners[index] if data.partners and data.partners[index] != "-" else ""
        if partners and not Path(partners).is_file():
            raise InputError(f"The list of partners {partners} does not exist.")
        found = datasets.find_scans(place)
        held = data.val[index] if data.val else "-"
        if held == "-":
            training, validation = datasets.split(found, data.held_out)
        elif held == "none":
            training, validation = found, []
        else:
            training, validation = found, datasets.find_scans(held)
            both = set(training) & set(validation)
            if both:
                raise InputError(f"{len(both)} scans are in both --train {place} and --val {held}, for example "
                                 f"{sorted(both)[0]}.")
        class_id = 1 if data.unconditional else index + 1
        out.append(datasets.Source(modality, class_id, training, validation,
                                   data.weights[index] if data.weights else 1.0, loader, masks, partners))
    return out


def prepare(chosen, report=print, lists=False):
    """The Collections of a run's settings, one per grid; with `lists` the split is written into the run."""
    from SpatialDiffusionCore.errors import InputError

    from . import datasets

    found = sources(chosen.data)
    if lists:
        for index, source in enumerate(found):
            for file, paths in zip(split_files(chosen.run.output, index), (source.train, source.validation)):
                datasets.write_list(paths, file)
    folder = Path(chosen.data.cache or Path(chosen.run.output) / "cache")
    by_grid = {}
    for source in found:
        grid = chosen.grid(source.modality)
        by_grid.setdefault(json.dumps(grid), (grid, []))[1].append(source)
    if len(by_grid) > 1 and chosen.network.head == "matrix":
        raise InputError("Modalities with grids of their own (data.grids) need a network that takes any size: "
                         "--head points.")
    out = []
    for number, (grid, those) in enumerate(by_grid.values(), start=1):
        place = folder / str(number) if len(by_grid) > 1 else folder
        cache = datasets.build(place, those, grid, chosen.data.workers, report)
        out.append(datasets.Collection(cache, sampler_of(cache, those, chosen), cache.rows("validation"),
                                       sum(source.weight for source in those)))
    return out


def sampler_of(cache, found, chosen):
    """One group of rows per data set (also where they share a class)."""
    from . import datasets

    row_of = {entry["file"]: entry["row"] for entry in cache.entries if entry["part"] == "train"}
    groups, weights = [], []
    for source in found:
        rows = [row_of[str(p)] for p in source.train if str(p) in row_of]
        if rows:
            groups.append(rows)
            weights.append(source.weight)
    return datasets.Sampler(groups, weights, chosen.run.seed)


def make_fabric(chosen):
    """Lightning Fabric on the devices of the settings (or of torchrun), launched."""
    import torch
    from lightning_fabric import Fabric

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
    many = devices * nodes > 1
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy="ddp" if many else "auto",
                    precision="bf16-mixed" if precision == "bf16" else "32-true")
    fabric.launch()
    return fabric


def train(chosen, resume=False, report=None):
    """Train with these settings; returns the exit code."""
    from torch import distributed

    from SpatialDiffusionCore.errors import InputError

    from . import trainer

    run = Path(chosen.run.output)
    if not resume and trainer.checkpoints(run):
        raise InputError(f"{run} already holds a run; continue it with --resume {run} or choose another -o.")
    run.mkdir(parents=True, exist_ok=True)
    fabric = make_fabric(chosen)
    try:
        return _train(fabric, run, chosen, resume, report)
    finally:
        # Its threads must end before Python does: one that still lets go of a tensor then aborts the process.
        if distributed.is_available() and distributed.is_initialized():
            gc.collect()  # the wrapped network holds the group
            distributed.destroy_process_group()


def _train(fabric, run, chosen, resume, report):
    from . import trainer

    first = fabric.global_rank == 0
    if report is None:
        def report(text):
            if first:
                print(text, flush=True)
    if first:  # the others find the finished cache
        prepare(chosen, report, lists=True)
        (run / "settings.json").write_text(json.dumps(chosen.to_dict(), indent=1) + "\n", encoding="utf-8")
    fabric.barrier()
    collections = prepare(chosen, report)
    classes = 1 if chosen.data.unconditional else len(chosen.data.dataset)
    work = trainer.Trainer(chosen, collections, classes, fabric, report)
    if resume:
        files = trainer.checkpoints(run)
        if files:
            work.restore(trainer.load_checkpoint(files[-1]))
            report(f"continuing {run} after step {work.step}")
        else:
            report(f"{run} has no checkpoint yet; beginning")
    elif chosen.run.init:
        work.plain.load_state_dict(initial_weights(chosen.run.init, work.plain))
        work.ema.copy_params_from_model_to_ema()
    parameters = sum(p.numel() for p in work.plain.parameters())
    for collection in collections:
        cache = collection.cache
        report(f"{len(cache.rows('train'))} training and {len(collection.held_out)} validation scans, grid "
               f"{'×'.join(map(str, cache.shape))} at "
               f"{'×'.join(f'{s:g}' for s in np.atleast_1d(cache.grid['spacing']))} mm")
    report(f"{parameters / 1e6:.1f} M parameters")
    try:
        ended = work.fit()
    except trainer.TrainingStopped as error:
        print(f"spatial-diffusion-train: {error}", file=sys.stderr)
        return 1
    return 128 + ended if ended else 0


def initial_weights(source, network):
    """A state dictionary from a run folder (EMA of the best, else of the newest) or a model file.

    A network with classes may start from one without, or with fewer: the first classes keep their rows, the others
    begin like no modality (at zero where there were no classes), so they are alike at first. Parts that the source lacks
    (``fine`` of the matches) begin anew, if all that it has is used.
    """
    import torch

    from SpatialDiffusionCore.errors import InputError

    source = Path(source)
    if source.is_dir():
        weights = weights_of_run(source)["weights"]
    else:
        from SpatialDiffusionCore.modelfile.model import load_model

        weights = load_model(source).network.state_dict()
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


# -------------------------------------------------------------------------------------------------- export
def weights_of_run(run, which="best"):
    """{"weights", "architecture", "settings", "step", "validation"} of a run: its best model or its newest EMA."""
    from SpatialDiffusionCore.errors import InputError

    from . import trainer

    run = Path(run)
    if which == "best" and (run / "best.pt").exists():
        return trainer.load_checkpoint(run / "best.pt")
    files = trainer.checkpoints(run)
    if not files:
        raise InputError(f"{run} holds no checkpoint to export.")
    state = trainer.load_checkpoint(files[-1])
    prefix = "ema_model."
    weights = {k[len(prefix):]: v for k, v in state["ema"].items() if k.startswith(prefix)}
    return {"weights": weights, "architecture": state["architecture"], "settings": state["settings"],
            "step": state["step"], "validation": None}


def export_command(argv):
    arguments = argparse.ArgumentParser(
        prog="spatial-diffusion-train export", description="Write a run's model with everything needed to use it.")
    arguments.add_argument("run", metavar="RUN")
    arguments.add_argument("-o", "--output", metavar="FILE.safetensors", help="default: RUN/model.safetensors")
    arguments.add_argument("--half", action="store_true", help="weights in half precision")
    arguments.add_argument("--which", choices=("best", "last"), default="best",
                           help="the best validated weights (default) or the newest")
    arguments.add_argument("--name", help="the model's name (default: the run's folder)")
    arguments.add_argument("--license", default="", help="licence of the model, for its card")
    arguments.add_argument("--data", default="", help="what the model was trained on, for its card")
    arguments.add_argument("--install", action="store_true", help="also put it where Slicer and the shell find it")
    chosen = arguments.parse_args(argv)
    path = export(chosen.run, chosen.output, half=chosen.half, which=chosen.which, name=chosen.name,
                  licence=chosen.license, data=chosen.data)
    print(path)
    if chosen.install:
        from .export import install

        print(install(path))
    return 0


def export(run, output=None, **options):
    """Write the model file of a run; see export.py."""
    from .export import export as write

    return write(run, output, **options)


def preview_command(argv):
    from .preview import preview_command as command

    return command(argv)


if __name__ == "__main__":
    sys.exit(main())
