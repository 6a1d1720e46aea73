"""``spatial-diffusion demo``: register the bundled pair."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from . import register
from .parser import PROGRAM, Commands, Parser, add_command


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(
        commands,
        "demo",
        "register the bundled pair",
        "Registers a real brain, turned by 60° and shifted by 40 mm, "
        "to the MNI152 template and writes transform, moved volume, report and picture.",
    )
    parser.add_argument("-o", "--output", default="demo-output", metavar="FOLDER", help="default: demo-output")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    folder = Path(arguments.output)
    if not folder.is_dir():
        if folder.exists() or not folder.absolute().parent.is_dir():
            raise InputError(f"{folder} cannot be made; give a folder whose parent exists.")
        folder.mkdir()
    pair = Path(__file__).parents[1] / "demo"
    moving, fixed = pair / "moving_t1_brain.nii.gz", pair / "fixed_mni152_brain.nii.gz"
    print(f"{PROGRAM} register {moving} {fixed} -o {folder}/moving_to_fixed.tfm …")
    command = [str(moving), str(fixed), "-o", str(folder / "moving_to_fixed.tfm")]
    command += ["--moved", str(folder / "moved.nii.gz"), "--report", str(folder / "report.json")]
    command += ["--picture", str(folder / "picture.png")]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    parser = Parser(prog=f"{PROGRAM} register")
    register.add_arguments(parser)
    return register.run(parser.parse_args(command))
