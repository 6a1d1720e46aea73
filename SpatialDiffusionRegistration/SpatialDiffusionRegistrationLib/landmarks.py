"""Landmarks in both volumes: how far apart they are before and after, in mm."""

from __future__ import annotations

from dataclasses import dataclass

from slicer.i18n import tr as _

from . import engine, scene


@dataclass(frozen=True)
class LandmarkErrors:
    """Distances in mm between corresponding landmarks, in the order of the fixed ones."""

    names: tuple
    before: tuple
    after: tuple

    @staticmethod
    def mean(distances) -> float:
        return sum(distances) / len(distances)

    def text(self):
        return _("{before:.2f} → {after:.2f} mm (mean of {count}; the worst, “{name}”, {worst:.2f} mm)").format(
            before=self.mean(self.before),
            after=self.mean(self.after),
            count=len(self.names),
            name=self.names[self.after.index(max(self.after))],
            worst=max(self.after),
        )


def points(node) -> dict:
    """{name: position in the world in mm} of the points that are placed; a name given twice gets a number."""
    found = {}
    for index in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(index) != node.PositionDefined:
            continue
        position = [0.0, 0.0, 0.0]
        node.GetNthControlPointPositionWorld(index, position)
        name = key = node.GetNthControlPointLabel(index)
        while key in found:
            key = f"{name} ({len(found) + 1})"
        found[key] = tuple(position)
    return found


def pairs(movingNode, fixedNode) -> list:
    """[(name, moving position, fixed position)]: by name where all names agree, else by order."""
    moving, fixed = points(movingNode), points(fixedNode)
    if set(moving) == set(fixed):
        return [(name, moving[name], fixed[name]) for name in fixed]
    return list(zip(fixed, moving.values(), fixed.values()))


def problem(movingNode, fixedNode) -> str:
    """One sentence on why the landmarks can not be used, or "" (also where none are chosen)."""
    if movingNode is None and fixedNode is None:
        return ""
    if movingNode is None or fixedNode is None:
        return _("Choose landmarks for both volumes, or for none.")
    if movingNode is fixedNode:
        return _("The moving and the fixed landmarks are the same points: choose those of each volume.")
    counts = [len(points(node)) for node in (movingNode, fixedNode)]
    if counts[0] != counts[1] or not counts[0]:
        return _(
            "The landmarks do not correspond: “{moving}” has {movingCount} points, “{fixed}” has {fixedCount}."
        ).format(moving=movingNode.GetName(), movingCount=counts[0], fixed=fixedNode.GetName(), fixedCount=counts[1])
    return scene.transformProblem(movingNode) or scene.transformProblem(fixedNode)


def errors(movingNode, fixedNode, matrix):
    """LandmarkErrors of a registration that has moved nothing yet; None where no landmarks are chosen, or none can be
    used any more.

    :param matrix: 4x4, from the moving to the fixed volume in mm.
    """
    if movingNode is None or fixedNode is None or problem(movingNode, fixedNode):
        return None
    names, moving, fixed = zip(*pairs(movingNode, fixedNode))
    return LandmarkErrors(
        names, engine.distances(moving, fixed), engine.distances(engine.transformPoints(matrix, moving), fixed)
    )
