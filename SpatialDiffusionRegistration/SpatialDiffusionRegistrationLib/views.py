"""Slice views: which of them show a pair of volumes, what they show, and how to put that back exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import slicer
import vtk

_SIZES = ("FieldOfView", "XYZOrigin", "UVWExtents", "UVWOrigin")
"""Vectors of a slice node that a fit of the view changes, besides its position."""


@dataclass
class View:
    """One slice view: its composite node (what is shown) and its slice node (from where; None if there is none)."""

    composite: object
    sliceNode: object

    def shows(self, *nodes) -> bool:
        shown = (self.composite.GetBackgroundVolumeID(), self.composite.GetForegroundVolumeID())
        return any(node is not None and node.GetID() in shown for node in nodes)

    def isEmpty(self) -> bool:
        return not self.composite.GetBackgroundVolumeID() and not self.composite.GetForegroundVolumeID()

    def isAlive(self) -> bool:
        return self.composite.GetScene() is not None

    def setLayers(self, background, foreground, opacity=None, compositing=None):
        """Show two volume nodes (None: nothing); `opacity` of the foreground 0..1, None keeps it."""
        node = self.composite
        modifying = node.StartModify()
        node.SetBackgroundVolumeID(background.GetID() if background is not None else None)
        node.SetForegroundVolumeID(foreground.GetID() if foreground is not None else None)
        if opacity is not None:
            node.SetForegroundOpacity(opacity)
        if compositing is not None:
            node.SetCompositing(compositing)
        node.EndModify(modifying)

    def fit(self):
        logic = slicer.app.applicationLogic().GetSliceLogicByLayoutName(self.composite.GetLayoutName())
        if logic is not None:
            logic.FitSliceToBackground()


def allViews() -> list:
    """The views of the layout that is on, or all where nothing is drawn (no main window)."""
    slices = {node.GetLayoutName(): node for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")}
    views = [
        View(node, slices.get(node.GetLayoutName()))
        for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    ]
    mapped = [view for view in views if view.sliceNode is not None and view.sliceNode.IsMappedInLayout()]
    return mapped or views


def viewsOf(*nodes) -> list:
    """The views that show one of the volumes, or nothing; if none shows any of them, all, or nobody would see them."""
    views = allViews()
    if not any(view.shows(*nodes) for view in views):
        return views
    return [view for view in views if view.shows(*nodes) or view.isEmpty()]


@dataclass
class ViewState:
    """What a view shows and from where: layers, opacity, zoom, position."""

    view: View
    layers: tuple
    opacity: float
    compositing: int
    sizes: dict = field(default_factory=dict)
    sliceToRas: object = None

    @classmethod
    def of(cls, view):
        node, sliceNode = view.composite, view.sliceNode
        layers = node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()
        state = cls(view, layers, node.GetForegroundOpacity(), node.GetCompositing())
        if sliceNode is not None:
            state.sizes = {name: tuple(getattr(sliceNode, "Get" + name)()) for name in _SIZES}
            state.sliceToRas = vtk.vtkMatrix4x4()
            state.sliceToRas.DeepCopy(sliceNode.GetSliceToRAS())
        return state

    def restore(self):
        """Put it all back; a volume that has left the scene is not shown again."""
        if not self.view.isAlive():
            return
        background, foreground = (slicer.mrmlScene.GetNodeByID(each) if each else None for each in self.layers)
        self.view.setLayers(background, foreground, self.opacity, self.compositing)
        sliceNode = self.view.sliceNode
        if sliceNode is None or sliceNode.GetScene() is None:
            return
        modifying = sliceNode.StartModify()
        sliceNode.GetSliceToRAS().DeepCopy(self.sliceToRas)
        for name, value in self.sizes.items():
            getattr(sliceNode, "Set" + name)(*value)
        sliceNode.UpdateMatrices()
        sliceNode.EndModify(modifying)
