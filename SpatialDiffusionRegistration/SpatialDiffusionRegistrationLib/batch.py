"""Many moving volumes, nodes or files, to one fixed volume: one after the other, a transform each."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import slicer
from slicer.i18n import tr as _

from . import engine, masks, scene
from .change import removeNode, removeWithHelpers
from .cursor import waitCursor
from .page import ReviewPage
from .problem import Problem, explain
from .request import Request
from .result import Result
from .task import Task

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
PAGE_FOLDER = "review"
"""Of the review page, in the output folder."""
VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass
class Item:
    """One row: a volume node of the scene, or a file that is read when its turn comes."""

    node: object = None
    path: str = ""
    status: str = WAITING
    progress: str = ""
    error: str = ""
    result: Result | None = None
    transformNode: object = None
    transformFile: str = ""
    fixed: object = None
    """The fixed volume that it was registered to."""
    loaded: object = None
    """The volume read from `path`, while it is in the scene."""

    def isDone(self, fixedVolume):
        """Not if its transform has left the scene: then it can be registered again."""
        return self.status == DONE and self.fixed is fixedVolume and self.transformNode is not None

    @property
    def name(self):
        if self.node is not None:
            return self.node.GetName()
        return stem(self.path)

    @property
    def volume(self):
        """The volume node, if it is in the scene now."""
        node = self.node if self.node is not None else self.loaded
        return node if node is not None and node.GetScene() is not None else None

    def forgetRemoved(self):
        """Let go of nodes that have left the scene, so that they can be freed."""
        for name in ("transformNode", "fixed", "loaded"):
            node = getattr(self, name)
            if node is not None and node.GetScene() is None:
                setattr(self, name, None)


@dataclass(frozen=True)
class Plan:
    """What holds for a batch.  The moving mask and landmarks hold for `own` only, the volume they belong to."""

    fixedVolume: object
    settings: engine.Settings
    fixedMask: object = None
    fixedSegment: str = ""
    initialTransform: object = None
    own: object = None
    movingMask: object = None
    movingSegment: str = ""
    movingLandmarks: object = None
    fixedLandmarks: object = None
    beat: Callable | None = field(default=None, compare=False)

    def request(self, moving) -> Request:
        isOwn = moving is not None and moving is self.own
        return Request(
            moving,
            self.fixedVolume,
            self.settings,
            initialTransform=self.initialTransform,
            fixedMask=self.fixedMask,
            fixedSegment=self.fixedSegment,
            movingMask=self.movingMask if isOwn else None,
            movingSegment=self.movingSegment if isOwn else "",
            movingLandmarks=self.movingLandmarks if isOwn else None,
            fixedLandmarks=self.fixedLandmarks if isOwn and self.movingLandmarks is not None else None,
            beat=self.beat,
        )

    def problem(self) -> str:
        """One sentence on what would make every volume fail, or ""."""
        if self.fixedVolume is None:
            return _("Select a fixed volume on the Register tab.")
        sentence = scene.volumeProblem(self.fixedVolume, scene.FIXED) or masks.problem(
            self.fixedMask, self.fixedSegment
        )
        initial = self.initialTransform
        if not sentence and initial is not None and not initial.IsTransformToWorldLinear():
            return _("The initial transform “{name}” is nonlinear: choose a linear one.").format(name=initial.GetName())
        return sentence

    def nodes(self):
        """The nodes that every volume needs."""
        return [node for node in (self.fixedVolume, self.fixedMask, self.initialTransform) if node is not None]


def stem(path):
    name = os.path.basename(str(path))
    ending = next((e for e in (".nii.gz", *VOLUME_ENDINGS) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)] if ending else name


def volumeFiles(folder) -> list[str]:
    """Image files of a folder, sorted by name."""
    if not os.path.isdir(str(folder)):
        raise Problem(_("There is no folder “{folder}”.").format(folder=folder))
    found = sorted(
        str(path)
        for path in Path(str(folder)).iterdir()
        if path.is_file() and path.name.lower().endswith(VOLUME_ENDINGS)
    )
    if not found:
        raise Problem(
            _("The folder “{folder}” holds no image files ({endings}).").format(
                folder=folder, endings=", ".join(VOLUME_ENDINGS)
            )
        )
    return found


def readable(name):
    """A name as it can be written: bytes that are no Unicode become question marks."""
    return os.fsencode(str(name)).decode("utf-8", "replace")


def nameProblem(path) -> str:
    """One sentence if VTK, which ends the whole application then, can not be given a path; "" if it can."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return _("The name “{path}” has characters that are no Unicode: rename it.").format(path=readable(path))
    return ""


def load(path):
    """The volume of a file, not shown; what reading left in the scene goes again if it fails."""
    problem = nameProblem(path)
    if problem:
        raise Problem(problem)
    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    try:
        with waitCursor():
            return slicer.util.loadVolume(os.path.abspath(path), {"show": False})
    except BaseException:
        for node in slicer.util.getNodesByClass("vtkMRMLNode"):
            if node.GetID() not in before:
                removeNode(node)
        raise


def _saveWithScene(volume, save):
    """Whether a scene that is saved now holds a volume, with its display and storage nodes."""
    for node in (volume, volume.GetDisplayNode(), volume.GetStorageNode()):
        if node is not None:
            node.SetSaveWithScene(save)


class Batch:
    """Registers the items one after the other; one that fails does not stop the others."""

    def __init__(self, items, plan: Plan, outputFolder="", keepVolumes=False, pageFolder=None):
        """`pageFolder` of the review page; None: in the output folder, if there is one; "": no page."""
        self.items, self.plan = list(items), plan
        # Absolute, because storage nodes take a relative path from the scene's folder.
        self.outputFolder = os.path.abspath(str(outputFolder)) if str(outputFolder) else ""
        self.keepVolumes = keepVolumes
        if pageFolder is None:
            pageFolder = pageFolderOf(self.outputFolder)
        self.page = ReviewPage(pageFolder, self.items)
        self.sceneClosed = False
        self._task = self._loaded = None

    @property
    def fixedVolume(self):
        return self.plan.fixedVolume

    def problem(self) -> str:
        """One sentence on why the batch can not start, or ""."""
        if not self.items:
            return _("Add the volumes to register.")
        sentence = self.plan.problem()
        if sentence:
            return sentence
        if any(item.node is self.fixedVolume for item in self.items):
            return _("“{name}” is the fixed volume: remove it from the list.").format(name=self.fixedVolume.GetName())
        if self.outputFolder and not os.path.isdir(self.outputFolder):
            return _("There is no output folder “{folder}”.").format(folder=self.outputFolder)
        return nameProblem(self.outputFolder)

    def run(self):
        """Generator of (item, step); closing it undoes the item under way and keeps those that are done."""
        # What every volume would fail for is said once, before any work: an empty mask, a constant fixed volume.
        masks.coreMask(self.plan.fixedMask, self.fixedVolume, self.plan.fixedSegment)
        engine.validate(scene.coreVolume(self.fixedVolume, scene.FIXED), scene.FIXED)
        self.page.begin()
        todo = [item for item in self.items if not item.isDone(self.fixedVolume)]
        for item in todo:
            item.status, item.error, item.fixed = WAITING, "", self.fixedVolume
            item.result = item.transformNode = None
            item.transformFile = ""
        try:
            for item in todo:
                item.status = RUNNING
                try:
                    yield from self._runItem(item)
                    item.status = DONE
                except Exception as error:
                    item.status, item.error = FAILED, explain(error).sentence
                    logging.error("%s: %s", readable(item.name), explain(error).details)
                    self.page.addFailure(item)
                item.progress = ""
        except BaseException:  # closed, or stopped from inside a step
            for item in self.items:
                if item.status in (WAITING, RUNNING):
                    item.status, item.progress = STOPPED, ""
            raise
        finally:
            self.page.finish()

    def _runItem(self, item):
        moving = item.node
        if moving is None:
            moving = self._loaded = load(item.path)
            _saveWithScene(moving, False)  # for as long as it may go again
        elif moving.GetScene() is None:
            raise Problem(_("The volume was removed from the scene."))
        finished = False
        try:
            self._task = Task(self.plan.request(moving))
            for step in self._task.run():
                item.progress = _("Step {index}/{count}").format(index=step.index, count=step.count)
                yield item, step
            item.result, item.transformNode = self._task.result, self._task.transformNode
            if self.outputFolder:
                item.transformFile = _freeName(self.outputFolder, item.transformNode.GetName())
                if not slicer.util.saveNode(item.transformNode, item.transformFile):
                    raise Problem(_("The transform could not be written to “{file}”.").format(file=item.transformFile))
            finished = True
            self.page.add(item, self._task.registration)
        finally:
            if not finished:
                self.putBack()
                item.result = item.transformNode = None
            elif self._loaded is not None and self.keepVolumes:
                item.loaded = self._loaded
                _saveWithScene(item.loaded, True)
            else:
                removeWithHelpers(self._loaded)
            self._loaded = self._task = None

    def putBack(self):
        """Take back what the item under way has changed, now; nothing happens the second time."""
        if self._task is not None and not self.sceneClosed:
            self._task.putBack()
            removeWithHelpers(self._loaded)

    def abandon(self):
        """The scene goes away: there is nothing to put back."""
        self.sceneClosed = True
        if self._task is not None:
            self._task.sceneClosed = True

    def removedNode(self):
        """A node that every volume needs and that has left the scene, or None."""
        return next((node for node in self.plan.nodes() if node.GetScene() is None), None)


def pageFolderOf(outputFolder) -> str:
    """Where the review page of a batch with this output folder is; "" for none."""
    return os.path.join(os.path.abspath(str(outputFolder)), PAGE_FOLDER) if str(outputFolder) else ""


def _freeName(folder, name):
    """A .tfm path in the folder that no file has yet."""
    safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in name).strip().replace(" ", "_")
    path, number = os.path.join(folder, f"{safe}.tfm"), 1
    while os.path.exists(path):
        number += 1
        path = os.path.join(folder, f"{safe}_{number}.tfm")
    return path


def newItems(nodes=(), paths=()):
    return [*(Item(node=node) for node in nodes), *(Item(path=str(path)) for path in paths)]


def itemsOf(movingVolumes):
    """Items of volume nodes, paths, or both, in their order; raises Problem where one is None."""
    paths = (str, os.PathLike)
    movingVolumes = list(movingVolumes)
    if any(each is None for each in movingVolumes):
        raise Problem(_("One of the moving volumes is None."))
    return [Item(path=str(each)) if isinstance(each, paths) else Item(node=each) for each in movingVolumes]
