"""The way round from one volume to another by a template, and what the template says of left and right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..alignment.similarity import likeness
from ..spatial import geometry
from ..spatial.cube import Cube
from ..strategies.head_template import LIKE, HeadTemplate

#: Ends of the way round by the template, mm from an answer: up to the first it is the same, beyond the second another
#: one. Right answers between corrupted heads, and T1 and FLAIR, had 1.1 to 7.6; of wrong ones most had 9 to 25, and
#: none less than 6 where the template fitted both volumes but one, which was 9 mm off.
SAME_ANSWER, ASTRAY = 6.0, 9.0


def _laid(template: HeadTemplate, moving: Cube, fixed: Cube, world: np.ndarray) -> np.ndarray | None:
    """The template → fixed transform, as either header says; None where it does not fit."""
    tissue = moving.prepared
    turned = geometry.project(geometry.inverse(world), "rigid", tissue.tissue_center, tissue.tissue_covariance)
    return template.lay(fixed, [np.eye(4), turned])


@dataclass(frozen=True)
class TemplateDetour:
    """The way round from one volume to another by a template: how many mm (RMS over the template) it ends from an
    answer, and how alike the template is to the volume to which it is less alike.
    """

    mm: float
    alike: float

    @property
    def confirmed(self) -> bool | None:
        """True where it confirms the answer, False where it contradicts it, None where it says neither."""
        return True if self.confirms else False if self.contradicts else None

    @property
    def confirms(self) -> bool:
        """Whether it comes to the same answer, and the template surely fits both volumes."""
        return self.mm <= SAME_ANSWER and self.alike >= LIKE

    @property
    def contradicts(self) -> bool:
        """Whether it comes to another answer."""
        return self.mm > ASTRAY


def template_detour(template: HeadTemplate, moving: Cube, fixed: Cube, world: np.ndarray) -> TemplateDetour | None:
    """The template is laid on the fixed Cube, taken from there to the moving one by ``world`` (fixed → moving, 4×4, RAS
    mm), and laid on that anew. None where it does not fit the fixed one.
    """
    laid = _laid(template, moving, fixed, world)
    if laid is None:
        return None
    found, tissue = template.refined(moving, world @ laid), template.cube.prepared
    mm = geometry.displacement_rms(world @ laid, found, tissue.tissue_center, tissue.tissue_covariance)
    return TemplateDetour(
        mm, min(likeness(fixed, template.cube, laid).similarity, likeness(moving, template.cube, found).similarity)
    )


def laterality(template: HeadTemplate, moving: Cube, fixed: Cube, world: np.ndarray) -> tuple | None:
    """(measure of the moving, measure of the fixed Cube), where ``world`` (fixed → moving, 4×4, RAS mm) lays them on
    each other.

    None where neither header is about right, or where the template is not seen in both.
    """
    laid = _laid(template, moving, fixed, world)
    if laid is None:
        return None
    found = template.measure(moving, world @ laid), template.measure(fixed, laid)
    return None if None in found else found
