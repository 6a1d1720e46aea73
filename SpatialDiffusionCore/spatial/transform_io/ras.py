"""Four lines of four numbers (.txt): the same matrix as in memory, moving → fixed, RAS, mm."""

from __future__ import annotations

import numpy as np

from .text import matrix_in, rows, text_of


def read(content: bytes, path) -> np.ndarray:
    """The matrix in the text."""
    return matrix_in(text_of(content).splitlines(), path)


def written(matrix: np.ndarray) -> bytes:
    """The matrix as text."""
    return rows(matrix).encode()
