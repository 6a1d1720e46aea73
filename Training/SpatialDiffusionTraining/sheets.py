"""Pictures of what the network sees and of what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.method import diffusion

from .pairs import Pairs

#: Above each column of a sheet.
COLUMNS = ("fixed", "moving", "as given", "under the true transform", "under the network's")


def slices(volume: torch.Tensor, scale: int = 2) -> np.ndarray:
    """The three middle planes of a 1×D×H×W volume in 0..1 side by side, as H×W uint8 (first axis up)."""
    d, h, w = volume.shape[1:]
    array = volume[0].detach().cpu().numpy()
    edge = max(d, h, w)
    planes = []
    for plane in (array[:, :, w // 2], array[:, h // 2], array[d // 2]):
        flipped = plane.T[::-1]
        canvas = np.zeros((edge, edge), np.float32)
        top, left = (edge - flipped.shape[0]) // 2, (edge - flipped.shape[1]) // 2
        canvas[top : top + flipped.shape[0], left : left + flipped.shape[1]] = flipped
        planes.append(canvas)
    image = np.concatenate(planes, 1).clip(0, 1)
    return np.repeat(np.repeat((image * 255).astype(np.uint8), scale, 0), scale, 1)


def overlay(fixed: torch.Tensor, moved: torch.Tensor, scale: int = 2) -> np.ndarray:
    """Fixed in magenta, moved in green: gray where they agree, H×W×3 uint8."""
    a, b = slices(fixed, scale), slices(moved, scale)
    return np.stack([a, b, a], -1)


def sheet(pairs: Pairs, predicted: torch.Tensor | None = None, scale: int = 2) -> np.ndarray:
    """An RGB picture, one row per pair: fixed, moving, both overlaid as given and under the true affine.

    With `predicted` (B×3×4) a fifth column shows the overlay under the predicted affine.
    """
    answers = [None, pairs.target] + ([] if predicted is None else [predicted])
    rows = []
    for index in range(len(pairs.rows)):
        fixed, moving = pairs.fixed[index], pairs.moving[index]
        cells = [np.repeat(slices(v, scale)[..., None], 3, -1) for v in (fixed, moving)]
        for theta in answers:
            moved = moving if theta is None else diffusion.warp(moving[None], theta[index : index + 1].float())[0]
            cells.append(overlay(fixed, moved, scale))
        line = np.full((cells[0].shape[0], 4, 3), 90, np.uint8)
        rows.append(np.concatenate([part for cell in cells for part in (cell, line)], 1))
        rows.append(np.full((4, rows[0].shape[1], 3), 90, np.uint8))
    return np.concatenate(rows, 0)


def stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets of unlike width below each other."""
    width = max(s.shape[1] for s in sheets)
    return np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in sheets])


def captioned(picture: np.ndarray, text: str, columns: Sequence[str] = ()) -> np.ndarray:
    """A picture (H×W×3 uint8) with a line of text above it, and a word above each of some columns of equal width."""
    font = ImageFont.load_default(14)
    lines = [text] if not columns else [text, ""]
    head = Image.new("RGB", (picture.shape[1], 20 * len(lines)), (0, 0, 0))
    draw = ImageDraw.Draw(head)
    draw.text((4, 2), text, fill=(255, 255, 255), font=font)
    for index, word in enumerate(columns):
        draw.text((4 + index * picture.shape[1] // len(columns), 22), word, fill=(200, 200, 200), font=font)
    return np.concatenate([np.asarray(head), picture], 0)


def save_png(array: np.ndarray, path: str | Path) -> None:
    """Write an H×W×3 uint8 picture whole or not at all."""
    with written_whole(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")
