"""Motion of a sequence: every frame to a reference frame, as a sequence of transforms, and a plot.

What is made: a sequence of linear transforms with the index values of the volumes' sequence, in the same browser, with
the volume that the views show under the transform that belongs to its frame; a table and a chart of the motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import engine, scene
from .change import SceneChange
from .cursor import waitCursor
from .problem import Problem

AXES = ("right", "front", "up")
COLUMNS = (
    *(f"shift {axis} (mm)" for axis in AXES),
    *(f"turn about {axis} (degrees)" for axis in AXES),
    "displacement from the frame before (mm)",
)
"""Columns of the table, after the frame's number."""
SEQUENCE_ROLE = "SpatialDiffusionRegistration.MotionOf"
"""Reference from a sequence of transforms to the sequence of volumes whose motion it is."""


@dataclass
class SequenceRequest:
    sequence: object
    reference: Optional[int] = None
    """Number of the frame, from 0; None leaves the choice to the core."""
    transform: str = "rigid"
    beat: Optional[Callable] = None

    def problem(self) -> str:
        """One sentence on why the sequence can not be registered, or ""."""
        node = self.sequence
        if node is None:
            return _("Select a sequence of volumes.")
        name, count = node.GetName(), node.GetNumberOfDataNodes()
        if count < 2:
            return _("“{name}” has fewer than two frames.").format(name=name)
        if self.reference is not None and not 0 <= self.reference < count:
            return _("“{name}” has no frame {number}: it has 1 to {count}.").format(
                name=name, number=self.reference + 1, count=count
            )
        return next((problem for problem in map(self._frameProblem, range(count)) if problem), "")

    def _frameProblem(self, index):
        frame = self.sequence.GetNthDataNode(index)
        if frame is None or not frame.IsA("vtkMRMLScalarVolumeNode"):
            return _("“{name}” does not hold volumes.").format(name=self.sequence.GetName())
        problem = scene.volumeProblem(frame, scene.MOVING)
        return problem and _("Frame {number} of the sequence: {problem}").format(number=index + 1, problem=problem)


class SequenceTask:
    """Runs a request; after the generator of `run` ends, `transforms` and `motion` hold what it made."""

    def __init__(self, request: SequenceRequest):
        self.request = request
        self.transforms = self.motion = self.chart = self.volume = None
        self.change = SceneChange()
        self.sceneClosed = False

    def run(self):
        """Generator of the core's steps; the scene changes at the end only."""
        try:
            problem = self.request.problem()
            if problem:
                raise Problem(problem)
            with waitCursor():
                frames, indices = self._frames(), indexValues(self.request.sequence)
            self.motion = yield from engine.seriesSteps(
                frames, self.request.reference, self.request.transform, beat=self.request.beat
            )
            if indexValues(self.request.sequence) != indices:
                raise Problem(
                    _("The frames of “{name}” were changed while they were registered: start it again.").format(
                        name=self.request.sequence.GetName()
                    )
                )
            with waitCursor():
                self._finish()
        except BaseException:  # GeneratorExit, too: the person pressed Cancel
            self.putBack()
            raise

    def putBack(self):
        """Put the scene back as it was; nothing happens the second time."""
        if not self.sceneClosed:
            self.change.undo()

    def nodes(self):
        return [self.request.sequence]

    def found(self) -> SequenceResult:
        """What was found, after the run."""
        return SequenceResult(self.request.sequence, self.transforms, self.volume, self.chart, self.motion)

    def _frames(self):
        sequence = self.request.sequence
        frames = []
        for index in range(sequence.GetNumberOfDataNodes()):
            node = sequence.GetNthDataNode(index)
            data = slicer.util.arrayFromVolume(node).transpose(2, 1, 0)  # Slicer's arrays are k, j, i
            name = _("frame {number}").format(number=index + 1)
            # A sequence is read from one file, or of each frame from its own.
            warnings = [
                warning
                for source in ((sequence, node) if index == 0 else (node,))
                for warning in scene.headerWarnings(source)
            ]
            frames.append(engine.volume(data, scene.voxelToOwn(node), name, warnings=warnings))
        return frames

    def _finish(self):
        sequence, logic = self.request.sequence, slicer.modules.sequences.logic()
        self.transforms = self.change.addNode("vtkMRMLSequenceNode", _("{name} motion").format(name=sequence.GetName()))
        self.transforms.SetIndexName(sequence.GetIndexName())
        self.transforms.SetIndexUnit(sequence.GetIndexUnit())
        self.transforms.SetIndexType(sequence.GetIndexType())
        self.transforms.SetNodeReferenceID(SEQUENCE_ROLE, sequence.GetID())
        for index, matrix in enumerate(self.motion.matrices):
            node = slicer.vtkMRMLLinearTransformNode()
            slicer.util.updateTransformMatrixFromArray(node, matrix)
            self.transforms.SetDataNodeAtValue(node, sequence.GetNthIndexValue(index))
        self._browse(sequence, logic)
        self._plot()

    def _browse(self, sequence, logic):
        """Put what the views show of the sequence under the transform of its frame."""
        browser = logic.GetFirstBrowserNodeForSequenceNode(sequence)
        if browser is None:
            browser = self.change.addNode(
                "vtkMRMLSequenceBrowserNode", _("{name} browser").format(name=sequence.GetName())
            )
            browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        browser.AddSynchronizedSequenceNode(self.transforms.GetID())
        logic.UpdateProxyNodesFromSequences(browser)
        self.volume, transform = browser.GetProxyNode(sequence), browser.GetProxyNode(self.transforms)
        self.change.adopt(transform)
        # Undone first: a browser makes the node anew that it shows a sequence with.
        self.change.onUndo(
            lambda: browser.GetScene() is not None and browser.RemoveSynchronizedSequenceNode(self.transforms.GetID())
        )
        parent = self.volume.GetParentTransformNode()
        while parent is not None and isMotionOf(browser.GetSequenceNode(parent), sequence):
            parent = parent.GetParentTransformNode()  # of a run before: this one takes its place
        transform.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
        self.change.setParent(self.volume, transform)

    def _plot(self):
        name = self.transforms.GetName()
        table = self.change.addNode("vtkMRMLTableNode", name)
        values = np.column_stack([np.arange(1, len(self.motion.matrices) + 1), motionFigures(self.motion)])
        slicer.util.updateTableFromArray(table, values, ["frame", *COLUMNS])
        self.chart = self.change.addNode("vtkMRMLPlotChartNode", name)
        self.chart.SetTitle(name)
        self.chart.SetXAxisTitle(_("frame"))
        for column in COLUMNS:
            series = self.change.addNode("vtkMRMLPlotSeriesNode", column)
            series.SetAndObserveTableNodeID(table.GetID())
            series.SetXColumnName("frame")
            series.SetYColumnName(column)
            series.SetPlotType(series.PlotTypeScatter)
            series.SetMarkerStyle(series.MarkerStyleNone)
            series.SetUniqueColor()
            self.chart.AddAndObservePlotSeriesNodeID(series.GetID())


def indexValues(sequence) -> list:
    """What a sequence calls its frames."""
    return [sequence.GetNthIndexValue(index) for index in range(sequence.GetNumberOfDataNodes())]


def isMotionOf(transforms, sequence) -> bool:
    """Whether a sequence of transforms was made of a sequence of volumes."""
    return transforms is not None and transforms.GetNodeReference(SEQUENCE_ROLE) is sequence


@dataclass
class SequenceResult:
    """The motion that was found (the core's SeriesRegistration), and the nodes that it is about."""

    sequence: object
    transforms: object
    volume: object
    """What the views show of the sequence."""
    chart: object
    motion: object

    def __post_init__(self):
        self.name, self._indices = self.sequence.GetName(), indexValues(self.sequence)

    def nodes(self):
        return [self.sequence, self.transforms, self.volume]

    def text(self) -> str:
        """What was found, then a line for each warning."""
        return "\n".join([summary(self.motion), *(f"⚠ {warning}" for warning in self.motion.warnings)])

    def untrue(self, chosen) -> str:
        """One sentence if the scene is no longer as the run left it, or ""; `chosen`: the sequence selected now."""
        if self.sequence.GetScene() is None:
            return _("“{name}” is not in the scene any more.").format(name=self.name)
        if self.transforms.GetScene() is None:
            return _("The transforms of “{name}” are not in the scene any more.").format(name=self.name)
        if indexValues(self.sequence) != self._indices:
            return _("“{name}” has other frames now.").format(name=self.sequence.GetName())
        if self.volume.GetScene() is not None and not self._isMoved():
            return _("“{name}” is not under its transforms any more.").format(name=self.volume.GetName())
        if chosen is not self.sequence:
            return _("it is of “{name}”, and another sequence is selected.").format(name=self.sequence.GetName())
        return ""

    def _isMoved(self):
        browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(self.transforms)
        transform = browser.GetProxyNode(self.transforms) if browser is not None else None
        return transform is not None and scene.isUnder(self.volume, transform)


def motionFigures(motion) -> np.ndarray:
    """N x 7: shift of the center (mm, RAS), turns (degrees), displacement from the frame before (mm; first: 0)."""
    six = np.array(motion.parameters, float)
    return np.column_stack([six[:, :3], np.degrees(six[:, 3:]), np.nan_to_num(motion.framewise_displacement)])


def summary(motion) -> str:
    """What was found, a sentence or two."""
    displacement = np.nan_to_num(motion.framewise_displacement)
    text = _(
        "{count} frames laid on frame {reference}; from one to the next they move by {mean:.2f} mm on average and "
        "{most:.2f} mm at most."
    ).format(
        count=len(motion.matrices),
        reference=motion.reference + 1,
        mean=float(displacement[1:].mean()),
        most=float(displacement.max()),
    )
    if motion.doubts:
        text += " " + _("To be looked at: {frames}.").format(
            frames="; ".join(
                _("frame {number}: {why}").format(number=index + 1, why=why) for index, why in motion.doubts.items()
            )
        )
    return text
