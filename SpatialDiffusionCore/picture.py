"""A picture to judge a registration by: before and after in color, the fixed volume's edges on the moving one, and both
in the squares of a checkerboard. Fixed is green, moving magenta, white where they agree.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .files import written_whole
from .modelfile import catalog
from .spatial.cube import on_grid
from .spatial.sampling import Prepared, canonical_grid, prepare, scan_order
from .spatial.volume import Grid, Volume

#: Pixels of a tile, between tiles (letters stand there), and of the line above a row of them.
SIZE = 400
MARGIN = 36
CAPTION = 34
BACKGROUND = (18, 18, 20)
TEXT, FAINT = (235, 235, 235), (150, 150, 150)
FIXED_COLOR, MOVING_COLOR = (0, 230, 0), (235, 60, 235)
WARNING_COLOR = (255, 190, 70)
#: What lies outside the moving volume's field of view is hatched in this color.
HATCH = (52, 58, 74)
SQUARES = 8


@dataclass(frozen=True)
class Plane:
    """A slice of both volumes, rows downwards: gray values 0…1 of each, and where the moving one was seen."""

    fixed: np.ndarray
    moving: np.ndarray
    seen: np.ndarray


def tile(row: int, column: int, size: int = SIZE) -> tuple[int, int]:
    """(left, top) in pixels of the tile in a row and a column (from 0)."""
    return MARGIN + column * (size + MARGIN), (row + 1) * CAPTION + row * (size + MARGIN // 2) + MARGIN // 2


def draw(registration: Any, moving: Volume, fixed: Volume, path: Any = None, size: int = SIZE) -> Any:
    """Draw three planes through the center of the fixed tissue as a PIL image, ``3 × size`` pixels and margins wide.

    Rows: the overlay before and after, the fixed volume's edges on the moving one, and a checkerboard of both.
    Oriented volumes are shown axially, coronally and sagittally, the patient's right on the left; scans of eyes along
    their depth and from the front. ``path``: written there too (.png), whole or not at all.
    """
    from PIL import Image, ImageDraw, ImageFont

    oriented = all(catalog.get(key).oriented for key in registration.modality)
    before = planes(prepare(fixed), prepare(moving), np.eye(4), size, oriented)
    after = planes(prepare(fixed), prepare(moving), np.linalg.inv(registration.matrix), size, oriented)
    quality = registration.quality
    rows = (
        (f"Before: similarity {quality.similarity_before:.2f}", [_overlay(plane) for plane in before]),
        (f"After: similarity {quality.similarity_after:.2f}", [_overlay(plane) for plane in after]),
        ("After: edges of the fixed volume on the moving one", [_edges_on(plane) for plane in after]),
        ("After: checkerboard of both", [_checkerboard(plane) for plane in after]),
    )
    notes = _notes(registration, any(not plane.seen.all() for plane in (*before, *after)), size)
    bottom = tile(len(rows), 0, size)[1]
    picture = Image.new("RGB", (4 * MARGIN + 3 * size, bottom + 24 * len(notes)), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(19)
    small, letters = ImageFont.load_default(16), ImageFont.load_default(14)
    for number, (title, tiles) in enumerate(rows):
        pen.text((MARGIN, tile(number, 0, size)[1] - CAPTION + 6), title, fill=TEXT, font=font)
        for column, values in enumerate(tiles):
            left, top = tile(number, column, size)
            picture.paste(Image.fromarray(values), (left, top))
            if oriented:
                ends = ("R", "L") if column < 2 else ("A", "P")
                for letter, middle in zip(ends, (left - MARGIN // 2, left + size + MARGIN // 2)):
                    # Columns share the space between them: each letter stands beside its own tile.
                    near = middle + (9 if letter == ends[0] else -9)
                    pen.text((near, top + size // 2), letter, fill=FAINT, font=letters, anchor="mm")
    for number, (text, color) in enumerate(notes):
        _line(pen, MARGIN, bottom + 24 * number - CAPTION + 8, text, color, small)
    if path is not None:
        with written_whole(path) as temporary:
            picture.save(os.fspath(temporary), format="PNG")
    return picture


def planes(fixed: Prepared, moving: Prepared, fixed_to_moving: np.ndarray, size: int, oriented: bool) -> list[Plane]:
    """Three planes of both volumes; ``fixed_to_moving``: 4×4, RAS mm."""
    # 2.6 standard deviations each way hold the tissue and some air.
    reach = 2 * 2.6 * float(np.sqrt(np.linalg.eigvalsh(fixed.tissue_covariance).max()))
    extent = np.array(fixed.volume.shape) * fixed.volume.spacing
    spacing = reach / size if oriented else 1.1 * extent[list(scan_order(fixed.volume))] / size
    cube = canonical_grid(fixed, size, spacing, oriented)
    planes = []
    # Of R×A×S: axial, coronal, sagittal. Of lateral × depth × lateral: two slices along depth, and one from the front.
    for axis in (2, 1, 0) if oriented else (2, 0, 1):
        shape = [1 if one == axis else size for one in range(3)]
        first = np.eye(4)
        first[axis, 3] = size // 2
        grid = Grid(tuple(shape), cube.voxel_to_ras @ first)
        parts = []
        for prepared, where in ((fixed, grid), (moving, grid.moved(fixed_to_moving))):
            seen = on_grid(prepared, where, "cpu")
            parts += [_shown(prepared, seen.values[0, 0].numpy()), seen.support[0, 0].numpy() > 0.5]
        upright = [_upright(np.squeeze(part, axis), axis, oriented) for part in parts]
        planes.append(Plane(upright[0], upright[2], upright[3]))
    return planes


def _upright(plane: np.ndarray, axis: int, oriented: bool) -> np.ndarray:
    """Rows downwards: the patient's right on the left, front or top above; depth runs downwards."""
    if not oriented:
        return plane if axis == 0 else plane.T
    return plane[::-1, ::-1].T


def _shown(prepared: Prepared, values: np.ndarray) -> np.ndarray:
    """Values 0…1 with air black, so that it hides nothing of the other volume."""
    low, high = prepared.window
    floor = 0.5 * (prepared.threshold - low) / (high - low)
    tissue = values[values > 2 * floor]
    top = float(np.percentile(tissue, 99)) if tissue.size else 1.0
    return np.clip((values - floor) / max(top - floor, 1e-6), 0, 1)


def _rgb(*channels: np.ndarray) -> np.ndarray:
    return (np.stack(channels, axis=-1) * 255).round().astype(np.uint8)


def _overlay(plane: Plane) -> np.ndarray:
    """Fixed in green, moving in magenta: gray to white where they agree."""
    return _hatched(_rgb(plane.moving, plane.fixed, plane.moving), plane)


def _edges_on(plane: Plane) -> np.ndarray:
    """The moving volume in gray under the fixed one's edges."""
    picture = _hatched(_rgb(plane.moving, plane.moving, plane.moving), plane)
    picture[_edges(plane.fixed)] = FIXED_COLOR
    return picture


def _checkerboard(plane: Plane) -> np.ndarray:
    """Squares of the fixed and of the moving volume by turns, each in gray with a tint of its color."""
    size = plane.fixed.shape
    row, column = (np.arange(n) * SQUARES // n for n in size)
    fixed = (row[:, None] + column[None]) % 2 == 0
    tinted = _rgb(0.86 * plane.fixed, plane.fixed, 0.86 * plane.fixed)
    other = _hatched(_rgb(plane.moving, 0.86 * plane.moving, plane.moving), plane)
    return np.where(fixed[..., None], tinted, other)


def _hatched(picture: np.ndarray, plane: Plane) -> np.ndarray:
    """Diagonal lines where the moving volume was not seen and the fixed one shows nothing either."""
    rows, columns = np.indices(plane.seen.shape)
    lines = ~plane.seen & ((rows + columns) % 12 < 2) & (picture.max(-1) < 40)
    picture[lines] = HATCH
    return picture


def _edges(values: np.ndarray) -> np.ndarray:
    """Where a smoothed picture changes most along its gradient (Canny, PAMI 8(6):679, 1986, without hysteresis)."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    gradient = np.stack(np.gradient(gaussian_filter(values.astype(float), values.shape[0] / 200)))
    strength = np.sqrt((gradient**2).sum(0))
    direction = gradient / np.maximum(strength, 1e-9)
    place = np.indices(values.shape)
    beside = [map_coordinates(strength, place + side * direction, order=1) for side in (-1, 1)]
    crest = (strength >= beside[0]) & (strength >= beside[1])
    # The strongest fifth of the crests in what is not air.
    strong = strength[crest & (values > 0.05)]
    return crest & (strength > (np.percentile(strong, 55) if strong.size else np.inf))


def _notes(registration: Any, cut: bool, size: int) -> list[tuple[Sequence[tuple[str, tuple]], tuple]]:
    """Lines below the tiles, each as parts of text with their colors."""
    quality = registration.quality
    letters = (4 * MARGIN + 3 * size) // 9
    legend = [(f"green: {registration.fixed}", FIXED_COLOR), (f"magenta: {registration.moving}", MOVING_COLOR)]
    legend += [("white: both agree", TEXT)]
    if cut:
        legend += [("hatched: outside the moving volume's view", FAINT)]
    lines: list = [(legend, TEXT)]
    color = TEXT if quality.confidence == "good" else WARNING_COLOR
    said = quality.confidence.capitalize() + ("" if quality.warnings else f": {quality.why()}")
    lines += [([(text, color)], color) for text in textwrap.wrap(said, letters)]
    for warning in quality.warnings:
        lines += [([(text, WARNING_COLOR)], WARNING_COLOR) for text in textwrap.wrap(f"Warning: {warning}", letters)]
    return lines


def _line(pen: Any, left: int, top: int, parts: Sequence[tuple[str, tuple]], color: tuple, font: Any) -> None:
    for text, own in parts:
        pen.text((left, top), text, fill=own or color, font=font)
        left += int(pen.textlength(text, font=font)) + 22


def contact_sheets(pictures: Sequence[str], path: str, columns: int = 6, rows: int = 4) -> list[str]:
    """Sheets of many pictures drawn by ``draw``, small, each under its file's name; returns the files written.

    path: of the first sheet (.png); further ones get a number.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, written = 320, []
    base, ending = os.path.splitext(path)
    for start in range(0, len(pictures), columns * rows):
        chosen = pictures[start : start + columns * rows]
        small = []
        for file in chosen:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
                small.append(image.resize((width, round(width * image.height / image.width))))
        height = max(image.height for image in small) + 28
        across = min(columns, len(small))
        sheet = Image.new("RGB", (across * (width + 8) + 8, -(-len(small) // across) * height + 8), BACKGROUND)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for number, (file, image) in enumerate(zip(chosen, small)):
            left, top = 8 + number % across * (width + 8), 8 + number // across * height
            pen.text((left, top), os.path.splitext(os.path.basename(file))[0], fill=TEXT, font=font)
            sheet.paste(image, (left, top + 20))
        target = path if not start else f"{base}_{start // (columns * rows) + 1}{ending}"
        with written_whole(target) as temporary:
            sheet.save(os.fspath(temporary), format="PNG")
        written.append(target)
    return written
