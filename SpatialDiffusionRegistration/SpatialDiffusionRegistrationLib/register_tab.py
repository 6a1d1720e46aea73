"""The Register tab: choose, register, see the result."""
from __future__ import annotations

import logging

import qt
import slicer
from slicer.i18n import tr as _

from . import engine, parameters, scene
from .problem import REMEDY_CPU, REMEDY_TORCH, Explanation, explain
from .result import Result
from .review import Review
from .runner import Runner
from .task import Request, Task

PREVIEW_MILLISECONDS = 20  # so that the views are drawn between two steps
SAME = ""
"""Value of the fixed modality that means "as the moving volume"."""


class RegisterTab:
    """Owns the widgets of the tab; `parameters` is the parameter node or None while the scene is closed."""

    def __init__(self, ui, onTorchNeeded, onRunningChanged):
        self.ui = ui
        self.parameters = None
        self.task = self.runner = None
        self._onTorchNeeded, self._onRunningChanged = onTorchNeeded, onRunningChanged
        self._updating = False
        self._available = True  # false while the batch runs
        self._remedy = self._details = ""
        self._volumeResult = None  # (Result, nodes) of a run whose only output was a volume
        self.review = Review(ui, self.tell)
        self._modalities = self._models = ()

        ui.registerButton.connect("clicked(bool)", self.onRegisterButton)
        ui.detailsButton.connect("clicked(bool)", self.onDetails)
        ui.remedyButton.connect("clicked(bool)", self.onRemedy)
        ui.movingModalityCombo.connect("currentIndexChanged(int)", self.onModality)
        ui.fixedModalityCombo.connect("currentIndexChanged(int)", self.onModality)
        ui.modelCombo.connect("currentIndexChanged(int)", self.onModel)
        ui.modelFileButton.connect("clicked(bool)", self.onModelFile)
        ui.alsoMoveList.connect("itemChanged(QListWidgetItem*)", self.onAlsoMove)
        ui.progressFrame.setVisible(False)
        ui.messageFrame.setVisible(False)
        self.showResult()

    @property
    def running(self):
        return self.runner is not None and self.runner.active

    # Choices

    def fillChoices(self):
        """Fill the lists of modalities and models; reads names only, so it is quick."""
        self._modalities, self._models = engine.modalities(), engine.models()
        self._updating = True
        try:
            for combo, first in ((self.ui.movingModalityCombo, None), (self.ui.fixedModalityCombo, SAME)):
                combo.clear()
                if first is not None:
                    combo.addItem(_("Same as the moving volume"), first)
                for choice in self._modalities:
                    combo.addItem(choice.label, choice.key)
                    combo.setItemData(combo.count - 1, choice.description, qt.Qt.ToolTipRole)
            self.ui.modelCombo.clear()
            self.ui.modelCombo.addItem(_("Automatic (by modality)"), "")
            for choice in self._models:
                self.ui.modelCombo.addItem(choice.label, choice.key)
                self.ui.modelCombo.setItemData(self.ui.modelCombo.count - 1, choice.description, qt.Qt.ToolTipRole)
        finally:
            self._updating = False

    def setParameters(self, parameterNode):
        self.parameters = parameterNode
        self.update()

    def update(self, *_ignored):
        """Show what the parameter node says."""
        self.ui.registerTab.setEnabled(self.parameters is not None)
        if self.parameters is None or self._updating:
            return
        self._updating = True
        try:
            p = self.parameters
            for combo, key in ((self.ui.movingModalityCombo, p.movingModality),
                               (self.ui.fixedModalityCombo, p.fixedModality), (self.ui.modelCombo, p.modelName)):
                if combo.findData(key) < 0:  # a file, or something that another computer has
                    combo.addItem(key, key)
                combo.setCurrentIndex(combo.findData(key))
            self.ui.outputTransformSelector.noneDisplay = (
                _("Create a new transform") if p.outputVolume is None else _("None: resampled volume only"))
            self._updateAlsoMove()
        finally:
            self._updating = False
        self.updateButton()
        if not self.running:
            self.showResult()

    def _updateAlsoMove(self):
        p, widget = self.parameters, self.ui.alsoMoveList
        checked = parameters.nodeList(p, parameters.ALSO_MOVE_ROLE)
        nodes = scene.transformables(exclude=(p.movingVolume, p.fixedVolume, p.outputVolume, p.movingMask, p.fixedMask)
                                     if p.movingVolume else ())
        nodes += [node for node in (p.movingMask,) if node is not None and node not in nodes]
        shown = [(node.GetID(), node.GetName(), node in checked) for node in nodes]
        if shown == getattr(self, "_shownAlsoMove", None):
            return
        self._shownAlsoMove = shown
        widget.clear()
        for nodeID, name, isChecked in shown:
            item = qt.QListWidgetItem(name)
            item.setData(qt.Qt.UserRole, nodeID)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if isChecked else qt.Qt.Unchecked)
            widget.addItem(item)
        if not shown:
            item = qt.QListWidgetItem(_("Nothing else in the scene to move yet"))
            item.setFlags(qt.Qt.NoItemFlags)
            widget.addItem(item)

    def onAlsoMove(self, *_ignored):
        if self._updating or self.parameters is None:
            return
        widget, nodes = self.ui.alsoMoveList, []
        for row in range(widget.count):
            item = widget.item(row)
            if item.data(qt.Qt.UserRole) and item.checkState() == qt.Qt.Checked:
                nodes.append(slicer.mrmlScene.GetNodeByID(item.data(qt.Qt.UserRole)))
        parameters.setNodeList(self.parameters, parameters.ALSO_MOVE_ROLE, [n for n in nodes if n is not None])

    def onModality(self, *_ignored):
        if self._updating or self.parameters is None:
            return
        moving, fixed = (combo.itemData(combo.currentIndex) for combo in (
            self.ui.movingModalityCombo, self.ui.fixedModalityCombo))
        self.parameters.movingModality = moving
        self.parameters.fixedModality = fixed

    def onModel(self, *_ignored):
        if not self._updating and self.parameters is not None:
            combo = self.ui.modelCombo
            self.parameters.modelName = combo.itemData(combo.currentIndex)

    def onModelFile(self, *_ignored):
        path = qt.QFileDialog.getOpenFileName(self.ui.registerTab, _("Model file"), "", _("Models (*.safetensors)"))
        if path and self.parameters is not None:
            self.parameters.modelName = path

    # Running

    def request(self, device=None) -> Request:
        p = self.parameters
        return Request(
            movingVolume=p.movingVolume, fixedVolume=p.fixedVolume, settings=parameters.settings(p, device),
            outputTransform=p.outputTransform, outputVolume=p.outputVolume,
            alsoMove=tuple(parameters.nodeList(p, parameters.ALSO_MOVE_ROLE)), initialTransform=p.initialTransform,
            movingMask=p.movingMask, fixedMask=p.fixedMask,
            wantTransform=p.outputTransform is not None or p.outputVolume is None, preview=p.livePreview, show=True)

    def updateButton(self):
        button = self.ui.registerButton
        if self.running:
            button.text, button.toolTip = _("Cancel"), _("Stop and put the scene back as it was.")
            button.enabled = True
            return
        button.text = _("Register")
        if not self._available:
            problem = _("The batch is running.")
        else:
            problem = self.request().problem() if self.parameters is not None else _("There is no scene.")
        button.enabled = not problem
        button.toolTip = problem or _("Move the moving volume onto the fixed volume.")

    def setAvailable(self, available):
        self._available = available
        self.updateButton()

    def onRegisterButton(self, *_ignored):
        if self.running:
            self.cancel()
        else:
            self.start()

    def start(self, device=None):
        self.review.leave()
        self.clearMessage()
        self._volumeResult = None
        self.task = Task(self.request(device))
        self.runner = Runner(self.task.run(), self.onStep, self.onDone, self.onError,
                             PREVIEW_MILLISECONDS if self.task.request.preview else 1)
        self.showResult()
        self._setRunning(True)
        self.ui.progressBar.setRange(0, 0)  # busy, until the first step tells how many there are
        self.ui.progressLabel.text = _("Loading PyTorch and the model…")

    def cancel(self, message=None):
        """Stop a run, if there is one; the scene is put back."""
        if self.running:
            self.runner.stop()
            self._ended()
            self.tell(Explanation(message or _("Cancelled; the scene is as it was before."), ""))

    def abandon(self):
        """Stop because the scene is closing: there is nothing to put back."""
        if self.running:
            self.task.sceneClosed = True
            self.runner.stop()
            self._ended()
        self.task = None
        self._volumeResult = None
        self.review.forget()
        self.clearMessage()

    def onNodeRemoved(self):
        """A node has left the scene: end a run that needs it."""
        removed = self.task.removedNode() if self.running else None
        if removed is not None:
            self.cancel(_("“{name}” was removed from the scene, so the registration was stopped.").format(
                name=removed.GetName()))

    def onStep(self, step):
        self.ui.progressBar.setRange(0, step.count)
        self.ui.progressBar.setValue(step.index)
        self.ui.progressLabel.text = _("{stage}: step {index} of {count}").format(
            stage=step.stage, index=step.index, count=step.count)

    def onDone(self):
        task = self.task
        self._ended()
        if self.parameters is not None:
            if task.transformNode is not None:
                self.parameters.outputTransform = task.transformNode
            else:
                self._volumeResult = (task.result, task.request)
        self.ui.resultSection.collapsed = False
        self.ui.reviewSection.collapsed = False
        self.ui.fadeSlider.setValue(50)
        self.update()

    def onError(self, error):
        self._ended()
        self.tell(explain(error))

    def _setRunning(self, running):
        self.ui.progressFrame.setVisible(running)
        for section in (self.ui.inputsSection, self.ui.outputSection, self.ui.advancedSection):
            section.setEnabled(not running)
        self.updateButton()
        self._onRunningChanged()

    def _ended(self):
        self._setRunning(False)
        self.update()

    # Messages

    def tell(self, explanation: Explanation):
        if explanation.details:
            logging.error("%s\n%s", explanation.sentence, explanation.details)
        self._details, self._remedy = explanation.details, explanation.remedy
        self.ui.messageLabel.text = explanation.sentence
        self.ui.messageButtons.setVisible(bool(explanation.details or explanation.remedy))
        self.ui.detailsButton.setVisible(bool(explanation.details))
        self.ui.remedyButton.setVisible(bool(explanation.remedy))
        self.ui.remedyButton.text = {REMEDY_CPU: _("Use the CPU"), REMEDY_TORCH: _("Set up PyTorch…")}.get(
            explanation.remedy, "")
        self.ui.messageFrame.setVisible(True)

    def clearMessage(self):
        self._details = self._remedy = ""
        self.ui.messageFrame.setVisible(False)

    def onDetails(self, *_ignored):
        slicer.util.errorDisplay(self.ui.messageLabel.text, detailedText=self._details)

    def onRemedy(self, *_ignored):
        remedy = self._remedy
        self.clearMessage()
        if remedy == REMEDY_CPU and self.parameters is not None:
            self.parameters.device = parameters.Device.CPU
            if not self.request().problem():
                self.start()
        elif remedy == REMEDY_TORCH:
            self._onTorchNeeded()

    # Result

    def showResult(self):
        """Show the result that the chosen output holds, and offer its review."""
        p, ui = self.parameters, self.ui
        result = moving = fixed = transform = None
        if p is not None and not self.running:
            moving, fixed, transform = p.movingVolume, p.fixedVolume, p.outputTransform
            if transform is not None:
                result = Result.stored(transform)
                if result is not None:  # the volumes it was made for, whatever is selected now
                    moving = transform.GetNodeReference(transform.GetMovingNodeReferenceRole())
                    fixed = transform.GetNodeReference(transform.GetFixedNodeReferenceRole())
            elif self._volumeResult is not None and not self._volumeResult[1].removedFromScene():
                result, request = self._volumeResult
                moving, fixed = request.outputVolume, request.fixedVolume
        ui.resultSection.setEnabled(result is not None)
        ui.similarityValue.text = result.similarityText() if result else "–"
        ui.transformValue.text = result.decomposition if result else "–"
        ui.confidenceValue.text = result.confidenceText() if result else "–"
        ui.kindsValue.text = (result.kinds or "–") if result else "–"
        ui.warningsValue.text = "\n".join(f"⚠ {warning}" for warning in result.warnings) if result else ""
        ui.warningsValue.setVisible(bool(result and result.warnings))
        ui.warningsTitle.setVisible(bool(result and result.warnings))
        usable = moving is not None and fixed is not None and moving is not fixed and not any(
            scene.volumeProblem(node, role) for node, role in ((moving, scene.MOVING), (fixed, scene.FIXED)))
        self.review.show(moving if usable else None, fixed if usable else None, result)
