"""What the parsers of all commands share: one line for a wrong command line, help as wide as the terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from typing import NoReturn

PROGRAM = "spatial-diffusion"
EPILOG = """\
FORMATS
  Volumes: .nii, .nii.gz, .hdr/.img, .nrrd, .nhdr, .mha, .mhd, .mgz, and folders of DICOM files; FILE@N is volume N
  (from 0) of a 4D file or of a folder. Where headers contradict themselves, 3D Slicer's reading counts, and is said.
  Transforms: .tfm, .h5, .mat (ITK; what 3D Slicer, ANTs and SimpleITK read), .lta (FreeSurfer), .aff12.1D (AFNI), .x5,
  .dcm (DICOM Spatial Registration), .txt (4×4 matrix, moving to fixed, RAS millimeters). Files in the manner of ITK
  hold the inverse in LPS, as their readers expect.

ENVIRONMENT
  SPATIAL_DIFFUSION_MODELS  folder of your own models, searched beside those installed with the program
  SPATIAL_DIFFUSION_DEBUG   set to 1 for full tracebacks

EXIT STATUS
  0 done; 1 an input cannot be used or the work failed; 2 the command line is wrong; 3 an answer is no better than
  --fail-on says. Warnings go to the standard error stream, with --quiet, too.

REFERENCE
  If you use this in your work, please cite the method: Sumpena et al., Investigative Ophthalmology & Visual
  Science 66(8):1475, 2025.
"""


#: What ``add_subparsers`` and ``add_argument_group`` give.
Commands = argparse._SubParsersAction
Group = argparse._ArgumentGroup


class UsageError(Exception):
    """A command line whose parts do not fit each other."""


class Parser(argparse.ArgumentParser):
    """One line on stderr for a wrong command line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        dashed = next((word for word in sys.argv[1:] if word.startswith("-") and os.path.exists(word)), None)
        hint = f"write ./{dashed} for the file of that name; " if dashed else ""
        self.exit(2, f"{self.prog}: {message[:1].upper()}{message[1:]} ({hint}see {self.prog} --help)\n")


def _width() -> int:
    return min(110, max(50, shutil.get_terminal_size((100, 24)).columns))


def formatter(prog: str) -> argparse.HelpFormatter:
    """Help that keeps its own line breaks, as wide as the terminal."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=_width())


def wrapped(text: str) -> str:
    """Paragraphs rewrapped to the terminal; lines that begin with spaces or a heading stay apart."""
    lines = []
    for paragraph in text.strip("\n").split("\n\n"):
        block = paragraph.splitlines()
        if block[0].isupper() or any(line.startswith("    ") for line in block):
            lines += block
        else:
            lines += textwrap.wrap(" ".join(block), _width())
        lines.append("")
    return "\n".join(lines[:-1])


def add_command(
    commands: Commands, name: str, summary: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """A command's parser, put among ``commands`` (what ``add_subparsers`` gives)."""
    return commands.add_parser(
        name, help=summary, description=wrapped(description), formatter_class=formatter, epilog=epilog
    )
