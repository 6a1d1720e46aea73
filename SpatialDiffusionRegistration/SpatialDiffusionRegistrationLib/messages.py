"""The frame that tells what went wrong, and what would help."""

from __future__ import annotations

import logging

import slicer
from slicer.i18n import tr as _

from .problem import REMEDY_CPU, REMEDY_TORCH, Explanation


def offer(button, problem):
    """Enable a button where `problem` is "", else let it say on itself why it is not; a tooltip otherwise says what it
    does."""
    does = button.property("does")
    if does is None:
        does = button.toolTip
        button.setProperty("does", does)
    button.setEnabled(not problem)
    button.toolTip = problem or does


class Messages:
    """`onRemedy(remedy)` is called if the person presses the button that would help."""

    def __init__(self, ui, onRemedy):
        self._ui, self._onRemedy = ui, onRemedy
        self._details = self._remedy = ""
        ui.detailsButton.connect("clicked(bool)", self._onDetails)
        ui.remedyButton.connect("clicked(bool)", self._onRemedyButton)
        ui.messageFrame.setVisible(False)

    def tell(self, explanation: Explanation):
        if explanation.details:
            logging.error("%s\n%s", explanation.sentence, explanation.details)
        self._details, self._remedy = explanation.details, explanation.remedy
        ui = self._ui
        ui.messageLabel.text = explanation.sentence
        ui.messageButtons.setVisible(bool(explanation.details or explanation.remedy))
        ui.detailsButton.setVisible(bool(explanation.details))
        ui.remedyButton.setVisible(bool(explanation.remedy))
        ui.remedyButton.text = {REMEDY_CPU: _("Use the CPU"), REMEDY_TORCH: _("Set up PyTorch…")}.get(
            explanation.remedy, ""
        )
        ui.messageFrame.setVisible(True)

    def clear(self):
        self._details = self._remedy = ""
        self._ui.messageFrame.setVisible(False)

    def _onDetails(self, *_ignored):
        slicer.util.errorDisplay(self._ui.messageLabel.text, detailedText=self._details)

    def _onRemedyButton(self, *_ignored):
        remedy = self._remedy
        self.clear()
        self._onRemedy(remedy)
