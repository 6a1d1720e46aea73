"""`spatial-diffusion-train preview`: a sheet of training pairs, without training."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import torch

from SpatialDiffusionCore.errors import InputError

from . import settings as settings_module
from .checks import check
from .pairs import PairMaker, seeded
from .run import prepare
from .settings import Settings
from .sheets import COLUMNS, captioned, save_png, sheet, stacked


def parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    out = argparse.ArgumentParser(
        prog="spatial-diffusion-train preview",
        description="Write a PNG sheet of augmented pairs: fixed, moving, overlay, overlay under the true affine. "
        "Takes the options of training; -o is the PNG.",
    )
    out.add_argument("--pairs", type=int, default=8, metavar="N", help="rows of the sheet (default 8)")
    out.add_argument("--from-run", metavar="RUN", help="use the settings of this run")
    return settings_module.add_arguments(out)


def _settings(arguments: argparse.Namespace) -> Settings:
    if not arguments.from_run:
        return settings_module.resolve(arguments)
    chosen = settings_module.settings_of_run(arguments.from_run)
    chosen.data.cache = chosen.data.cache or f"{arguments.from_run}/cache"
    chosen.run.output = ""
    return chosen.update_all(settings_module.given(arguments))


def preview_command(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.pairs < 1:
        raise InputError(f"--pairs expects 1 or more, got {arguments.pairs}.")
    chosen = _settings(arguments)
    output = chosen.run.output
    if not output.lower().endswith(".png"):
        raise InputError("Give the picture to write: -o PAIRS.png.")
    if not chosen.data.train:
        raise InputError("Give the scans: --train FOLDER with --dataset MODALITY, or --from-run RUN.")
    check(chosen)
    t = torch.linspace(1, chosen.diffusion.timesteps, arguments.pairs).round().long()
    sheets = []
    with tempfile.TemporaryDirectory() as folder:
        chosen.data.cache = chosen.data.cache or folder
        for collection in prepare(chosen):
            maker = PairMaker(collection.cache, chosen)
            pairs = maker.make(collection.sampler.draw(0, arguments.pairs), seeded(chosen.run.seed, 5), t=t)
            words = f"training pairs of {collection.name}, from slight (above) to the largest misalignment"
            sheets.append(captioned(sheet(pairs), words, COLUMNS[:4]))
    save_png(stacked(sheets), output)
    print(f"{output}: timesteps {t.tolist()} from the top; gray in the last column is what the network should reach")
    return 0
