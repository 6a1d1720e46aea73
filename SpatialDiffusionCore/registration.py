"""Registration: two volumes in, the transform that lays the moving one on the fixed one out.

``sampler="reference"`` is the published method: every timestep of the diffusion from where the volumes lie, nothing
else. ``sampler="fast"`` looks for the pose among all rotations, lets the diffusion pull the best candidates in with
a few steps, and refines the best of them by self-similarity.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union

import numpy as np

from .alignment.pair import Pair
from .device import resolve_device
from .errors import InputError
from .inputs import as_mask, as_matrix, as_volume
from .modality import AUTO
from .options import RegistrationOptions, takes_options
from .pipeline.step import Step
from .pipeline.work_scale import in_work_units
from .result import Registration
from .spatial import geometry
from .spatial.volume import validate

if TYPE_CHECKING:  # loaded with the work, for they bring PyTorch along
    from .modelfile.model import Model
    from .pipeline.confidence import Quality
    from .pipeline.prepared_input import PreparedInput
    from .pipeline.settings import Settings
    from .pipeline.step import Outcome
    from .spatial.cube import Cube

#: What ``inputs.as_volume`` takes: a path, a Volume, an image of nibabel or SimpleITK, a pair (array, affine).
VolumeLike = Any


class Cancelled(Exception):
    """The caller's ``on_step`` asked to stop; nothing was changed."""


@takes_options
def registration_steps(
    moving: VolumeLike,
    fixed: VolumeLike,
    *,
    moving_mask: VolumeLike | None = None,
    fixed_mask: VolumeLike | None = None,
    **options: Any,
) -> Generator[Step, None, Registration]:
    """Register step by step: yields a Step after each, and returns the Registration (``StopIteration.value``).

    Arguments as in ``register``. All input is checked before the first step.
    """
    moving, fixed = as_volume(moving, "moving"), as_volume(fixed, "fixed")
    moving_mask, fixed_mask = as_mask(moving_mask, "moving mask"), as_mask(fixed_mask, "fixed mask")
    checked = RegistrationOptions(**{**options, "init": as_matrix(options.get("init"), moving, fixed)})
    from .pipeline.prepared_input import PreparedInput

    device = resolve_device(checked.device)
    validate(moving, "moving")
    validate(fixed, "fixed")
    inputs = PreparedInput(moving, moving_mask, device), PreparedInput(fixed, fixed_mask, device)
    result = yield from _steps(*inputs, checked)
    result.volumes = moving, fixed
    return result


def _steps(
    moving: PreparedInput, fixed: PreparedInput, options: RegistrationOptions
) -> Generator[Step, None, Registration]:
    """``registration_steps`` of two PreparedInputs."""
    started = time.perf_counter()
    from .modelfile.model_cube import in_common_focus
    from .pipeline.plan import fast
    from .pipeline.prepared_input import modalities_of, model_for
    from .pipeline.reference import reference
    from .pipeline.settings import decided
    from .pipeline.work_scale import work_scale

    keys = modalities_of(options, moving, fixed)
    model = model_for(options, keys, moving.device)
    settings = decided(options, keys, model, moving.device)
    inputs, scale = (moving, fixed), 1.0
    if settings.sampler == "fast" and settings.strategy.any_size:
        scale = work_scale(moving.upright, fixed.upright)
        settings = settings.scaled(scale)
    cubes = in_common_focus(*(one.cubes(key, model, settings.sampler, scale) for one, key in zip(inputs, keys)))
    process, swap = reference, False
    if settings.sampler == "fast":
        # The pair is always worked on in the same order, so that register(a, b) and register(b, a) are exact inverses.
        process, swap = fast, _signature(cubes[0]) > _signature(cubes[1])
    pair, ordered = (Pair(*cubes[::-1]), settings.swapped()) if swap else (Pair(*cubes), settings)
    history: list[Step] = []
    outcome = yield from _recorded(process(pair, model, ordered), history, swap, scale)
    # A rigid or similar answer is the one nearest to the affine over the tissue.
    second_to_first = geometry.project(outcome.world, settings.transform, *pair.tissue)
    matrix = second_to_first if swap else geometry.inverse(second_to_first)
    result = Registration(
        matrix=in_work_units(matrix, 1 / scale),
        transform=settings.transform,
        steps=history,
        quality=_quality(pair, model, ordered, outcome, second_to_first, swap),
        model=model.name,
        modality=keys,
        recognized=tuple(said == AUTO.key for said in (options.moving_modality, options.fixed_modality)),
        sampler=settings.sampler,
        seconds=0.0,
        polished=outcome.polished,
        center=cubes[1].prepared.tissue_center / scale,
        moving=moving.volume.name,
        fixed=fixed.volume.name,
        details=outcome.details,
        record=_record(options, keys, moving, fixed),
    )
    from .pipeline.confidence import judge

    result.quality.in_millimeters(scale)
    result.quality.warnings += [*cubes[0].prepared.warnings, *cubes[1].prepared.warnings]
    result.quality.warnings += [_few_slices(one) for one in (moving, fixed) if min(one.volume.shape) < FEW_SLICES]
    judge(result.quality, result.decomposition)
    result.seconds = time.perf_counter() - started
    return result


#: With fewer slices than this, what happens across them is hardly seen. Chosen, untested.
FEW_SLICES = 8


def _few_slices(one: PreparedInput) -> str:
    name, count = one.volume.name, min(one.volume.shape)
    return f"{name} has {count} slices only: scale and shear across them are hardly determined; rigid is safer."


def _record(
    options: RegistrationOptions, keys: tuple[str, str], moving: PreparedInput, fixed: PreparedInput
) -> dict[str, Any]:
    """What a report says of how an answer came about, beside the answer."""
    from .modelfile.catalog import choose
    from .modelfile.model import Model
    from .modelfile.safetensors_file import file_hash

    given = options.model
    return {
        "moving_file": moving.volume.path,
        "fixed_file": fixed.volume.path,
        "device": moving.device,
        "model_sha256": None if isinstance(given, Model) else file_hash(choose(given, *keys).path),
        "settings": options.to_dict(),
    }


def _quality(pair: Pair, model: Model, settings: Settings, outcome: Outcome, world: np.ndarray, swap: bool) -> Quality:
    """The figures of an answer, ``world`` (4×4, RAS mm, the pair's fixed → moving)."""
    from .pipeline.confidence import Quality
    from .pipeline.template_check import laterality
    from .strategies.head_template import HeadTemplate

    before = np.eye(4) if settings.init is None else np.linalg.inv(settings.init)
    detour, evidence = outcome.detour, outcome.evidence
    quality = Quality(
        pair.alike(before),
        pair.alike(world),
        pair.over(world, moving=swap).overlap,
        None if evidence.spread is None else evidence.spread * pair.size,
        agreement=evidence.agreement,
        detour_mm=None if detour is None else detour.mm,
        confirmed=None if detour is None else detour.confirmed,
        evidence=evidence.to_dict(),
        probability=outcome.probability,
        mirrored=outcome.mirrored,
    )
    symmetric = model.sides_of(*settings.keys) if settings.sampler == "fast" else None
    if symmetric is not None:
        sides = laterality(HeadTemplate.of(symmetric), pair.moving, pair.fixed, world)
        quality.sides = sides[::-1] if swap and sides else sides
    return quality


def _recorded(
    process: Generator[Step, None, Outcome], history: list[Step], swap: bool, scale: float
) -> Generator[Step, None, Outcome]:
    """Pass a process's steps on, in mm, inverted if it works on the pair the other way round, and keep them."""
    while True:
        try:
            step = next(process)
        except StopIteration as end:
            return end.value
        matrix = geometry.inverse(step.matrix) if swap else step.matrix
        step = replace(step, matrix=in_work_units(matrix, 1 / scale))
        history.append(step)
        yield step


def _signature(cube: Cube) -> bytes:
    """What orders a pair: depends on the volume's content alone, not on its role."""
    digest = hashlib.blake2b(cube.values.cpu().numpy().tobytes(), digest_size=16)
    digest.update(np.round(cube.grid.voxel_to_ras, 6).tobytes())
    return digest.digest()


OnStep = Optional[Callable[[Step], Optional[bool]]]
Answer = TypeVar("Answer")


def run_steps(process: Generator[Step, None, Answer], on_step: OnStep) -> Answer:
    """Run to the end and return what it returns; raises Cancelled where ``on_step`` returns False."""
    while True:
        try:
            step = next(process)
        except StopIteration as end:
            return end.value
        if on_step is not None and on_step(step) is False:
            process.close()
            raise Cancelled("The registration was cancelled.")


@takes_options
def register(
    moving: VolumeLike,
    fixed: VolumeLike,
    *,
    on_step: OnStep = None,
    moving_mask: VolumeLike | None = None,
    fixed_mask: VolumeLike | None = None,
    **options: Any,
) -> Registration:
    """Find the transform that lays ``moving`` on ``fixed``.

    moving, fixed: each a path, a Volume, an image of nibabel or SimpleITK, or a pair (array, affine) of an (I, J, K)
    array and the 4×4 matrix from voxels to RAS millimeters. moving_mask, fixed_mask: the same, not 0 where the tissue
    matters. on_step: called with every Step; it may raise, or return False, to stop. All other keywords are the fields
    of RegistrationOptions; ``init`` may also be a transform file or another Registration.

    The same input and seed give the same output. Returns a Registration. Raises InputError (one sentence) before any
    work where the input cannot be used, and Cancelled where ``on_step`` asked to stop.
    """
    return run_steps(
        registration_steps(moving, fixed, moving_mask=moving_mask, fixed_mask=fixed_mask, **options), on_step
    )


def share_of_rank(items: Sequence) -> list:
    """The part of a list that falls to this process under torchrun (RANK of WORLD_SIZE); all of it otherwise.

    Raises InputError where the two are no numbers that fit each other: some of the list would fall to nobody.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise InputError(
            f"RANK is {rank} and WORLD_SIZE is {world}, but ranks count from 0 to WORLD_SIZE − 1; start all processes "
            "of a run (with Slurm the whole array, from 0)."
        )
    return list(items)[int(rank) :: int(world)]


OnResult = Optional[Callable[[int, Union[Registration, Exception]], None]]


@takes_options
def register_many(
    movings: Sequence[VolumeLike | Callable[[], VolumeLike]],
    fixed: VolumeLike,
    *,
    on_step: OnStep = None,
    on_result: OnResult = None,
    moving_mask: VolumeLike | None = None,
    fixed_mask: VolumeLike | None = None,
    **options: Any,
) -> list[Registration]:
    """Register many moving volumes to one fixed one; the model and the fixed volume are made ready once.

    movings: volumes as for ``register`` (paths are read when their turn comes), or functions that return one. Under
    ``torchrun`` each process takes its share of the list. on_result(index, Registration or the exception) is called
    after each; if it is given, a volume that cannot be used does not stop the others and is left out of the list
    returned. The other arguments as in ``register``.
    """
    register_one = registrar(fixed, moving_mask=moving_mask, fixed_mask=fixed_mask, **options)
    results = []
    for index in share_of_rank(range(len(movings))):
        moving = movings[index]
        try:
            result = register_one(moving() if callable(moving) else moving, on_step)
        except Exception as error:
            if on_result is None or isinstance(error, Cancelled):
                raise
            on_result(index, error)
            continue
        results.append(result)
        if on_result is not None:
            on_result(index, result)
    return results


@takes_options
def registrar(
    fixed: VolumeLike,
    *,
    moving_mask: VolumeLike | None = None,
    fixed_mask: VolumeLike | None = None,
    **options: Any,
) -> Callable[[VolumeLike, OnStep], Registration]:
    """A function (moving, on_step) → Registration that registers one volume after the other to ``fixed``.

    The model and the fixed volume are made ready once, and what is wrong with them is said now. Arguments as in
    ``register``.
    """
    fixed = as_volume(fixed, "fixed")
    moving_mask, fixed_mask = as_mask(moving_mask, "moving mask"), as_mask(fixed_mask, "fixed mask")
    checked = RegistrationOptions(**{**options, "init": as_matrix(options.get("init"), None, fixed)})
    from .pipeline.prepared_input import PreparedInput

    device = resolve_device(checked.device)
    _check_model(checked, device)
    validate(fixed, "fixed")
    ready = PreparedInput(fixed, fixed_mask, device)

    def register_one(moving: VolumeLike, on_step: OnStep = None) -> Registration:
        volume = as_volume(moving, "moving")
        validate(volume, "moving")
        return run_steps(_steps(PreparedInput(volume, moving_mask, device), ready, checked), on_step)

    return register_one


def _check_model(options: RegistrationOptions, device: str) -> None:
    """What is wrong with the model for all volumes is said once, before any is registered."""
    from .modelfile.catalog import find
    from .modelfile.model import Model, load_model

    keys = options.moving_modality, options.fixed_modality
    if AUTO.key not in keys and not isinstance(options.model, Model):
        load_model(options.model, str(keys[0]), str(keys[1]), device)
    elif isinstance(options.model, (str, os.PathLike)):
        find(options.model)
