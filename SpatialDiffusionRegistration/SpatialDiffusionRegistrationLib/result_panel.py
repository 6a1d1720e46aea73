"""The Result section: what was found for which pair, whether it is still true, and Undo."""

from __future__ import annotations

from dataclasses import dataclass

from slicer.i18n import tr as _

from . import scene
from .result import Result, pairOf


@dataclass
class Shown:
    """A result and the nodes it is about; all None where there is nothing to show."""

    result: Result | None = None
    moving: object = None
    fixed: object = None
    transform: object = None
    """None if the only output was a volume."""
    reviewed: object = None
    """What stands for the moving volume in the views: itself, or its resampled copy."""

    @classmethod
    def of(cls, transformNode):
        """What a transform node keeps."""
        result = Result.stored(transformNode)
        if result is None:
            return cls()
        moving, fixed = pairOf(transformNode)
        return cls(result, moving, fixed, transformNode, moving)

    def nodes(self):
        return [node for node in (self.moving, self.fixed, self.transform, self.reviewed) if node is not None]


class ResultPanel:
    def __init__(self, ui, onUndo):
        self._ui = ui
        ui.undoButton.connect("clicked(bool)", onUndo)

    def show(self, shown: Shown, chosen, undoProblem):
        """Show a result; gray it with a word where it is not true any more.

        :param chosen: the moving and the fixed volume that are selected now.
        :param undoProblem: why the last run can not be undone, "" if it can, None if there is none.
        """
        result = shown.result
        untrue = self._untrue(shown, chosen) if result is not None else ""
        ui = self._ui
        ui.resultSection.setEnabled(result is not None)
        values = self._texts(result)
        for name, text in values.items():
            widget = getattr(ui, name + "Value")
            widget.text = text
            widget.setEnabled(not untrue)
        for name in ("warnings", "landmarks"):
            for widget in (getattr(ui, name + "Value"), getattr(ui, name + "Title")):
                widget.setVisible(bool(values[name]))
        ui.stateValue.text = _("Not true any more: {reason}").format(reason=untrue) if untrue else ""
        ui.stateValue.setVisible(bool(untrue))
        ui.undoButton.setVisible(undoProblem is not None)
        ui.undoButton.setEnabled(not undoProblem)
        ui.undoButton.toolTip = undoProblem or _("Put everything back as it was before this registration.")

    @staticmethod
    def _untrue(shown, chosen):
        sentence = shown.result.untrue(shown.moving, shown.fixed, shown.transform)
        if not sentence and tuple(chosen) != (shown.moving, shown.fixed):
            return _("other volumes are selected.")
        return sentence

    @staticmethod
    def _texts(result):
        if result is None:
            return {
                "pair": "–",
                "similarity": "–",
                "transform": "–",
                "confidence": "–",
                "kinds": "–",
                "warnings": "",
                "landmarks": "",
            }
        errors = result.landmarkErrors()
        return {
            "pair": result.pairText(),
            "similarity": result.similarityText(),
            "transform": result.decomposition,
            "confidence": result.confidenceText(),
            "kinds": result.kinds or "–",
            "warnings": "\n".join(f"⚠ {warning}" for warning in result.warnings),
            "landmarks": errors.text() if errors is not None else "",
        }


def canBeSeen(moving, fixed) -> bool:
    """Whether a pair can be reviewed in the views."""
    return (
        moving is not None
        and fixed is not None
        and moving is not fixed
        and not any(scene.volumeProblem(node, role) for node, role in ((moving, scene.MOVING), (fixed, scene.FIXED)))
    )
