"""The Sequence tab: the motion of a sequence of volumes."""

from __future__ import annotations

import os

import qt
import slicer
from slicer.i18n import tr as _

from . import engine
from .messages import offer
from .opening import openFile
from .page import PAGE_NAME
from .problem import explain
from .runner import Runner
from .sequences import SequenceRequest, SequenceTask
from .watching import Later, Watch


class SequenceTab:
    def __init__(self, ui, onRunningChanged):
        self.ui, self._onRunningChanged = ui, onRunningChanged
        self.parameters = self.task = self.runner = None
        self._available = True
        self._found = None  # a SequenceResult, until the scene is closed
        self._drawing = None  # the Runner that draws the review page
        ui.sequencePageButton.connect("clicked(bool)", self.onPage)
        ui.sequenceRunButton.connect("clicked(bool)", self.onRunButton)
        ui.sequencePlotButton.connect("clicked(bool)", self.onPlot)
        ui.sequenceProgressBar.setVisible(False)
        self.later = Later(self.update)
        self._watch = Watch(self.later.ask)
        self.tell("")

    @property
    def running(self):
        return self.runner is not None and self.runner.active

    @property
    def drawing(self):
        return self._drawing is not None and self._drawing.active

    def setParameters(self, parameterNode):
        self.parameters = parameterNode
        self.ui.sequenceTab.setEnabled(parameterNode is not None)
        self.update()

    def setAvailable(self, available):
        self._available = available
        self.update()

    def request(self):
        p = self.parameters
        return SequenceRequest(
            p.sequence, p.referenceFrame - 1 if p.referenceFrame else None, transform=p.sequenceTransform.value
        )

    def update(self, *_ignored):
        ui, idle = self.ui, not self.running and not self.drawing
        for widget in (ui.sequenceSelector, ui.referenceFrameSpin, ui.sequenceTransformCombo):
            widget.setEnabled(idle)
        nothing = "" if self._found is not None else _("Register the frames of a sequence first.")
        busy = "" if idle else _("A registration is running.")
        gone = "" if self._found is None or self._hasChart() else _("The chart is not in the scene any more.")
        offer(ui.sequencePlotButton, busy or nothing or gone)
        offer(ui.sequencePageButton, busy or nothing)
        self._showResult()
        if not idle:
            ui.sequenceRunButton.text, ui.sequenceRunButton.enabled = _("Cancel"), True
            ui.sequenceRunButton.toolTip = _("Stop; the scene stays as it is.")
            return
        if self.parameters is None:
            problem = _("There is no scene.")
        else:
            problem = self.request().problem() if self._available else _("Another registration is running.")
        ui.sequenceRunButton.enabled = not problem
        ui.sequenceRunButton.text = problem.split(":")[0].rstrip(".") if problem else _("Register the frames")
        ui.sequenceRunButton.toolTip = problem or _("Lay every frame on the reference frame.")

    def _hasChart(self):
        return self._found is not None and self._found.chart.GetScene() is not None

    def _showResult(self):
        """What the last run found, with its warnings; gray with a word where it is not true any more."""
        label, found = self.ui.sequenceResultLabel, None if self.running else self._found
        untrue = found.untrue(self.parameters.sequence if self.parameters is not None else None) if found else ""
        lines = [_("Not true any more: {reason}").format(reason=untrue)] if untrue else []
        label.text = "\n".join([*lines, found.text()]) if found else ""
        label.setEnabled(not untrue)
        label.setVisible(found is not None)
        self._watch.follow(found.nodes() if found else [])

    def cleanup(self):
        """The window goes: nothing may be called any more."""
        self.later.forget()
        self._watch.forget()
        self._found = None

    def onRunButton(self, *_ignored):
        if self.running or self.drawing:
            self.cancel()
        else:
            self.start()

    def start(self):
        self.tell("")
        self.task = SequenceTask(self.request())
        self.runner = Runner(self.task.run(), self.onStep, self.onDone, self.onError)
        self.task.request.beat = self.runner.beat
        self.ui.sequenceProgressBar.setRange(0, 0)
        self.ui.sequenceProgressBar.setVisible(True)
        self.update()
        self._onRunningChanged()

    def cancel(self, message=None):
        if self.running:
            self.runner.stop()
            self.task.putBack()
            self._ended(message or _("Cancelled; the scene is as it was before."))
        elif self.drawing:
            self._drawing.stop()
            self._drawn(_("Stopped; the page is not whole."))

    def abandon(self):
        """Stop because the scene is closing."""
        if self.running:
            self.task.sceneClosed = True
            self.runner.stop()
            self._ended("")
        if self.drawing:
            self._drawing.stop()
            self._drawn("")
        self._found = None
        self._watch.forget()

    def onNodeRemoved(self):
        if self.running and any(node.GetScene() is None for node in self.task.nodes()):
            self.cancel(_("The sequence was removed from the scene, so the registration was stopped."))
        if not self.running:
            self.later.ask()

    def onStep(self, step):
        self.ui.sequenceProgressBar.setRange(0, step.count)
        self.ui.sequenceProgressBar.setValue(step.index)

    def onDone(self):
        self._found = self.task.found()
        self._ended("")

    def onError(self, error):
        self.task.putBack()
        self._found = None
        self._ended(explain(error).sentence)

    def _ended(self, message):
        self.runner = None
        self.ui.sequenceProgressBar.setVisible(False)
        self.tell(message)
        self.update()
        self._onRunningChanged()
        self.task = None  # last: `onError` puts back what can not be shown

    def tell(self, message):
        self.ui.sequenceMessageLabel.text = message
        self.ui.sequenceMessageLabel.setVisible(bool(message))

    def onPlot(self, *_ignored):
        """Show the chart, in a layout that has room for one."""
        if self._hasChart():
            slicer.modules.plots.logic().ShowChartInLayout(self._found.chart)

    # The page to review

    def onPage(self, *_ignored):
        """Draw every frame on the reference frame, into a folder, and open the page."""
        folder = qt.QFileDialog.getExistingDirectory(self.ui.sequenceTab, _("Folder for the review page"))
        if folder and self._found is not None:
            name = "".join(c if c.isalnum() or c in "-_. " else "_" for c in self._found.name)
            self._draw(os.path.join(folder, _("review of {name}").format(name=name)))

    def _draw(self, folder):
        count, page = len(self._found.motion.matrices), os.path.join(folder, PAGE_NAME)
        bar, done = self.ui.sequenceProgressBar, []

        def onStep(path):
            done.append(path)
            bar.setValue(len(done))

        def onDone():
            sentence = _("The review page is {path}.") if openFile(page) else _("Open {path} in a browser.")
            self._drawn(sentence.format(path=page))

        bar.setRange(0, count + 1)
        bar.setValue(0)
        bar.setVisible(True)
        steps = engine.seriesPageSteps(self._found.motion, folder)
        self._drawing = Runner(steps, onStep, onDone, lambda error: self._drawn(explain(error).sentence))
        self.tell(_("The frames are being drawn…"))
        self.update()
        self._onRunningChanged()

    def _drawn(self, message):
        self._drawing = None
        self.ui.sequenceProgressBar.setVisible(False)
        self.tell(message)
        self.update()
        self._onRunningChanged()
