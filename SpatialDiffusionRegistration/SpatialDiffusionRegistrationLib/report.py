"""The CSV report of a batch."""

from __future__ import annotations

import csv
import io
import os

from slicer.i18n import tr as _

from .problem import Problem

COLUMNS = (
    "volume",
    "file",
    "fixed",
    "status",
    "similarity_before",
    "similarity_after",
    "overlap",
    "confidence",
    "probability_right",
    "spread_mm",
    "landmarks_before_mm",
    "landmarks_after_mm",
    "landmarks_worst_after_mm",
    "seconds",
    "transform",
    "transform_file",
    "model",
    "modality",
    "result",
    "warnings",
    "error",
    "matrix_moving_to_fixed_ras",
)


def rows(items):
    """One dictionary of COLUMNS per item.  The matrix has 16 numbers, row by row, in millimeters."""
    for item in items:
        row = dict.fromkeys(COLUMNS, "")
        row.update(
            volume=item.name,
            file=item.path,
            fixed=item.fixed.GetName() if item.fixed is not None else "",
            status=item.status,
            error=item.error,
            transform_file=item.transformFile,
            transform=item.transformNode.GetName() if item.transformNode is not None else "",
        )
        if item.result is not None:
            row.update(_found(item.result))
        yield row


def _found(result) -> dict:
    """The columns that a result fills."""
    errors = result.landmarkErrors()
    found = {
        "similarity_before": f"{result.similarityBefore:.4f}",
        "similarity_after": f"{result.similarityAfter:.4f}",
        "overlap": _number(result.overlap, 4),
        "confidence": result.confidence,
        "probability_right": _number(result.probability, 4),
        "spread_mm": _number(result.spread, 3),
        "seconds": f"{result.seconds:.2f}",
        "model": result.model,
        "modality": result.modality,
        "result": result.decomposition.replace("\n", "; "),
        "warnings": "; ".join(result.warnings),
        "matrix_moving_to_fixed_ras": " ".join(f"{value:.9g}" for line in result.after for value in line),
    }
    if errors is not None:
        found.update(
            landmarks_before_mm=f"{errors.mean(errors.before):.3f}",
            landmarks_after_mm=f"{errors.mean(errors.after):.3f}",
            landmarks_worst_after_mm=f"{max(errors.after):.3f}",
        )
    return found


def _number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


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
        raise Problem(
            _("The report could not be written to “{path}”: {reason}.").format(path=path, reason=error.strerror)
        ) from error
