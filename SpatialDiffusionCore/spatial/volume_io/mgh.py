"""FreeSurfer's .mgh and .mgz."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .stored import Stored, unreadable

EXTENSIONS = (".mgh", ".mgz")


def read(path: str) -> Stored:
    """Read a file; its header places it in scanner RAS, as ``mri_info --vox2ras`` says."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        data = np.asanyarray(image.dataobj)
        with image.file_map["image"].get_prepare_fileobj("rb") as file:
            placed = file.read(30)[28:] != b"\0\0"  # goodRASFlag, which nibabel sets in its own header
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as a volume of FreeSurfer") from error
    warnings: tuple[str, ...] = ()
    if not placed:
        name = os.path.basename(path)
        warnings = (
            f"The header of {name} does not say where the volume lies: it is taken for coronal slices as FreeSurfer "
            "does, and left and right are in doubt.",
        )
    return Stored(data, image.affine, warnings)
