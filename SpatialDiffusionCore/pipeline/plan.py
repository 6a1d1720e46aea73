"""The whole decision on one page: what is done in which order, and when it is enough.

    search → diffuse → compare → refine → verify
    where the probability of being right is below the cut-off: wide search → challenge

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
    begun_here = settings.search is SearchMode.SIMILARITY and settings.init is None
    if begun_here and settings.polish and settings.strategy.searches_widely and best.probability < accept_from():
        yield from course.search_widely(best)
        best = yield from course.challenge(best)
    mirrored = None
    if begun_here and settings.strategy.looks_in_mirror:
        mirrored = yield from course.mirrored(best)
    return course.outcome(best, mirrored)
