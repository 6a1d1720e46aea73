"""The Register tab: choose, register, see the result."""

from __future__ import annotations

import time

import slicer
from slicer.i18n import tr as _

from . import parameters, scene
from .also_move import AlsoMoveList
from .change import SceneChange
from .choices import Choices
from .messages import Messages
from .problem import REMEDY_CPU, REMEDY_TORCH, Explanation, explain
from .request import Request, named
from .result_panel import ResultPanel, Shown, canBeSeen
from .review import Review
from .runner import Runner
from .task import Task
from .watching import DialogWatch, Later, Watch

PREVIEW_MILLISECONDS = 20  # so that the views are drawn between two steps


class RegisterTab:
    """Owns the widgets of the tab; `parameters` is the parameter node or None while the scene is closed."""

    def __init__(self, ui, onTorchNeeded, onRunningChanged):
        self.ui = ui
        self.parameters = None
        self.task = self.runner = None
        self._onTorchNeeded, self._onRunningChanged = onTorchNeeded, onRunningChanged
        self._updating = False
        self._available = True  # false while the batch runs
        self._pair = None  # (moving, fixed) at the last update
        self._last = None  # (Shown, SceneChange, chosen output) of the last run that ended well, while its nodes live
        self._reviewed = None  # a Shown from elsewhere (the batch), until something else is chosen here
        self._started = 0.0
        self._usual = None  # seconds that the last run took
        self._choices = Choices(ui)
        self._alsoMove = AlsoMoveList(ui.alsoMoveList)
        self._messages = Messages(ui, self._onRemedy)
        self._results = ResultPanel(ui, self.undo)
        self._dialogs = DialogWatch(self._isShowing, self._onDialogOpened, self._onDialogClosed)
        self.review = Review(ui, self.tell, self._dialogs.begin)
        self.later = Later(self.update)
        self._watch = Watch(self._onWatched)
        ui.registerButton.connect("clicked(bool)", self.onRegisterButton)
        ui.swapButton.connect("clicked(bool)", self.onSwap)
        ui.progressFrame.setVisible(False)
        self.showResult()

    @property
    def running(self):
        return self.runner is not None and self.runner.active

    # Choices

    def fillChoices(self):
        """Fill the lists of modalities and models; reads names only, so it is quick."""
        self._choices.fill()

    def setParameters(self, parameterNode):
        self.parameters = parameterNode
        self._pair = self._chosen()  # of another scene: no change of the pair
        self.update()

    def _chosen(self):
        p = self.parameters
        return (p.movingVolume, p.fixedVolume) if p is not None else (None, None)

    def update(self, *_ignored):
        """Show what the parameter node says."""
        self.ui.registerTab.setEnabled(self.parameters is not None)
        if self.parameters is None or self._updating:
            return
        self._updating = True
        try:
            if not self.running:
                self._followPair()
            self._choices.update(self.parameters)
            self._alsoMove.update(self.parameters)
        finally:
            self._updating = False
        self.updateButton()
        if not self.running:
            self.showResult()
        self._followNodes()

    def _followPair(self):
        """What was chosen for one pair must not be overwritten or moved by the registration of another."""
        before, now = self._pair, self._chosen()
        if now == before:
            return
        self._pair, self._reviewed = now, None
        if None not in now:
            self._messages.clear()  # it was about the pair before
        if before is None or before[0] is None:
            return
        p = self.parameters
        if now[0] is not before[0]:
            parameters.setNodeList(p, parameters.ALSO_MOVE_ROLE, [])
        if before[1] is None:
            return
        p.outputTransform = None
        if p.outputVolume is not None and p.outputVolume.GetImageData() is not None:
            p.outputVolume = None

    def _followNodes(self):
        p, shown = self.parameters, self._shown()
        self._watch.follow(
            [
                p.movingVolume,
                p.fixedVolume,
                p.outputTransform,
                p.outputVolume,
                p.movingMask,
                p.fixedMask,
                p.movingLandmarks,
                p.fixedLandmarks,
                p.initialTransform,
                *shown.nodes(),
                *self._alsoMove.nodes(),
            ]
        )

    def _onWatched(self):
        if not self.running and not self._updating:
            self.later.ask()

    def onSwap(self, *_ignored):
        """Exchange the volumes and what was said about each."""
        p = self.parameters
        if p is None:
            return
        modifying = p.StartModify()
        p.movingVolume, p.fixedVolume = p.fixedVolume, p.movingVolume
        p.movingMask, p.fixedMask = p.fixedMask, p.movingMask
        p.movingSegment, p.fixedSegment = p.fixedSegment, p.movingSegment
        p.movingLandmarks, p.fixedLandmarks = p.fixedLandmarks, p.movingLandmarks
        if p.fixedModality:  # else both are the same
            p.movingModality, p.fixedModality = p.fixedModality, p.movingModality
        p.initialTransform = None  # it leads the other way
        p.EndModify(modifying)
        self.update()

    # Running

    def request(self, device=None) -> Request:
        p = self.parameters
        return Request(
            movingVolume=p.movingVolume,
            fixedVolume=p.fixedVolume,
            settings=parameters.settings(p, device),
            outputTransform=p.outputTransform,
            outputVolume=p.outputVolume,
            interpolation=p.interpolation.value,
            alsoMove=tuple(parameters.nodeList(p, parameters.ALSO_MOVE_ROLE)),
            initialTransform=p.initialTransform,
            movingMask=p.movingMask,
            fixedMask=p.fixedMask,
            movingSegment=p.movingSegment,
            fixedSegment=p.fixedSegment,
            movingLandmarks=p.movingLandmarks,
            fixedLandmarks=p.fixedLandmarks,
            wantTransform=p.outputTransform is not None or p.outputVolume is None,
            preview=p.livePreview,
            show=True,
        )

    def updateButton(self):
        button = self.ui.registerButton
        if self.running:
            button.text, button.toolTip = _("Cancel"), _("Stop and put the scene back as it was.")
            button.enabled = True
            self.ui.reasonLabel.setVisible(False)
            return
        request = self.request() if self.parameters is not None else None
        if not self._available:
            problem = _("Another registration is running.")
        else:
            problem = request.problem() if request is not None else _("There is no scene.")
        button.enabled = not problem
        button.text = shortened(problem) if problem else _("Register")
        button.toolTip = problem or _("Move the moving volume onto the fixed volume.")
        # The button has room for the beginning of a sentence only.
        self.ui.reasonLabel.text = problem
        self.ui.reasonLabel.setVisible(bool(problem) and shortened(problem) != problem.rstrip("."))
        self._showHint(request, problem)

    def _showHint(self, request, problem):
        """What will become of the outputs."""
        hint = ""
        if request is not None and not problem:
            if not request.wantTransform:
                hint = _("Only a resampled volume is made; the moving volume stays where it is.")
            elif request.outputTransform is None:
                hint = _("A new transform will be made.")
            else:
                hint = _("“{name}” will be overwritten.").format(name=request.outputTransform.GetName())
            hint = " ".join([hint, *request.questions()])
        self.ui.outputHintLabel.text = hint
        self.ui.outputHintLabel.setVisible(bool(hint))

    def setAvailable(self, available):
        self._available = available
        self.updateButton()

    def onRegisterButton(self, *_ignored):
        if self.running:
            self.cancel()
        elif self._confirmed():
            self.start()

    def _confirmed(self):
        questions = self.request().questions()
        return not questions or slicer.util.confirmOkCancelDisplay(
            " ".join(questions), windowTitle=_("Spatial Diffusion Registration")
        )

    def start(self, device=None):
        self.review.leave()
        self._messages.clear()
        self._reviewed = None
        self.task = Task(self.request(device))
        self.runner = Runner(
            self.task.run(),
            self.onStep,
            self.onDone,
            self.onError,
            PREVIEW_MILLISECONDS if self.task.request.preview else 1,
        )
        self.task.request.beat = self.runner.beat
        self._dialogs.begin()
        self._started = time.monotonic()
        self._setRunning(True)
        self.showResult()
        self.ui.progressBar.setRange(0, 0)  # busy, until the first step tells how many there are
        doing = _("Reading the volumes, loading PyTorch and the model…")
        if self._usual is not None:
            doing += " " + _("The last registration took {seconds:.0f} s.").format(seconds=self._usual)
        self.ui.progressLabel.text = doing

    def cancel(self, message=None):
        """Stop a run, if there is one; the scene is put back."""
        if self.running:
            self.runner.stop()
            self.task.putBack()  # now, even if the step that is under way can not be left yet
            self._ended()
            self.tell(Explanation(message or _("Cancelled; the scene is as it was before."), ""))

    def abandon(self):
        """Stop because the scene is closing: nothing is to be put back."""
        if self.running:
            self.task.sceneClosed = True
            self.runner.stop()
            self._ended()
        self._last = self._reviewed = None
        self._watch.forget()
        self.review.forget()

    # A scene that is saved holds what is the person's own

    def _isShowing(self):
        """Whether the views show what goes away by itself."""
        return self.running or self.review.isOn

    def _onDialogOpened(self):
        if self.running:
            self.task.pause()
        self.review.pause()

    def _onDialogClosed(self):
        if self.running:
            self.task.resume()
        self.review.resume()

    def cleanup(self):
        """The window goes: nothing may be called any more."""
        self._dialogs.forget()
        self.later.forget()
        self._watch.forget()
        self._last = self._reviewed = None

    def onNodeRemoved(self):
        """Nodes have left the scene: end a run that needs one of them, and forget what can not be undone any more."""
        removed = self.task.removedNode() if self.running else None
        if removed is not None:
            self.cancel(
                _("“{name}” was removed from the scene, so the registration was stopped.").format(
                    name=removed.GetName()
                )
            )
        if self._last is not None and _anyGone([*self._last[0].nodes(), *self._last[1].nodes()]):
            self._last = None
        if self._reviewed is not None and _anyGone(self._reviewed.nodes()):
            self._reviewed = None
        if _anyGone(self.review.nodes()):
            self.review.show(None, None, None)
        if not self.running:
            self.later.ask()  # a volume that is gone changes the pair

    def onStep(self, step):
        self.ui.progressBar.setRange(0, step.count)
        self.ui.progressBar.setValue(step.index)
        self.ui.progressLabel.text = _("{stage}: step {index} of {count}, {seconds:.0f} s").format(
            stage=step.stage, index=step.index, count=step.count, seconds=time.monotonic() - self._started
        )

    def onDone(self):
        task = self.task
        request = task.request
        self._usual = time.monotonic() - self._started
        volume = None if request.wantTransform else request.outputVolume
        self._last = (
            Shown(
                task.result,
                request.movingVolume,
                request.fixedVolume,
                task.transformNode,
                volume or request.movingVolume,
            ),
            task.change,
            request.outputTransform,
        )
        if self.parameters is not None and task.transformNode is not None:
            self.parameters.outputTransform = task.transformNode
        self.ui.resultSection.collapsed = False
        self.ui.reviewSection.collapsed = False
        self.ui.fadeSlider.setValue(50)
        self._ended()

    def onError(self, error):
        self.task.putBack()
        self._last = None  # the window may have failed to show a run that had ended well
        self._ended()
        self.tell(explain(error))

    def _setRunning(self, running):
        self.ui.progressFrame.setVisible(running)
        for section in (self.ui.inputsSection, self.ui.outputSection, self.ui.advancedSection):
            section.setEnabled(not running)
        self.updateButton()
        self._onRunningChanged()

    def _ended(self):
        self.runner = None
        self._setRunning(False)
        self.update()
        self.task = None  # last: `onError` puts back what can not be shown

    # Messages

    def tell(self, explanation: Explanation):
        self._messages.tell(explanation)

    def _onRemedy(self, remedy):
        if remedy == REMEDY_CPU and self.parameters is not None:
            self.parameters.device = parameters.Device.CPU
            if not self.request().problem():
                self.start()
        elif remedy == REMEDY_TORCH:
            self._onTorchNeeded()

    # Result

    def lookAt(self, shown: Shown):
        """Review a result from elsewhere, until other volumes are chosen or a registration starts."""
        self.review.leave()
        SceneChange().showOver(shown.fixed, shown.reviewed, self.ui.fadeSlider.value / 100.0)
        self._reviewed = shown
        self.showResult()

    def _shown(self) -> Shown:
        """The result to show: what the chosen output holds, else that of the last run."""
        p = self.parameters
        if p is None or self.running:
            return Shown()
        if self._reviewed is not None:
            return self._reviewed
        shown = Shown.of(p.outputTransform)
        if shown.result is None and p.outputTransform is None and self._last is not None:
            return self._last[0]
        return shown

    def showResult(self):
        """Show the result and offer its review; without one, the pair that is selected can be reviewed as it is."""
        shown, chosen = self._shown(), self._chosen()
        if self._reviewed is not None:
            chosen = shown.moving, shown.fixed
        self._results.show(shown, chosen, self._undoProblem(shown))
        moving, fixed, result = shown.reviewed, shown.fixed, shown.result
        if not self.running and canBeSeen(*chosen) and chosen != (shown.moving, shown.fixed):
            (moving, fixed), result = chosen, None
        usable = canBeSeen(moving, fixed)
        self.review.show(moving if usable else None, fixed if usable else None, result, shown.moving)

    def _undoProblem(self, shown):
        """Why the last run can not be undone, "" if it can, None if it is not what is shown."""
        if self._last is None or shown.result is None:
            return None
        last, change, _chosen = self._last
        if shown is not last and (shown.transform is None or shown.transform is not last.transform):
            return None
        reason = last.result.untrue(last.moving, last.fixed, last.transform)
        if reason:
            return reason
        own = {id(node) for node in change.nodes()}
        others = [node for node in scene.movedBy(last.transform) if id(node) not in own] if last.transform else []
        if others:
            return _("The transform also moves {others}: take that out of it first.").format(others=named(others))
        return ""

    def undo(self, *_ignored):
        """Put everything back as it was before the last run."""
        if self._last is None or self._undoProblem(self._last[0]) != "":
            return
        (shown, change, chosen), self._last = self._last, None
        self.review.leave()
        if self.parameters is not None and self.parameters.outputTransform is shown.transform:
            self.parameters.outputTransform = chosen
        change.undo()
        self.update()
        self.tell(Explanation(_("Undone; the scene is as it was before the registration."), ""))


def shortened(sentence) -> str:
    """The beginning of a sentence, which says what is wrong; the rest says what to do."""
    return sentence.split(":")[0].rstrip(".")


def _anyGone(nodes) -> bool:
    return any(node.GetScene() is None for node in nodes)
