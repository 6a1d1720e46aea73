"""What is said, and kept for those who mend it, where the program itself fails."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback

from . import __version__
from .errors import InputError


def sentence(error: BaseException, doing: str) -> str:
    """One sentence about an exception while ``doing`` something ("registering a.nii.gz"), for the person in front.

    That of an InputError is its own. For any other one a report is written that can be sent: version, command, what was
    installed and where it failed; nothing of the images.
    """
    if isinstance(error, InputError):
        return str(error)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or "out of memory" in first.lower():
        return f"There was not enough memory for {doing}; try --device cpu or smaller volumes."
    path = _written(_report(error, doing))
    send = (
        f"please send the file {path}" if path else "please run it again with SPATIAL_DIFFUSION_DEBUG=1 and send what"
    )
    return f"The program itself failed at {doing}, through no fault of yours; {send} to its maintainers{_rest(path)}."


def _rest(path: str | None) -> str:
    return " (it holds the command, versions and the place, no images)" if path else " it then shows"


def _report(error: BaseException, doing: str) -> str:
    versions = []
    for name in ("numpy", "scipy", "torch", "nibabel", "SimpleITK"):
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None) or getattr(
            getattr(module, "Version", None), "VersionString", None
        )
        if module is not None:
            versions.append(f"{name} {version() if callable(version) else version}")
    lines = [
        f"Spatial Diffusion Registration {__version__}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(versions),
        f"command: {' '.join(sys.argv)}",
        f"while: {doing}",
        "",
        "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    ]
    return "\n".join(lines)


def _written(report: str) -> str | None:
    """The file that the report was written to: in the current folder, else in the one for temporary files."""
    name = time.strftime("spatial-diffusion-failure-%Y%m%d-%H%M%S") + f"-{os.getpid()}.txt"
    for folder in (os.getcwd, tempfile.gettempdir):
        try:
            path = os.path.join(folder(), name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(report)
        except OSError:
            continue
        return path
    return None
