"""Teaching a model which side is left (SpatialDiffusionCore/strategies/head_template.py), from scans whose headers are
right.

No labels are needed: every scan is an example, and its mirror image the opposite one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modelfile import catalog
from SpatialDiffusionCore.modelfile.card import read_card
from SpatialDiffusionCore.modelfile.model import Model, load_model
from SpatialDiffusionCore.modelfile.model_cube import model_cube, with_focus
from SpatialDiffusionCore.networks.symmetric_template import SymmetricTemplate
from SpatialDiffusionCore.pipeline.confidence import MIRRORED
from SpatialDiffusionCore.spatial import geometry, sampling, volume_file
from SpatialDiffusionCore.spatial.cube import bounds
from SpatialDiffusionCore.spatial.volume import Volume
from SpatialDiffusionCore.strategies.head_template import HeadTemplate

from . import command, export
from .datasets import Report
from .people import split
from .scans import find_scans

#: Ridge of the fit, in units of the mean squared length of a difference.
RIDGE = 0.1

#: Parts of which each is measured by what the others teach.
FOLDS = 10

#: Degrees and mm by which headers are turned and shifted before a scan is laid on the template.
OFF = (10.0, 10.0)


def symmetric(template: Volume, spacing: float) -> SymmetricTemplate:
    """A SymmetricTemplate without weights, from a template: its tissue's box, both sides averaged."""
    prepared = sampling.prepare(template)
    grid = sampling.canonical_grid(prepared, [2 * int(120 // spacing)] * 3, spacing)
    values = sampling.sample(prepared, grid)[0, 0]
    values = (values + values.flip(0)) / 2
    values = values[tuple(slice(a, b) for a, b in zip(*bounds(values > 0.05, 1)))]
    sides = SymmetricTemplate(values.shape, spacing)
    sides.template.copy_(values[: len(values) // 2])
    return sides


def reflected(scan: Volume) -> Volume:
    """A volume as in a mirror: its header reflected."""
    return scan.moved(np.diag([-1.0, 1.0, 1.0, 1.0]))


def off(number: int) -> np.ndarray:
    """The 4×4 matrix by which header `number` is off, RAS mm."""
    random = np.random.default_rng(number)
    axis, shift = random.normal(size=(2, 3))
    turn = geometry.rotation_about(axis, np.radians(random.uniform(0, OFF[0])))
    return geometry.from_parts(turn, OFF[1] * random.uniform() * shift / np.linalg.norm(shift))


def differences(
    sides: SymmetricTemplate,
    scans: Sequence[str | Path],
    model: Model,
    modality: str,
    change: Callable[[Volume, int], Volume] = lambda scan, number: scan,
    report: Report = print,
) -> dict[int, np.ndarray]:
    """{number of the scan: its difference, a vector}, without scans on which the template cannot be laid."""
    found, template = {}, HeadTemplate(sides)
    for number, path in enumerate(scans):
        cube = model_cube(change(volume_file.load(path), number), None, modality, model.card, "cpu")
        cube, focused = with_focus(cube, model.focus_on(modality))
        world = template.lay(focused or cube, [np.eye(4)])
        difference = None if world is None else template.difference(focused or cube, world)
        if difference is None:
            report(f"the template does not fit {path}")
        else:
            found[number] = difference.flatten().double().numpy()
        if (number + 1) % 50 == 0 or number + 1 == len(scans):
            report(f"laid on {number + 1} of {len(scans)} scans")
    return found


def fit(examples: np.ndarray) -> np.ndarray:
    """The weights (a vector) whose products with N examples (N×D) are about 1: ridge regression."""
    products = examples @ examples.T
    products += RIDGE * np.trace(products) / len(products) * np.eye(len(products))
    return examples.T @ np.linalg.solve(products, np.ones(len(products)))


def judged(taught: dict[int, np.ndarray], *tests: dict[int, np.ndarray]) -> list[np.ndarray]:
    """For each of some {number: difference} all measures of scans by what others teach, which `taught` holds."""
    measures: list[list[float]] = [[] for _ in tests]
    for fold in range(FOLDS):
        others = np.array([difference for number, difference in taught.items() if number % FOLDS != fold])
        weights = fit(others)
        for found, test in zip(measures, tests):
            found += [float(d @ weights) for number, d in test.items() if number % FOLDS == fold]
    return [np.array(found) for found in measures]


def teach(chosen: argparse.Namespace) -> Path:
    """Do what the command line says; returns the model file written."""
    card = read_card(chosen.model)
    modality = catalog.get(chosen.dataset).key
    if modality not in card.modalities or modality == "any":
        raise InputError(f"{chosen.model} knows {', '.join(card.modalities)}; name one of them with --dataset.")
    parts = split(find_scans(chosen.train))
    train = parts.train
    scans = [*train, *parts.held_out]
    if len(train) < 2 * FOLDS:
        raise InputError(f"{len(train)} scans cannot teach which side is left; give {2 * FOLDS} or more.")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    model = load_model(chosen.model, modality, modality)
    sides = symmetric(volume_file.load(chosen.template), chosen.spacing)
    taught = differences(sides, scans, model, modality, report=command.say)
    if len(taught) < 2 * FOLDS:
        raise InputError(f"The template fits {len(taught)} scans only; give one that looks like them.")
    turned, mirrored = (
        differences(sides, scans, model, modality, change, report=command.say)
        for change in (
            lambda scan, number: scan.moved(off(number)),
            lambda scan, number: reflected(scan.moved(off(number))),
        )
    )
    figures = {}
    for words, sign, found in zip(("true", "mirrored"), (1, -1), judged(taught, turned, mirrored)):
        right, wrong = int((sign * found > MIRRORED).sum()), int((sign * found < -MIRRORED).sum())
        figures[words] = {
            "told": right,
            "told_wrong": wrong,
            "of": len(found),
            "least": round(float((sign * found).min()), 2),
        }
        command.say(
            f"{words} scans, by what others teach, headers {OFF[0]:g}° and {OFF[1]:g} mm off: {right} of {len(found)} "
            f"told, {wrong} told wrongly, least {figures[words]['least']}"
        )
    weights = fit(np.array([difference for number, difference in taught.items() if number < len(train)]))
    values = torch.from_numpy(weights).view(sides.weights.shape)
    sides.weights.copy_(values * values.numel())  # ``measure`` takes the mean
    settings = {"size": sides.size, "spacing": sides.spacing}
    return export.attach(chosen.model, "sides", sides, settings, chosen.output, {"sides": figures}, modality)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.sides",
        description=(
            "Teach a model which side is left, so that it warns of mirrored volumes, and write that into "
            "the model file."
        ),
    )
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument(
        "--train",
        required=True,
        metavar="SCANS",
        help="folder of scans or text list, as for training; their headers must be right",
    )
    parser.add_argument(
        "--template",
        required=True,
        metavar="BRAIN",
        help="a volume like them, without what lies around the part in focus, about upright",
    )
    parser.add_argument("--dataset", default="t1-brain", metavar="MODALITY")
    parser.add_argument(
        "--spacing", type=float, default=3.5, metavar="MM", help="of the template's voxels (default: 3.5)"
    )
    parser.add_argument("-o", "--output", metavar="FILE.safetensors", help="default: the model itself")
    parser.add_argument("--threads", type=int, default=0, metavar="N")
    chosen = parser.parse_args(argv)

    def work() -> Path:
        if not Path(chosen.template).is_file():
            raise InputError(f"{chosen.template} does not exist.")
        return teach(chosen)

    return command.run("sides", work)


if __name__ == "__main__":
    raise SystemExit(main())
