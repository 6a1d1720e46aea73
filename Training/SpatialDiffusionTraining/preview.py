"""Pictures of what the network sees and of what it answers."""
from __future__ import annotations

import argparse

import numpy as np
import torch

from SpatialDiffusionCore.method import diffusion


def slices(volume, scale=2):
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


def overlay(fixed, moved, scale=2):
    """Fixed in magenta, moved in green: gray where they agree, H×W×3 uint8."""
    a, b = slices(fixed, scale), slices(moved, scale)
    return np.stack([a, b, a], -1)


def sheet(pairs, predicted=None, scale=2):
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


def stacked(sheets):
    """Sheets of unlike width below each other."""
    width = max(s.shape[1] for s in sheets)
    return np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in sheets])


def save_png(array, path):
    """Write an H×W×3 uint8 picture whole or not at all."""
    from PIL import Image

    from SpatialDiffusionCore.files import written_whole

    with written_whole(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def preview_command(argv):
    """`spatial-diffusion-train preview`: a sheet of training pairs, without training."""
    from SpatialDiffusionCore.errors import InputError

    from . import settings as settings_module
    from . import train
    from .pairs import PairMaker, seeded

    parser = argparse.ArgumentParser(
        prog="spatial-diffusion-train preview",
        description="Write a PNG sheet of augmented pairs: fixed, moving, overlay, overlay under the true affine. "
                    "Takes the options of training; -o is the PNG.")
    parser.add_argument("--pairs", type=int, default=8, metavar="N", help="rows of the sheet (default 8)")
    parser.add_argument("--from-run", metavar="RUN", help="use the settings of this run")
    settings_module.add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.from_run:
        chosen = settings_module.Settings.from_dict(
            settings_module.read_json(f"{arguments.from_run}/settings.json", "The run's settings"))
        chosen.data.cache = chosen.data.cache or f"{arguments.from_run}/cache"
        chosen.run.output = ""
        chosen.update_all(settings_module.given(arguments))
    else:
        chosen = settings_module.resolve(arguments)
    if not chosen.run.output or not chosen.run.output.lower().endswith(".png"):
        raise InputError("Give the picture to write: -o PAIRS.png.")
    if not chosen.data.train:
        raise InputError("Give the scans: --train FOLDER with --dataset MODALITY, or --from-run RUN.")
    output = chosen.run.output
    if chosen.data.cache:
        collections = train.prepare(chosen)
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            chosen.data.cache = folder
            collections = train.prepare(chosen)
            for collection in collections:
                collection.cache.cubes = np.array(collection.cache.cubes)
    t = torch.linspace(1, chosen.diffusion.timesteps, arguments.pairs).round().long()
    sheets = []
    for collection in collections:
        maker = PairMaker(collection.cache, chosen)
        pairs = maker.make(collection.sampler.draw(0, arguments.pairs), seeded(chosen.run.seed, 5), t=t)
        sheets.append(sheet(pairs))
    save_png(stacked(sheets), output)
    print(f"{output}: timesteps {t.tolist()} from the top")
    return 0
