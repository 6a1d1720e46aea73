"""The stages of the fast process: each adds candidates, or evidence of one; plan.py says in which order."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..alignment import block_matching, correspondence_search, wide_search
from ..alignment.pair import Pair
from ..alignment.pose_search import BASIN, CANDIDATES
from ..alignment.similarity import global_likeness
from ..errors import InputError
from ..method import diffusion
from ..modelfile.model import Model, templates
from ..options import SearchMode
from ..spatial import geometry
from ..spatial.cube import Cube, on_grid
from ..strategies.head_template import HeadTemplate
from . import confidence
from .evidence import Evidence, strain_of
from .settings import Settings
from .step import Outcome, Step
from .template_check import TemplateDetour, template_detour

#: Steps of the diffusion (see Schedule.visit): held-out heads end at 0.7 mm after three or four, at 1.1 after two. Of
#: candidates that are compared and refined, two are enough.
DEFAULT_STEPS, STEPS_BEFORE_REFINING = 3, 2

#: Candidates of the search by the network's places that go through the diffusion.
NETWORK_CANDIDATES = 6

#: A pose whose score is below this share of the best one's is not diffused: on clean brains the best wrong pose reaches
#: 0.77 to 0.90 of the right one's correlation.
PROMISING = 0.92

#: Candidates of each look of the wide search that are compared.
WIDE_CANDIDATES = 6

#: Candidates of other basins that are refined, too, where an answer is doubtful.
RIVALS = 3

#: Basins that are compared after the search: the best, and so many more.
COMPARED = 3

#: Similarity below which the answer is also refined by blocks that vote (block_matching.py): brains of two people and
#: heads in focus are alike by 0.46 or more, a volume with slabs moved by less.
UNLIKE = 0.45

#: Volumes that are more alike than the first are not compared as in a mirror; so many poses are, and a mirror image
#: must be so much more alike. Mirrored copies of organs that are nearly symmetric are alike by 0.4 to 0.8 as they are,
#: by 0.9 and more in a mirror; individuals differ by less than 0.1 between both. Chosen between these.
MIRROR_LOOKS, MIRROR_CANDIDATES, MIRROR_MORE = 0.8, 3, 0.15

#: mm: a refinement that moves the tissue by more is done again (Strategy.refine). Chosen, untested.
ENOUGH = 5.0

#: Agreement by which a refinement may fall below that from which the network is trusted, if it agreed before.
LOST = 0.15


@dataclass(frozen=True)
class Candidate:
    """A transform (fixed → moving, 4×4, RAS mm) and where it comes from; rank: how alike it makes the volumes
    (Pair.rank), after a coarse refinement, None before. score: relative to the best of its search, at most 1.
    """

    world: np.ndarray
    source: str
    rank: float | None = None
    score: float = 1.0


def _rank(candidate: Candidate) -> float:
    return -np.inf if candidate.rank is None else candidate.rank


@dataclass(frozen=True)
class Answer:
    """A refined candidate. kept: whether its refinement stands; probability: that it is right, from its evidence."""

    world: np.ndarray
    source: str
    kept: bool = False
    evidence: Evidence | None = None
    probability: float = 0.0
    detour: TemplateDetour | None = None


class Course:
    """One registration under way: the candidates so far, and what was seen of them."""

    def __init__(self, pair: Pair, model: Model, settings: Settings):
        self.pair, self.model, self.settings = pair, model, settings
        chosen = model.card.steps if settings.steps is None else settings.steps
        #: Steps of the diffusion; what the network finds to correspond (Model.correspondences); the agreement from
        #: which an answer is right. None where there is nothing of the kind.
        self.diffusion_steps = DEFAULT_STEPS if chosen is None else chosen
        self.correspondences = model.correspondences(*settings.keys) if self.diffusion_steps else None
        self.trusted_agreement = model.agreement_from(*settings.keys) if self.correspondences is not None else None
        self.candidates: list[Candidate] = []
        #: Every refined candidate.
        self.answers: list[Answer] = []
        self.upright: Cube = pair.fixed
        #: World transforms that the independent searches put first.
        self.firsts: list[np.ndarray] = []
        self.index, self.count = 0, 2 + self._few_steps() + self._compares() + settings.polish
        self.agreements: dict[bytes, float] = {}

    def step(self, stage: str, world: np.ndarray) -> Step:
        """The next step, for the caller."""
        self.index += 1
        self.count = max(self.count, self.index)  # grows where the search goes on
        return Step(self.index, self.count, stage, geometry.inverse(world))

    def _few_steps(self) -> int:
        """Steps of the diffusion of the first candidates: fewer where what they give is compared and refined."""
        compared = self.settings.search in (SearchMode.SIMILARITY, SearchMode.SCREEN) and self.settings.polish
        brief = compared and self.settings.steps is None and self.trusted_agreement is None
        return min(self.diffusion_steps, STEPS_BEFORE_REFINING) if brief else self.diffusion_steps

    # Where to begin

    def search(self) -> Iterator[Step]:
        """The first candidates, best first."""
        pair, settings = self.pair, self.settings
        if settings.init is not None:
            self.candidates = [Candidate(np.linalg.inv(settings.init), "start")]
        elif settings.search is SearchMode.NETWORK:
            if self.correspondences is None:
                raise InputError(
                    f"The model {self.model.name} finds no corresponding places, or no steps were asked for; "
                    "leave the search to the similarity."
                )
            self.candidates = self._network_candidates(NETWORK_CANDIDATES, turned=True)
        elif settings.search is SearchMode.NONE:
            shift = pair.moving.prepared.tissue_center - pair.fixed.prepared.tissue_center
            self.candidates = [Candidate(geometry.from_parts(np.eye(3), shift), "start")]
        else:
            found = settings.strategy.poses(pair.moving, pair.fixed, settings.seed)
            for pose in found:
                self.firsts += [pair.to_world(pose.matrix)] * len(pose.firsts)
            self.candidates = [
                Candidate(pair.to_world(p.matrix), "search", score=p.score) for p in found[: 1 + COMPARED]
            ]
            if self.trusted_agreement is not None:
                self.candidates += self._network_candidates(1, turned=False)
        yield self.step("Searching the pose", self.candidates[0].world)

    def _network_candidates(self, keep: int, turned: bool) -> list[Candidate]:
        assert self.correspondences is not None, "asked only where the network finds some"
        found, self.upright = correspondence_search.network_poses(
            self.pair.moving, self.pair.fixed, self.correspondences, keep=keep, turned=turned
        )
        return [Candidate(self.pair.to_world(m), "network") for m in found]

    def diffuse(self) -> Iterator[Step]:
        """The most promising candidates, pulled in by the diffusion, join the others."""
        count = self._few_steps()
        if not count:
            return
        promising = [c for c in self.candidates if c.score >= PROMISING or c.source == "network"]
        promising = promising[: NETWORK_CANDIDATES if self.settings.search is SearchMode.NETWORK else CANDIDATES + 1]
        worlds: list[np.ndarray] = []
        for worlds in self._diffused([c.world for c in promising], count):
            yield self.step("Diffusion", worlds[0])
        if self.settings.polish and self.settings.init is None:
            worlds = self.pair.plausible(worlds)
        self.candidates = [Candidate(world, "diffusion") for world in worlds] + self.candidates

    def _diffused(self, worlds: list[np.ndarray], count: int) -> Iterator[list[np.ndarray]]:
        """Transforms after each of ``count`` steps of the diffusion, from all at once."""
        pair, settings = Pair(self.pair.moving, self.upright), self.settings
        denoise = self.model.denoiser(*settings.keys)
        start = torch.stack([pair.to_theta(world) for world in worlds])
        batch = (len(worlds), -1, -1, -1, -1)
        fixed, moving = self.upright.values.expand(batch), pair.moving.values.expand(batch)
        schedule = self.model.schedule(settings.fixed_modality)
        for step in diffusion.reverse(denoise, fixed, moving, schedule, steps=count, start=start):
            yield [pair.from_theta(theta) for theta in step.theta]

    def compare(self) -> Iterator[Step]:
        """Each candidate refined coarsely, and how alike it makes the volumes."""
        if not self._compares():
            return
        self.candidates = [self._compared(c) if c.rank is None else c for c in self.candidates]
        yield self.step("Comparing", self.best().world)

    def _compares(self) -> bool:
        """Whether candidates are compared by how alike they make the volumes, not chosen by the network's agreement."""
        settings = self.settings
        if settings.init is None and settings.search is SearchMode.NETWORK:
            return False
        return settings.polish or (settings.init is None and settings.search is not SearchMode.NONE)

    def _compared(self, candidate: Candidate, in_full: bool = False) -> Candidate:
        """The candidate after a refinement, coarse or once in full; as it is where that leads to another basin and
        makes the volumes less alike.
        """
        strategy, pair = self.settings.strategy, self.pair
        world = geometry.project(candidate.world, self.settings.transform, *pair.tissue)
        given = (pair.moving, pair.fixed, world, self.settings.transform, self.settings.seed)
        refined = strategy.refine(*given, enough=np.inf) if in_full else strategy.compared(*given)
        rank = strategy.rank(pair, refined)
        if pair.apart(world, refined) > BASIN and strategy.rank(pair, world) > rank:
            return replace(candidate, world=world, rank=strategy.rank(pair, world))
        return replace(candidate, world=refined, rank=rank)

    def best(self) -> Candidate:
        """The candidate that makes the volumes most alike; where they are not compared, the network's choice or the
        first.
        """
        if any(c.rank is not None for c in self.candidates):
            return max((c for c in self.candidates if c.rank is not None), key=_rank)
        if self.settings.search is SearchMode.NETWORK and self.settings.init is None:
            worlds = [c.world for c in self.candidates if c.source == "diffusion"] or [c.world for c in self.candidates]
            assert self.correspondences is not None, "search() refuses a network that finds none"
            agreed = correspondence_search.agreements(self.pair.moving, self.upright, worlds, self.correspondences)
            return self.candidates[int(agreed.argmax())]
        return self.candidates[0]

    def _elsewhere(self, one: Candidate | Answer, other: Candidate | Answer) -> bool:
        """Whether two lie in different basins."""
        return self.pair.apart(one.world, other.world) > BASIN

    def _rivals(self, answer: Answer) -> list[Candidate]:
        """The best candidates of other basins than an answer's, one of each."""
        found: list[Candidate] = []
        for candidate in sorted(self.candidates, key=_rank, reverse=True):
            elsewhere = self._elsewhere(candidate, answer) and all(self._elsewhere(candidate, one) for one in found)
            if candidate.rank is not None and elsewhere:
                found.append(candidate)
        return found[:RIVALS]

    # Better answers

    def refine(self, candidate: Candidate) -> Generator[Step, None, Answer]:
        """An Answer: the candidate, refined; as it was where refinement makes the volumes less alike, or loses the
        network's agreement.
        """
        settings, pair = self.settings, self.pair
        world = geometry.project(candidate.world, settings.transform, *pair.tissue)
        answer = Answer(world, candidate.source)
        if settings.polish:
            answer = self._refined(world, candidate.source)
            yield self.step("Refining", answer.world)
            votes = (
                settings.strategy.blocks_vote
                and self.trusted_agreement is None
                and settings.search is not SearchMode.SCREEN
            )
            if votes and pair.alike(answer.world) < UNLIKE:
                answer = self._voted(answer)
                yield self.step("Refining", answer.world)
        self.answers.append(answer)
        return answer

    def _refined(self, world: np.ndarray, source: str) -> Answer:
        settings, pair = self.settings, self.pair
        strategy, seed = settings.strategy, settings.seed
        found = strategy.refine(pair.moving, pair.fixed, world, settings.transform, seed, enough=ENOUGH)
        if not strategy.is_better(pair, world, found, seed):
            return Answer(world, source)
        lost = self.trusted_agreement is not None and (self.agreement(found) or 0.0) < self.trusted_agreement - LOST
        if lost and self.trusted_agreement is not None and (self.agreement(world) or 0.0) >= self.trusted_agreement:
            return Answer(world, source)
        return Answer(found, source, kept=True)

    def _voted(self, answer: Answer) -> Answer:
        """The same, refined by blocks that vote, where that makes the volumes more alike."""
        voted = block_matching.refine(self.pair.moving, self.pair.fixed, answer.world, self.settings.transform)
        found = self._refined(voted, answer.source)
        return found if self.pair.alike(found.world) > self.pair.alike(answer.world) else answer

    # What tells whether an answer is right

    def agreement(self, world: np.ndarray) -> float | None:
        """How far the network agrees with it, 0…1; None where it cannot tell."""
        if self.trusted_agreement is None or self.correspondences is None:
            return None
        key = world.tobytes()
        if key not in self.agreements:
            pair = self.pair
            self.agreements[key] = correspondence_search.agreement(pair.moving, pair.fixed, world, self.correspondences)
        return self.agreements[key]

    def verify(self, answer: Answer) -> Generator[Step, None, Answer]:
        """The answer with its evidence, and the probability that it is right."""
        yield self.step("Checking", answer.world)
        return self.verified(answer)

    def verified(self, answer: Answer) -> Answer:
        """The same in one go."""
        pair, world = self.pair, answer.world
        both = (pair.over(world), pair.over(world, moving=True))
        correlation, information = global_likeness(pair.moving, pair.fixed, world)
        spread = self.settings.strategy.spread(
            pair.moving, pair.fixed, world, self.settings.transform, self.settings.seed
        )
        detour = self._detour(world)
        evidence = Evidence(
            similarity=max(one.similarity for one in both),
            least_similarity=min(one.similarity for one in both),
            correlation=correlation,
            information=information,
            overlap=max(one.overlap for one in both),
            strain=strain_of(world),
            spread=None if spread is None else spread / pair.size,
            margin=self._margin(answer),
            lead=self._lead(answer),
            searches=self._searches(world),
            refined=float(answer.kept or not self.settings.polish),
            agreement=self.agreement(world),
            detour=None if detour is None else detour.mm / pair.size,
        )
        return replace(
            answer,
            evidence=evidence,
            probability=confidence.probability(evidence, self.settings.strategy.name),
            detour=detour,
        )

    def _margin(self, answer: Answer) -> float | None:
        """By how much the answer's basin ranks above the best other one; both after the same coarse refinement."""
        ranked = [c for c in self.candidates if c.rank is not None]
        here = [_rank(c) for c in ranked if not self._elsewhere(c, answer)]
        others = [_rank(c) for c in ranked if self._elsewhere(c, answer)]
        if not others:
            return None
        # Where the refinement left its candidate's basin, the answer counts as it is.
        return max(here, default=self.settings.strategy.rank(self.pair, answer.world)) - max(others)

    def _lead(self, answer: Answer) -> float | None:
        """By how much the answer ranks above the best refined one of another basin."""
        strategy, pair = self.settings.strategy, self.pair
        others = [strategy.rank(pair, other.world) for other in self.answers if self._elsewhere(other, answer)]
        return strategy.rank(pair, answer.world) - max(others) if others else None

    def _searches(self, world: np.ndarray) -> float | None:
        """The share of the independent searches that ended in the answer's basin first."""
        if not self.firsts:
            return None
        return float(np.mean([self.pair.apart(first, world) <= BASIN for first in self.firsts]))

    def _detour(self, world: np.ndarray) -> TemplateDetour | None:
        """The way round by the template that fits best, where volumes are not very alike. Whatever the contrast: a
        template may be more like both volumes than they are like each other.
        """
        strategy, pair = self.settings.strategy, self.pair
        if not strategy.any_rotation or self.trusted_agreement is not None or pair.alike(world) >= UNLIKE:
            return None
        ways = [
            template_detour(HeadTemplate.of(symmetric), pair.moving, pair.fixed, world)
            for _, symmetric in templates(self.settings.device)
        ]
        return max((way for way in ways if way is not None), key=lambda way: way.alike, default=None)

    # Where the answer is doubtful

    def search_widely(self, answer: Answer) -> Iterator[Step]:
        """More candidates, compared with those so far: all rotations at every shift of the whole volumes; each look at
        them is a search of its own.
        """
        looks: list[list[np.ndarray]] = []
        for looks in wide_search.wide_poses(self.pair.moving, self.pair.fixed, WIDE_CANDIDATES):
            yield self.step("Searching further", answer.world)
        for found in looks:
            compared = [self._compared(Candidate(world, "wide search")) for world in found]
            self.firsts += [compared[0].world] if compared else []
            self.candidates += compared
            yield self.step("Searching further", self.best().world)

    def challenge(self, answer: Answer) -> Generator[Step, None, Answer]:
        """The answer, or the strongest of its rivals where that is likelier right. Each rival is refined once, the
        strongest of them in full.
        """
        rivals = []
        for candidate in self._rivals(answer):
            rivals.append(self._compared(candidate, in_full=True))
            yield self.step("Refining", rivals[-1].world)
        other = None
        if rivals:
            # Between people's necks the network's word tells more than likeness does.
            strongest = max(rivals, key=lambda one: (self.agreement(one.world) or 0.0, _rank(one)))
            other = yield from self.refine(strongest)
        best = yield from self.verify(answer)
        rank = self.settings.strategy.rank
        # In one place the more alike is the better; elsewhere only all of the evidence tells.
        if other is None or not (
            self._elsewhere(other, best) or rank(self.pair, other.world) > rank(self.pair, best.world)
        ):
            return best
        other = yield from self.verify(other)
        return max(best, other, key=lambda one: one.probability)

    def mirrored(self, answer: Answer) -> Generator[Step, None, float | None]:
        """How alike the volumes are if one of them is seen as in a mirror, where that is far more than as they are;
        else None.

        Two individuals' organs are about as alike either way, so nothing is said of them.
        """
        pair = self.pair
        alike = pair.alike(answer.world)
        if alike >= MIRROR_LOOKS or pair.moving.focus is not None:
            return None
        moving = pair.moving
        image = Pair(on_grid(moving.prepared.mirrored(), moving.grid, moving.values.device), pair.fixed)
        found = self.settings.strategy.poses(image.moving, image.fixed, self.settings.seed)[:MIRROR_CANDIDATES]
        yield self.step("Checking", answer.world)
        best = 0.0
        for pose in found:
            world = self.settings.strategy.compared(
                image.moving, image.fixed, image.to_world(pose.matrix), self.settings.transform, self.settings.seed
            )
            best = max(best, image.alike(world))
        return best if best > alike + MIRROR_MORE else None

    def outcome(self, answer: Answer, mirrored: float | None = None) -> Outcome:
        """What the process found."""
        details = {"candidates": len(self.candidates), "best": answer.source}
        assert answer.evidence is not None, "only a verified answer goes out"
        return Outcome(answer.world, answer.kept, answer.evidence, answer.probability, answer.detour, mirrored, details)
