"""Many moving volumes, nodes or files, to one fixed volume: one after the other, a transform each, a CSV report."""
from __future__ import annotations

import csv
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import slicer
from slicer.i18n import tr as _

from .problem import Problem, explain
from .result import Result
from .task import Request, Task

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass
class Item:
    """One row: a volume node of the scene, or a file that is read when its turn comes."""

    node: object = None
    path: str = ""
    status: str = WAITING
    progress: str = ""
    error: str = ""
    result: Optional[Result] = None
    transformNode: object = None
    transformFile: str = ""
    fixed: object = None
    """The fixed volume that it was registered to."""

    def isDone(self, fixedVolume):
        return self.status == DONE and self.fixed is fixedVolume

    @property
    def name(self):
        if self.node is not None:
            return self.node.GetName()
        return stem(self.path)


def stem(path):
    name = os.path.basename(str(path))
    ending = next((e for e in (".nii.gz", *VOLUME_ENDINGS) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)] if ending else name


def volumeFiles(folder) -> list[str]:
    """Image files of a folder, sorted by name."""
    if not os.path.isdir(str(folder)):
        raise Problem(_("There is no folder “{folder}”.").format(folder=folder))
    found = sorted(str(path) for path in Path(str(folder)).iterdir()
                   if path.is_file() and path.name.lower().endswith(VOLUME_ENDINGS))
    if not found:
        raise Problem(_("The folder “{folder}” holds no image files ({endings}).").format(
            folder=folder, endings=", ".join(VOLUME_ENDINGS)))
    return found


class Batch:
    """Registers the items one after the other; one that fails does not stop the others."""

    def __init__(self, items, fixedVolume, settings, outputFolder="", keepVolumes=False):
        self.items, self.fixedVolume, self.settings = list(items), fixedVolume, settings
        # Absolute, because storage nodes take a relative path from the scene's folder.
        self.outputFolder = os.path.abspath(str(outputFolder)) if str(outputFolder) else ""
        self.keepVolumes = keepVolumes
        self.sceneClosed = False
        self._task = None

    def problem(self) -> str:
        """One sentence on why the batch can not start, or ""."""
        if not self.items:
            return _("Add the volumes to register.")
        if self.fixedVolume is None:
            return _("Select a fixed volume on the Register tab.")
        if any(item.node is self.fixedVolume for item in self.items):
            return _("“{name}” is the fixed volume: remove it from the list.").format(name=self.fixedVolume.GetName())
        if self.outputFolder and not os.path.isdir(self.outputFolder):
            return _("There is no output folder “{folder}”.").format(folder=self.outputFolder)
        return ""

    def run(self):
        """Generator of (item, step); closing it undoes the item under way and keeps those that are done."""
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
                    logging.error("%s: %s", item.name, explain(error).details)
                item.progress = ""
        except GeneratorExit:
            for item in self.items:
                if item.status in (WAITING, RUNNING):
                    item.status, item.progress = STOPPED, ""
            raise

    def _runItem(self, item):
        moving, loaded = item.node, False
        if moving is None:
            moving, loaded = slicer.util.loadVolume(os.path.abspath(item.path), {"show": False}), True
        elif moving.GetScene() is None:
            raise Problem(_("The volume was removed from the scene."))
        finished = False
        try:
            self._task = Task(Request(moving, self.fixedVolume, self.settings))
            for step in self._steps(self._task):
                item.progress = _("Step {index}/{count}").format(index=step.index, count=step.count)
                yield item, step
            item.result, item.transformNode = self._task.result, self._task.transformNode
            if self.outputFolder:
                item.transformFile = _freeName(self.outputFolder, item.transformNode.GetName())
                if not slicer.util.saveNode(item.transformNode, item.transformFile):
                    raise Problem(_("The transform could not be written to “{file}”.").format(file=item.transformFile))
            finished = True
        finally:
            if loaded and not self.sceneClosed and not (finished and self.keepVolumes):
                slicer.mrmlScene.RemoveNode(moving)

    def _steps(self, task):
        steps = task.run()
        try:
            yield from steps
        except GeneratorExit:
            task.sceneClosed = self.sceneClosed
            steps.close()
            raise


def _freeName(folder, name):
    """A .tfm path in the folder that no file has yet."""
    safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in name).strip().replace(" ", "_")
    path, number = os.path.join(folder, f"{safe}.tfm"), 1
    while os.path.exists(path):
        number += 1
        path = os.path.join(folder, f"{safe}_{number}.tfm")
    return path


COLUMNS = ("volume", "file", "fixed", "status", "similarity_before", "similarity_after", "overlap", "confidence",
           "spread_mm", "seconds", "transform", "transform_file", "model", "modality", "result", "warnings", "error",
           "matrix_moving_to_fixed_ras")


def rows(items):
    """One dictionary of COLUMNS per item.  The matrix has 16 numbers, row by row, in millimeters."""
    for item in items:
        row = dict.fromkeys(COLUMNS, "")
        row.update(volume=item.name, file=item.path, fixed=item.fixed.GetName() if item.fixed is not None else "",
                   status=item.status, error=item.error, transform_file=item.transformFile,
                   transform=item.transformNode.GetName() if item.transformNode is not None else "")
        result = item.result
        if result is not None:
            row.update(similarity_before=f"{result.similarityBefore:.4f}",
                       similarity_after=f"{result.similarityAfter:.4f}",
                       overlap="" if result.overlap is None else f"{result.overlap:.4f}",
                       spread_mm="" if result.spread is None else f"{result.spread:.3f}",
                       confidence=result.confidence, seconds=f"{result.seconds:.2f}", model=result.model,
                       modality=result.modality, result=result.decomposition.replace("\n", "; "),
                       warnings="; ".join(result.warnings),
                       matrix_moving_to_fixed_ras=" ".join(f"{v:.9g}" for line in result.after for v in line))
        yield row


def writeReport(path, items):
    """Write the CSV report whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(items))
    temporary = f"{path}.part"
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        raise Problem(_("The report could not be written to “{path}”: {reason}.").format(
            path=path, reason=error.strerror)) from error


def newItems(nodes=(), paths=()):
    return [*(Item(node=node) for node in nodes), *(Item(path=str(path)) for path in paths)]
