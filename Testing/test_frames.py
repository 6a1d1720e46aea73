"""Series of frames in every format: each frame is what the file's own reader has, and memory is that of a frame."""

from __future__ import annotations

import gzip
import pickle
import re
import subprocess
import sys
import textwrap
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.many.frames import open_series
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume, resample
from SpatialDiffusionCore.spatial.volume_file import load, save

sitk = pytest.importorskip("SimpleITK", reason="ITK's own readers judge the frames")

SHAPE, COUNT = (5, 6, 7), 4
VALUES = np.arange(np.prod(SHAPE) * COUNT).reshape(*SHAPE, COUNT) % 113  # each frame is known by its values
TO_RAS = geometry.from_parts(np.diag([-1.0, -2.0, 3.0]), (10.0, 20.0, 30.0))


def is_as_loaded(path, name=""):
    """Compare all frames with what ``load`` has, which reads the file whole by its format's library."""
    series = open_series(path)
    assert (tuple(series.shape), series.count) == (SHAPE, COUNT), name
    again = pickle.loads(pickle.dumps(series))
    for index in range(COUNT):
        expected = load(f"{path}@{index}")
        np.testing.assert_array_equal(series.frame(index), expected.data, err_msg=f"{name} {index}")
        np.testing.assert_array_equal(again.frame(index), expected.data)
        np.testing.assert_allclose(series.voxel_to_ras, expected.voxel_to_ras, atol=1e-6, err_msg=name)
    return series


# NRRD and MetaImage

NRRD_TYPES = {
    "signed char": "i1", "uchar": "u1", "short": "i2", "unsigned short": "u2", "int": "i4", "uint32": "u4",
    "long long": "i8", "float": "f4", "double": "f8",
}  # fmt: skip


def nrrd_file(path, kind="short", endian="little", encoding="raw", inside=False, detached=False, axis="list"):
    """Write VALUES as a 4D NRRD by hand."""
    dtype = np.dtype(("<" if endian == "little" else ">") + NRRD_TYPES[kind])
    values = (np.moveaxis(VALUES, 3, 0) if inside else VALUES).astype(dtype)
    content = values.tobytes(order="F")
    content = gzip.compress(content) if encoding in ("gzip", "gz") else content
    steps = ["(1,0,0)", "(0,2,0)", "(0,0,3)"]
    of_axis = lambda own, other: " ".join([other, *own] if inside else [*own, other])  # noqa: E731
    lines = [
        "NRRD0004", f"type: {kind}", "dimension: 4", f"sizes: {' '.join(map(str, values.shape))}",
        f"kinds: {of_axis(['domain'] * 3, axis)}", "space: left-posterior-superior",
        f"space directions: {of_axis(steps, 'none')}", "space origin: (-10,-20,30)", f"endian: {endian}",
        f"encoding: {encoding}", "axis 0 index type:=numeric", *([f"data file: {Path(path).stem}.raw"] * detached),
    ]  # fmt: skip
    Path(path).write_bytes(("\n".join(lines) + "\n\n").encode() + (b"" if detached else content))
    if detached:
        Path(path).with_suffix(".raw").write_bytes(content)
    return path


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_frames_of_a_nrrd_are_those_of_itk(tmp_path, inside, encoding, endian):
    for kind in NRRD_TYPES:
        for detached in (False, True):
            path = tmp_path / f"a{'.nhdr' if detached else '.nrrd'}"
            nrrd_file(path, kind, endian, encoding, inside, detached)
            is_as_loaded(path, f"{kind} {detached}")


def test_frames_of_a_nrrd_that_is_left_to_itk(tmp_path):
    path = tmp_path / "text.nrrd"
    nrrd_file(path)
    header = path.read_bytes().split(b"\n\n")[0].replace(b"encoding: raw", b"encoding: ascii")
    path.write_bytes(header + b"\n\n" + " ".join(map(str, VALUES.ravel(order="F"))).encode() + b"\n")
    is_as_loaded(path)
    path = tmp_path / "skipped.nrrd"
    nrrd_file(path)
    header, content = path.read_bytes().split(b"\n\n", 1)
    path.write_bytes(header + b"\nbyte skip: -1\n\n" + b"something before" + content)
    is_as_loaded(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".mha", ".mhd", ".MHA"])
@pytest.mark.parametrize("inside", [False, True])
def test_frames_of_a_metaimage_are_those_of_itk(tmp_path, packed, ending, inside):
    for kind, name in (("i2", "SHORT"), ("u1", "UCHAR"), ("f4", "FLOAT"), ("f8", "DOUBLE"), ("i4", "INT")):
        for most in ("True", "False"):
            dtype = np.dtype((">" if most == "True" else "<") + kind)
            values = (np.moveaxis(VALUES, 3, 0) if inside else VALUES).astype(dtype)
            content = values.tobytes(order="F")
            content = zlib.compress(content) if packed else content
            local = ending.lower() == ".mha"
            four, sizes = ("", SHAPE) if inside else (" 1", (*SHAPE, COUNT))
            lines = [
                "ObjectType = Image", f"NDims = {3 if inside else 4}", "BinaryData = True",
                f"BinaryDataByteOrderMSB = {most}", f"CompressedData = {packed}",
                *([f"CompressedDataSize = {len(content)}"] * packed), f"Offset = -10 -20 30{' 0' * (not inside)}",
                f"ElementSpacing = 1 2 3{four}", f"DimSize = {' '.join(map(str, sizes))}",
                *([f"ElementNumberOfChannels = {COUNT}"] * inside), f"ElementType = MET_{name}",
                f"ElementDataFile = {'LOCAL' if local else 'a.raw'}",
            ]  # fmt: skip
            path = tmp_path / f"a{ending}"
            path.write_bytes(("\n".join(lines) + "\n").encode() + (content if local else b""))
            if not local:
                (tmp_path / "a.raw").write_bytes(content)
            is_as_loaded(path, f"{kind} {most}")


def test_slicers_own_sequence_is_read_frame_by_frame(tmp_path):
    data = np.moveaxis(VALUES.T.astype(np.int16), 0, -1).copy()
    image = sitk.GetImageFromArray(data, isVector=True)
    image.SetSpacing((1, 2, 3))
    for packed in (False, True):
        sitk.WriteImage(image, str(tmp_path / "scan.seq.nrrd"), packed)
        is_as_loaded(tmp_path / "scan.seq.nrrd")


# NIfTI and FreeSurfer


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr", ".NII", ".NII.GZ"])
@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u1", ">f4", "<f8"])
def test_frames_of_a_nifti_are_those_of_nibabel(tmp_path, ending, kind):
    for slope, inter in ((None, None), (0.25, -7.0)):
        image = (nibabel.Nifti1Pair if ending == ".hdr" else nibabel.Nifti1Image)(
            VALUES.astype(kind), TO_RAS, nibabel.Nifti1Header(endianness=kind[0])
        )
        image.header.set_data_dtype(kind)
        image.header.set_slope_inter(slope, inter)
        image.header.set_zooms((1, 2, 3, 1500))
        image.header.set_xyzt_units("mm", "msec")
        plain = tmp_path / f"a{ending.lower()}"
        nibabel.save(image, plain)
        path = plain.rename(tmp_path / f"a{ending}")
        assert is_as_loaded(path, f"{kind} {slope}").interval == pytest.approx(1.5)


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
def test_frames_of_freesurfer(tmp_path, ending):
    nibabel.save(nibabel.MGHImage(VALUES.astype(np.float32), TO_RAS), tmp_path / f"a{ending}")
    is_as_loaded(tmp_path / f"a{ending}")


def test_a_series_in_hertz_has_no_interval(tmp_path):
    image = nibabel.Nifti1Image(VALUES.astype(np.int16), TO_RAS)
    image.header.set_xyzt_units("mm", "hz")
    nibabel.save(image, tmp_path / "a.nii")
    assert open_series(tmp_path / "a.nii").interval is None


# Folders


def test_a_folder_of_pairs_counts_each_volume_once(tmp_path):
    for index in range(COUNT):
        nibabel.save(nibabel.Nifti1Pair(VALUES[..., index].astype(np.int16), TO_RAS), tmp_path / f"v{index}.hdr")
    series = open_series(tmp_path)
    assert series.count == COUNT
    np.testing.assert_array_equal(series.frame(2), VALUES[..., 2])


def test_an_enhanced_file_is_a_series(tmp_path):
    fixtures = pytest.importorskip("dicom_fixtures")
    data = VALUES.astype(np.int16)
    fixtures.write_enhanced(tmp_path / "one.dcm", data, TO_RAS)
    for source in (tmp_path / "one.dcm", tmp_path):
        series = open_series(source)
        assert (tuple(series.shape), series.count) == (SHAPE, COUNT)
        for index in range(COUNT):
            expected = load(f"{source}@{index}")
            np.testing.assert_array_equal(series.frame(index), expected.data)
            assert sorted(np.unique(expected.data)) == sorted(np.unique(data[..., index]))


def test_dicom_series_that_are_no_series_of_frames(tmp_path):
    fixtures = pytest.importorskip("dicom_fixtures")
    one = VALUES[..., 0].astype(np.int16)
    fixtures.write_series(tmp_path / "missing", one, TO_RAS, drop=(3,))
    fixtures.write_series(tmp_path / "two", one, TO_RAS, number=1, words="t1")
    fixtures.write_series(tmp_path / "two", one, TO_RAS, number=2, words="t2", suffix=".dcm")
    for name, words in (("missing", "Slices are missing"), ("two", "holds 2 DICOM series .*'t1'.*'t2'")):
        with pytest.raises(InputError, match=words):
            open_series(tmp_path / name)


# Headers


def contradictory(path, data):
    """A NIfTI file whose qform and sform lie 15 mm apart."""
    image = nibabel.Nifti1Image(data.astype(np.int16), TO_RAS)
    image.set_qform(TO_RAS, 1)
    image.set_sform(geometry.from_parts(np.eye(3), (15.0, 0.0, 0.0)) @ TO_RAS, 4)
    nibabel.save(image, path)


def test_what_a_header_contradicts_is_heard_of(tmp_path):
    contradictory(tmp_path / "a.nii.gz", VALUES)
    series = open_series(tmp_path / "a.nii.gz")
    assert series.warnings == load(f"{tmp_path / 'a.nii.gz'}@0").warnings
    assert "15 mm apart" in series.warnings[0]
    (tmp_path / "many").mkdir()
    for index in range(COUNT):
        contradictory(tmp_path / "many" / f"v{index}.nii", VALUES[..., index])
    told = open_series(tmp_path / "many").warnings
    assert len(told) == 1 and "v0.nii" in told[0]
    nrrd_file(tmp_path / "b.nrrd")
    path = tmp_path / "b.nrrd"
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", b"scanner-xyz"))
    assert "left and right are in doubt" in open_series(path).warnings[0]
    frames = [load(tmp_path / "many" / f"v{index}.nii") for index in range(2)]
    assert open_series(frames).warnings == (*frames[0].warnings, *frames[1].warnings)


def test_a_decimal_comma_changes_no_series(tmp_path, decimal_comma):
    nrrd_file(tmp_path / "a.nrrd")
    path = tmp_path / "a.nrrd"
    path.write_bytes(path.read_bytes().replace(b"(1,0,0)", b"(1.5,0,0)").replace(b"-10,-20", b"-10.25,-20"))
    series = open_series(path)
    np.testing.assert_allclose(series.voxel_to_ras[:3, 0], [-1.5, 0, 0])
    np.testing.assert_allclose(series.voxel_to_ras[:3, 3], [10.25, 20, 30])


# Damage


@pytest.mark.parametrize("ending, encoding", [(".nrrd", "raw"), (".nrrd", "gzip"), (".nii", ""), (".nii.gz", "")])
@pytest.mark.parametrize("inside", [False, True])
def test_a_series_that_ends_too_early_is_truncated(tmp_path, ending, encoding, inside):
    path = tmp_path / f"a{ending}"
    random = np.random.default_rng(0).integers(0, 3000, VALUES.shape).astype(np.int16)
    if encoding:
        nrrd_file(path, encoding=encoding, inside=inside)
    else:
        nibabel.save(nibabel.Nifti1Image(random, TO_RAS), path)
    whole = path.read_bytes()
    for share in (0.97, 0.6):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=f"a{ending} is truncated"):
            open_series(path)
    assert not list(tmp_path.glob(".series-*"))


def test_a_checksum_that_does_not_fit_is_damage_and_what_follows_the_end_is_not(tmp_path):
    image = nibabel.Nifti1Image(VALUES.astype(np.int16), TO_RAS)
    nibabel.save(image, tmp_path / "a.nii.gz")
    nrrd_file(tmp_path / "a.nrrd", encoding="gzip")
    for name in ("a.nii.gz", "a.nrrd"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole + b"something behind")
        assert open_series(tmp_path / name).count == COUNT
        (tmp_path / name).write_bytes(whole[:-8] + bytes(4) + whole[-4:])
        with pytest.raises(InputError, match=f"{name} is damaged"):
            open_series(tmp_path / name)


_ON_A_FULL_DISK = """
import os, resource, sys
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.many.frames import open_series
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    open_series(sys.argv[1], sys.argv[2])
except InputError as error:
    print(error, os.listdir(sys.argv[2]))
"""


def test_a_disk_without_room_for_the_series_is_said(tmp_path):
    """Stood in for by the system's limit on the size of files."""
    pytest.importorskip("resource", reason="this system sets no limits")
    nrrd_file(tmp_path / "a.nrrd", encoding="gzip")
    (tmp_path / "scratch").mkdir()
    words = [sys.executable, "-c", _ON_A_FULL_DISK, str(tmp_path / "a.nrrd"), str(tmp_path / "scratch")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.match(r"The series cannot be unpacked in .*scratch \(.*\); make room .* folder. \[\]", said)
    with pytest.raises(InputError, match="cannot be unpacked in .*gone"):
        open_series(tmp_path / "a.nrrd", tmp_path / "gone")


def test_a_damaged_packing_is_said(tmp_path):
    path = tmp_path / "a.nii.gz"
    random = np.random.default_rng(0).integers(0, 3000, VALUES.shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(random, TO_RAS), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged|truncated|cannot be read"):
        open_series(path)


def test_a_folder_without_volumes_is_no_series(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="neither volumes nor DICOM"):
        open_series(tmp_path)
    save(Volume(VALUES[..., 0].astype(np.int16), TO_RAS), tmp_path / "one.nrrd")
    with pytest.raises(InputError, match="one frame"):
        open_series(tmp_path / "one.nrrd")


# Memory

_MEASURED = textwrap.dedent("""
    import resource, sys
    from SpatialDiffusionCore.many.frames import open_series
    import SimpleITK, nibabel, numpy
    small, *large = sys.argv[1:]
    for path in [small, *large]:
        series = open_series(path)
        for index in range(series.count):
            series.frame(index)
        if path == small:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
""")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted in other units elsewhere")
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    values = np.zeros((64, 64, 64, 120), np.int16)  # 0.5 MB each, 60 MB in all
    values[..., -1] = 7
    nibabel.save(nibabel.Nifti1Image(values[..., -3:], TO_RAS), tmp_path / "small.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, TO_RAS), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(values.T, isVector=False), str(tmp_path / "packed.mha"), True)
    side_by_side = sitk.GetImageFromArray(np.moveaxis(values.T, 0, -1).copy(), isVector=True)
    sitk.WriteImage(side_by_side, str(tmp_path / "inside.seq.nrrd"))
    paths = [tmp_path / name for name in ("small.nii.gz", "a.nii.gz", "packed.mha", "inside.seq.nrrd")]
    grown = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, paths)], capture_output=True, text=True, check=True
    ).stdout
    assert int(grown) < 40, f"{grown} MB more"  # two pieces of 16 MB
    assert open_series(paths[-1]).frame(119).min() == 7


# apply, frame by frame


def moved_by_apply(folder, source, *more):
    """What ``apply`` makes of a series on a grid of its own, as nibabel's image."""
    np.savetxt(folder / "move.txt", MOVE)
    save(REFERENCE, folder / "reference.nii.gz")
    out = folder / "out" / "moved.nii.gz"
    out.parent.mkdir(exist_ok=True)
    command = ["apply", folder / "move.txt", source, "--reference", folder / "reference.nii.gz", "-o", out, *more]
    assert main([str(word) for word in command]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name], "what was unpacked is gone"
    return nibabel.load(out)


MOVE = geometry.from_parts(geometry.rotation_about([0, 0, 1], 0.2), (1.0, -2.0, 0.5))
REFERENCE = Volume(np.zeros((6, 5, 4), np.float32), TO_RAS @ geometry.from_parts(np.diag([0.9, 1.1, 1.2]), (0.3, 0, 1)))


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i4", "<i8", "<f4", "scaled"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_apply_moves_a_4d_nifti_as_it_moves_each_volume(tmp_path, ending, kind):
    values = VALUES + (2**53 + 1 if kind == "<i8" else 0)  # which doubles do not hold
    image = nibabel.Nifti1Image(
        values.astype("f8" if kind == "scaled" else kind), TO_RAS, nibabel.Nifti1Header(endianness=">")
    )
    image.set_data_dtype("<i2" if kind == "scaled" else kind)
    image.header.set_zooms((1, 2, 3, 720))
    image.header.set_xyzt_units("mm", "msec")
    nibabel.save(image, tmp_path / f"a{ending}")
    for how in ("nearest", "linear"):
        moved = moved_by_apply(tmp_path, tmp_path / f"a{ending}", "--interpolation", how)
        assert moved.header.get_zooms()[3] == 720 and moved.header.get_xyzt_units() == ("mm", "msec")
        np.testing.assert_allclose(moved.affine, REFERENCE.voxel_to_ras, atol=1e-5)
        reference, move = load(tmp_path / "reference.nii.gz"), np.loadtxt(tmp_path / "move.txt")
        for index in range(COUNT):
            one = load(tmp_path / f"a{ending}@{index}", keep_type=how == "nearest")
            expected = resample(one, reference, move, how).data
            assert moved.get_data_dtype() == expected.dtype.newbyteorder("=")
            np.testing.assert_array_equal(np.asarray(moved.dataobj)[..., index], expected)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mgz", ".txt.nrrd"])
def test_apply_moves_other_series_as_it_moves_each_volume(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".mgz":
        nibabel.save(nibabel.MGHImage(VALUES.astype(">i4"), TO_RAS), path)
    else:
        image = sitk.JoinSeries([sitk.GetImageFromArray(one) for one in VALUES.astype("i4").T])
        image.SetSpacing((1.0, 2.0, 3.0, 1.0))
        image.SetOrigin((-10.0, -20.0, 30.0, 0.0))
        sitk.WriteImage(image, str(path), "txt" not in ending)
        if "txt" in ending:  # which is read whole
            head = path.read_bytes().split(b"\n\n", 1)[0].replace(b"encoding: raw", b"encoding: ascii")
            path.write_bytes(head + b"\n\n" + " ".join(map(str, VALUES.ravel(order="F"))).encode())
    moved = moved_by_apply(tmp_path, path, "--interpolation", "nearest")
    for index in range(COUNT):
        expected = resample(load(f"{path}@{index}", keep_type=True), REFERENCE, MOVE, "nearest").data
        assert moved.get_data_dtype() == np.int32
        np.testing.assert_array_equal(np.asarray(moved.dataobj)[..., index], expected)
        assert expected.any()


def test_apply_holds_one_volume_of_many(tmp_path):
    shape, count = (40, 40, 40), 60
    values = np.broadcast_to(np.arange(count, dtype=np.float32), (*shape, count))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    np.savetxt(tmp_path / "move.txt", np.eye(4))
    save(Volume(values[..., 0], np.eye(4)), tmp_path / "b.nii.gz")
    command = ["apply", "move.txt", "a.nii", "--reference", "b.nii.gz", "-o", "c.nii.gz", "--quiet"]
    here = [str(tmp_path / word) if "." in word else word for word in command]
    main(here)  # what is imported once does not count
    tracemalloc.start()
    try:
        assert main(here) == 0
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    moved = np.asarray(nibabel.load(tmp_path / "c.nii.gz").dataobj)
    np.testing.assert_array_equal(moved[20, 20, 20], np.arange(count))
    assert most < 15 * 4 * np.prod(shape), most  # one and its copies, not 60


def test_a_4d_file_is_refused_before_the_work_where_the_format_has_no_4d(tmp_path, capsys):
    nibabel.save(nibabel.Nifti1Image(VALUES.astype("i2"), TO_RAS), tmp_path / "a.nii.gz")
    np.savetxt(tmp_path / "move.txt", MOVE)
    words = ["move.txt", "a.nii.gz", "--reference", "a.nii.gz@0", "-o", "b.nrrd"]
    assert main(["apply", *(str(tmp_path / word) if "." in word else word for word in words)]) == 1
    assert "only NIfTI (.nii, .nii.gz) is written in 4D; rename" in capsys.readouterr().err
    assert not (tmp_path / "b.nrrd").exists()
