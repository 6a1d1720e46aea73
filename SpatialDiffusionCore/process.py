"""The two ways in which a pair of volumes is registered: the published reverse process, and the fast one around it.

Both yield a Step after each step and return an Outcome. Transforms here map the fixed to the moving volume, RAS mm.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Optional

import numpy as np

from . import geometry
from . import modality as modalities
from . import quality as quality_module
from .errors import InputError

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


@dataclass(frozen=True)
class Step:
    """Where a running registration is: ``index`` of ``count``, a stage for people, and the matrix so far.

    matrix: 4×4 float64, moving → fixed, RAS mm.
    """

    index: int
    count: int
    stage: str
    matrix: np.ndarray


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


@dataclass
class Pair:
    """Two Cubes, and how alike they are under transforms, each looked at once."""

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

    @property
    def tissue(self) -> tuple:
        """Mean (3, RAS mm) and covariance (3×3) of the fixed tissue."""
        return self.fixed.prepared.tissue_center, self.fixed.prepared.tissue_covariance

    def plausible(self, worlds) -> list:
        """Candidates without more strain than ``STRAIN``: squeezed, a volume is alike to what is left of the other."""
        return [geometry.limit_strain(world, STRAIN, self.fixed.prepared.tissue_center) for world in worlds]

    # From RAS to what others work in, and back.

    def to_world(self, matrix) -> np.ndarray:
        """A transform between cube frames (4×4)."""
        return self.moving.frame @ np.asarray(matrix, float) @ np.linalg.inv(self.fixed.frame)

    def to_frames(self, world) -> np.ndarray:
        """The opposite."""
        return np.linalg.inv(self.moving.frame) @ world @ self.fixed.frame

    def from_theta(self, theta) -> np.ndarray:
        """A transform between the cubes' normalized coordinates (3×4)."""
        return geometry.theta_to_world(
            theta.detach().cpu().double().numpy(), self.fixed.grid.normalized_to_ras, self.moving.grid.normalized_to_ras
        )

    def to_theta(self, world):
        """The opposite, float32 on the volumes' device."""
        import torch

        theta = geometry.world_to_theta(world, self.fixed.grid.normalized_to_ras, self.moving.grid.normalized_to_ras)
        return torch.as_tensor(theta, dtype=torch.float32, device=self.moving.values.device)


@dataclass
class Outcome:
    """What a process found: the transform, whether refinement changed it, mm between repeated runs, how far the network agrees,
    the way round by a template (sides.Way); the last three None where nobody asked. details: for the report."""

    world: np.ndarray
    polished: bool
    spread: Optional[float] = None
    agreement: Optional[float] = None
    way: object = None
    details: dict = field(default_factory=dict)


def reference(pair: Pair, model, options: Options):
    """The published reverse process, whole."""
    from . import diffusion

    moving, fixed = pair.moving, pair.fixed
    denoise = model.denoiser(options.moving_modality, options.fixed_modality)
    schedule = model.schedule(options.fixed_modality)
    start = None if options.init is None else pair.to_theta(np.linalg.inv(options.init))[None]
    if options.bidirectional:
        back = model.denoiser(options.fixed_modality, options.moving_modality)
        steps = diffusion.reverse_bidirectional(denoise, back, fixed.values, moving.values, schedule, start=start)
    else:
        steps = diffusion.reverse(denoise, fixed.values, moving.values, schedule, start=start)
    extra = 1 if options.polish else 0
    for step in steps:
        world = pair.from_theta(step.theta[0])
        yield Step(step.index, step.count + extra, "Diffusion", geometry.inverse(world))
    polished = False
    if options.polish:
        world, polished = refined(pair, world, options)
        yield Step(step.count + 1, step.count + 1, "Refining", geometry.inverse(world))
    return Outcome(world, polished)


def fast(pair: Pair, model, options: Options):
    """Search the pose, diffuse the best candidates, refine the best, and see whether repeated runs agree.

    Where the volumes are not alike enough in the end or repeated runs disagree, and neither the network, where it can tell, nor the
    way round by a template confirms the answer, search once more: wider, and by what the network finds to correspond.
    """
    return (yield from _Fast(pair, model, options).steps())


@dataclass
class _Answer:
    """A transform, whether refinement changed it, and how far the network agrees (None where it cannot tell)."""

    world: np.ndarray
    polished: bool = False
    agreed: Optional[float] = None


class _Fast:
    """One registration of the fast process."""

    def __init__(self, pair: Pair, model, options: Options):
        self.pair, self.model, self.options = pair, model, options
        keys = options.moving_modality, options.fixed_modality
        #: Steps of the diffusion; what the network finds to correspond; from which agreement on it is right (None: cannot tell).
        self.deep = model.card.get("steps", DEFAULT_STEPS) if options.steps is None else options.steps
        self.places = model.correspondences(*keys) if self.deep else None
        self.least = model.agreement_from(*keys) if self.places is not None else None
        #: Whether blocks may vote, and whether the search may go on.
        self.voting = options.votes and self.least is None and options.search != "screen"
        self.may_go_on = options.polish and options.init is None and options.search is True and options.rotations == "all"
        self.details = {}

    def steps(self):
        pair, options = self.pair, self.options
        brief = options.steps is None and options.polish and options.search in (True, "screen") and self.least is None
        count = min(self.deep, STEPS_BEFORE_REFINING) if brief else self.deep
        total = 2 + count + (1 if options.polish else 0)
        candidates, upright, header = self.candidates()
        yield Step(1, total, "Searching the pose", geometry.inverse(candidates[0]))
        worlds = candidates
        if count:
            for index, worlds in self.diffused(candidates, upright, count):
                yield Step(1 + index, total, "Diffusion", geometry.inverse(worlds[0]))
            if options.polish and options.init is None:
                worlds = pair.plausible(worlds)
        self.details["candidates"] = len(candidates)
        answer, way = _Answer(self.best(worlds, candidates, upright, count)), None
        if options.polish:
            answer = self.refined(answer.world)
            if header is not None and answer.agreed < self.least:
                other = self.refined(header)
                if other.agreed > answer.agreed:
                    answer, self.details["best"] = other, "network"
            way = self.way_to(answer.world)
            convincing = (not self.may_go_on or pair.alike(answer.world) >= quality_module.CONVINCING
                          or way is not None and way.confirms)
            # Blocks find something alike near a wrong answer, too, so they are not asked before that is known to be near.
            if convincing:
                before, answer = answer, self.voted(answer)
                way = way if answer is before else self.way_to(answer.world)
            yield Step(2 + count, total, "Refining", geometry.inverse(answer.world))
        spread = self.spread(answer.world)
        if self.may_go_on:
            # Where volumes are hardly alike, the network's agreement counts for nothing.
            word = (None if self.least is None else answer.agreed
                    if pair.alike(answer.world) >= quality_module.SIMILARITY_LIMITS[0] else 0.0)
            trusted = self.least is not None and word >= self.least
            disagree = spread is not None and spread > quality_module.DISAGREEING
            astray = way is not None and way.contradicts
            if (disagree or astray or not convincing) and not trusted:
                (better, found), total = yield from self.further(answer.world, total)
                if better > (self.likeness(answer.world) if self.least is None else word):
                    answer, self.details["best"] = self.refined(found, 1.0), "wider search"
                elif not convincing:
                    answer = self.voted(answer)
                spread, way = self.spread(answer.world), self.way_to(answer.world)
        agreed = self.agreement(answer.world) if answer.agreed is None else answer.agreed
        yield Step(total, total, "Checking", geometry.inverse(answer.world))
        return Outcome(answer.world, answer.polished, spread, agreed, way, self.details)

    # Where to begin

    def candidates(self) -> tuple:
        """(transforms to begin from, the fixed cube as the network is to see it, the network's pose if both headers are about
        right, or None where it is not known to be good)."""
        from . import search

        pair, options = self.pair, self.options
        moving, fixed = pair.moving, pair.fixed
        if options.init is not None:
            return [np.linalg.inv(options.init)], fixed, None
        if options.search == "network":
            if self.places is None:
                raise InputError(f"The model {self.model.name} finds no corresponding places, or no steps were asked for; "
                                 "leave the search to the similarity.")
            return (*self.network_poses(keep=NETWORK_CANDIDATES), None)
        if not options.search:
            centers = moving.prepared.tissue_center - fixed.prepared.tissue_center
            return [geometry.from_parts(np.eye(3), centers)], fixed, None
        poses = search.poses(moving, fixed, options.seed, rotations=options.rotations)
        candidates, header = [pair.to_world(m) for m in poses], None
        if self.least is not None:
            (header,), _ = self.network_poses(keep=1, turned="neither")
            candidates.append(header)
        return candidates, fixed, header

    def network_poses(self, **more) -> tuple:
        """(transforms, the fixed cube upright): see search.network_poses."""
        from . import search

        poses, upright = search.network_poses(self.pair.moving, self.pair.fixed, self.places, **more)
        return [self.pair.to_world(m) for m in poses], upright

    def diffused(self, candidates, upright, count: int):
        """Yield (index, transforms) after each of ``count`` steps of the diffusion from all candidates at once. upright: the
        fixed cube as the network is to see it."""
        import torch

        from . import diffusion

        pair = Pair(self.pair.moving, upright)
        denoise = self.model.denoiser(self.options.moving_modality, self.options.fixed_modality)
        start = torch.stack([pair.to_theta(c) for c in candidates])
        batch = (len(candidates), -1, -1, -1, -1)
        schedule = self.model.schedule(self.options.fixed_modality)
        for step in diffusion.reverse(denoise, upright.values.expand(batch), pair.moving.values.expand(batch), schedule,
                                      steps=count, start=start):
            yield step.index, [pair.from_theta(theta) for theta in step.theta]

    def best(self, worlds, candidates, upright, count: int) -> np.ndarray:
        """The best of what ``count`` steps of the diffusion made of the candidates, and of these."""
        from . import search

        pair, options = self.pair, self.options
        if options.search == "network" and options.init is None:
            return worlds[int(search.agreements(pair.moving, upright, worlds, self.places).argmax())]
        if not (options.search or options.polish):
            return worlds[0]
        # The candidates compete as they were and as the diffusion left them: it may make none of them worse.
        everything = worlds + candidates if count else candidates
        frames = [pair.to_frames(w) for w in everything]
        best = search.rank(pair.moving, pair.fixed, frames, options.rotations).best
        self.details["best"] = "diffusion" if count and best < len(worlds) else "search"
        return everything[best]

    # Better answers

    def refined(self, world: np.ndarray, enough: float = 5.0) -> _Answer:
        """Undone where the network agreed before, and by far does not after."""
        world = geometry.project(world, self.options.transform, *self.pair.tissue)
        found, changed = refined(self.pair, world, self.options, enough)
        agreed = self.agreement(found)
        if changed and self.least is not None and agreed < self.least - LOST:
            before = self.agreement(world)
            if before >= self.least:
                return _Answer(world, False, before)
        return _Answer(found, changed, agreed)

    def voted(self, answer: _Answer) -> _Answer:
        """The same, refined by blocks that vote, too, where that may help and does."""
        from . import blocks

        alike = self.pair.alike(answer.world)
        if not self.voting or alike >= UNLIKE:
            return answer
        voted = blocks.refine(self.pair.moving, self.pair.fixed, answer.world, self.options.transform)
        found = self.refined(voted, 1.0)
        return _Answer(found.world, True, found.agreed) if self.pair.alike(found.world) > alike else answer

    # What tells whether an answer is right

    def agreement(self, world: np.ndarray) -> Optional[float]:
        """How far the network agrees with it, 0…1; None where it cannot tell."""
        from . import search

        return None if self.least is None else search.agreement(self.pair.moving, self.pair.fixed, world, self.places)

    def likeness(self, world: np.ndarray) -> float:
        from . import search

        return search.likeness(self.pair.moving, self.pair.fixed, world)

    def spread(self, world: np.ndarray) -> Optional[float]:
        """mm between repeated refinements."""
        from . import search

        options = self.options
        return search.spread(self.pair.moving, self.pair.fixed, world, options.transform, options.seed, options.rotations)

    def way_to(self, world: np.ndarray):
        """The way round by the template that fits best, where volumes are not very alike; None where none fits. Whatever the
        contrast: a template may be more like both volumes than they are like each other."""
        from .model import templates
        from .sides import way_round

        if self.options.rotations != "all" or self.least is not None or self.pair.alike(world) >= UNLIKE:
            return None
        ways = [way_round(sides, self.pair.moving, self.pair.fixed, world) for _, sides in templates(self.options.device)]
        return max((way for way in ways if way is not None), key=lambda way: way.alike, default=None)

    # The further search

    def further(self, world: np.ndarray, total: int):
        """Many more candidates, compared by self-similarity: those of correlation and, where these do not convince, the
        network's own. Where the network can tell a right answer its own come first, the likest of them is enough if the network
        agrees with it, and the answers are compared by its agreement; where it cannot, ``world``, the answer so far, is a
        candidate, too, and the first that is alike enough ends the search.

        total: steps so far. Returns ((likeness or agreement, transform), steps in all).
        """
        from . import search

        pair, options, least = self.pair, self.options, self.least

        def wide():
            poses = [pair.to_world(m) for m in search.wide_poses(pair.moving, pair.fixed, options.seed)]
            return poses if least is not None else [world, *poses]

        def led_in(candidates, upright):
            for _, worlds in self.diffused(candidates[:NETWORK_CANDIDATES], upright, self.deep):
                pass
            return candidates + pair.plausible(worlds)

        def by_network(turned):
            return led_in(*self.network_poses(turned=turned))

        stage, index, best = "Searching further", total - 1, None
        kinds = ("moving", "fixed") if least is not None else ("either",) if self.places is not None else ()
        voted, enough = search.VOTED if self.voting else 0, UNLIKE if least is None else np.inf
        of_network, rest = search.WIDE_CANDIDATES + NETWORK_CANDIDATES, search.SECOND + voted + 2
        total += 2 * search.WIDE_CANDIDATES + rest + len(kinds) * (of_network + rest + 1)
        if least is None:
            sources = [wide, *(partial(by_network, turned) for turned in kinds)]
        else:
            seen = []
            for turned in kinds:
                found = self.network_poses(turned=turned)
                first = found[0][0]
                seen.append((self.agreement(first), found))
                index += 1
                yield Step(index, total, stage, geometry.inverse(first))
                if seen[-1][0] >= least:
                    return (seen[-1][0], first), total
            seen.sort(key=lambda pair: -pair[0])
            sources = [*(partial(led_in, *found) for _, found in seen), wide]
        for source in sources:
            candidates = source()
            index += 1
            yield Step(index, total, stage, geometry.inverse(candidates[0]))
            for found in search.settle(pair.moving, pair.fixed, candidates, options.transform, options.seed, voted, enough):
                index += 1
                yield Step(index, total, stage, geometry.inverse(found[1]))
            if least is not None:
                # The first pose, too: where volumes have little in common, the refinement of the network's leads away from it.
                both = ((self.agreement(one), one) for one in (found[1], candidates[0]))
                found = max(both, key=lambda pair: pair[0])
            best = found if best is None else max(best, found, key=lambda pair: pair[0])
            if best[0] >= (search.DOUBTFUL if least is None else least):
                break
        return best, total


def refined(pair: Pair, world: np.ndarray, options: Options, enough: float = 5.0) -> tuple:
    """(transform, whether it changed): local refinement, undone where it makes the volumes less alike.

    Repeated, at most three times more, while it still moves the tissue by more than ``enough`` mm (RMS).
    """
    from . import enface
    from .polish import polish

    moving, fixed = pair.moving, pair.fixed
    # The refinement only adds a transform of its kind, so what it starts from must be of that kind, too.
    start = found = geometry.project(world, options.transform, *pair.tissue)
    if options.rotations == "depth":
        found = geometry.project(enface.refine(moving, fixed, start, seed=options.seed), options.transform, *pair.tissue)
        before, after = enface.agreement(moving, fixed, [start, found], seed=options.seed)
        return (found, True) if after >= before else (start, False)
    for _ in range(4):
        before, found = found, polish(moving, fixed, found, kind=options.transform, seed=options.seed)
        if geometry.displacement_rms(before, found, *pair.tissue) <= enough:
            break
    better = pair.over(found)[0] >= pair.over(start)[0]
    return (found, True) if better else (start, False)
