"""Registration: two volumes in, the transform that lays the moving one on the fixed one out.

``sampler="reference"`` is the published method: every timestep of the diffusion from where the volumes lie, nothing
else. ``sampler="fast"`` looks for the pose among all rotations, lets the diffusion pull the best candidates in with
a few steps, and refines the best of them by intensities.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Callable, Iterator, List, Optional, Sequence

import numpy as np

from . import modality as modalities
from .errors import InputError
from .modelfile import catalog
from .options import Options
from .pipeline import confidence as quality_module
from .pipeline.pair import Pair, Step
from .pipeline.reference import reference
from .pipeline.stages import fast
from .result import Registration
from .spatial import geometry
from .spatial.sampling import prepare
from .spatial.volume import Volume, validate

SAMPLERS = ("fast", "reference")


class Cancelled(Exception):
    """The caller's ``on_step`` asked to stop; nothing was changed."""


def resolve_device(device: str = "auto") -> str:
    """ "auto" → "cuda" where there is one (this process's own under torchrun), else "cpu".

    Raises InputError for a device that is not there.
    """
    import torch

    device = str(device)
    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        local = os.environ.get("LOCAL_RANK")
        return "cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()) or (index and kind != "cuda"):
        raise InputError(f"Unknown device {device!r}; choose auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError("There is no CUDA device here (or PyTorch was built without CUDA); use device cpu.")
        if index and int(index) >= torch.cuda.device_count():
            raise InputError(f"There is no {device}; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("There is no MPS device here; use device cpu.")
    return device


def _options(
    modality,
    moving_modality,
    fixed_modality,
    transform,
    sampler,
    steps,
    bidirectional,
    polish,
    device,
    seed,
    search,
    init,
) -> Options:
    moving_key = catalog.get(moving_modality or modality, auto=True).key
    fixed_key = catalog.get(fixed_modality or modality, auto=True).key
    if transform not in geometry.TRANSFORM_KINDS:
        raise InputError(f"Unknown transform {transform!r}; choose one of: {', '.join(geometry.TRANSFORM_KINDS)}.")
    if sampler is not None and sampler not in SAMPLERS:
        raise InputError(f"Unknown sampler {sampler!r}; choose one of: {', '.join(SAMPLERS)}.")
    return Options(
        moving_key,
        fixed_key,
        transform,
        sampler,
        steps,
        bool(bidirectional),
        None if polish is None else bool(polish),
        resolve_device(device),
        int(seed),
        search if search in ("network", "screen") else bool(search),
        None if init is None else geometry.as_affine(init, "the initial transform"),
    )


def _for_model(options: Options, model) -> Options:
    """Settings that depend on the model: the sampler its card names unless one was chosen, and what follows."""
    sampler = options.sampler or model.card.get("sampler", "fast")
    last = model.timesteps
    if sampler == "reference" and options.steps is not None:
        raise InputError("The reference sampler visits every timestep; leave the number of steps out.")
    if options.steps is not None and not 0 <= options.steps <= last:
        raise InputError(f"The number of steps must be 0 (no diffusion) to {last}, got {options.steps}.")
    polish = sampler == "fast" if options.polish is None else options.polish
    return replace(options, sampler=sampler, polish=polish)


def registration_steps(
    moving: Volume,
    fixed: Volume,
    *,
    modality: str = "auto",
    moving_modality: Optional[str] = None,
    fixed_modality: Optional[str] = None,
    transform: str = "affine",
    model=None,
    sampler: Optional[str] = None,
    steps: Optional[int] = None,
    bidirectional: Optional[bool] = None,
    polish: Optional[bool] = None,
    device: str = "auto",
    seed: int = 0,
    search=True,
    init=None,
    moving_mask: Optional[Volume] = None,
    fixed_mask: Optional[Volume] = None,
    _fixed=None,
) -> Iterator[Step]:
    """Register step by step: yields a Step after each, and returns the Registration (``StopIteration.value``).

    Arguments as in ``register``. All input is checked before the first step.
    """
    started = time.perf_counter()
    options = _options(
        modality,
        moving_modality,
        fixed_modality,
        transform,
        sampler,
        steps,
        bidirectional,
        polish,
        device,
        seed,
        search,
        init,
    )
    validate(moving, "moving")
    validate(fixed, "fixed")
    from .modelfile.card import grid_of
    from .modelfile.model import Model, load_model
    from .modelfile.model_cube import both

    ready = _Ready(moving, moving_mask, options.device), _fixed or _Ready(fixed, fixed_mask, options.device)
    recognized = tuple(key == modalities.AUTO.key for key in (options.moving_modality, options.fixed_modality))
    options = _recognized(options, model, *ready)
    keys = options.moving_modality, options.fixed_modality
    if not isinstance(model, Model):
        model = load_model(model, *keys, options.device)
    options = _for_model(options, model)
    if grid_of(model.card, keys[0]) != grid_of(model.card, keys[1]):
        raise InputError(
            f"The model {model.name} sees {keys[0]} and {keys[1]} volumes at different scales, so they "
            "cannot be registered to each other; give both volumes their true modality."
        )
    moving_cube, fixed_cube = both(*(one.look(key, model, options.sampler) for one, key in zip(ready, keys)))
    process, swap = reference, False
    if options.sampler == "fast":
        # The pair is always worked on in the same order, so that register(a, b) and register(b, a) are exact inverses.
        process, swap = fast, _signature(moving_cube) > _signature(fixed_cube)
    pair, ordered = Pair(moving_cube, fixed_cube), options
    if swap:
        pair, ordered = Pair(fixed_cube, moving_cube), options.swapped()
    history: List[Step] = []
    outcome = yield from _recorded(process(pair, model, ordered), history, swap)
    # A rigid or similar answer is the one nearest to the affine over the tissue.
    second_to_first = geometry.project(outcome.world, options.transform, *pair.tissue)
    matrix = second_to_first if swap else geometry.inverse(second_to_first)
    before = np.eye(4) if ordered.init is None else np.linalg.inv(ordered.init)
    result = Registration(
        matrix=matrix,
        transform=options.transform,
        steps=history,
        quality=quality_module.Quality(
            pair.alike(before),
            pair.alike(second_to_first),
            pair.over(second_to_first, moving=swap)[1],
            outcome.spread,
            agreement=outcome.agreement,
            **_told_by(outcome.way),
        ),
        model=model.name,
        modality=keys,
        recognized=recognized,
        sampler=options.sampler,
        seconds=0.0,
        polished=outcome.polished,
        center=fixed_cube.prepared.tissue_center,
        moving=moving.name,
        fixed=fixed.name,
        details=outcome.details,
    )
    if options.sampler == "fast" and (sides := model.sides_of(*keys)) is not None:
        from .pipeline.template_check import told

        found = told(sides, pair.moving, pair.fixed, second_to_first)
        result.quality.sides = found[::-1] if swap and found else found
    limits = quality_module.SCAN_SPREAD_LIMITS if options.rotations == "depth" else quality_module.SPREAD_LIMITS
    quality_module.judge(result.quality, result.decomposition, limits, model.agreement_from(*keys))
    result.seconds = time.perf_counter() - started
    return result


def _told_by(way) -> dict:
    """What the way round by a template says, as entries of a Quality."""
    return (
        {}
        if way is None
        else {"detour_mm": way.mm, "confirmed": True if way.confirms else False if way.contradicts else None}
    )


@dataclass
class _Ready:
    """A volume of a registration; what takes time is done once, also for many registrations to it."""

    volume: Volume
    mask: Optional[Volume]
    device: str
    looks: dict = field(default_factory=dict)

    @cached_property
    def prepared(self):
        return prepare(self.volume, self.mask)

    @cached_property
    def modality(self) -> str:
        """What it shows by its looks."""
        from .modelfile.model import load_model
        from .strategies.recognition import recognized

        def look(key):
            cube, focused = self.look(key, load_model(None, key, key, self.device), "fast")
            return focused or cube

        return recognized(self.prepared, look, self.device)

    def look(self, key: str, model, sampler: str) -> tuple:
        """It on a model's cube, as it is and in focus (see focus.looked); the published method has no focus."""
        from .modelfile.model_cube import looked, placed

        if (key, model.name, sampler) not in self.looks:
            cube = placed(self.prepared, key, model.card, self.device)
            focus = model.focus_on(key) if sampler == "fast" else None
            self.looks[key, model.name, sampler] = looked(cube, focus, self.mask is not None)
        return self.looks[key, model.name, sampler]


def _recognized(options: Options, model, moving: _Ready, fixed: _Ready) -> Options:
    """The options with what the volumes show, where nobody said; a model that was chosen may know no more than some kinds."""
    from .modelfile.card import nearest
    from .modelfile.catalog import find
    from .modelfile.model import Model

    card = None if model is None else model.card if isinstance(model, Model) else find(model)[1]
    keys = []
    for key, volume in ((options.moving_modality, moving), (options.fixed_modality, fixed)):
        if key == modalities.AUTO.key:
            key = volume.modality if card is None else nearest(volume.modality, card)
        keys.append(key)
    return replace(options, moving_modality=keys[0], fixed_modality=keys[1])


def _recorded(process, history, swap: bool):
    """Pass a process's steps on, inverted if it works on the pair the other way round, and keep them."""
    while True:
        try:
            step = next(process)
        except StopIteration as end:
            return end.value
        if swap:
            step = replace(step, matrix=geometry.inverse(step.matrix))
        history.append(step)
        yield step


def _signature(cube) -> bytes:
    """What orders a pair: depends on the volume's content alone, not on its role."""
    digest = hashlib.blake2b(cube.values.cpu().numpy().tobytes(), digest_size=16)
    digest.update(np.round(cube.grid.voxel_to_ras, 6).tobytes())
    return digest.digest()


def register(
    moving: Volume,
    fixed: Volume,
    *,
    on_step: Optional[Callable[[Step], Optional[bool]]] = None,
    **options,
) -> Registration:
    """Find the transform that lays ``moving`` on ``fixed``.

    Options (all by keyword):

    - modality: what both volumes are (modality.MODALITIES), or moving_modality and fixed_modality each; "auto" (default)
      recognizes what is registered in a way of its own (recognition.py) and takes everything else for "any".
    - transform: "rigid", "similarity" or "affine" (default).
    - model: name or file of a trained model (default: one for the modality).
    - sampler: "fast" (default) or "reference", the published 65 steps and nothing else (default of imported models).
    - steps: diffusion steps of "fast" (default: the model's own, or 3; 2 where similarity judges and refines what follows); 0
      leaves the network out.
    - search: look for the pose among all rotations first, by the volumes' similarity (True, default), the same without
      going on where the answer is doubtful ("screen"), or only by the network's own feature points ("network"); False begins
      where the tissue's centers meet.
    - bidirectional: with "reference", run both directions and combine them.
    - polish: refine by local self-similarity at the end (default: in "fast" only).
    - device: "auto", "cpu", "cuda", "cuda:N" or "mps". seed: of the points drawn.
    - init: 4×4 moving → fixed RAS to start from; no other pose is searched then.
    - moving_mask, fixed_mask: Volumes that are not 0 where the tissue matters.
    - on_step: called with every Step; it may raise, or return False, to stop.

    The same input and seed give the same output. Returns a Registration. Raises InputError (one sentence) before any
    work where the input cannot be used, and Cancelled where ``on_step`` asked to stop.
    """
    return run_steps(registration_steps(moving, fixed, **options), on_step)


def run_steps(process, on_step: Optional[Callable[[Step], Optional[bool]]] = None):
    """Run a generator of Steps to its end and return its value; raises Cancelled where ``on_step`` returns False."""
    while True:
        try:
            step = next(process)
        except StopIteration as end:
            return end.value
        if on_step is not None and on_step(step) is False:
            process.close()
            raise Cancelled("The registration was cancelled.")


def share_of_rank(items: Sequence) -> list:
    """The part of a list that falls to this process under torchrun (RANK of WORLD_SIZE); all of it otherwise."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return list(items)[rank::world]


def register_many(movings: Sequence, fixed: Volume, *, on_step=None, on_result=None, **options) -> List[Registration]:
    """Register many moving volumes to one fixed one; the model and the fixed volume are made ready once.

    movings: Volumes, or functions that return one (so that a long list need not be in memory). Under ``torchrun``
    each process takes its share of the list. on_result(index, Registration or InputError) is called after each; if
    it is given, a volume that cannot be used does not stop the others and is left out of the list returned.
    """
    from .modelfile.catalog import find
    from .modelfile.model import Model, load_model

    device, model = resolve_device(options.get("device", "auto")), options.get("model")
    keys = [
        catalog.get(options.get(name) or options.get("modality", "auto"), auto=True).key
        for name in ("moving_modality", "fixed_modality")
    ]
    # What is wrong for all of them is said once.
    if modalities.AUTO.key not in keys and not isinstance(model, Model):
        load_model(model, *keys, device)
    elif isinstance(model, (str, os.PathLike)):
        find(model)
    validate(fixed, "fixed")
    ready = _Ready(fixed, options.get("fixed_mask"), device)
    results = []
    for index in share_of_rank(range(len(movings))):
        moving = movings[index]
        try:
            moving = moving() if callable(moving) else moving
            result = register(moving, fixed, _fixed=ready, on_step=on_step, **options)
        except InputError as error:
            if on_result is None:
                raise
            on_result(index, error)
            continue
        results.append(result)
        if on_result is not None:
            on_result(index, result)
    return results
