"""The fast process: search the pose, diffuse the best candidates, refine the best, and see whether repeated runs agree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Optional

import numpy as np

from ..alignment.pair import Pair
from ..errors import InputError
from ..options import SearchMode
from ..spatial import geometry
from . import confidence as quality_module
from .refinement import refined
from .settings import Settings
from .step import Outcome, Step

#: Candidates of the search by the network's points that go through the diffusion.
NETWORK_CANDIDATES = 6

#: A refinement that ends so far below the agreement from which the network is trusted is undone, if it agreed before.
LOST = 0.15

#: Similarity below which the answer is also refined by blocks that vote (blocks.py), where the network cannot tell: brains of two
#: people and heads in focus are alike by 0.46 or more, a volume with slabs moved by less.
UNLIKE = 0.45

#: Steps of the fast diffusion (see Schedule.visit): held-out heads end at 0.7 mm after three or four, at 1.1 after two. Of
#: candidates whose likeness decides and which are refined, two steps are enough.
DEFAULT_STEPS, STEPS_BEFORE_REFINING = 3, 2

#: Searches that compare the volumes.
COMPARED = (SearchMode.SIMILARITY, SearchMode.SCREEN)


def fast(pair: Pair, model, options: Settings):
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

    def __init__(self, pair: Pair, model, options: Settings):
        self.pair, self.model, self.options = pair, model, options
        keys = options.keys
        #: Steps of the diffusion; what the network finds to correspond; from which agreement on it is right (None: cannot tell).
        self.deep = model.card.get("steps", DEFAULT_STEPS) if options.steps is None else options.steps
        self.places = model.correspondences(*keys) if self.deep else None
        self.least = model.agreement_from(*keys) if self.places is not None else None
        #: Whether blocks may vote, and whether the search may go on.
        self.voting = options.strategy.blocks_vote and self.least is None and options.search is not SearchMode.SCREEN
        self.may_go_on = (
            options.polish
            and options.init is None
            and options.search is SearchMode.SIMILARITY
            and options.strategy.any_rotation
        )
        self.details = {}

    def steps(self):
        pair, options = self.pair, self.options
        brief = options.steps is None and options.polish and options.search in COMPARED and self.least is None
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
            convincing = (
                not self.may_go_on
                or pair.alike(answer.world) >= options.strategy.limits.convincing
                or way is not None
                and way.confirms
            )
            # Blocks find something alike near a wrong answer, too, so they are not asked before that is known to be near.
            if convincing:
                before, answer = answer, self.voted(answer)
                way = way if answer is before else self.way_to(answer.world)
            yield Step(2 + count, total, "Refining", geometry.inverse(answer.world))
        spread = self.spread(answer.world)
        if self.may_go_on:
            # Where volumes are hardly alike, the network's agreement counts for nothing.
            word = (
                None
                if self.least is None
                else answer.agreed
                if pair.alike(answer.world) >= quality_module.SIMILARITY_LIMITS[0]
                else 0.0
            )
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

        pair, options = self.pair, self.options
        moving, fixed = pair.moving, pair.fixed
        if options.init is not None:
            return [np.linalg.inv(options.init)], fixed, None
        if options.search is SearchMode.NETWORK:
            if self.places is None:
                raise InputError(
                    f"The model {self.model.name} finds no corresponding places, or no steps were asked for; "
                    "leave the search to the similarity."
                )
            return (*self.network_poses(keep=NETWORK_CANDIDATES), None)
        if options.search is SearchMode.NONE:
            centers = moving.prepared.tissue_center - fixed.prepared.tissue_center
            return [geometry.from_parts(np.eye(3), centers)], fixed, None
        poses = options.strategy.poses(moving, fixed, options.seed)
        candidates, header = [pair.to_world(m) for m in poses], None
        if self.least is not None:
            (header,), _ = self.network_poses(keep=1, turned="neither")
            candidates.append(header)
        return candidates, fixed, header

    def network_poses(self, **more) -> tuple:
        """(transforms, the fixed cube upright): see search.network_poses."""
        from ..alignment import correspondence_search

        poses, upright = correspondence_search.network_poses(self.pair.moving, self.pair.fixed, self.places, **more)
        return [self.pair.to_world(m) for m in poses], upright

    def diffused(self, candidates, upright, count: int):
        """Yield (index, transforms) after each of ``count`` steps of the diffusion from all candidates at once. upright: the
        fixed cube as the network is to see it."""
        import torch

        from ..method import diffusion

        pair = Pair(self.pair.moving, upright)
        denoise = self.model.denoiser(self.options.moving_modality, self.options.fixed_modality)
        start = torch.stack([pair.to_theta(c) for c in candidates])
        batch = (len(candidates), -1, -1, -1, -1)
        schedule = self.model.schedule(self.options.fixed_modality)
        for step in diffusion.reverse(
            denoise, upright.values.expand(batch), pair.moving.values.expand(batch), schedule, steps=count, start=start
        ):
            yield step.index, [pair.from_theta(theta) for theta in step.theta]

    def best(self, worlds, candidates, upright, count: int) -> np.ndarray:
        """The best of what ``count`` steps of the diffusion made of the candidates, and of these."""
        from ..alignment import correspondence_search

        pair, options = self.pair, self.options
        if options.search is SearchMode.NETWORK and options.init is None:
            return worlds[int(correspondence_search.agreements(pair.moving, upright, worlds, self.places).argmax())]
        if options.search is SearchMode.NONE and not options.polish:
            return worlds[0]
        # The candidates compete as they were and as the diffusion left them: it may make none of them worse.
        everything = worlds + candidates if count else candidates
        frames = [pair.to_frames(w) for w in everything]
        best = options.strategy.rank(pair.moving, pair.fixed, frames).best
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
        from ..alignment import block_matching

        alike = self.pair.alike(answer.world)
        if not self.voting or alike >= UNLIKE:
            return answer
        voted = block_matching.refine(self.pair.moving, self.pair.fixed, answer.world, self.options.transform)
        found = self.refined(voted, 1.0)
        return _Answer(found.world, True, found.agreed) if self.pair.alike(found.world) > alike else answer

    # What tells whether an answer is right

    def agreement(self, world: np.ndarray) -> Optional[float]:
        """How far the network agrees with it, 0…1; None where it cannot tell."""
        from ..alignment import correspondence_search

        return (
            None
            if self.least is None
            else correspondence_search.agreement(self.pair.moving, self.pair.fixed, world, self.places)
        )

    def likeness(self, world: np.ndarray) -> float:
        from ..alignment import similarity

        return similarity.likeness(self.pair.moving, self.pair.fixed, world)

    def spread(self, world: np.ndarray) -> Optional[float]:
        """mm between repeated refinements."""
        options = self.options
        return options.strategy.spread(self.pair.moving, self.pair.fixed, world, options.transform, options.seed)

    def way_to(self, world: np.ndarray):
        """The way round by the template that fits best, where volumes are not very alike; None where none fits. Whatever the
        contrast: a template may be more like both volumes than they are like each other."""
        from ..modelfile.model import templates
        from ..strategies.head_template import HeadTemplate
        from .template_check import template_detour

        if not self.options.strategy.any_rotation or self.least is not None or self.pair.alike(world) >= UNLIKE:
            return None
        ways = [
            template_detour(HeadTemplate.of(symmetric), self.pair.moving, self.pair.fixed, world)
            for _, symmetric in templates(self.options.device)
        ]
        return max((way for way in ways if way is not None), key=lambda way: way.alike, default=None)

    # The further search

    def further(self, world: np.ndarray, total: int):
        """Many more candidates, compared by self-similarity: those of correlation and, where these do not convince, the
        network's own. Where the network can tell a right answer its own come first, the likest of them is enough if the network
        agrees with it, and the answers are compared by its agreement; where it cannot, ``world``, the answer so far, is a
        candidate, too, and the first that is alike enough ends the search.

        total: steps so far. Returns ((likeness or agreement, transform), steps in all).
        """
        from ..alignment import candidate_settling, pose_search, wide_search

        pair, options, least = self.pair, self.options, self.least

        def wide():
            poses = [pair.to_world(m) for m in wide_search.wide_poses(pair.moving, pair.fixed, options.seed)]
            return poses if least is not None else [world, *poses]

        def led_in(candidates, upright):
            for _, worlds in self.diffused(candidates[:NETWORK_CANDIDATES], upright, self.deep):
                pass
            return candidates + pair.plausible(worlds)

        def by_network(turned):
            return led_in(*self.network_poses(turned=turned))

        stage, index, best = "Searching further", total - 1, None
        kinds = ("moving", "fixed") if least is not None else ("either",) if self.places is not None else ()
        voted, enough = candidate_settling.VOTED if self.voting else 0, UNLIKE if least is None else np.inf
        of_network, rest = wide_search.WIDE_CANDIDATES + NETWORK_CANDIDATES, candidate_settling.SECOND + voted + 2
        total += 2 * wide_search.WIDE_CANDIDATES + rest + len(kinds) * (of_network + rest + 1)
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
            for found in candidate_settling.settle(
                pair.moving, pair.fixed, candidates, options.transform, options.seed, voted, enough
            ):
                index += 1
                yield Step(index, total, stage, geometry.inverse(found[1]))
            if least is not None:
                # The first pose, too: where volumes have little in common, the refinement of the network's leads away from it.
                both = ((self.agreement(one), one) for one in (found[1], candidates[0]))
                found = max(both, key=lambda pair: pair[0])
            best = found if best is None else max(best, found, key=lambda pair: pair[0])
            if best[0] >= (pose_search.DOUBTFUL if least is None else least):
                break
        return best, total
