"""Run a script for Slicer without the application, on the stand-ins: ``python -m SlicerHarness SCRIPT.py``.

It ends with the status that the script gives to ``slicer.util.exit``, or with 0.
"""

from __future__ import annotations

import runpy
import sys

from . import application
from .application import MODULE


def main(arguments: list) -> int:
    if len(arguments) != 1:
        print("usage: python -m SlicerHarness SCRIPT.py", file=sys.stderr)
        return 2
    sys.path.insert(0, str(MODULE.parents[1]))  # the core of this checkout
    slicer = application.start()
    application.loadModule(MODULE)

    def leave(status=0):
        raise SystemExit(status)

    slicer.util.exit = leave
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
