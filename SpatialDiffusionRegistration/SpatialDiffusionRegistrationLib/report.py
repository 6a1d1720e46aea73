"""The CSV report of a batch: the table that the shell writes of many registrations, with a few columns more."""

from __future__ import annotations

import csv
import io
import os

from slicer.i18n import tr as _

from . import engine
from .problem import Problem

NAME = "registrations.csv"
"""As the shell calls it."""

MORE = (
    "landmarks_before_mm",
    "landmarks_after_mm",
    "landmarks_worst_after_mm",
    "transform_node",
    "matrix_moving_to_fixed_ras",
)
"""Columns after those of the shell's table."""


def columns() -> tuple:
    return (*engine.tableColumns(), *MORE)


def rows(items):
    """One dictionary of `columns` per item.

    The first columns are those of the shell's table, with its words, numbers and signs.  The matrix is that of the
    transform node and of the transform's file: from the moving volume's own coordinates, 16 numbers, row by row, in mm.
    """
    for item in items:
        row = dict.fromkeys(columns(), "")
        if item.result is None:
            row.update(_without(item))
        else:
            row.update(engine.tableRow(item.result.report, item.transformFile))
            row.update(_more(item.result))
            row["moving_file"] = row["moving_file"] or item.path
        row["transform_node"] = item.transformNode.GetName() if item.transformNode is not None else ""
        yield row


def _without(item) -> dict:
    """The shell's columns of an item that has no result."""
    fixed = item.fixed.GetName() if item.fixed is not None else ""
    why = item.error or _("not registered ({status})").format(status=item.status)
    row = {**engine.failedRow(item.name, fixed, why), "moving_file": item.path}
    return row if item.error else {**row, "confidence": ""}  # it did not fail: its turn has not come


def _more(result) -> dict:
    """The columns that the shell's table has not."""
    more = {"matrix_moving_to_fixed_ras": " ".join(f"{value:.9g}" for line in result.after for value in line)}
    errors = result.landmarkErrors()
    if errors is not None:
        more.update(
            landmarks_before_mm=f"{errors.mean(errors.before):.3f}",
            landmarks_after_mm=f"{errors.mean(errors.after):.3f}",
            landmarks_worst_after_mm=f"{max(errors.after):.3f}",
        )
    return more


def writeReport(path, items):
    """Write the CSV report whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns())
    writer.writeheader()
    writer.writerows(rows(items))
    temporary = f"{path}.part"
    try:
        # A name of a file need not be Unicode on every system.
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        raise Problem(
            _("The report could not be written to “{path}”: {reason}.").format(path=path, reason=error.strerror)
        ) from error
