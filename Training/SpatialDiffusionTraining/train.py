"""`spatial-diffusion-train`: from folders of unlabelled scans to a model that registers them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from SpatialDiffusionCore.errors import InputError

from . import adapt, export, preview, run
from . import settings as settings_module

DESCRIPTION = """Train a Spatial Diffusion model on unlabelled scans.

  spatial-diffusion-train --train SCANS --dataset t1-brain -o RUN       train (interrupt it at will)
  spatial-diffusion-train --resume RUN                                  go on where it stopped
  spatial-diffusion-train export RUN -o MODEL.safetensors --half        make the model file, and measure it
  spatial-diffusion-train preview --train SCANS --dataset t1-brain -o PAIRS.png   look at training pairs
  spatial-diffusion-train adapt SCANS -o REPORT                         all of this by itself, from the nearest model
"""

PROGRAM = "spatial-diffusion-train"


def parser() -> argparse.ArgumentParser:
    """The parser of the training command itself."""
    out = argparse.ArgumentParser(
        prog=PROGRAM, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument(
        "--resume",
        metavar="RUN",
        help="continue a run from its newest checkpoint with its own settings; options given beside it "
        "(more steps, another "
        "device) overwrite them",
    )
    return settings_module.add_arguments(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 128 + n ended by signal n."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "export": export.export_command,
        "preview": preview.preview_command,
        "adapt": adapt.adapt_command,
    }
    try:
        if argv and argv[0] in commands:
            return commands[argv[0]](argv[1:])
        return train_command(argv)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROGRAM}: {error.filename or 'A file'} cannot be used ({error.strerror}).", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; what is prepared is kept, the same command goes on from there.", file=sys.stderr)
        return 130


def train_command(argv: Sequence[str]) -> int:
    """Train, or go on training; returns the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.resume:
        chosen = settings_module.settings_of_run(arguments.resume)
        chosen.run.output = str(Path(arguments.resume))
        run.keep_split(chosen)
        chosen.update_all(settings_module.given(arguments))
    else:
        chosen = settings_module.resolve(arguments)
        if not chosen.data.train:
            raise InputError("Give the training scans: --train FOLDER (or a text list), with --dataset MODALITY.")
        if not chosen.run.output:
            raise InputError("Give the run's folder: -o RUN.")
    return run.train(chosen, resume=bool(arguments.resume))


if __name__ == "__main__":
    sys.exit(main())
