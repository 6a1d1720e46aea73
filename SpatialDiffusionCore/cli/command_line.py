"""The command line as a whole: its parser, and what happens to errors.

Nothing heavier than argparse is imported before the arguments are known, so ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError
from ..failure import sentence
from ..machine import print_anything, wait_passively
from . import adapt, apply, convert, demo, group, models, motion, register
from .parser import EPILOG, PROGRAM, Parser, UsageError, formatter, wrapped

OVERVIEW = """\
Aligns 3D medical images: finds the rigid, similarity or affine transform that lays a moving volume on a fixed one,
from any starting pose, and says how far the answer can be trusted.
"""

_COMMANDS = {
    "register": register,
    "motion": motion,
    "group": group,
    "apply": apply,
    "convert": convert,
    "models": models,
    "adapt": adapt,
    "demo": demo,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description=wrapped(OVERVIEW), epilog=wrapped(EPILOG), formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands", parser_class=Parser
    )
    for command in _COMMANDS.values():
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_anything()
    wait_passively()
    arguments = _parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command].run(arguments) or 0
    except UsageError as error:
        print(f"{PROGRAM} {arguments.command}: {error}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: cancelled; files that were not complete are not there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("SPATIAL_DIFFUSION_DEBUG"):
            raise
        print(f"{PROGRAM}: {sentence(error, f'the command {arguments.command}')}", file=sys.stderr)
        return 1
