"""The button of the Batch tab that adapts a model to the folder of scans."""

from __future__ import annotations

import os

import qt
import slicer
from slicer.i18n import tr as _

from .adaptation import MINUTES, Adaptation, folderOf, problem
from .opening import openFile
from .problem import Problem

MILLISECONDS = 500
"""Between two looks at what the program says."""


class AdaptFrame:
    """`folders()` gives the folder of scans and the output folder; `onInstalled()` is called when it has ended well."""

    def __init__(self, ui, folders, onInstalled):
        self._ui, self._folders, self._onInstalled = ui, folders, onInstalled
        self._adaptation = None
        self._timer = qt.QTimer()
        self._timer.setInterval(MILLISECONDS)
        self._timer.connect("timeout()", self._look)
        ui.batchAdaptButton.connect("clicked(bool)", self.onButton)
        ui.batchAdaptProgressBar.setVisible(False)
        self._tell("")

    @property
    def running(self):
        return self._adaptation is not None

    def update(self):
        """Say on the button what it would do, or what is missing."""
        button = self._ui.batchAdaptButton
        if self.running:
            button.text, button.enabled = _("Stop adapting"), not self._adaptation.stopped
            button.toolTip = _("Stop training; the same button goes on from there.")
            return
        sentence = problem(*self._folders())
        button.text, button.enabled = _("Adapt a model to the folder…"), not sentence
        button.toolTip = sentence or _(
            "Train the nearest model on the scans of the folder, in the background, and install it only if it helps."
        )

    def onButton(self, *_ignored):
        if self.running:
            self._adaptation.stop()
            self._tell(_("Stopping…"))
            self.update()
            return
        scans, output = self._folders()
        if slicer.util.confirmOkCancelDisplay(
            _(
                "The nearest model is trained on the scans in “{scans}” for {minutes} minutes, in the background, and "
                "measured on people held out. It is installed only if it registers them better; the report "
                "“{report}” says so."
            ).format(scans=scans, minutes=MINUTES, report=os.path.join(folderOf(scans, output), "report.html")),
            windowTitle=_("Spatial Diffusion Registration"),
        ):
            self._start(scans, output)

    def _start(self, scans, output):
        adaptation = Adaptation(scans, output)
        try:
            adaptation.start()
        except Problem as sentence:
            self._tell(str(sentence))
            return
        self._adaptation = adaptation
        self._ui.batchAdaptProgressBar.setVisible(True)
        self._timer.start()
        self._tell(_("Starting…"))
        self._look()

    def _look(self):
        adaptation = self._adaptation
        adaptation.poll()
        if adaptation.ended:
            self._ended(adaptation)
            return
        bar, spent = self._ui.batchAdaptProgressBar, adaptation.minutes
        bar.setRange(0, MINUTES if spent < MINUTES else 0)  # preparing and measuring come on top: no end is known
        bar.setValue(int(spent))
        if not adaptation.stopped:
            self._tell(adaptation.line() or _("Starting…"))
        self.update()

    def _ended(self, adaptation):
        self._timer.stop()
        self._adaptation = None
        self._ui.batchAdaptProgressBar.setVisible(False)
        message = adaptation.outcome()
        if adaptation.report:
            message += " " + _("The report is {path}.").format(path=adaptation.report)
            self._onInstalled()
            openFile(adaptation.report)
        self._tell(message)
        self.update()

    def _tell(self, message):
        self._ui.batchAdaptLabel.text = message
        self._ui.batchAdaptLabel.setVisible(bool(message))

    def cleanup(self):
        """The window goes: so does the process, which keeps what it has."""
        self._timer.stop()
        if self._adaptation is not None:
            self._adaptation.stop()
            self._adaptation = None
