"""Lists that say how scans lie to each other (partners.tsv), read and written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry

#: A file of this name beside scans says how some of them lie to each other: one pair a line, separated by tabs: two
#: files (relative to the list's folder) and the 3×4 matrix (12 numbers, row by row) that takes points of the first to
#: the second, RAS mm.
PARTNERS = "partners.tsv"


def find_partners(entries: list[dict[str, Any]], lists: Iterable[str | Path]) -> None:
    """Give the entries that the lists (see PARTNERS) pair their "partners": [[row, normalized affine "theta" that takes
    their cube to the partner's], …]. Raises InputError for a line that is none."""
    by_file = {os.path.realpath(entry["file"]): entry for entry in entries}
    for path in dict.fromkeys(Path(p).resolve() for p in lists):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                first, second, *numbers = line.split("\t")
                matrix = geometry.as_affine(np.array(numbers, float).reshape(3, 4))
            except ValueError:
                raise InputError(f"{path}, line {number}: expected two files and 12 numbers.") from None
            one, other = (by_file.get(os.path.realpath(path.parent / name)) for name in (first, second))
            if one is None or other is None or one["part"] != other["part"]:
                continue
            for a, b, forward in ((one, other, matrix), (other, one, geometry.inverse(matrix))):
                theta = geometry.world_to_theta(forward, np.array(a["to_ras"]), np.array(b["to_ras"]))
                a.setdefault("partners", []).append([b["row"], theta.tolist()])


def partners_line(first: str, second: str, matrix: np.ndarray) -> str:
    """A line of a list of pairs (see PARTNERS) from two names and a 3×4 or 4×4 matrix."""
    return "\t".join([first, second, *(f"{value:.12g}" for value in np.asarray(matrix)[:3].ravel())]) + "\n"
