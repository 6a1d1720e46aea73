"""The Batch tab: a table of volumes to one fixed volume."""

from __future__ import annotations

import os
import time

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from . import batch, parameters, report, scene
from .adapt_frame import AdaptFrame
from .batch_table import BatchTable
from .change import removeWithHelpers
from .messages import offer
from .opening import openFile
from .page import PAGE_NAME
from .problem import Problem, explain
from .result_panel import Shown
from .runner import Runner
from .watching import Later, Watch

SHOWN_FAILURES = 5  # the others are in the table's tooltips and in the report
WHOLE_SCENE = -1


class BatchTab:
    """`onLook(shown)` is called with what the person wants to look at, `onInstalled()` when there may be new models."""

    def __init__(self, ui, onRunningChanged, onLook, onInstalled):
        self.ui, self._onRunningChanged, self._onLook = ui, onRunningChanged, onLook
        self.parameters = None
        self.items = []
        self.batch = self.runner = None
        self._available, self._updating = True, False
        self._looked = None  # an Item whose file was read to be looked at
        self._started, self._todo = 0.0, 0
        self._folders = None
        self._table = BatchTable(ui.batchTable)
        self.adapt = AdaptFrame(ui, self._foldersToAdapt, onInstalled)
        self.later = Later(self.update)
        self._watch = Watch(self._onWatched)
        ui.batchAddSceneButton.connect("clicked(bool)", self.onAddScene)
        ui.batchAddFolderButton.connect("clicked(bool)", self.onAddFolder)
        ui.batchRemoveButton.connect("clicked(bool)", self.onRemove)
        ui.batchClearButton.connect("clicked(bool)", self.onClear)
        ui.batchRunButton.connect("clicked(bool)", self.onRunButton)
        ui.batchReportButton.connect("clicked(bool)", self.onReport)
        ui.batchLookButton.connect("clicked(bool)", self.onLook)
        ui.batchPageButton.connect("clicked(bool)", self.onPage)
        ui.batchTable.connect("itemSelectionChanged()", self.updateButtons)
        ui.batchTable.connect("cellDoubleClicked(int,int)", self.onLook)
        ui.batchOutputPath.connect("currentPathChanged(QString)", self.onOutputFolder)
        for path in (ui.batchFolderPath, ui.batchOutputPath):
            path.filters = ctk.ctkPathLineEdit.Dirs
        ui.batchFolderPath.connect("currentPathChanged(QString)", self._onScanFolder)
        ui.batchProgressBar.setVisible(False)
        ui.batchMessageLabel.setVisible(False)

    @property
    def running(self):
        return self.runner is not None and self.runner.active

    def setParameters(self, parameterNode):
        self.parameters = parameterNode
        self.ui.batchTab.setEnabled(parameterNode is not None)
        if parameterNode is not None and not self.running:
            listed = batch.newItems(
                parameters.nodeList(parameterNode, parameters.BATCH_VOLUME_ROLE), parameters.batchFiles(parameterNode)
            )
            known = {(item.node, item.path): item for item in self.items}  # with what was found for them
            self.items = [known.get((item.node, item.path), item) for item in listed]
        self.update()

    def setAvailable(self, available):
        self._available = available
        self.updateButtons()

    def update(self, *_ignored):
        if self.parameters is None or self._updating:
            return
        self._updating = True
        try:
            fixed = self.parameters.fixedVolume
            self.ui.batchFixedLabel.text = _("Fixed volume: {name}").format(
                name=fixed.GetName() if fixed is not None else _("none (select it on the Register tab)")
            )
            self.ui.batchOutputPath.currentPath = self.parameters.batchOutputFolder
            self._showSources()
        finally:
            self._updating = False
        self.items = [item for item in self.items if item.node is None or item.node.GetScene() is not None]
        for item in self.items:
            item.forgetRemoved()
        self._watch.follow([fixed, *(item.volume for item in self.items)])
        self._table.show(self.items)
        self.updateButtons()

    def _showSources(self):
        """Where volumes can be taken from: the whole scene, or a folder of its subject hierarchy."""
        names = [name for name, _volumes in scene.folders()]
        if names != self._folders:
            self._folders = names
            combo = self.ui.batchSourceCombo
            combo.clear()
            combo.addItem(_("The whole scene"), WHOLE_SCENE)
            for index, name in enumerate(names):
                combo.addItem(_("“{name}”").format(name=name), index)

    def _onWatched(self):
        if not self._updating:
            self.later.ask()

    def newBatch(self):
        p = self.parameters
        plan = batch.Plan(
            p.fixedVolume,
            parameters.settings(p),
            fixedMask=p.fixedMask,
            fixedSegment=p.fixedSegment,
            initialTransform=p.initialTransform,
            own=p.movingVolume,
            movingMask=p.movingMask,
            movingSegment=p.movingSegment,
            movingLandmarks=p.movingLandmarks,
            fixedLandmarks=p.fixedLandmarks,
            beat=self._beat,
        )
        return batch.Batch(self.items, plan, p.batchOutputFolder, p.batchKeepVolumes)

    def _beat(self):
        if self.runner is not None:
            self.runner.beat()

    def updateButtons(self, *_ignored):
        ui, idle = self.ui, not self.running
        for widget in (
            ui.batchAddSceneButton,
            ui.batchAddFolderButton,
            ui.batchRemoveButton,
            ui.batchClearButton,
            ui.batchSourceCombo,
            ui.batchFolderPath,
            ui.batchOutputPath,
            ui.batchKeepBox,
        ):
            widget.setEnabled(idle)
        self.adapt.update()
        busy = "" if idle and self._available else _("A registration is running.")
        done = any(item.status != batch.WAITING for item in self.items)
        offer(ui.batchReportButton, ("" if idle else busy) or ("" if done else _("Register the volumes first.")))
        offer(ui.batchPageButton, self._pageProblem())
        selected = self._selected()
        looked = selected is not None and selected.status == batch.DONE
        offer(ui.batchLookButton, busy or ("" if looked else _("Select a row whose volume is registered.")))
        if not idle:
            ui.batchRunButton.text, ui.batchRunButton.enabled = _("Stop"), True
            ui.batchRunButton.toolTip = _("Stop now; the volumes that are done keep their transforms.")
            return
        problem = self._problem()
        ui.batchRunButton.text = problem.split(":")[0].rstrip(".") if problem else _("Register all")
        ui.batchRunButton.enabled = not problem
        ui.batchRunButton.toolTip = problem or _("Register every volume of the table to the fixed volume.")

    def _problem(self):
        if self.parameters is None:
            return _("There is no scene.")
        if not self._available:
            return _("Another registration is running.")
        problem = self.newBatch().problem()
        if not problem and all(item.isDone(self.parameters.fixedVolume) for item in self.items):
            return _("All are done: to register volumes again, take their rows out and add them.")
        return problem

    # The list

    def _remember(self):
        """Keep the list in the parameter node, and with it in the scene."""
        self._updating = True
        try:
            parameters.setNodeList(
                self.parameters,
                parameters.BATCH_VOLUME_ROLE,
                [item.node for item in self.items if item.node is not None],
            )
            parameters.setBatchFiles(self.parameters, [item.path for item in self.items if item.node is None])
        finally:
            self._updating = False
        self.update()

    def onAddScene(self, *_ignored):
        source = self.ui.batchSourceCombo.itemData(self.ui.batchSourceCombo.currentIndex)
        folders = scene.folders()
        if source in (None, WHOLE_SCENE) or source >= len(folders):
            candidates = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        else:
            candidates = folders[source][1]
        known = {item.node.GetID() for item in self.items if item.node is not None}
        nodes = [
            node
            for node in candidates
            if node is not self.parameters.fixedVolume
            and node.GetID() not in known
            and not node.GetHideFromEditors()
            and not scene.volumeProblem(node, scene.MOVING)
        ]
        self.items += batch.newItems(nodes=nodes)
        self.tell("" if nodes else _("There are no other volumes that can be registered."))
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
        selected = self._table.selectedRows()
        self.items = [item for row, item in enumerate(self.items) if row not in selected]
        self._remember()

    def onClear(self, *_ignored):
        self.items = []
        self.tell("")
        self._remember()

    def onOutputFolder(self, path):
        if not self._updating and self.parameters is not None:
            self.parameters.batchOutputFolder = path

    def _onScanFolder(self, *_ignored):
        self.adapt.update()

    def _foldersToAdapt(self):
        output = self.parameters.batchOutputFolder if self.parameters is not None else ""
        return self.ui.batchFolderPath.currentPath, output

    # Looking at results

    def _selected(self):
        rows = self._table.selectedRows()
        return self.items[min(rows)] if rows and min(rows) < len(self.items) else None

    def onLook(self, *_ignored):
        """Show the volume of the selected row over the fixed one; one that was a file is read again."""
        item = self._selected()
        if item is None or item.status != batch.DONE or self.running or not self._available:
            return
        if item.transformNode is None or item.fixed is None:
            self.tell(
                _("The transform or the fixed volume of “{name}” is not in the scene any more.").format(name=item.name)
            )
            return
        try:
            volume = item.volume or self._read(item)
        except Exception as error:
            self.tell(explain(error).sentence)
            return
        self._onLook(Shown(item.result, volume, item.fixed, item.transformNode, volume))

    def _read(self, item):
        self.stopLooking()
        item.loaded, self._looked = batch.load(item.path), item
        item.loaded.SetAndObserveTransformNodeID(item.transformNode.GetID())
        return item.loaded

    def stopLooking(self):
        """Take a volume that was read to be looked at out of the scene again."""
        item, self._looked = self._looked, None
        if item is not None:
            removeWithHelpers(item.loaded)
            item.loaded = None

    # Running

    def onRunButton(self, *_ignored):
        if self.running:
            self.stop()
        else:
            self.start()

    def start(self):
        self.tell("")
        self.stopLooking()
        self.batch = self.newBatch()
        self._started = time.monotonic()
        self._todo = sum(not item.isDone(self.batch.fixedVolume) for item in self.items)
        self.runner = Runner(self.batch.run(), self.onStep, self.onDone, self.onError)
        self.ui.batchProgressBar.setRange(0, len(self.items))
        self.ui.batchProgressBar.setValue(0)
        self.ui.batchProgressBar.setVisible(True)
        self._table.show(self.items)
        self.updateButtons()
        self._onRunningChanged()

    def stop(self, message=None):
        if self.running:
            self.runner.stop()
            self.batch.putBack()  # now, even if the step that is under way can not be left yet
            self._ended(message or _("Stopped; the volumes that are done keep their transforms."))

    def abandon(self):
        """Stop because the scene is closing."""
        if self.running:
            self.batch.abandon()
            self.runner.stop()
            self._ended("")
        self._looked = None
        self._watch.forget()
        self.items = []

    def cleanup(self):
        """The window goes: nothing may be called any more."""
        self.later.forget()
        self._watch.forget()
        self.adapt.cleanup()

    def onNodeRemoved(self):
        removed = self.batch.removedNode() if self.running else None
        if removed is not None:
            self.stop(
                _("“{name}” was removed from the scene, so the batch was stopped.").format(name=removed.GetName())
            )
        self.later.ask()

    def onStep(self, itemAndStep):
        finished = sum(item.status in (batch.DONE, batch.FAILED) for item in self.items)
        self.ui.batchProgressBar.setValue(finished)
        done = self._todo - sum(item.status in (batch.WAITING, batch.RUNNING) for item in self.items)
        if done > 0:
            left = (time.monotonic() - self._started) / done * (self._todo - done)
            self.tell(_("About {time} left.").format(time=duration(left)))
        self._table.show(self.items)

    def onDone(self):
        items = self.batch.items  # with those whose rows have gone, as their volumes were removed in mid-run
        failed = [item for item in items if item.status == batch.FAILED]
        message = _("Done: {done} registered, {failed} failed.").format(
            done=len(items) - len(failed), failed=len(failed)
        )
        if self.batch.outputFolder:
            message += " " + self._writtenAll()
        self._ended("\n".join([message, *(f"{item.name}: {item.error}" for item in failed[:SHOWN_FAILURES])]))

    def onError(self, error):
        self.batch.putBack()
        for item in self.items:
            if item.status in (batch.WAITING, batch.RUNNING):
                item.status, item.progress = batch.STOPPED, ""
        self._ended(explain(error, untouched=False).sentence)

    def _ended(self, message):
        self.batch = self.runner = None
        self.ui.batchProgressBar.setVisible(False)
        self.tell(message)
        self._table.show(self.items)
        self.updateButtons()
        self._onRunningChanged()

    def tell(self, message):
        self.ui.batchMessageLabel.text = message
        self.ui.batchMessageLabel.setVisible(bool(message))

    def _page(self):
        """Path of the review page in the output folder, whether it is there or not."""
        folder = self.parameters.batchOutputFolder if self.parameters is not None else ""
        return os.path.join(batch.pageFolderOf(folder), PAGE_NAME) if folder else ""

    def _pageProblem(self):
        if not self._page():
            return _("The review page is made in the output folder: choose one before the batch starts.")
        return "" if os.path.isfile(self._page()) else _("There is no review page in the output folder yet.")

    def onPage(self, *_ignored):
        """Open the review page in the browser."""
        if not openFile(self._page()):
            self.tell(_("Open {path} in a browser.").format(path=self._page()))

    def onReport(self, *_ignored):
        path = qt.QFileDialog.getSaveFileName(self.ui.batchTab, _("Save the report"), report.NAME, _("CSV (*.csv)"))
        if path:
            self.tell(self._written(path))

    def _writtenAll(self):
        """Write the report of the batch that has ended; what to say about it and about the review page."""
        path = os.path.join(self.batch.outputFolder, report.NAME)
        try:
            report.writeReport(path, self.batch.items)
        except Problem as problem:
            return str(problem)
        return self.batch.page.problem or _("The report ({name}) and the review page are in the output folder.").format(
            name=report.NAME
        )

    def _written(self, path):
        """Write the report; what to say about it."""
        try:
            report.writeReport(path, self.items)
        except Problem as problem:
            return str(problem)
        return _("The report is {path}.").format(path=path)


def duration(seconds) -> str:
    """A length of time for people."""
    return _("{count:.0f} min").format(count=seconds / 60) if seconds > 90 else _("{count:.0f} s").format(count=seconds)
