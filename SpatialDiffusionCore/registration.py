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
from functools import cached_property, partial
from typing import Callable, Iterator, List, Optional, Sequence

import numpy as np

from . import geometry
from . import modality as modalities
from . import quality as quality_module
from .errors import InputError
from .volume import Volume, prepare, resample, validate

SAMPLERS = ("fast", "reference")

#: Candidates of the search by the network's points that go through the diffusion.
NETWORK_CANDIDATES = 6

#: Largest logarithmic strain of a candidate for refinement, which may find more.
STRAIN = 0.2

#: A refinement that ends so far below the agreement from which the network is trusted is undone, if it agreed before.
LOST = 0.15

#: Similarity below which the answer is also refined by blocks that vote (blocks.py), where the network cannot tell: brains of two
#: people and heads in focus are alike by 0.46 or more, a volume with slabs moved by less.
UNLIKE = 0.45

#: Steps of the fast diffusion (see Schedule.visit): held-out heads end at 0.7 mm after three or four, at 1.1 after two. Of
#: candidates whose likeness decides and which are refined, two steps are enough.
DEFAULT_STEPS, STEPS_BEFORE_REFINING = 3, 2


class Cancelled(Exception):
    """The caller's ``on_step`` asked to stop; nothing was changed."""


@dataclass(frozen=True)
class Step:
    """Where a running registration is: ``index`` of ``count``, a stage for people, and the matrix so far.

    matrix: 4×4 float64, moving → fixed, RAS mm.
    """

    index: int
    count: int
    stage: str
    matrix: np.ndarray


@dataclass
class Registration:
    """The answer.

    matrix: 4×4 float64, **moving → fixed** points in RAS mm ("to parent" in Slicer). Its inverse resamples.
    transform: "rigid", "similarity" or "affine". steps: what happened on the way. modality: what the moving and the fixed volume
    were taken for; recognized: whether by their looks, not because somebody said so. center: the fixed tissue's center,
    RAS mm, about which the decomposition is given.
    """

    matrix: np.ndarray
    transform: str
    steps: List[Step]
    quality: quality_module.Quality
    model: str
    modality: tuple
    recognized: tuple
    sampler: str
    seconds: float
    polished: bool
    center: np.ndarray
    moving: str = ""
    fixed: str = ""
    details: dict = field(default_factory=dict)

    @property
    def decomposition(self) -> geometry.Decomposition:
        """Rotation, translation of the tissue's center, scales and shears."""
        center = geometry.transform_points(np.linalg.inv(self.matrix), self.center[None])[0]
        return geometry.decompose(self.matrix, center)

    def save(self, path, moving: Optional[Volume] = None, fixed: Optional[Volume] = None) -> None:
        """Write the transform; the extension chooses the format (transform_file.py)."""
        from .transform_file import write_transform

        write_transform(self.matrix, path, moving=moving, fixed=fixed)

    def apply(self, volume: Volume, reference, interpolation: str = "linear") -> Volume:
        """``volume`` (anything that moves with the moving volume) on the voxels of ``reference``."""
        return resample(volume, reference, self.matrix, interpolation)

    def kinds(self) -> str:
        """What the volumes were taken for, in words."""
        words = [modalities.get(key).label + (" (recognized)" if seen and key != "any" else "")
                 for key, seen in zip(self.modality, self.recognized)]
        return words[0] if words[0] == words[1] else f"{words[0]} and {words[1]}"

    def report(self) -> dict:
        """Everything as JSON-ready numbers and words."""
        parts = self.decomposition
        return {
            "moving": self.moving,
            "fixed": self.fixed,
            "matrix_moving_to_fixed_ras": self.matrix.tolist(),
            "transform": self.transform,
            "rotation_deg": parts.rotation_deg,
            "rotations_xyz_deg": list(parts.rotations_deg),
            "translation_mm": list(parts.translation_mm),
            "scales_percent": list(parts.scales_percent),
            "shears": list(parts.shears),
            "in_words": parts.text(),
            "quality": self.quality.to_dict(),
            "model": self.model,
            "modality": {"moving": self.modality[0], "fixed": self.modality[1]},
            "recognized": {"moving": self.recognized[0], "fixed": self.recognized[1]},
            "sampler": self.sampler,
            "polished": self.polished,
            "steps": [{"index": s.index, "stage": s.stage} for s in self.steps],
            "seconds": self.seconds,
            **self.details,
        }


# --- options -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Checked settings of a registration; see ``register``."""

    moving_modality: str
    fixed_modality: str
    transform: str
    sampler: Optional[str]
    steps: Optional[int]
    bidirectional: bool
    polish: Optional[bool]
    device: str
    seed: int
    search: object
    init: Optional[np.ndarray]

    @property
    def rotations(self) -> str:
        """Which rotations are possible between the two modalities."""
        both = {modalities.get(key).rotations for key in (self.moving_modality, self.fixed_modality)}
        return both.pop() if len(both) == 1 else "all"

    @property
    def votes(self) -> bool:
        """Whether blocks that vote (blocks.py) may refine: between contrasts self-similarity is the better judge, T1 and FLAIR of
        one person end 2.6 mm off by them instead of 0.6."""
        same = self.moving_modality == self.fixed_modality != "any"
        return same and self.rotations == "all"

    def swapped(self) -> "Options":
        """The same with the two volumes' roles exchanged."""
        return replace(
            self, moving_modality=self.fixed_modality, fixed_modality=self.moving_modality,
            init=None if self.init is None else np.linalg.inv(self.init),
        )


def resolve_device(device: str = "auto") -> str:
    """"auto" → "cuda" where there is one (this process's own under torchrun), else "cpu".

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
    modality, moving_modality, fixed_modality, transform, sampler, steps, bidirectional, polish, device, seed,
    search, init,
) -> Options:
    moving_key = modalities.get(moving_modality or modality, auto=True).key
    fixed_key = modalities.get(fixed_modality or modality, auto=True).key
    if transform not in geometry.TRANSFORM_KINDS:
        raise InputError(f"Unknown transform {transform!r}; choose one of: {', '.join(geometry.TRANSFORM_KINDS)}.")
    if sampler is not None and sampler not in SAMPLERS:
        raise InputError(f"Unknown sampler {sampler!r}; choose one of: {', '.join(SAMPLERS)}.")
    return Options(
        moving_key, fixed_key, transform, sampler, steps, bool(bidirectional),
        None if polish is None else bool(polish), resolve_device(device), int(seed),
        search if search == "network" else bool(search),
        None if init is None else geometry.as_affine(init, "the initial transform"),
    )


def _sampler_of(model) -> str:
    return model.card.get("sampler", "fast")


def _for_model(options: Options, model) -> Options:
    """Settings that depend on the model: the sampler its card names unless one was chosen, and what follows."""
    sampler = options.sampler or _sampler_of(model)
    last = model.timesteps
    if sampler == "reference" and options.steps is not None:
        raise InputError("The reference sampler visits every timestep; leave the number of steps out.")
    if options.steps is not None and not 0 <= options.steps <= last:
        raise InputError(f"The number of steps must be 0 (no diffusion) to {last}, got {options.steps}.")
    polish = sampler == "fast" if options.polish is None else options.polish
    return replace(options, sampler=sampler, polish=polish)


# --- the process -------------------------------------------------------------------------------------------


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
        modality, moving_modality, fixed_modality, transform, sampler, steps, bidirectional, polish, device, seed,
        search, init,
    )
    validate(moving, "moving")
    validate(fixed, "fixed")
    from .focus import both
    from .model import Model, grid_of, load_model

    ready = _Ready(moving, moving_mask, options.device), _fixed or _Ready(fixed, fixed_mask, options.device)
    recognized = tuple(key == modalities.AUTO.key for key in (options.moving_modality, options.fixed_modality))
    options = _recognized(options, model, *ready)
    keys = options.moving_modality, options.fixed_modality
    if not isinstance(model, Model):
        model = load_model(model, *keys, options.device)
    options = _for_model(options, model)
    if grid_of(model.card, keys[0]) != grid_of(model.card, keys[1]):
        raise InputError(f"The model {model.name} sees {keys[0]} and {keys[1]} volumes at different scales, so they "
                         "cannot be registered to each other; give both volumes their true modality.")
    moving_cube, fixed_cube = both(*(one.look(key, model, options.sampler) for one, key in zip(ready, keys)))
    process, swap = _reference, False
    if options.sampler == "fast":
        # The pair is always worked on in the same order, so that register(a, b) and register(b, a) are exact inverses.
        process, swap = _fast, _signature(moving_cube) > _signature(fixed_cube)
    pair, ordered = _Pair(moving_cube, fixed_cube), options
    if swap:
        pair, ordered = _Pair(fixed_cube, moving_cube), options.swapped()
    history: List[Step] = []
    outcome = yield from _recorded(process(pair, model, ordered), history, swap)
    second_to_first, polished, spread, details = outcome
    agreement, way = details.pop("agreement", None), details.pop("way", None)
    # A rigid or similar answer is the one nearest to the affine over the tissue.
    second_to_first = geometry.project(second_to_first, options.transform, *_tissue(pair.fixed))
    matrix = second_to_first if swap else geometry.inverse(second_to_first)
    before = np.eye(4) if ordered.init is None else np.linalg.inv(ordered.init)
    result = Registration(
        matrix=matrix, transform=options.transform, steps=history, quality=quality_module.Quality(
            pair.alike(before), pair.alike(second_to_first), pair.over(second_to_first, moving=swap)[1], spread,
            agreement=agreement, **_told_by(way)), model=model.name,
        modality=keys, recognized=recognized, sampler=options.sampler,
        seconds=0.0, polished=polished, center=fixed_cube.prepared.tissue_center, moving=moving.name,
        fixed=fixed.name, details=details,
    )
    if options.sampler == "fast" and (sides := model.sides_of(*keys)) is not None:
        from .sides import told

        found = told(sides, pair.moving, pair.fixed, second_to_first)
        result.quality.sides = found[::-1] if swap and found else found
    limits = quality_module.SCAN_SPREAD_LIMITS if options.rotations == "depth" else quality_module.SPREAD_LIMITS
    quality_module.judge(result.quality, result.decomposition, limits, model.agreement_from(*keys))
    result.seconds = time.perf_counter() - started
    return result


def _told_by(way) -> dict:
    """What the way round by a template says, as entries of a Quality."""
    return {} if way is None else {"detour_mm": way.mm, "confirmed": True if way.confirms else False if way.contradicts else None}


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
        from .model import load_model
        from .recognition import recognized

        def look(key):
            cube, focused = self.look(key, load_model(None, key, key, self.device), "fast")
            return focused or cube

        return recognized(self.prepared, look, self.device)

    def look(self, key: str, model, sampler: str) -> tuple:
        """It on a model's cube, as it is and in focus (see focus.looked); the published method has no focus."""
        from .cube import placed
        from .focus import looked

        if (key, model.name, sampler) not in self.looks:
            cube = placed(self.prepared, key, model.card, self.device)
            focus = model.focus_on(key) if sampler == "fast" else None
            self.looks[key, model.name, sampler] = looked(cube, focus, self.mask is not None)
        return self.looks[key, model.name, sampler]


def _recognized(options: Options, model, moving: _Ready, fixed: _Ready) -> Options:
    """The options with what the volumes show, where nobody said; a model that was chosen may know no more than some kinds."""
    from .model import Model, find, nearest

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


@dataclass
class _Pair:
    """Two cubes, and how alike they are under fixed → moving RAS transforms, each looked at once."""

    moving: object
    fixed: object
    known: dict = field(default_factory=dict)

    def over(self, world: np.ndarray, moving: bool = False) -> tuple:
        """(similarity, share of the tissue inside the other's field of view) over the fixed, or over the moving tissue."""
        key = np.asarray(world, float).tobytes(), moving
        if key not in self.known:
            self.known[key] = (quality_module.similarity(self.fixed, self.moving, geometry.inverse(world)) if moving
                               else quality_module.similarity(self.moving, self.fixed, world))
        return self.known[key]

    def alike(self, world: np.ndarray) -> float:
        """The similarity over the tissue of the volume that finds more of itself in the other one: a brain without a skull is
        all there in a head, but not the head in the brain."""
        return max(self.over(world)[0], self.over(world, moving=True)[0])


def _to_world(matrix, moving, fixed) -> np.ndarray:
    """A fixed → moving matrix between cube frames (4×4), in RAS."""
    return moving.frame @ np.asarray(matrix, float) @ np.linalg.inv(fixed.frame)


def _to_frames(fixed_to_moving, moving, fixed) -> np.ndarray:
    return np.linalg.inv(moving.frame) @ fixed_to_moving @ fixed.frame


def _theta_to_world(theta, moving, fixed) -> np.ndarray:
    return geometry.theta_to_world(
        theta.detach().cpu().double().numpy(), fixed.grid.normalized_to_ras, moving.grid.normalized_to_ras
    )


def _world_to_theta(fixed_to_moving, moving, fixed, like):
    import torch

    theta = geometry.world_to_theta(fixed_to_moving, fixed.grid.normalized_to_ras, moving.grid.normalized_to_ras)
    return torch.as_tensor(theta, dtype=torch.float32, device=like.device)


def _reference(pair: _Pair, model, options: Options):
    """The published reverse process, whole."""
    from . import diffusion

    moving, fixed = pair.moving, pair.fixed
    denoise = model.denoiser(options.moving_modality, options.fixed_modality)
    schedule = model.schedule(options.fixed_modality)
    start = None
    if options.init is not None:
        start = _world_to_theta(np.linalg.inv(options.init), moving, fixed, moving.values)[None]
    if options.bidirectional:
        back = model.denoiser(options.fixed_modality, options.moving_modality)
        steps = diffusion.reverse_bidirectional(denoise, back, fixed.values, moving.values, schedule, start=start)
    else:
        steps = diffusion.reverse(denoise, fixed.values, moving.values, schedule, start=start)
    extra = 1 if options.polish else 0
    for step in steps:
        world = _theta_to_world(step.theta[0], moving, fixed)
        yield Step(step.index, step.count + extra, "Diffusion", geometry.inverse(world))
    polished = False
    if options.polish:
        world, polished = _polish(pair, world, options)
        yield Step(step.count + 1, step.count + 1, "Refining", geometry.inverse(world))
    return world, polished, None, {}


def _fast(pair: _Pair, model, options: Options):
    """Search the pose, diffuse the best candidates, refine the best, and see whether repeated runs agree.

    Where the volumes are not alike enough in the end or repeated runs disagree, and the network, where it can tell, does not
    agree either, search once more: wider, and by what the network finds to correspond.
    """
    from . import blocks, search
    from .model import templates
    from .sides import way_round

    moving, fixed = pair.moving, pair.fixed
    deep = model.card.get("steps", DEFAULT_STEPS) if options.steps is None else options.steps
    places = model.correspondences(options.moving_modality, options.fixed_modality) if deep else None
    least = model.agreement_from(options.moving_modality, options.fixed_modality) if places is not None else None
    brief = options.steps is None and options.polish and options.search is True and least is None
    count = min(deep, STEPS_BEFORE_REFINING) if brief else deep
    total = 2 + count + (1 if options.polish else 0)
    candidates, seen, header = _candidates(moving, fixed, model, options, places, least)
    yield Step(1, total, "Searching the pose", geometry.inverse(candidates[0]))
    worlds = candidates
    if count:
        for index, worlds in _diffused(moving, seen, model, options, candidates, count):
            yield Step(1 + index, total, "Diffusion", geometry.inverse(worlds[0]))
        if options.polish and options.init is None:
            worlds = _plausible(worlds, fixed)
    world, details = worlds[0], {"candidates": len(candidates)}
    if options.search == "network" and options.init is None:
        world = worlds[int(search.agreements(moving, seen, worlds, places).argmax())]
    elif options.search or options.polish:
        # The candidates compete as they were and as the diffusion left them: it may make none of them worse.
        everything = worlds + candidates if count else candidates
        frames = [_to_frames(w, moving, fixed) for w in everything]
        best = search.rank(moving, fixed, frames, options.rotations).best
        world, details["best"] = everything[best], "diffusion" if count and best < len(worlds) else "search"

    def agreement(world):
        return None if least is None else search.agreement(moving, fixed, world, places)

    def refined(world, enough=5.0):
        """(world, whether refined, agreement): undone where the network agreed before, and by far does not after."""
        world = geometry.project(world, options.transform, *_tissue(fixed))
        found, changed = _polish(pair, world, options, enough)
        agreed = agreement(found)
        if changed and least is not None and agreed < least - LOST:
            before = agreement(world)
            if before >= least:
                return world, False, before
        return found, changed, agreed

    voting = options.votes and least is None

    def voted(world, polished, agreed):
        """The same, refined by blocks that vote, too, where that may help and does."""
        alike = pair.alike(world)
        if not voting or alike >= UNLIKE:
            return world, polished, agreed
        found, _, word = refined(blocks.refine(moving, fixed, world, options.transform), 1.0)
        return (found, True, word) if pair.alike(found) > alike else (world, polished, agreed)

    def way_to(world):
        """The way round by the template that fits best, where volumes are not very alike; None where none fits. Whatever the
        contrast: a template may be more like both volumes than they are like each other."""
        if options.rotations != "all" or least is not None or pair.alike(world) >= UNLIKE:
            return None
        ways = [way_round(sides, moving, fixed, world) for _, sides in templates(options.device)]
        return max((way for way in ways if way is not None), key=lambda way: way.alike, default=None)

    def spread_of(world):
        return search.spread(moving, fixed, world, options.transform, options.seed, options.rotations)

    answer, way = (world, False, None), None
    may_go_on = options.polish and options.init is None and options.search is True and options.rotations == "all"
    if options.polish:
        answer = refined(world)
        if header is not None and answer[2] < least:
            other = refined(header)
            if other[2] > answer[2]:
                answer, details["best"] = other, "network"
        way = way_to(answer[0])
        convincing = (not may_go_on or pair.alike(answer[0]) >= quality_module.CONVINCING
                      or way is not None and way.confirms)
        # Blocks find something alike near a wrong answer, too, so they are not asked before that is known to be near.
        if convincing:
            before, answer = answer[0], voted(*answer)
            way = way if answer[0] is before else way_to(answer[0])
        yield Step(2 + count, total, "Refining", geometry.inverse(answer[0]))
    world, _, agreed = answer
    spread = spread_of(world)
    if may_go_on:
        # Where volumes are hardly alike, the network's agreement counts for nothing.
        word = None if least is None else agreed if pair.alike(world) >= quality_module.SIMILARITY_LIMITS[0] else 0.0
        trusted = least is not None and word >= least
        disagree = spread is not None and spread > quality_module.DISAGREEING
        astray = way is not None and way.contradicts
        if (disagree or astray or not convincing) and not trusted:
            further = _search_further(moving, fixed, model, options, places, deep, total, least, world, voting)
            (better, found), total = yield from further
            if better > (search.likeness(moving, fixed, world) if least is None else word):
                answer, details["best"] = refined(found, 1.0), "wider search"
            elif not convincing:
                answer = voted(*answer)
            spread, way = spread_of(answer[0]), way_to(answer[0])
    world, polished, agreed = answer
    details.update(agreement=agreement(world) if agreed is None else agreed, way=way)
    yield Step(total, total, "Checking", geometry.inverse(world))
    return world, polished, spread, details


def _candidates(moving, fixed, model, options: Options, places, least: Optional[float]):
    """(fixed → moving RAS transforms to begin from, the fixed cube as the network is to see it, the network's pose if both
    headers are about right, or None where it is not known to be good)."""
    from . import search

    if options.init is not None:
        return [np.linalg.inv(options.init)], fixed, None
    if options.search == "network":
        if places is None:
            raise InputError(f"The model {model.name} finds no corresponding places, or no steps were asked for; "
                             "leave the search to the similarity.")
        poses, seen = search.network_poses(moving, fixed, places, keep=NETWORK_CANDIDATES)
        return [_to_world(m, moving, fixed) for m in poses], seen, None
    if not options.search:
        centers = moving.prepared.tissue_center - fixed.prepared.tissue_center
        return [geometry.from_parts(np.eye(3), centers)], fixed, None
    poses = search.poses(moving, fixed, options.seed, rotations=options.rotations)
    candidates, header = [_to_world(m, moving, fixed) for m in poses], None
    if least is not None:
        poses, _ = search.network_poses(moving, fixed, places, keep=1, turned="neither")
        header = _to_world(poses[0], moving, fixed)
        candidates.append(header)
    return candidates, fixed, header


def _diffused(moving, fixed, model, options: Options, candidates, count: int):
    """Yield (index, worlds) after each of ``count`` steps of the diffusion from all candidates at once."""
    import torch

    from . import diffusion

    denoise = model.denoiser(options.moving_modality, options.fixed_modality)
    start = torch.stack([_world_to_theta(c, moving, fixed, moving.values) for c in candidates])
    batch = (len(candidates), -1, -1, -1, -1)
    schedule = model.schedule(options.fixed_modality)
    for step in diffusion.reverse(denoise, fixed.values.expand(batch), moving.values.expand(batch), schedule,
                                  steps=count, start=start):
        yield step.index, [_theta_to_world(theta, moving, fixed) for theta in step.theta]


def _plausible(worlds, fixed) -> list:
    """Candidates without more strain than ``STRAIN``: squeezed, a volume is alike to what is left of the other."""
    return [geometry.limit_strain(world, STRAIN, fixed.prepared.tissue_center) for world in worlds]


def _search_further(moving, fixed, model, options: Options, places, count: int, total: int, least: Optional[float],
                    world: np.ndarray, voting: bool):
    """Many more candidates, compared by self-similarity: those of correlation and, where these do not convince, the
    network's own. Where the network can tell a right answer (``least`` is its agreement from there) its own come first,
    the likest of them is enough if the network agrees with it, and the answers are compared by its agreement; where it
    cannot, ``world``, the answer so far, is a candidate, too, and the first that is alike enough ends the search.

    Returns ((likeness or agreement, fixed → moving RAS), steps in all).
    """
    from . import search

    def wide():
        poses = [_to_world(m, moving, fixed) for m in search.wide_poses(moving, fixed, options.seed)]
        return poses if least is not None else [world, *poses]

    def network(turned):
        poses, upright = search.network_poses(moving, fixed, places, turned=turned)
        return [_to_world(m, moving, fixed) for m in poses], upright

    def led_in(candidates, upright):
        for _, worlds in _diffused(moving, upright, model, options, candidates[:NETWORK_CANDIDATES], count):
            pass
        return candidates + _plausible(worlds, fixed)

    def by_network(turned):
        return led_in(*network(turned))

    def agreed(world):
        return search.agreement(moving, fixed, world, places), world

    stage, index, best = "Searching further", total - 1, None
    kinds = ("moving", "fixed") if least is not None else ("either",) if places is not None else ()
    voted, enough = search.VOTED if voting else 0, UNLIKE if least is None else np.inf
    of_network, rest = search.WIDE_CANDIDATES + NETWORK_CANDIDATES, search.SECOND + voted + 2
    total += 2 * search.WIDE_CANDIDATES + rest + len(kinds) * (of_network + rest + 1)
    if least is None:
        sources = [wide, *(partial(by_network, turned) for turned in kinds)]
    else:
        seen = []
        for turned in kinds:
            found = network(turned)
            first = agreed(found[0][0])
            seen.append((first[0], found))
            index += 1
            yield Step(index, total, stage, geometry.inverse(first[1]))
            if first[0] >= least:
                return first, total
        seen.sort(key=lambda pair: -pair[0])
        sources = [*(partial(led_in, *found) for _, found in seen), wide]
    for source in sources:
        candidates = source()
        index += 1
        yield Step(index, total, stage, geometry.inverse(candidates[0]))
        for found in search.settle(moving, fixed, candidates, options.transform, options.seed, voted, enough):
            index += 1
            yield Step(index, total, stage, geometry.inverse(found[1]))
        if least is not None:
            # The first pose, too: where volumes have little in common, the refinement of the network's leads away from it.
            found = max(agreed(found[1]), agreed(candidates[0]), key=lambda pair: pair[0])
        best = found if best is None else max(best, found, key=lambda pair: pair[0])
        if best[0] >= (search.DOUBTFUL if least is None else least):
            break
    return best, total


def _tissue(cube) -> tuple:
    """Mean (3, RAS mm) and covariance (3×3) of a cube's tissue."""
    return cube.prepared.tissue_center, cube.prepared.tissue_covariance


def _polish(pair: _Pair, world: np.ndarray, options: Options, enough: float = 5.0):
    """(fixed → moving RAS, whether it changed): local refinement, undone where it makes the volumes less alike.

    Repeated, at most three times more, while it still moves the tissue by more than ``enough`` mm (RMS).
    """
    from . import enface
    from .polish import polish

    moving, fixed = pair.moving, pair.fixed
    # The refinement only adds a transform of its kind, so what it starts from must be of that kind, too.
    tissue = _tissue(fixed)
    start = refined = geometry.project(world, options.transform, *tissue)
    if options.rotations == "depth":
        refined = geometry.project(enface.refine(moving, fixed, start, seed=options.seed), options.transform, *tissue)
        before, after = enface.agreement(moving, fixed, [start, refined], seed=options.seed)
        return (refined, True) if after >= before else (start, False)
    for _ in range(4):
        before, refined = refined, polish(moving, fixed, refined, kind=options.transform, seed=options.seed)
        if geometry.displacement_rms(before, refined, *tissue) <= enough:
            break
    better = pair.over(refined)[0] >= pair.over(start)[0]
    return (refined, True) if better else (start, False)


# --- what callers use --------------------------------------------------------------------------------------


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
    - search: look for the pose among all rotations first, by the volumes' similarity (True, default) or only by the
      network's own feature points ("network"); False begins where the tissue's centers meet.
    - bidirectional: with "reference", run both directions and combine them.
    - polish: refine by local self-similarity at the end (default: in "fast" only).
    - device: "auto", "cpu", "cuda", "cuda:N" or "mps". seed: of the points drawn.
    - init: 4×4 moving → fixed RAS to start from; no other pose is searched then.
    - moving_mask, fixed_mask: Volumes that are not 0 where the tissue matters.
    - on_step: called with every Step; it may raise, or return False, to stop.

    The same input and seed give the same output. Returns a Registration. Raises InputError (one sentence) before any
    work where the input cannot be used, and Cancelled where ``on_step`` asked to stop.
    """
    process = registration_steps(moving, fixed, **options)
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


def register_many(
    movings: Sequence, fixed: Volume, *, on_step=None, on_result=None, **options
) -> List[Registration]:
    """Register many moving volumes to one fixed one; the model and the fixed volume are made ready once.

    movings: Volumes, or functions that return one (so that a long list need not be in memory). Under ``torchrun``
    each process takes its share of the list. on_result(index, Registration or InputError) is called after each; if
    it is given, a volume that cannot be used does not stop the others and is left out of the list returned.
    """
    from .model import Model, find, load_model

    device, model = resolve_device(options.get("device", "auto")), options.get("model")
    keys = [modalities.get(options.get(name) or options.get("modality", "auto"), auto=True).key
            for name in ("moving_modality", "fixed_modality")]
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
