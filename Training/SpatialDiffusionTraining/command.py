"""How the package's small commands (python -m SpatialDiffusionTraining.NAME) run and end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from SpatialDiffusionCore.errors import InputError


def say(text: object) -> None:
    """A line of progress, at once also where the output is a file."""
    print(text, flush=True)


def run(name: str, work: Callable[[], object]) -> int:
    """Print what `work()` returns and return 0; 2, and one line on standard error, where its input cannot be used."""
    try:
        say(work())
    except (InputError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
