"""What the formats share: matrices in text, and sentences about files that are no good."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from ..geometry import LPS_RAS, as_affine

#: What is said of files that hold more than an affine.
ONLY_LINEAR = "only linear transforms (rigid, similarity, affine) can be used"


def text_of(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace")


def rows(matrix: np.ndarray) -> str:
    # repr gives the shortest text that reads back to the same double; adding 0 turns -0.0 into 0.0.
    return "".join(" ".join(repr(float(value) + 0.0) for value in row) + "\n" for row in matrix)


def numbers(words, path) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        raise InputError(
            f"'{path}' contains text where numbers are expected; give a file of ITK, an LTA or a 4×4 matrix."
        ) from None


def matrix_in(lines, path) -> np.ndarray:
    """The affine in lines of numbers, apart by blanks or commas; ``#`` starts a comment."""
    rows = [line.split("#")[0].replace(",", " ").split() for line in lines]
    rows = [numbers(row, path) for row in rows if row]
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        counts = ", ".join(str(len(row)) for row in rows[:6]) + (", …" if len(rows) > 6 else "")
        raise InputError(
            f"'{path}' has lines of {counts or 'no'} numbers; expected four lines (or three) of four numbers."
        )
    return as_affine(rows, f"The matrix in '{path}'")


def finite(values: list[float], path) -> list[float]:
    if not np.isfinite(values).all():
        raise InputError(f"The transform in '{path}' contains NaN or infinite numbers; compute it again.")
    return values


def to_lps_inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse in LPS of a matrix in RAS, and the inverse in RAS of one in LPS."""
    result = LPS_RAS @ np.linalg.inv(matrix) @ LPS_RAS
    result[3] = [0.0, 0.0, 0.0, 1.0]
    return result


def several(path) -> InputError:
    return InputError(
        f"'{path}' holds several transforms side by side; save the one that you want in a file of its own."
    )


def damaged(path) -> InputError:
    return InputError(f"'{path}' is damaged or no transform file; copy it again or write it again.")
