"""Training the network that finds what people have in common in a volume (SpatialDiffusionCore/networks/focus.py).

It learns from scans with masks, in any orientation and under the artifacts of the preset. A scan without a mask counts
as stripped: all its tissue is in focus.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modelfile import catalog
from SpatialDiffusionCore.modelfile.card import read_card
from SpatialDiffusionCore.networks.focus import FocusNetwork, half
from SpatialDiffusionCore.spatial.cube import SURE

from . import command, datasets, export
from .augmentation import Blur, Corruption, Pose
from .pairs import seeded
from .people import split
from .sampler import Sampler
from .scans import find_scans
from .settings import PRESETS, Settings, given, read_json

#: Voxels brighter than this are tissue of a stripped scan.
TISSUE = 0.04


def changes(settings: Settings) -> tuple[Pose, Corruption]:
    """(Pose, Corruption) of the settings, the pose with any rotation."""
    augmentation = settings.augmentation
    return Pose(**{**augmentation.pose, "free": 1.0}), Corruption(augmentation.artifacts, augmentation.strength)


def samples(
    cache: datasets.Cache,
    rows: Sequence[int],
    generator: torch.Generator,
    pose: Pose,
    corruption: Corruption,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(volumes, masks), B×1×D×H×W in 0…1, of cache rows: posed at random, stripped or not, corrupted."""
    draws = corruption.draw(len(rows), generator)
    source = cache.read(rows, device)
    places, masks = cache.read_masks(rows, device)
    inside = (Blur().apply((source > TISSUE).float(), {"sigma": torch.full((len(rows), 3), 0.015)}) > 0.5).float()
    inside[places] = masks
    affine = pose.draw(len(rows), generator, cache.shape, cache.spacing).to(device)
    source = corruption.strip(source, (places, masks), draws)
    volumes = corruption.filter(corruption.warp(source, affine, draws), draws)
    return volumes, corruption.warp(inside, affine, draws).clamp(0, 1)


def error(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus one minus soft Dice, of masks at half their size."""
    target = half(masks)
    sure = torch.sigmoid(logits)
    both = 2 * (sure * target).sum((1, 2, 3, 4)) + 1
    dice = both / ((sure + target).sum((1, 2, 3, 4)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + (1 - dice).mean()


@torch.no_grad()
def judge(
    network: torch.nn.Module,
    cache: datasets.Cache,
    rows: Sequence[int],
    pose: Pose,
    corruption: Corruption,
    seed: int = 1,
) -> tuple[float, float]:
    """Median and least Dice over held-out scans of the focus, as registration uses it, and the masks."""
    scores = []
    for row in rows:
        volumes, masks = samples(cache, [row], seeded(seed, row), pose, corruption)
        found, true = torch.sigmoid(network(volumes)) > SURE, half(masks) > 0.5
        scores.append(float(2 * (found & true).sum() / (found.sum() + true.sum()).clamp_min(1)))
    scores.sort()
    return scores[len(scores) // 2], scores[0]


def train(
    cache: datasets.Cache,
    settings: Settings,
    minutes: float = 20.0,
    batch: int = 4,
    lr: float = 2e-3,
    seed: int = 0,
    report: datasets.Report = print,
) -> FocusNetwork:
    """A FocusNetwork trained for that many minutes (fewer where Ctrl-C ends it), its weights averaged over steps."""
    torch.manual_seed(seed)
    network, average = FocusNetwork(), FocusNetwork().requires_grad_(False)
    average.load_state_dict(network.state_dict())
    pose, corruption = changes(settings)
    sampler = Sampler([cache.rows("train")], seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    started, step = time.monotonic(), 0
    recent: list[float] = []
    try:
        while (gone := (time.monotonic() - started) / 60 / minutes) < 1:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 50) * max(0.01, 1 - gone)
            volumes, masks = samples(cache, sampler.batch(step, batch), seeded(seed, step, 7), pose, corruption)
            loss = error(network(volumes), masks)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            with torch.no_grad():
                for mean, new in zip(average.parameters(), network.parameters()):
                    mean.lerp_(new, 1 - min(0.998, step / (step + 10)))
            recent.append(float(loss.detach()))
            if step % 100 == 0:
                report(f"step {step} loss {sum(recent) / len(recent):.4f}, {minutes * (1 - gone):.0f} min left")
                recent = []
    except KeyboardInterrupt:
        report(f"ended at step {step}")
    return average


def figures(
    network: torch.nn.Module, cache: datasets.Cache, settings: Settings, report: datasets.Report = print
) -> dict[str, list[float]]:
    """{"clean", "corrupted": (median, least Dice of the focus over the held-out scans, at any turn)}."""
    pose, corruption = changes(settings)
    out = {}
    for words, changed in (("clean", Corruption({})), ("corrupted", corruption)):
        out[words] = [round(value, 3) for value in judge(network, cache, cache.rows("validation"), pose, changed)]
        report("held-out scans at any turn, {}: Dice median {:.3f}, least {:.3f}".format(words, *out[words]))
    return out


def attach(
    model: str | Path,
    network: FocusNetwork,
    output: str | Path | None = None,
    accuracy: dict[str, Any] | None = None,
    modality: str | None = None,
) -> Path:
    """Write a model file (in half precision) with this focus; `output` may be the file itself. Returns the path.

    modality: the one it is for (None: all that the model knows).
    """
    entry = {"channels": network.channels, "groups": network.groups}
    measured = {"focus_dice_median_least": accuracy} if accuracy else {}
    return export.attach(model, "focus", network, entry, output, measured, modality)


def teach(chosen: argparse.Namespace) -> Path:
    """Do what the command line says; returns the model file written."""
    card = read_card(chosen.model)
    if not Path(chosen.masks).is_dir():
        raise InputError(f"The folder of masks {chosen.masks} does not exist.")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    known = [name for name in card.modalities if name != "any"] or ["any"]
    modality = catalog.get(chosen.dataset).key if chosen.dataset else known[0]
    if modality not in known:
        raise InputError(f"{chosen.model} knows {', '.join(known)}, not {modality}.")
    if len(known) > 1 and not chosen.dataset:
        raise InputError(f"{chosen.model} knows {', '.join(known)}; name the one to look at with --dataset.")
    grid = card.grid_of(modality)
    if any(n % 4 for n in grid.size):
        size = "×".join(map(str, grid.size))
        raise InputError(f"{chosen.model} sees {size} voxels; a focus needs multiples of 4.")
    parts = split(find_scans(chosen.train))
    output = Path(chosen.output or chosen.model)
    cache = datasets.build(
        chosen.cache or output.with_suffix(".cache"),
        [datasets.Source(modality, 1, parts.train, parts.held_out, masks=chosen.masks)],
        grid.to_dict(),
    )
    if not any(entry["masked"] for entry in cache.entries):
        raise InputError(f"None of the masks in {chosen.masks} is named like a scan of {chosen.train}.")
    settings = Settings()
    settings.update(read_json(PRESETS / "brain.json", "The preset"), "The preset brain")
    settings.augmentation.strength = 0.8
    settings.update_all(given(chosen))
    network = train(cache, settings, chosen.minutes, report=command.say)
    return attach(chosen.model, network, output, figures(network, cache, settings), chosen.dataset and modality)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.focus",
        description=(
            "Teach a model where to look: train its focus on scans with masks and write it into the model file."
        ),
    )
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("--train", required=True, metavar="SCANS", help="folder of scans or text list, as for training")
    parser.add_argument(
        "--masks",
        required=True,
        metavar="DIR",
        help="masks named like their scans; a scan without "
        "one counts as stripped, so leave heads without masks out of the list",
    )
    parser.add_argument(
        "--dataset",
        default="",
        metavar="MODALITY",
        help="what the scans are, for a model that knows several; its focus is for these only",
    )
    parser.add_argument(
        "--set",
        metavar="augmentation.NAME=VALUE",
        action="append",
        default=[],
        dest="assignments",
        help="as for training, over the preset brain; augmentation.artifacts.strip.probability=0 where "
        "nobody strips scans to their masks",
    )
    parser.add_argument("-o", "--output", metavar="FILE.safetensors", help="default: the model itself")
    parser.add_argument("--cache", default="", metavar="DIR", help="of the prepared scans (default: beside the output)")
    parser.add_argument("--minutes", type=float, default=20.0, help="default: 20; Ctrl-C ends earlier")
    parser.add_argument("--threads", type=int, default=0, metavar="N")
    chosen = parser.parse_args(argv)
    return command.run("focus", lambda: teach(chosen))


if __name__ == "__main__":
    raise SystemExit(main())
