"""Lists to choose from that the core or the scene fills: modalities, models, segments."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from . import engine, masks

SAME = ""
"""Value of the fixed modality that means "as the moving volume"."""


class Choices:
    """Keeps the combo boxes of modalities, models and segments and the parameter node equal."""

    def __init__(self, ui):
        self._ui, self._parameters, self._updating = ui, None, False
        ui.movingModalityCombo.connect("currentIndexChanged(int)", self._onModality)
        ui.fixedModalityCombo.connect("currentIndexChanged(int)", self._onModality)
        ui.modelCombo.connect("currentIndexChanged(int)", self._onModel)
        ui.modelFileButton.connect("clicked(bool)", self._onModelFile)
        ui.movingSegmentCombo.connect("currentIndexChanged(int)", self._onSegment)
        ui.fixedSegmentCombo.connect("currentIndexChanged(int)", self._onSegment)
        self._segments = {}
        self._masks = None, None  # of the moving and the fixed volume, at the last update

    def fill(self):
        """Fill the lists of modalities and models; reads names only, so it is quick."""
        ui, modalities = self._ui, engine.modalities()
        self._updating = True
        try:
            _refill(ui.movingModalityCombo, modalities)
            _refill(ui.fixedModalityCombo, [engine.Choice(SAME, _("Same as the moving volume")), *modalities])
            _refill(ui.modelCombo, [engine.Choice("", _("Automatic (by modality)")), *engine.models()])
        finally:
            self._updating = False

    def update(self, parameterNode):
        """Show what the parameter node says."""
        same, self._parameters, p = parameterNode is self._parameters, parameterNode, parameterNode
        before, self._masks = self._masks, (p.movingMask, p.fixedMask)
        if same:
            self._letGo(before)
        self._updating = True
        try:
            for combo, key in (
                (self._ui.movingModalityCombo, p.movingModality),
                (self._ui.fixedModalityCombo, p.fixedModality),
                (self._ui.modelCombo, p.modelName),
            ):
                if combo.findData(key) < 0:  # a file, or something that another computer has
                    combo.addItem(key, key)
                combo.setCurrentIndex(combo.findData(key))
            self._showSegments(self._ui.movingSegmentCombo, self._ui.labelMovingSegment, p.movingMask, p.movingSegment)
            self._showSegments(self._ui.fixedSegmentCombo, self._ui.labelFixedSegment, p.fixedMask, p.fixedSegment)
        finally:
            self._updating = False

    def _letGo(self, before):
        """A segment of the mask before is none of another mask; nor is it there to be chosen once the mask is gone."""
        p = self._parameters
        if p.movingMask is not before[0] and not _hasSegment(p.movingMask, p.movingSegment):
            p.movingSegment = ""
        if p.fixedMask is not before[1] and not _hasSegment(p.fixedMask, p.fixedSegment):
            p.fixedSegment = ""

    def _showSegments(self, combo, label, node, key):
        """The segments of a mask that is a segmentation; hidden for any other."""
        segments = masks.segments(node)
        combo.setVisible(bool(segments))
        label.setVisible(bool(segments))
        listed = [engine.Choice("", _("All segments")), *(engine.Choice(*segment) for segment in segments)]
        if not _hasSegment(node, key):  # as the button says; were another row shown, it could not be chosen
            listed.append(engine.Choice(key, _("A segment that is not there any more")))
        if segments and self._segments.get(combo.name) != listed:
            self._segments[combo.name] = listed
            _refill(combo, listed)
        combo.setCurrentIndex(max(combo.findData(key), 0))

    def _onModality(self, *_ignored):
        if self._updating or self._parameters is None:
            return
        moving, fixed = (
            combo.itemData(combo.currentIndex) for combo in (self._ui.movingModalityCombo, self._ui.fixedModalityCombo)
        )
        self._parameters.movingModality = moving
        self._parameters.fixedModality = fixed

    def _onModel(self, *_ignored):
        if not self._updating and self._parameters is not None:
            combo = self._ui.modelCombo
            self._parameters.modelName = combo.itemData(combo.currentIndex)

    def _onModelFile(self, *_ignored):
        path = qt.QFileDialog.getOpenFileName(self._ui.registerTab, _("Model file"), "", _("Models (*.safetensors)"))
        if path and self._parameters is not None:
            self._parameters.modelName = path

    def _onSegment(self, *_ignored):
        if self._updating or self._parameters is None:
            return
        moving, fixed = (
            combo.itemData(combo.currentIndex) or ""
            for combo in (self._ui.movingSegmentCombo, self._ui.fixedSegmentCombo)
        )
        self._parameters.movingSegment = moving
        self._parameters.fixedSegment = fixed


def _hasSegment(node, key) -> bool:
    """Whether a mask has the segment that is chosen; "" stands for all of them."""
    return not key or key in dict(masks.segments(node))


def _refill(combo, choices):
    combo.clear()
    for choice in choices:
        combo.addItem(choice.label, choice.key)
        combo.setItemData(combo.count - 1, choice.description, qt.Qt.ToolTipRole)
