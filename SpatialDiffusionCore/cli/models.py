"""``spatial-diffusion models``: list, describe and import trained models."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from pathlib import Path

from .. import modality
from .outputs import differs
from .parser import Commands, Parser, UsageError, add_command, formatter, wrapped

IMPORT = """\
Makes a model file of a checkpoint of the published implementation. Channels, classes and head are read from its
tensors; the volume size and the order of the modalities cannot be.
"""


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(
        commands, "models", "list, describe and import trained models", "Lists, describes and imports models."
    )
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, title="actions", parser_class=Parser
    )
    listed = actions.add_parser("list", help="installed models", description="Lists the installed models.")
    listed.add_argument("--json", action="store_true", help="as JSON")
    info = actions.add_parser("info", help="everything about one model", description="Describes a model.")
    info.add_argument("model", metavar="NAME|FILE", help="installed model or model file")
    info.add_argument("--json", action="store_true", help="as JSON")
    _add_import(
        actions.add_parser(
            "import",
            help="make a model of a published checkpoint",
            formatter_class=formatter,
            description=wrapped(IMPORT),
        )
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(modality.MODALITIES)
    add = parser.add_argument
    add("checkpoint", metavar="CKPT.pth", help="checkpoint: a plain dictionary of tensors")
    size = "size of the volumes it was trained on"
    add("--volume-size", nargs=3, type=int, required=True, metavar=("D", "H", "W"), help=size)
    order = f"modalities in the order of training: {known}"
    add("--modality", action="append", nargs="+", default=[], metavar="M", help=order)
    kinds = ("cosine", "linear")
    add("--schedule", default="cosine", choices=kinds, metavar="KIND", help="cosine or linear (default: cosine)")
    add("--timesteps", type=int, default=65, metavar="T", help="timesteps (default: 65)")
    steps = "step deviations of the 3×3 part (default: 0.01 0.07)"
    add("--transform-range", default=(0.01, 0.07), help=steps, nargs=2, type=float, metavar=("MIN", "MAX"))
    steps = "step deviations of the translation in voxels (default: 0.5 4.0)"
    add("--translation-range", default=(0.5, 4.0), help=steps, nargs=2, type=float, metavar=("MIN", "MAX"))
    add("--groups", type=int, metavar="N", help="groups of its GroupNorm (default: 32)")
    add("--name", help="name in the list of models (default: the file's)")
    add("-o", "--output", metavar="MODEL.safetensors", help="model file (default: your own models' folder)")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    return {"list": _list, "info": _info, "import": _import}[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> int:
    from ..modelfile import catalog

    models = catalog.catalog()
    if arguments.json:
        print(json.dumps({name: {"path": str(one.path), "card": one.card.to_dict()} for name, one in models.items()}))
        return 0
    for name, (path, card) in models.items():
        print(f"{name}  ({', '.join(card.modalities)})  {path}")
    if not models:
        print(f"No models are installed; put model files into {catalog.user_folder()}.")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from ..modelfile import catalog, model

    path, card = catalog.choose(arguments.model, *[_any_known(arguments.model)] * 2)
    facts = model.describe(model.load_model(path, *[next(iter(card.modalities))] * 2))
    if arguments.json:
        print(json.dumps({"path": str(path), **facts, "card": card.to_dict()}, indent=2))
        return 0
    print(f"{card.name}\n  file        {path}")
    print(
        f"  network     {facts['layers']} layers, {facts['parameters']:,} parameters, "
        f"{facts['flops'] / 1e9:.1f} GFLOP per pass"
    )
    for key, value in card.to_dict().items():
        if key not in ("name", "format"):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines = textwrap.wrap(text, 96) or [""]
            print(f"  {key:<11} {lines[0]}" + "".join(f"\n{'':14}{line}" for line in lines[1:]))
    return 0


def _any_known(name: str) -> str:
    """A modality that the model knows, so that describing it never fails for want of one."""
    from ..modelfile import catalog
    from ..modelfile.card import SUFFIX, read_card

    if os.fspath(name).endswith(SUFFIX) or os.path.sep in name:
        return next(iter(read_card(name).modalities))
    installed = catalog.catalog()
    return next(iter(installed[name].card.modalities)) if name in installed else "any"


def _import(arguments: argparse.Namespace) -> int:
    from ..method.schedule import Schedule
    from ..modelfile import catalog
    from ..modelfile.card import SUFFIX
    from ..modelfile.checkpoint_import import import_checkpoint
    from ..spatial.volume_file import check_output

    output = arguments.output
    if output is None:
        catalog.user_folder().mkdir(parents=True, exist_ok=True)
        output = str(catalog.user_folder() / f"{Path(arguments.checkpoint).stem}{SUFFIX}")
    check_output(output, (SUFFIX,), "the model")
    differs(output, arguments.checkpoint)
    ranges = tuple(arguments.transform_range), tuple(arguments.translation_range)
    try:
        schedule = Schedule(arguments.timesteps, *ranges, arguments.schedule)
    except ValueError as error:
        raise UsageError(str(error)) from None
    card = import_checkpoint(
        arguments.checkpoint,
        output,
        volume_size=arguments.volume_size,
        modality=sum(arguments.modality, []),
        schedule=schedule,
        groups=arguments.groups,
        name=arguments.name,
    )
    print(f"wrote {output}: {card.name}, for {', '.join(card.modalities)}")
    return 0
