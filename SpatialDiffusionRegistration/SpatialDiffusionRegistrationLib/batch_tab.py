"""The Batch tab: a table of volumes to one fixed volume."""
from __future__ import annotations

import os

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from . import batch, parameters, scene
from .problem import Problem, explain
from .runner import Runner

REPORT_NAME = "registration_report.csv"
SHOWN_FAILURES = 5  # the others are in the table's tooltips and in the report


class BatchTab:
    def __init__(self, ui, onRunningChanged):
        self.ui, self._onRunningChanged = ui, onRunningChanged
        self.parameters = None
        self.items = []
        self.batch = self.runner = None
        self._available, self._updating = True, False
        ui.batchAddSceneButton.connect("clicked(bool)", self.onAddScene)
        ui.batchAddFolderButton.connect("clicked(bool)", self.onAddFolder)
        ui.batchRemoveButton.connect("clicked(bool)", self.onRemove)
        ui.batchClearButton.connect("clicked(bool)", self.onClear)
        ui.batchRunButton.connect("clicked(bool)", self.onRunButton)
        ui.batchReportButton.connect("clicked(bool)", self.onReport)
        ui.batchOutputPath.connect("currentPathChanged(QString)", self.onOutputFolder)
        for path in (ui.batchFolderPath, ui.batchOutputPath):
            path.filters = ctk.ctkPathLineEdit.Dirs
        ui.batchTable.setColumnCount(5)
        ui.batchTable.setHorizontalHeaderLabels(
            [_("Volume"), _("Status"), _("Similarity"), _("Confidence"), _("Seconds")])
        ui.batchTable.verticalHeader().setVisible(False)
        ui.batchTable.setWordWrap(False)
        header = ui.batchTable.horizontalHeader()
        for column in range(5):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        ui.batchProgressBar.setVisible(False)
        ui.batchMessageLabel.setVisible(False)

    @property
    def running(self):
        return self.runner is not None and self.runner.active

    def setParameters(self, parameterNode):
        self.parameters = parameterNode
        self.ui.batchTab.setEnabled(parameterNode is not None)
        if parameterNode is not None and not self.running:
            listed = batch.newItems(parameters.nodeList(parameterNode, parameters.BATCH_VOLUME_ROLE),
                                    parameters.batchFiles(parameterNode))
            known = {(item.node, item.path): item for item in self.items}  # with what was found for them
            self.items = [known.get((item.node, item.path), item) for item in listed]
        self.update()

    def setAvailable(self, available):
        self._available = available
        self.updateButton()

    def update(self, *_ignored):
        if self.parameters is None or self._updating:
            return
        self._updating = True
        try:
            fixed = self.parameters.fixedVolume
            self.ui.batchFixedLabel.text = _("Fixed volume: {name}").format(
                name=fixed.GetName() if fixed is not None else _("none (select it on the Register tab)"))
            self.ui.batchOutputPath.currentPath = self.parameters.batchOutputFolder
        finally:
            self._updating = False
        self.items = [item for item in self.items if item.node is None or item.node.GetScene() is not None]
        self.updateTable()
        self.updateButton()

    def updateTable(self):
        table = self.ui.batchTable
        table.setRowCount(len(self.items))
        words = {batch.WAITING: _("Waiting"), batch.RUNNING: _("Running"), batch.DONE: _("Done"),
                 batch.FAILED: _("Failed"), batch.STOPPED: _("Stopped")}
        for row, item in enumerate(self.items):
            status = words[item.status]
            if item.status == batch.RUNNING and item.progress:
                status = item.progress
            result = item.result
            texts = (item.name, status, result.similarityText() if result else "",
                     result.confidence if result else "", f"{result.seconds:.1f}" if result else "")
            tips = (item.path or item.name, item.error, "", "\n".join(result.warnings) if result else "", "")
            for column, (text, tip) in enumerate(zip(texts, tips)):
                cell = table.item(row, column)
                if cell is None:
                    cell = qt.QTableWidgetItem()
                    cell.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
                    table.setItem(row, column, cell)
                cell.setText(text)
                cell.setToolTip(tip)

    def newBatch(self):
        p = self.parameters
        return batch.Batch(self.items, p.fixedVolume, parameters.settings(p), p.batchOutputFolder, p.batchKeepVolumes)

    def updateButton(self):
        ui = self.ui
        idle = not self.running
        for widget in (ui.batchAddSceneButton, ui.batchAddFolderButton, ui.batchRemoveButton, ui.batchClearButton,
                       ui.batchFolderPath, ui.batchOutputPath, ui.batchKeepBox):
            widget.setEnabled(idle)
        ui.batchReportButton.setEnabled(idle and any(item.status != batch.WAITING for item in self.items))
        if not idle:
            ui.batchRunButton.text, ui.batchRunButton.enabled = _("Stop"), True
            ui.batchRunButton.toolTip = _("Stop now; the volumes that are done keep their transforms.")
            return
        ui.batchRunButton.text = _("Register all")
        problem = self.newBatch().problem() if self.parameters is not None else _("There is no scene.")
        if not self._available:
            problem = _("A registration is running.")
        elif not problem and all(item.isDone(self.parameters.fixedVolume) for item in self.items):
            problem = _("All are done.")
        ui.batchRunButton.enabled = not problem
        ui.batchRunButton.toolTip = problem or _("Register every volume of the table to the fixed volume.")

    # The list

    def _remember(self):
        """Keep the list in the parameter node, and with it in the scene."""
        self._updating = True
        try:
            parameters.setNodeList(self.parameters, parameters.BATCH_VOLUME_ROLE,
                                   [item.node for item in self.items if item.node is not None])
            parameters.setBatchFiles(self.parameters, [item.path for item in self.items if item.node is None])
        finally:
            self._updating = False
        self.update()

    def onAddScene(self, *_ignored):
        known = [item.node for item in self.items]
        nodes = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
                 if node is not self.parameters.fixedVolume and node not in known and not node.GetHideFromEditors()
                 and not scene.volumeProblem(node, scene.MOVING)]
        self.items += batch.newItems(nodes=nodes)
        self.tell("" if nodes else _("The scene has no other volumes that can be registered."))
        self._remember()

    def onAddFolder(self, *_ignored):
        try:
            paths = batch.volumeFiles(self.ui.batchFolderPath.currentPath)
        except Problem as problem:
            self.tell(str(problem))
            return
        known = {item.path for item in self.items}
        self.items += batch.newItems(paths=[path for path in paths if path not in known])
        self.tell("")
        self._remember()

    def onRemove(self, *_ignored):
        selected = {index.row() for index in self.ui.batchTable.selectionModel().selectedRows()}
        self.items = [item for row, item in enumerate(self.items) if row not in selected]
        self._remember()

    def onClear(self, *_ignored):
        self.items = []
        self.tell("")
        self._remember()

    def onOutputFolder(self, path):
        if not self._updating and self.parameters is not None:
            self.parameters.batchOutputFolder = path

    # Running

    def onRunButton(self, *_ignored):
        if self.running:
            self.stop()
        else:
            self.start()

    def start(self):
        self.tell("")
        self.batch = self.newBatch()
        self.runner = Runner(self.batch.run(), self.onStep, self.onDone, self.onError)
        self.ui.batchProgressBar.setRange(0, len(self.items))
        self.ui.batchProgressBar.setValue(0)
        self.ui.batchProgressBar.setVisible(True)
        self.updateTable()
        self.updateButton()
        self._onRunningChanged()

    def stop(self):
        if self.running:
            self.runner.stop()
            self._ended(_("Stopped; the volumes that are done keep their transforms."))

    def abandon(self):
        """Stop because the scene is closing."""
        if self.running:
            self.batch.sceneClosed = True
            self.runner.stop()
            self._ended("")
        self.items = []

    def onNodeRemoved(self):
        if self.running and self.batch.fixedVolume.GetScene() is None:
            self.runner.stop()
            self._ended(_("The fixed volume was removed from the scene, so the batch was stopped."))
        elif not self.running:
            self.update()

    def onStep(self, itemAndStep):
        finished = (batch.DONE, batch.FAILED)
        self.ui.batchProgressBar.setValue(sum(item.status in finished for item in self.items))
        self.updateTable()

    def onDone(self):
        failed = [item for item in self.items if item.status == batch.FAILED]
        message = _("Done: {done} registered, {failed} failed.").format(
            done=len(self.items) - len(failed), failed=len(failed))
        folder = self.batch.outputFolder
        if folder:
            path = os.path.join(folder, REPORT_NAME)
            try:
                batch.writeReport(path, self.items)
                message += " " + _("The report is {path}.").format(path=path)
            except Problem as problem:
                message += " " + str(problem)
        self._ended("\n".join([message, *(f"{item.name}: {item.error}" for item in failed[:SHOWN_FAILURES])]))

    def onError(self, error):
        self._ended(explain(error).sentence)

    def _ended(self, message):
        self.ui.batchProgressBar.setVisible(False)
        self.tell(message)
        self.updateTable()
        self.updateButton()
        self._onRunningChanged()

    def tell(self, message):
        self.ui.batchMessageLabel.text = message
        self.ui.batchMessageLabel.setVisible(bool(message))

    def onReport(self, *_ignored):
        path = qt.QFileDialog.getSaveFileName(self.ui.batchTab, _("Save the report"), REPORT_NAME, _("CSV (*.csv)"))
        if path:
            try:
                batch.writeReport(path, self.items)
                self.tell(_("The report is {path}.").format(path=path))
            except Problem as problem:
                self.tell(str(problem))
