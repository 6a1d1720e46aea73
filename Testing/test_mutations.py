"""A short run of what mutate_files.py does at length: damaged files of every kind end in a sentence or are used."""

from __future__ import annotations

import signal

import pytest

import mutate_files

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="needs an alarm to end what hangs")


@pytest.mark.parametrize("ending", mutate_files.VOLUMES)
def test_damaged_volumes(ending):
    if ending == ".dcm":
        pytest.importorskip("pydicom", reason="writes DICOM files")
    mutate_files.attempt("volume", ending, examples=12)


def test_wild_values():
    mutate_files.attempt("values", ".nii", examples=25)


@pytest.mark.parametrize("ending", [ending for ending in mutate_files.FORMATS if ending != ".dcm"])
def test_damaged_transforms(ending):
    mutate_files.attempt("transform", ending, examples=25)


@pytest.mark.parametrize("ending", mutate_files.POINTS)
def test_damaged_points(ending):
    mutate_files.attempt("points", ending, examples=25)


@pytest.mark.parametrize("ending", mutate_files.SERIES)
def test_damaged_series(ending):
    mutate_files.attempt("series", ending, examples=12)


def test_damaged_segmentations():
    mutate_files.attempt("segmentation", ".seg.nrrd", examples=12)
