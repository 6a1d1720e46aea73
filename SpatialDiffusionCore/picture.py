"""A before/after picture to judge at a glance: fixed in green, moving in magenta, gray where they agree."""

from __future__ import annotations

import os

import numpy as np

from .files import written_whole
from .modelfile import catalog
from .spatial.cube import on_grid
from .spatial.sampling import canonical_grid, prepare, scan_order

SIZE = 200
MARGIN = 8
BACKGROUND = (18, 18, 20)


def _planes(values: np.ndarray, index, oriented: bool) -> list:
    """Axial, coronal and sagittal slices (rows downwards) of an R×A×S array, the patient's right on the left.

    Of scans without orientation (lateral × depth × lateral): the two slices along depth, which runs downwards, and the
    one seen from the front.
    """
    i, j, k = index
    if not oriented:
        return [values[:, :, k].T, values[i], values[:, j].T]
    return [values[::-1, ::-1, k].T, values[::-1, j, ::-1].T, values[i, ::-1, ::-1].T]


def _overlay(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """RGB of two gray slices: fixed green, moving magenta."""
    return (np.stack([moving, fixed, moving], axis=-1) * 255).round().astype(np.uint8)


def draw(registration, moving, fixed, path=None, size: int = SIZE):
    """Draw the overlay before and after (three planes through the fixed tissue's center) as a PIL image.

    ``path``: written there too (.png), whole or not at all.
    """
    from PIL import Image, ImageDraw, ImageFont

    moving_key, fixed_key = registration.modality
    prepared = prepare(fixed), prepare(moving)
    reach = 2 * 2.6 * float(np.sqrt(np.linalg.eigvalsh(prepared[0].tissue_covariance).max()))
    oriented = catalog.get(fixed_key).oriented and catalog.get(moving_key).oriented
    extent = np.array(fixed.shape) * fixed.spacing
    spacing = reach / size if oriented else 1.1 * extent[list(scan_order(fixed))] / size
    grid = canonical_grid(prepared[0], size, spacing, oriented)
    shown = on_grid(prepared[0], grid, "cpu").values[0, 0].numpy()
    index = [size // 2] * 3
    rows = []
    for fixed_to_moving in (np.eye(4), np.linalg.inv(registration.matrix)):
        moved = on_grid(prepared[1], grid.moved(fixed_to_moving), "cpu").values[0, 0].numpy()
        rows.append([_overlay(a, b) for a, b in zip(_planes(shown, index, oriented), _planes(moved, index, oriented))])
    caption, gap = 26, MARGIN
    width, height = 3 * size + 4 * gap, 2 * (size + caption + gap) + caption + gap
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(15), ImageFont.load_default(12)
    quality = registration.quality
    titles = (
        f"Before: similarity {quality.similarity_before:.2f}",
        f"After: similarity {quality.similarity_after:.2f}, confidence {quality.confidence}",
    )
    top = gap
    for title, row in zip(titles, rows):
        pen.text((gap, top), title, fill=(235, 235, 235), font=font)
        top += caption
        for column, tile in enumerate(row):
            left = gap + column * (size + gap)
            picture.paste(Image.fromarray(tile), (left, top))
            if oriented:
                marks = ("R", "L") if column < 2 else ("A", "P")
                pen.text((left + 4, top + size // 2 - 7), marks[0], fill=(150, 150, 150), font=small)
                pen.text((left + size - 13, top + size // 2 - 7), marks[1], fill=(150, 150, 150), font=small)
        top += size + gap
    left = gap
    for text, color in ((f"fixed: {fixed.name}", (0, 220, 0)), (f"moving: {moving.name}", (235, 60, 235))):
        pen.text((left, top), text, fill=color, font=small)
        left += int(pen.textlength(text, font=small)) + 18
    if path is not None:
        with written_whole(path) as temporary:
            picture.save(os.fspath(temporary), format="PNG")
    return picture
