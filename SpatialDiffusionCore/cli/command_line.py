"""The command line as a whole: its parser, and what happens to errors.

Nothing heavier than argparse is imported before the arguments are known, so ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


class _Stopped(KeyboardInterrupt):
    """A signal by which schedulers and closed terminals end a process."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextmanager
def _stopped_as_by_ctrl_c() -> Iterator[None]:
    """Let what was half written be removed as well where a scheduler ends the process (SIGTERM) or its terminal closes
    (SIGHUP); who has it ignore or treat them in another way (nohup) keeps that."""

    def stop(number: int, _: Any) -> None:
        raise _Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()  # no other one may say what signals do
    changed = [number for number in numbers if here and signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_anything()
    wait_passively()
    arguments = _parser().parse_args(argv)
    try:
        with _stopped_as_by_ctrl_c():
            return _COMMANDS[arguments.command].run(arguments) or 0
    except UsageError as error:
        print(f"{PROGRAM} {arguments.command}: {error}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"{PROGRAM}: cancelled; files that were not complete are not there.", file=sys.stderr)
        return 128 + (stopped.number if isinstance(stopped, _Stopped) else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("SPATIAL_DIFFUSION_DEBUG"):
            raise
        print(f"{PROGRAM}: {sentence(error, f'the command {arguments.command}')}", file=sys.stderr)
        return 1
