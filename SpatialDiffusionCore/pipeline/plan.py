"""The whole decision on one page: what is done in which order, and when it is enough.

    search → diffuse → compare → refine → verify
    while the probability of being right is below the cut-off: the strategy's next rescue → challenge

Each stage (stages.py) adds candidates or evidence; one probability (confidence.py) compares answers, ends the search
and speaks to the user. Nothing else decides.
"""

from __future__ import annotations

from collections.abc import Generator

from ..alignment.pair import Pair
from ..modelfile.model import Model
from ..options import SearchMode
from .confidence import accept_from
from .settings import Settings
from .stages import Course
from .step import Outcome, Step


def fast(pair: Pair, model: Model, settings: Settings) -> Generator[Step, None, Outcome]:
    """Search the pose, diffuse the best candidates, refine the best, and go on while it is doubtful."""
    course = Course(pair, model, settings)
    yield from course.search()
    yield from course.diffuse()
    yield from course.compare()
    best = yield from course.refine(course.best())
    best = yield from course.verify(best)
    if settings.search is SearchMode.SIMILARITY and settings.polish and settings.init is None:
        for rescue in settings.strategy.rescues:
            if best.probability >= accept_from():
                break
            yield from course.rescue(rescue, best)
            best = yield from course.challenge(best)
    mirrored = None
    if settings.strategy.looks_in_mirror and settings.search is SearchMode.SIMILARITY and settings.init is None:
        mirrored = yield from course.mirrored(best)
    return course.outcome(best, mirrored)
