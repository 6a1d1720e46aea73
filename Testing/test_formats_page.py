"""The tables of formats in the documentation: each row is tried, and no format is missing."""

from __future__ import annotations

import re

import nibabel
import numpy as np
import pytest

from conftest import ROOT
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import extension
from SpatialDiffusionCore.spatial import geometry, segmentation_file, volume_file
from SpatialDiffusionCore.spatial.point_file import EXTENSIONS as POINTS
from SpatialDiffusionCore.spatial.transform_file import FORMATS, read_transform, write_transform
from SpatialDiffusionCore.spatial.volume import Volume

pytest.importorskip("SimpleITK", reason="reads NRRD, MetaImage and DICOM")

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
DATA = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
TO_RAS = geometry.from_parts(geometry.rotation_about([1, 2, 3], 0.4) * [1.0, 2.0, 3.0], (10, 20, 30))
TURN = geometry.from_parts(geometry.rotation_about([0, 1, 0], 0.2), (1.0, 2.0, 3.0))


def rows(heading):
    """The rows of the first table below a heading, each a list of cells."""
    part = PAGE.split(f"\n{heading}\n", 1)[1]
    table = re.search(r"((?:\|.*\n)+)", part)[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


VOLUMES = [(ending, read, written) for cells, read, written, _ in rows("## Volumes")
           for ending in re.findall(r"`(\.[\w.]+)`", cells)]  # fmt: skip


def volume_of(ending, folder):
    """A file of a kind that is not written here."""
    path = folder / f"a{ending}"
    kinds = {".hdr": nibabel.Nifti1Pair, ".img": nibabel.Nifti1Pair, ".mgz": nibabel.MGHImage, ".mgh": nibabel.MGHImage}
    nibabel.save(kinds[ending](DATA, TO_RAS), path)
    return path


@pytest.mark.parametrize("ending, read, written", VOLUMES)
def test_each_volume_of_the_table_is_read_and_written_as_it_says(tmp_path, ending, read, written):
    volume, path = Volume(DATA, TO_RAS), tmp_path / f"a{ending}"
    if read == "`apply`":
        segments = segmentation_file.Segmentation((volume,), (("Segment0_Name", "head"),))
        segmentation_file.save_segmentation(segments, path)
        volume_file.save(volume, tmp_path / "reference.nii")
        write_transform(np.eye(4), tmp_path / "t.tfm")
        words = ["apply", "t.tfm", "a.seg.nrrd", "--reference", "reference.nii", "-o", "b.seg.nrrd"]
        assert main([str(tmp_path / word) if "." in word and word[0] != "-" else word for word in words]) == 0
        moved = segmentation_file.load_segmentation(tmp_path / "b.seg.nrrd")
        assert np.array_equal(moved.layers[0].data, DATA) and ("Segment0_Name", "head") in moved.entries
        return
    if written:
        volume_file.save(volume, path)
    else:
        with pytest.raises(InputError, match="no known extension"):
            volume_file.save(volume, path)
        path = volume_of(ending, tmp_path)
    assert read == "yes"
    found = volume_file.load(path, keep_type=True)
    assert np.array_equal(found.data, DATA) and np.allclose(found.voxel_to_ras, TO_RAS, atol=1e-5)


def test_no_volume_is_missing_in_the_table():
    listed = {ending for ending, _, _ in VOLUMES}
    packed = {".hdr.gz", ".img.gz"}
    dicom = {".dcm", ".ima", ".dicom"}
    assert set(volume_file.READ) - packed - dicom == listed - {".seg.nrrd"} and "a folder of DICOM files" in PAGE
    assert {ending for ending, _, written in VOLUMES if written == "yes"} == set(volume_file.WRITTEN)


TRANSFORMS = [(format.strip("`"), ending) for format, cells, _, _ in rows("## Transforms")
              for ending in re.findall(r"`(\.[\w.]+)`", cells)]  # fmt: skip


@pytest.mark.parametrize("format, ending", TRANSFORMS)
def test_each_transform_of_the_table_is_written_and_read(tmp_path, format, ending):
    path = tmp_path / f"t{ending}"
    if format == "x5":
        pytest.importorskip("h5py")
    if format == "dicom":
        fixtures = pytest.importorskip("dicom_fixtures")
        for name in ("moving", "fixed"):
            fixtures.write_series(tmp_path / name, DATA, TO_RAS)
        volumes = [volume_file.load(tmp_path / name) for name in ("moving", "fixed")]
    else:
        volumes = [Volume(DATA, TO_RAS, "moving"), Volume(DATA[1:], TURN @ TO_RAS, "fixed")]
    write_transform(TURN, path, *volumes, format=format)
    assert np.allclose(read_transform(path, *volumes), TURN, atol=1e-6)


def test_no_transform_is_missing_in_the_table():
    listed = {(extension(f"t{ending}"), format) for format, ending in TRANSFORMS}
    assert listed == {(ending, format) for ending, formats in FORMATS.items() for format in formats}


def test_no_file_of_points_is_missing_on_the_page():
    part = PAGE.split("## Points and surfaces", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"`(\.[\w.]+)`", part)) == set(POINTS)
