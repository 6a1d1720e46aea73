"""How right a registration is: overlap of labelled structures, or distance to a known transform."""

from __future__ import annotations

import csv

import numpy as np

from SpatialDiffusionCore.alignment.similarity import dice
from SpatialDiffusionCore.spatial import geometry, volume, volume_file

#: A registration with a known answer is a success below this error over the head, mm.
SUCCESS_MM = 5.0


def read_groups(path) -> dict:
    """{label id: structure} of a table with columns id, name, group; ids without a group are left out."""
    with open(path, encoding="utf-8", newline="") as file:
        return {int(row["id"]): row["group"] for row in csv.DictReader(file, delimiter="\t") if row["group"]}


def group_labels(labels: np.ndarray, groups: dict):
    """(array of structure numbers from 1, names of the structures); other labels become 0."""
    names = sorted(set(groups.values()))
    labels = np.asarray(labels)
    table = np.zeros(max(int(labels.max()), max(groups)) + 1, np.uint8)
    for label, group in groups.items():
        table[label] = names.index(group) + 1
    return table[np.clip(labels, 0, None).astype(np.int64)], names


class Overlap:
    """Mean Dice of structures under a case's labels; label files are read once.

    groups: {label id: structure}. enough: the mean Dice from which a registration is a success.
    """

    def __init__(self, groups: dict, enough: float):
        self.groups, self.enough, self._read = groups, enough, {}

    def __call__(self, case, matrix: np.ndarray | None) -> dict:
        """The record's "dice" and "success"; 0 where there is no matrix."""
        value = 0.0 if matrix is None else self.dice(case.labels, case.moved, matrix)
        return {"dice": round(value, 4), "success": value >= self.enough}

    def labels(self, path):
        """(the structures' numbers as a Volume, which of them it has) of a label file."""
        if path not in self._read:
            loaded = volume_file.load(path, keep_type=True)
            numbers, names = group_labels(loaded.data, self.groups)
            present = np.bincount(numbers.ravel(), minlength=len(names) + 1)[1:] > 0
            self._read[path] = volume.Volume(numbers, loaded.voxel_to_ras, loaded.name), present
        return self._read[path]

    def dice(self, labels, moved, matrix) -> float:
        """labels: (moving, fixed) files; moved: what the moving header was moved by; matrix: moving → fixed RAS.

        Nearest neighbor on the fixed grid; the unweighted mean over the structures that both subjects have.
        """
        (moving, in_moving), (fixed, in_fixed) = (self.labels(path) for path in labels)
        there = volume.resample(moving.moved(moved), fixed, matrix, "nearest")
        values = dice(there.data, fixed.data, len(in_fixed))
        return float(np.mean(values[in_moving & in_fixed]))


def known(case, matrix: np.ndarray | None) -> dict:
    """The record's "error_mm" (RMS over the head, none where the method failed) and "success"."""
    if matrix is None:
        return {"success": False}
    error = geometry.displacement_rms(matrix, case.truth, case.mean, case.covariance)
    return {"error_mm": round(error, 3), "success": error < SUCCESS_MM}
