"""The table of the Batch tab."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from . import batch


class BatchTable:
    def __init__(self, widget):
        self._widget = widget
        widget.setColumnCount(5)
        widget.setHorizontalHeaderLabels([_("Volume"), _("Status"), _("Similarity"), _("Confidence"), _("Seconds")])
        widget.verticalHeader().setVisible(False)
        widget.setWordWrap(False)
        header = widget.horizontalHeader()
        for column in range(5):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)

    def selectedRows(self):
        return {index.row() for index in self._widget.selectionModel().selectedRows()}

    def show(self, items):
        self._widget.setRowCount(len(items))
        for row, item in enumerate(items):
            for column, (text, tip) in enumerate(_texts(item)):
                self._set(row, column, text, tip)

    def _set(self, row, column, text, tip):
        cell = self._widget.item(row, column)
        if cell is None:
            cell = qt.QTableWidgetItem()
            cell.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
            self._widget.setItem(row, column, cell)
        if cell.text() != text:
            cell.setText(text)
        if cell.toolTip() != tip:
            cell.setToolTip(tip)


def _texts(item):
    """(text, tooltip) of each column."""
    words = {
        batch.WAITING: _("Waiting"),
        batch.RUNNING: _("Running"),
        batch.DONE: _("Done"),
        batch.FAILED: _("Failed"),
        batch.STOPPED: _("Stopped"),
    }
    status = words[item.status]
    if item.status == batch.RUNNING and item.progress:
        status = item.progress
    result = item.result
    return (
        (item.name, item.path or item.name),
        (status, item.error),
        (result.similarityText() if result else "", ""),
        (result.confidence if result else "", "\n".join([result.confidenceText(), *result.warnings]) if result else ""),
        (f"{result.seconds:.1f}" if result else "", ""),
    )
