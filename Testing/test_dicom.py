"""Folders of DICOM files as volumes: against SimpleITK's own reader, a real series, and by construction."""

from __future__ import annotations

import itertools
import shutil
import tarfile

import nibabel
import numpy as np
import pytest

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g
from SpatialDiffusionCore.spatial import volume_file

sitk = pytest.importorskip("SimpleITK", reason="GDCM reads DICOM files through SimpleITK")
from dicom_fixtures import CT, header, pydicom, save, write_enhanced, write_series  # noqa: E402

SHAPE = (12, 10, 8)
DATA = np.random.default_rng(0).integers(-1000, 3000, SHAPE).astype(np.int16)
TURNED = g.from_parts(g.rotation_about([1, 2, 3], 0.5) * [1.0, 1.5, 3.0], (10.0, 20.0, 30.0))


def value_places(volume):
    """{value: RAS mm} of a volume in which every value occurs once or the last place counts."""
    points = g.transform_points(volume.voxel_to_ras, np.argwhere(np.ones(volume.shape)))
    return points[np.argsort(volume.data.ravel(), kind="stable")]


UNIQUE = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def test_a_series_lies_where_its_positions_say_and_where_itk_puts_it(tmp_path):
    write_series(tmp_path, UNIQUE, TURNED, order=np.random.default_rng(1).permutation(8))
    volume = volume_file.load(tmp_path, keep_type=True)
    assert np.array_equal(volume.data, UNIQUE) and np.allclose(volume.voxel_to_ras, TURNED, atol=1e-5)
    assert volume.warnings == () and volume.name == tmp_path.name
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    for index in ((0, 0, 0), (11, 3, 5), (4, 9, 7)):
        value = int(image[index])
        theirs = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert np.allclose(value_places(volume)[value], theirs, atol=1e-3)


def test_every_orientation_of_slices_is_placed_right(tmp_path):
    for number, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        matrix = g.from_parts((np.eye(3)[:, list(order)] * signs) * [1.0, 1.5, 3.0], (1, 2, 3))
        if number % 3:
            continue
        write_series(tmp_path / str(number), UNIQUE, matrix)
        volume = volume_file.load(tmp_path / str(number), keep_type=True)
        expected = g.transform_points(matrix, np.argwhere(np.ones(SHAPE)))
        assert np.allclose(value_places(volume), expected, atol=1e-4)


def test_the_real_series_is_the_same_run_in_nifti(tmp_path, data_folder):
    with tarfile.open(data_folder / "series" / "bold_dicom_6.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    with pytest.raises(
        InputError, match=r"holds 6 volumes \(0 to 5: 'func_task.*' \(MR, series 401\), 35 slices\).*@0"
    ):
        volume_file.load(folder)
    run = nibabel.load(data_folder / "series" / "bold_60.nii.gz")
    for index in (0, 4):
        volume = volume_file.load(f"{folder}@{index}")
        assert np.allclose(volume.voxel_to_ras, run.affine, atol=1e-4)
        theirs = np.asanyarray(run.dataobj[..., index]).astype(float)
        assert np.corrcoef(volume.data.ravel(), theirs.ravel())[0, 1] > 0.99999
    with pytest.raises(InputError, match="has no volume 6; it holds volumes 0 to 5"):
        volume_file.load(f"{folder}@6")


def test_several_series_are_listed_and_one_is_chosen(tmp_path):
    write_series(tmp_path / "a", UNIQUE, TURNED, number=3, words="t2 tse")
    write_series(tmp_path / "b" / "c", UNIQUE[:, :, :5], TURNED, number=2, words="scout")
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "DICOMDIR").write_bytes(b"not read")
    with pytest.raises(InputError) as error:
        volume_file.load(tmp_path)
    message = str(error.value)
    assert "2 volumes (0: 'scout' (MR, series 2), 5 slices; 1: 't2 tse' (MR, series 3), 8 slices)" in message
    assert f"for example {tmp_path}@0" in message
    assert volume_file.load(f"{tmp_path}@0").shape == (12, 10, 5)
    assert np.array_equal(volume_file.load(f"{tmp_path}@1", keep_type=True).data, UNIQUE)
    assert volume_file.stem(f"{tmp_path}@1") == f"{tmp_path.name}_1"


def test_planes_of_a_scout_are_told_apart_by_their_direction(tmp_path):
    about = {"uid": "1.2.3.4", "frame": "1.2.3.5", "words": "three planes"}
    for number, order in enumerate(([0, 1, 2], [1, 2, 0], [2, 0, 1])):
        matrix = g.from_parts(np.eye(3)[:, order] * 2.0, (0, 0, 0))
        write_series(tmp_path / str(number), UNIQUE, matrix, **about)
    with pytest.raises(InputError, match="holds 3 volumes"):
        volume_file.load(tmp_path)
    directions = [volume_file.load(f"{tmp_path}@{index}").voxel_to_ras[:3, 2] for index in range(3)]
    assert np.allclose(np.abs(directions).sum(0), 2.0, atol=1e-6)


def test_frames_in_time_are_volumes_in_their_order(tmp_path):
    for frame in range(3):
        write_series(tmp_path / f"{2 - frame}", UNIQUE + 1000 * frame, TURNED, uid="1.2.9", frame="1.2.8")
    for folder, _, frame in [(tmp_path / f"{2 - frame}", None, frame) for frame in range(3)]:
        for path in folder.iterdir():
            data = pydicom.dcmread(path)
            data.InstanceNumber = int(data.InstanceNumber) + 8 * frame
            data.AcquisitionNumber = frame + 1
            save(data, path)
    for frame in range(3):
        volume = volume_file.load(f"{tmp_path}@{frame}", keep_type=True)
        assert np.array_equal(volume.data, UNIQUE + 1000 * frame) and volume.warnings == ()


def test_a_tilted_gantry_stays_as_it_was_and_is_said(tmp_path):
    tilted = TURNED.copy()
    tilted[:3, 2] += 0.9 * TURNED[:3, 1]
    write_series(tmp_path, UNIQUE, tilted, kind=CT, modality="CT")
    volume = volume_file.load(tmp_path, keep_type=True)
    assert np.allclose(volume.voxel_to_ras, tilted, atol=1e-4) and np.array_equal(volume.data, UNIQUE)
    angle = np.degrees(np.arctan(0.9 * 1.5 / 3.0))
    assert len(volume.warnings) == 1 and f"sheared by {angle:.1f}°" in volume.warnings[0]


def test_missing_and_uneven_slices_are_interpolated_and_said(tmp_path):
    ramp = np.broadcast_to(100 * np.arange(8), SHAPE).astype(np.int16)
    write_series(tmp_path / "missing", ramp, TURNED, drop=(3,))
    write_series(tmp_path / "uneven", ramp, TURNED, positions=[0, 1, 2, 3, 4, 5, 6, 6.5])
    missing = volume_file.load(tmp_path / "missing", keep_type=True)
    assert np.array_equal(missing.data, ramp) and np.allclose(missing.voxel_to_ras, TURNED, atol=1e-4)
    assert "3 to 6 mm apart (missing or uneven)" in missing.warnings[0] and "8 in place of 7" in missing.warnings[0]
    uneven = volume_file.load(tmp_path / "uneven")
    assert "1.5 to 3 mm apart" in uneven.warnings[0] and uneven.data[0, 0, -1] == 700
    assert np.allclose(uneven.voxel_to_ras[:3, 2] * (uneven.shape[2] - 1), TURNED[:3, 2] * 6.5, atol=1e-4)
    write_series(tmp_path / "rounded", UNIQUE, TURNED, positions=np.arange(8) + [0, 0.004, -0.004, 0, 0.003, 0, 0, 0])
    assert volume_file.load(tmp_path / "rounded").warnings == ()


def test_rescaled_values_are_read(tmp_path):
    write_series(tmp_path, DATA, TURNED, kind=CT, modality="CT")
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = "2", "-1024"
        save(data, path)
    assert np.array_equal(volume_file.load(tmp_path).data, DATA * 2.0 - 1024)


def screenshot(color=False):
    """A picture of the screen, as scanners put them among the slices."""
    data = header(kind="1.2.840.10008.5.1.4.1.1.7", modality="OT", words="screen")
    data.Rows = data.Columns = 16
    data.PixelData = bytes(512)
    if color:
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.PixelData = bytes(768)
    return data


def test_what_else_lies_in_the_folder_does_not_matter(tmp_path):
    names = [5, 2, 7, 0, 1, 4, 3, 6]  # no order in their names either
    written = write_series(tmp_path, UNIQUE, TURNED, order=names)
    shutil.copy(tmp_path / "IM0003", tmp_path / "copy of IM0003")
    for number, kind in enumerate(("481.3", "88.22", "66.1", "104.1", "11.1")):  # structures, report, …
        data = header(kind=f"1.2.840.10008.5.1.4.1.1.{kind}", modality="OT")
        for name in ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(data, name)
        save(data, tmp_path / f"object{number}.dcm")
    save(screenshot(), tmp_path / "screen.dcm")
    save(screenshot(color=True), tmp_path / "dose.dcm")
    scout = g.from_parts(g.rotation_about([1, 0, 0], np.pi / 2)) @ TURNED
    write_series(tmp_path / "scout", UNIQUE[:, :, :1], scout, uid=written[0].SeriesInstanceUID)
    (tmp_path / "DICOMDIR").write_bytes(b"an index")
    (tmp_path / "notes.txt").write_text("nothing")
    volume = volume_file.load(tmp_path, keep_type=True)
    assert np.array_equal(volume.data, UNIQUE) and np.allclose(volume.voxel_to_ras, TURNED, atol=1e-4)
    assert volume.warnings == ()


@pytest.mark.parametrize("how", ["implicit", "big-endian", "no preamble", "RLE"])
def test_every_transfer_syntax_is_read(tmp_path, how):
    write_series(tmp_path, UNIQUE, TURNED)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        if how == "RLE":
            data.compress(pydicom.uid.RLELossless)
            data.save_as(path)
        elif how == "big-endian":
            data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
            save(data, path, little=False, whole=False)
        else:
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            if how == "no preamble":
                del data.file_meta
            save(data, path, implicit=True, whole=False)
    volume = volume_file.load(tmp_path, keep_type=True)
    assert np.array_equal(volume.data, UNIQUE) and np.allclose(volume.voxel_to_ras, TURNED, atol=1e-4)


def test_voxels_of_unknown_size_are_said(tmp_path):
    write_series(tmp_path, UNIQUE, TURNED)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        del data.PixelSpacing
        data.save_as(path)
    volume = volume_file.load(tmp_path)
    assert "taken for 1 mm" in volume.warnings[0] and np.allclose(volume.spacing[:2], 1)


def test_each_slice_has_its_own_scale(tmp_path):
    write_series(tmp_path, UNIQUE, TURNED)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = f"{1 + number / 4}", f"{-number}"
        data.save_as(path)
    scales = np.arange(SHAPE[2])
    assert np.allclose(volume_file.load(tmp_path).data, UNIQUE * (1 + scales / 4) - scales, atol=1e-3)


def test_what_makes_no_volume_is_refused_in_a_sentence(tmp_path):
    write_series(tmp_path / "one", UNIQUE[:, :, :1], TURNED)
    with pytest.raises(InputError, match="single slice; give the folder of all its files"):
        volume_file.load(tmp_path / "one")
    with pytest.raises(InputError, match="single slice"):
        volume_file.load(tmp_path / "one" / "IM0000")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder without DICOM images"):
        volume_file.load(tmp_path / "empty")
    write_series(tmp_path / "mosaic", UNIQUE, TURNED)
    for path in (tmp_path / "mosaic").iterdir():
        data = pydicom.dcmread(path)
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
        save(data, path)
    with pytest.raises(InputError, match="is a mosaic.*dcm2niix"):
        volume_file.load(tmp_path / "mosaic")
    write_series(tmp_path / "cut", UNIQUE, TURNED)
    cut = tmp_path / "cut" / "IM0004"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(InputError, match="IM0004 is truncated"):
        volume_file.load(tmp_path / "cut")


def test_an_enhanced_file_of_two_frames_in_time_is_two_volumes(tmp_path):
    path = tmp_path / "enhanced.dcm"
    write_enhanced(path, np.stack([UNIQUE, UNIQUE + 1000], axis=-1), TURNED, words="dynamic")
    with pytest.raises(InputError, match="holds 2 volumes"):
        volume_file.load(path)
    for time in (0, 1):
        volume = volume_file.load(f"{path}@{time}", keep_type=True)
        assert np.array_equal(volume.data, UNIQUE + 1000 * time) and np.allclose(volume.voxel_to_ras, TURNED, atol=1e-4)
