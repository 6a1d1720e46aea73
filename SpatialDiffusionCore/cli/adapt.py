"""``spatial-diffusion adapt``: handed to the training package, which the core does not know.

Training is a package of its own with needs of its own; this command only starts its program, so that the shell has one
name for all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ..errors import InputError
from .parser import Commands, wrapped

#: The program of the training package, and what it needs beyond the core.
TRAINING, NEEDS = "SpatialDiffusionTraining", ("lightning_fabric", "ema_pytorch", "matplotlib")

#: What is installed to have all of it.
PACKAGE = "spatial-diffusion-registration[training]"


def add_parser(commands: Commands) -> None:
    """Put the command among ``commands``; all that follows it belongs to the training package's own parser."""
    parser = commands.add_parser(
        "adapt",
        help="adapt a model to a folder of scans, and install it if it helps",
        description=wrapped("See spatial-diffusion adapt --help."),
        add_help=False,
        prefix_chars="\0",
    )
    parser.add_argument("rest", nargs="*")


def missing() -> list[str]:
    """The packages that adapting needs and this Python has not."""
    return [name for name in (TRAINING, *NEEDS) if find_spec(name) is None]


def command(rest: Sequence[str]) -> list[str]:
    """What follows the Python interpreter to start the program with these options."""
    return ["-m", f"{TRAINING}.train", "adapt", *rest]


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status. Raises InputError where training is not installed."""
    lacking = missing()
    if lacking:
        raise InputError(
            f"Adapting needs the training package ({', '.join(lacking)} is missing): pip install '{PACKAGE}'."
        )
    process = subprocess.Popen([sys.executable, *command(arguments.rest)])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the program was told, too; it saves, and says how to go on
            continue
