"""The one seam between the module and SpatialDiffusionCore.

Everything the module knows of the core is in this file.  The core is imported when it is first needed, and it imports
torch when a registration starts, so the module opens without torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from slicer.i18n import tr as _

from .problem import REMEDY_TORCH, Problem


def core():
    """The package SpatialDiffusionCore: installed beside the module, or in the repository of a checkout."""
    try:
        import SpatialDiffusionCore
    except ModuleNotFoundError as error:
        if error.name != "SpatialDiffusionCore":
            raise
        for folder in Path(__file__).resolve().parents[1:3]:
            if (folder / "SpatialDiffusionCore" / "__init__.py").is_file():
                sys.path.append(str(folder))
                break
        import SpatialDiffusionCore
    return SpatialDiffusionCore


@dataclass(frozen=True)
class Settings:
    """How to register: values for the core's RegistrationOptions, by name, which has defaults for all others, and how
    many threads PyTorch may use (None: as many as it likes).
    """

    options: Mapping = field(default_factory=dict)
    threads: int | None = None

    def checked(self):
        """The core's RegistrationOptions; raises its InputError, one sentence, where a value can not be used."""
        return core().RegistrationOptions(**self.options)


def settingsOf(modality, movingModality, fixedModality, transform, more) -> Settings:
    """Settings out of the arguments of a call; `more`: {name: value} of any others."""
    options = {
        "modality": modality,
        "moving_modality": movingModality,
        "fixed_modality": fixedModality,
        "transform": transform,
        **{name: value for name, value in more.items() if name != "threads"},
    }
    known = {each.name for each in fields(core().RegistrationOptions)} - {"init"}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise Problem(_("There is no such setting: {names}.").format(names=", ".join(unknown)))
    settings = Settings(options, more.get("threads"))
    settings.checked()
    return settings


@dataclass(frozen=True)
class Choice:
    """One entry of a list to choose from."""

    key: str
    label: str
    description: str = ""


def modalities() -> list[Choice]:
    """The kinds of image that can be registered: "auto" first, then the core's, then those of the user's models."""
    core()
    from SpatialDiffusionCore.modality import AUTO, MODALITIES

    found = {m.key: Choice(m.key, m.label, m.description) for m in (AUTO, *MODALITIES.values())}
    for _path, card in _catalog().values():
        for key in card.modalities:
            found.setdefault(key, Choice(key, key, f"A modality of the model {card.name}."))
    return list(found.values())


def models() -> list[Choice]:
    """The installed models, by name; reads the files' headers only."""
    return [Choice(name, name, f"{', '.join(card.modalities)} ({path})") for name, (path, card) in _catalog().items()]


def _catalog():
    core()
    from SpatialDiffusionCore.modelfile.catalog import catalog

    return catalog()


def version() -> str:
    return core().__version__


def volume(data, voxelToRas, name, path=None, warnings=()):
    """A core Volume: `data` in i, j, k order, `voxelToRas` 4x4 in millimeters; `path` of the file it was read from."""
    core()
    from SpatialDiffusionCore.spatial.volume import Volume

    return Volume(data, voxelToRas, name, path=path, warnings=tuple(warnings))


def headerWarnings(path) -> tuple:
    """Sentences about what a volume file's header contradicts or leaves open; none where it can not be read."""
    core()
    from SpatialDiffusionCore.errors import InputError
    from SpatialDiffusionCore.spatial.volume_file import header_warnings

    try:
        return header_warnings(path)
    except (InputError, OSError, ImportError):
        return ()


def validate(volume, role):
    """Raise the core's InputError if a volume can not be registered; `role` is "moving" or "fixed"."""
    core()
    from SpatialDiffusionCore.spatial.volume import validate as check

    check(volume, role)


def outside(data) -> float:
    """What lies outside the field of view of voxels in i, j, k order: 0, in CT air."""
    core()
    from SpatialDiffusionCore.spatial.intensity import outside as value

    return value(data)


def odds(probability) -> str:
    """How often answers are wrong that are right with this probability (0..1), in the core's words."""
    core()
    from SpatialDiffusionCore.pipeline.confidence import odds as words

    return words(probability)


def inverse(matrix):
    """The inverse of a 4x4 affine matrix."""
    return _geometry().inverse(matrix)


def transformPoints(matrix, points):
    """Points (N x 3, mm) under a 4x4 matrix."""
    return _geometry().transform_points(matrix, np.asarray(points, float))


def distances(points, others) -> tuple:
    """Distances in mm between corresponding points (N x 3)."""
    return tuple(float(mm) for mm in np.linalg.norm(np.asarray(points, float) - np.asarray(others, float), axis=1))


def _geometry():
    core()
    from SpatialDiffusionCore.spatial import geometry

    return geometry


GLIDE_FRAMES = 8
GLIDE_MILLIMETERS = 3.0


def glide(start, end, volume) -> list:
    """Matrices on the way from `start` to `end` (4x4, RAS), the last of them `end` itself.

    Just `end` where a corner of the core Volume moves less than GLIDE_MILLIMETERS, or where there is no way between
    (a mirrored volume, or a half turn).
    """
    geometry = _geometry()
    corners = volume.corners()
    distances = geometry.transform_points(end, corners) - geometry.transform_points(start, corners)
    if (distances**2).sum(axis=1).max() < GLIDE_MILLIMETERS**2:
        return [end]
    try:
        way = geometry.log(geometry.inverse(start) @ end)
    except ValueError:
        return [end]
    return [start @ geometry.exp(way * frame / GLIDE_FRAMES) for frame in range(1, GLIDE_FRAMES)] + [end]


def steps(moving, fixed, settings: Settings, *, init=None, movingMask=None, fixedMask=None, beat=None):
    """Generator of the core's steps (index, count, stage, matrix); returns its Registration.

    `moving` and `fixed` are core Volumes in world coordinates, `init` a 4x4 RAS matrix from moving to fixed; `beat` is
    called often between two steps, and what it raises ends the run.
    """
    torch = importTorch()
    threads = torch.get_num_threads()
    try:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        return (
            yield from _alive(
                core().registration_steps(
                    moving,
                    fixed,
                    init=init,
                    moving_mask=movingMask,
                    fixed_mask=fixedMask,
                    **settings.options,
                ),
                beat,
            )
        )
    finally:
        torch.set_num_threads(threads)
        if torch.cuda.is_available():  # give back what others may need: PyTorch keeps what it once had
            torch.cuda.empty_cache()


def seriesSteps(frames, reference, transform, beat=None):
    """Generator of the core's steps for the motion of a series of core Volumes; returns its SeriesRegistration.

    `reference`: number of the frame (from 0) that all are laid on, None leaves the choice to the core.
    """
    importTorch()
    core()
    from SpatialDiffusionCore.many.motion import series_steps

    return (yield from _alive(series_steps(frames, reference=reference, transform=transform), beat))


def _alive(steps, beat):
    """The same steps, with `beat` called while they are computed."""
    from SpatialDiffusionCore.heartbeat import listening

    while True:
        try:
            with listening(beat):
                step = next(steps)
        except StopIteration as end:
            return end.value
        yield step


# What is written of many registrations


def tableColumns() -> tuple:
    """Columns of the table of many registrations."""
    return _report().COLUMNS


def tableRow(report, transformFile) -> dict:
    """The line of one registration, of its report."""
    return _report().row(report, transformFile)


def failedRow(moving, fixed, sentence) -> dict:
    """The line of a volume that could not be registered."""
    return _report().failed_row(moving, fixed, sentence)


def _report():
    core()
    from SpatialDiffusionCore import report

    return report


def preparePage(folder):
    """Make the folder of a review page, or raise the core's InputError if it holds something else."""
    return _pages().prepare_folder(folder)


def addToPage(folder, key, registration):
    """Draw the pair of a Registration of the core; `key` names it in the folder."""
    _pages().add_registration(folder, key, registration, *registration.volumes)


def addFailureToPage(folder, key, moving, fixed, sentence):
    _pages().add_failure(folder, key, moving, fixed, sentence)


def finishPage(folder, title):
    """Put the page together; its path."""
    return str(_pages().finish(folder, title))


def seriesPageSteps(motion, folder):
    """Generator of the page of a SeriesRegistration, frame by frame (from 1): the page's path each time."""
    return _pages().review_series_steps(motion, folder, first=1)


def _pages():
    core()
    from SpatialDiffusionCore.review import pages

    return pages


# Training, in a process of its own


def missingForTraining() -> list:
    """Names of the packages that training needs and that are not there."""
    adapt = _adapt()
    return [name for name in adapt.missing() if name != adapt.TRAINING or len(trainingPaths()) < 2]


def trainingPaths() -> list:
    """Folders that the process needs on its path: that of the core and, in a checkout, that of the training package."""
    root = Path(core().__file__).resolve().parents[1]
    beside = root / "Training"
    return [str(root), *([str(beside)] if (beside / _adapt().TRAINING / "__init__.py").is_file() else [])]


def trainingPackage() -> str:
    """What is installed to have all of them."""
    return _adapt().PACKAGE


def adaptCommand(scans, folder, minutes) -> list:
    """What follows the interpreter: adapt a model to a folder of scans."""
    threads = max(1, (os.cpu_count() or 2) - 1)  # one is left for the window
    return _adapt().command([scans, "-o", folder, "--minutes", str(minutes), "--threads", str(threads)])


def _adapt():
    core()
    from SpatialDiffusionCore.cli import adapt

    return adapt


def importTorch():
    """torch, or a sentence on why not."""
    from . import torchsetup

    state = torchsetup.state()
    if not state.ready:
        raise Problem(state.sentence, remedy=REMEDY_TORCH)
    try:
        import torch
    except Exception as error:
        raise Problem(torchsetup.brokenSentence(state.version), details=repr(error), remedy=REMEDY_TORCH) from error
    return torch
