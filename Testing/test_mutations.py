"""A short run of what mutate_files.py does at length: damaged files of every kind end in a sentence or are used."""

from __future__ import annotations

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("each attempt is a process that is forked", allow_module_level=True)

import mutate_files


@pytest.mark.parametrize(("kind", "ending"), mutate_files.jobs())
def test_damaged_files_are_refused_or_used(kind, ending):
    if ending == ".dcm":
        pytest.importorskip("pydicom", reason="writes DICOM files")
    if ending == ".x5":
        pytest.importorskip("h5py", reason="writes HDF5")
    assert mutate_files.in_a_child(kind, ending, seed=0, examples=12 if kind in ("volume", "series") else 25) == []
