"""A file lies where Slicer and ITK put it, and what its header contradicts is said: against their own readers."""

from __future__ import annotations

import gzip
import itertools
import locale
import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g
from SpatialDiffusionCore.spatial import volume as v
from SpatialDiffusionCore.spatial import volume_file
from SpatialDiffusionCore.spatial.volume_io import nifti

sitk = pytest.importorskip("SimpleITK", reason="ITK's own readers judge headers")

SHAPE = (5, 6, 7)
DATA = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)  # every value once: a voxel is known by it
TURNED = g.from_parts(g.rotation_about([1, 2, 3], 0.5) * [1.0, 2.0, 3.0], (10.0, 20.0, 30.0))
ELSEWHERE = g.from_parts(g.rotation_about([0, 0, 1], 0.35), (15.0, 0.0, 0.0)) @ TURNED
SHEARED = g.from_parts([[1, 0.15, 0], [0, 1, 0], [0, 0, 1]]) @ TURNED
MIRRORED = TURNED * [[-1, 1, 1, 1]]
ROUNDED = np.where(np.eye(4)[3][:, None] + np.eye(4)[3] > 0, TURNED, np.round(TURNED, 2))


def nifti_file(path, qform=TURNED, sform=TURNED, codes=(1, 1), units="mm", kind=nibabel.Nifti1Image, **fields):
    """Write DATA under a header of the given parts; ``fields`` are entries of the header, set last."""
    image = kind(DATA, np.eye(4))
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    image.header.set_xyzt_units(units)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return Path(path)


def places(volume, data=None):
    """RAS mm of every voxel in the order of the values in DATA, N×3; from a Volume, or from a matrix and its array."""
    matrix, data = (volume, data) if data is not None else (volume.voxel_to_ras, volume.data)
    order = np.argsort(data.ravel(), kind="stable")
    return g.transform_points(matrix, np.argwhere(np.ones(data.shape)))[order]


def in_itk(path):
    """Where ITK puts every voxel, None where it refuses the file."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix = g.LPS_RAS @ g.from_parts(direction, image.GetOrigin())
    return places(matrix, sitk.GetArrayFromImage(image).T)


@pytest.fixture(scope="module")
def in_slicer():
    """Where Slicer's storage node puts every voxel, None where it refuses the file."""
    reason = "Slicer's own reader comes with the wheel slicer-core"
    vtk, slicer = pytest.importorskip("vtk", reason=reason), pytest.importorskip("slicer", reason=reason)
    from vtk.util.numpy_support import vtk_to_numpy

    vtk.vtkObject.GlobalWarningDisplayOff()

    def read(path):
        node, storage = slicer.vtkMRMLScalarVolumeNode(), slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(path))
        if not storage.ReadData(node):
            return None
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        matrix = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
        image = node.GetImageData()
        return places(matrix, vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).T)

    yield read
    vtk.vtkObject.GlobalWarningDisplayOn()


#: What is in the header, and what the sentence about it says (None: nothing is contradicted, so there is none).
KINDS = {
    "plain": ({}, None),
    "qform alone": ({"codes": (1, 0)}, None),
    "sform alone": ({"codes": (0, 1)}, None),
    "sform of another space alone": ({"codes": (0, 4)}, None),
    "scanner and MNI": (
        {"sform": ELSEWHERE, "codes": (1, 4)},
        r"qform and the sform .* 8.7 mm apart; the qform is used",
    ),
    "scanner and aligned": ({"sform": ELSEWHERE, "codes": (1, 2)}, "the qform is used"),
    "aligned twice": ({"sform": ELSEWHERE, "codes": (2, 2)}, "the qform is used"),
    "scanner twice": ({"sform": ELSEWHERE}, "the sform is used"),
    "sform of the scanner": ({"sform": ELSEWHERE, "codes": (2, 1)}, "the sform is used"),
    "shifted by a voxel": ({"sform": g.from_parts(np.eye(3), (1.0, 0, 0)) @ TURNED, "codes": (1, 2)}, "1 mm apart"),
    "no codes": ({"codes": (0, 0)}, "codes are 0.*left and right are in doubt"),
    "meters": ({"units": "meter"}, "lengths in meters"),
    "micrometers": ({"units": "micron"}, "lengths in micrometers"),
    "micrometers, qform": ({"units": "micron", "codes": (1, 0)}, "lengths in micrometers"),
    "unknown unit": ({"units": "unknown"}, None),
    "other pixdim": (
        {"codes": (0, 1), "pixdim": [1, 1.1, 2, 3, 1, 1, 1, 1]},
        r"1\.1 × 2 × 3 mm by its pixdim.*1 × 2 × 3",
    ),
    "other pixdim, both": ({"pixdim": [1, 1.1, 2, 3, 1, 1, 1, 1]}, "by its pixdim"),
    "pixdim of 1": ({"codes": (0, 2), "pixdim": [1, 1, 1, 1, 1, 1, 1, 1]}, "by its pixdim"),
    "pixdim of 0": ({"codes": (0, 1), "pixdim": [1, 0, 0, 0, 1, 1, 1, 1]}, "by its pixdim"),
    "negative pixdim": ({"codes": (0, 1), "pixdim": [1, -1, 2, 3, 1, 1, 1, 1]}, "pixdim .* is negative.*in doubt"),
    "mirrored": ({"qform": MIRRORED, "sform": MIRRORED}, None),
    "mirrored qform": ({"qform": MIRRORED, "codes": (1, 0)}, None),
    "mirrored sform": ({"sform": MIRRORED, "codes": (0, 1)}, None),
    "one of them mirrored": ({"sform": MIRRORED, "codes": (1, 2)}, "the .form is used"),
    "sheared": ({"sform": SHEARED, "codes": (0, 1)}, r"not perpendicular \(6.1°.*cannot open this file"),
    "sheared sform": ({"sform": SHEARED}, "the qform is used"),
    "rounded": ({"sform": ROUNDED, "codes": (0, 1)}, "not perpendicular"),
    "rounded sform": ({"sform": ROUNDED}, None),
}
KIND_OF_FILE = {
    ".nii": nibabel.Nifti1Image,
    ".nii.gz": nibabel.Nifti1Image,
    ".NII.GZ": nibabel.Nifti1Image,
    ".hdr": nibabel.Nifti1Pair,
    "-2.nii": nibabel.Nifti2Image,
}


@pytest.mark.parametrize("ending", KIND_OF_FILE)
@pytest.mark.parametrize("name", KINDS)
def test_a_nifti_lies_where_itk_and_slicer_put_it(tmp_path, in_slicer, name, ending):
    fields, sentence = KINDS[name]
    path = nifti_file(tmp_path / f"über@1 b{ending}", kind=KIND_OF_FILE[ending], **fields)
    volume = volume_file.load(path)
    assert np.array_equal(np.sort(volume.data.ravel()), np.sort(DATA.ravel()))
    # For programs that read the voxels by other means and have no nibabel, as Slicer: the same sentences.
    assert volume_file.header_warnings(path) == (() if ending == "-2.nii" else volume.warnings)
    if ending == "-2.nii":  # which ITK cannot open: the same header as NIfTI-1 says where it lies
        assert any("NIfTI-2" in warning for warning in volume.warnings)
        path = nifti_file(tmp_path / "one.nii", **fields)
    itk, mrml = in_itk(path), in_slicer(path)
    assert (itk is None) == (mrml is None) == (name in ("sheared", "rounded"))
    scale = 1000 if name == "meters" else 1
    if itk is None:
        assert np.allclose(volume.voxel_to_ras, fields["sform"], atol=1e-5)
    else:
        assert np.allclose(places(volume), itk, atol=1e-4 * scale) and np.allclose(itk, mrml, atol=1e-4 * scale)
    warnings = [warning for warning in volume.warnings if "NIfTI-2" not in warning]
    if sentence is None:
        assert warnings == []
    else:
        with pytest.raises(InputError, match=sentence):
            raise InputError(" ".join(warnings))
        assert all("über@1 b" in warning and warning.endswith(".") for warning in warnings)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("ending", [".nii", ".hdr"])
def test_the_order_of_bytes_does_not_matter(tmp_path, in_slicer, ending, order):
    kind = nibabel.Nifti1Image if ending == ".nii" else nibabel.Nifti1Pair
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
    image = kind(DATA, TURNED, header)
    nibabel.save(image, tmp_path / f"a{ending}")
    volume = volume_file.load(tmp_path / f"a{ending}")
    assert np.array_equal(volume.data, DATA) and np.allclose(volume.voxel_to_ras, TURNED, atol=1e-5)
    assert volume_file.header_warnings(tmp_path / f"a{ending}") == volume.warnings == ()
    assert np.allclose(places(volume), in_slicer(tmp_path / f"a{ending}"), atol=1e-4)
    if ending == ".hdr":
        assert np.array_equal(volume_file.load(tmp_path / "a.img").data, DATA)


def test_a_quaternion_a_little_too_long_is_a_half_turn(tmp_path, in_slicer):
    turn = g.from_parts(g.rotation_about([1, 2, 3], np.pi) * [1.0, 2.0, 3.0], (1, 2, 3))
    path = nifti_file(tmp_path / "a.nii", qform=turn, codes=(1, 0))
    raw = bytearray(path.read_bytes())
    quaternion = np.array([1, 2, 3]) / np.sqrt(14) * (1 + 4e-7)
    raw[256:268] = quaternion.astype("<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(ValueError):
        _ = nibabel.load(path).affine  # which is why the affine is not asked of nibabel
    assert np.allclose(volume_file.load(path).voxel_to_ras, turn, atol=1e-5)
    assert np.allclose(places(volume_file.load(path)), in_itk(path), atol=1e-4)


def test_an_analyze_file_lies_where_itk_puts_it_with_the_sides_in_doubt(tmp_path, in_slicer):
    image = nibabel.AnalyzeImage(DATA, np.eye(4))
    image.header.set_zooms((1.0, 2.0, 3.0))
    nibabel.save(image, tmp_path / "old.img")
    volume = volume_file.load(tmp_path / "old.hdr")
    assert np.allclose(places(volume), in_itk(tmp_path / "old.hdr"))
    assert np.allclose(places(volume), in_slicer(tmp_path / "old.hdr"))
    assert "left and right are in doubt" in volume.warnings[0]
    assert volume_file.header_warnings(tmp_path / "old.img") == volume_file.load(tmp_path / "old.img").warnings


@pytest.mark.parametrize("content", [b"", b"no header", bytes(400)])
def test_a_file_that_is_no_nifti_has_no_header_to_speak_of(tmp_path, content):
    (tmp_path / "a.nii").write_bytes(content)
    assert volume_file.header_warnings(tmp_path / "a.nii") == ()
    (tmp_path / "a.nii.gz").write_bytes(content + b"x")
    with pytest.raises(InputError, match="a.nii.gz"):
        volume_file.header_warnings(tmp_path / "a.nii.gz")


@st.composite
def nifti_headers(draw):
    """Any codes, forms that are the same, near each other or not, isotropic or not, in any unit."""
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3))) + [0, 0, 1.5]
    steps = draw(st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (1.0, 2.0, 3.0), (2.5, 2.5, 2.5)]))
    side = draw(st.sampled_from([-1, 1]))
    qform = g.from_parts(g.rotation_about(axis, draw(st.floats(-3.1, 3.1))) * steps * [side, 1, 1], (3, -60, 40))
    angle = draw(st.sampled_from([0.0, 1e-6, 1e-4, 0.01, 0.35]))
    shift = draw(st.sampled_from([0.0, 1e-5, 1e-3, 15.0]))
    change = g.from_parts(g.rotation_about([0, 0, 1], angle), (shift, 0, 0))
    if draw(st.integers(0, 4)) == 0:
        change = change @ g.from_parts([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    return {
        "qform": qform,
        "sform": change @ qform,
        "codes": (draw(st.integers(0, 4)), draw(st.integers(0, 5))),
        "units": draw(st.sampled_from(["mm", "mm", "unknown", "micron", "meter"])),
    }


@settings(max_examples=200)
@given(nifti_headers())
def test_any_nifti_header_means_what_it_means_to_itk(tmp_path_factory, header):
    path = nifti_file(tmp_path_factory.mktemp("headers") / "a.nii", **header)
    volume, itk = volume_file.load(path), in_itk(path)
    if itk is None:
        assert "cannot open" in volume.warnings[0]
        return
    size = {"micron": 1e-3, "meter": 1e3}.get(header["units"], 1)
    assert np.allclose(places(volume), itk, atol=2e-4 * size)
    assert not any("cannot open" in warning for warning in volume.warnings)
    # Whatever of the header would put the volume elsewhere is spoken of, and nothing else.
    forms = [nifti._qform(nibabel.load(path).header, np.eye(4)), nifti._sform(nibabel.load(path).header, np.eye(4))]
    elsewhere = [
        form is not None and np.abs(places(form, DATA) * size - places(volume)).max() > 0.2 * size * volume_steps(form)
        for form in forms
    ]
    if any(elsewhere):
        assert any("apart" in warning or "pixdim" in warning for warning in volume.warnings)
    if header["codes"][0] > 0 < header["codes"][1] and np.allclose(header["qform"], header["sform"], atol=1e-3):
        assert not any("apart" in warning for warning in volume.warnings)


def volume_steps(matrix):
    return g.spacing(matrix).min()


# ------------------------------------------------------------------------------------------- NRRD, MetaImage
def nrrd_file(path, fields, data=DATA):
    sizes = " ".join(map(str, data.shape))
    head = f"NRRD0004\ntype: short\ndimension: {data.ndim}\nsizes: {sizes}\nencoding: raw\nendian: little\n"
    path.write_bytes((head + "".join(f"{line}\n" for line in fields) + "\n").encode() + data.tobytes(order="F"))
    return path


AXES = ("space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (5,6,7)")
TILTED = ("space directions: (0.8,0.6,0) (-1.2,1.6,0) (0.3,0,3)", "space origin: (5,6,7.5)")
NRRDS = {
    "left-posterior-superior": (("space: left-posterior-superior", *AXES), [-5, -6, 7], None),
    "right-anterior-superior": (("space: right-anterior-superior", *AXES), [5, 6, 7], None),
    "left-anterior-superior": (("space: left-anterior-superior", *AXES), [-5, 6, 7], None),
    "RAS": (("space: RAS", *AXES), [5, 6, 7], None),
    "sheared": (("space: left-posterior-superior", *TILTED), [-5, -6, 7.5], None),
    "scanner": (("space: scanner-xyz", *AXES), [-5, -6, 7], "in doubt"),
    "no space": (("space dimension: 3", *AXES), [-5, -6, 7], "in doubt"),
    "spacings alone": (("spacings: 1 2 3",), [0, 0, 0], "in doubt"),
    "nothing": ((), [0, 0, 0], "in doubt"),
    "micrometers": (("space: LPS", *AXES, 'space units: "um" "um" "um"'), [-5, -6, 7], "lengths in um"),
}


@pytest.mark.parametrize("name", NRRDS)
def test_a_nrrd_lies_where_itk_and_slicer_put_it(tmp_path, in_slicer, name):
    fields, first, sentence = NRRDS[name]
    path = nrrd_file(tmp_path / "a.nrrd", fields)
    volume = volume_file.load(path)
    assert np.allclose(volume.voxel_to_ras[:3, 3], first)
    assert np.allclose(places(volume), in_itk(path)) and np.allclose(places(volume), in_slicer(path))
    assert (sentence is None) == (volume.warnings == ()) and (sentence or "") in " ".join(volume.warnings)


def test_a_metaimage_lies_where_itk_and_slicer_put_it(tmp_path, in_slicer):
    for number, fields in enumerate(
        ["ElementSpacing = 1 2 3\nOffset = 5 6 7\nTransformMatrix = 0 1 0 -1 0 0 0 0 1\n", "ElementSpacing = 1 2 3\n"]
    ):
        head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 5 6 7\nElementType = MET_SHORT\n"
        path = tmp_path / f"{number}.mha"
        path.write_bytes((head + fields + "ElementDataFile = LOCAL\n").encode() + DATA.tobytes(order="F"))
        volume = volume_file.load(path)
        assert np.allclose(places(volume), in_itk(path)) and np.allclose(places(volume), in_slicer(path))
        (tmp_path / f"{number}.MHA").write_bytes(path.read_bytes())
        assert np.allclose(volume_file.load(tmp_path / f"{number}.MHA").voxel_to_ras, volume.voxel_to_ras)


# ------------------------------------------------------------------------------------------------ round trips
WRITTEN_HEADERS = {"turned": TURNED, "mirrored": MIRRORED, "rounded": ROUNDED, "sheared": SHEARED}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "bool"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("header", WRITTEN_HEADERS)
def test_what_is_written_lands_where_slicer_puts_it(tmp_path, in_slicer, header, ending, dtype):
    """Volumes, masks and label maps; the one exception are axes that are not perpendicular, in NIfTI."""
    data = DATA % 2 > 0 if dtype == "bool" else DATA.astype(dtype)
    volume = v.Volume(data, WRITTEN_HEADERS[header])
    path = tmp_path / f"out{ending}"
    volume_file.save(volume, path)
    itk, mrml = in_itk(path), in_slicer(path)
    back = volume_file.load(path, keep_type=True)
    assert np.array_equal(back.data, data) and np.allclose(back.voxel_to_ras, volume.voxel_to_ras, atol=1e-5)
    if header in ("sheared", "rounded") and ending.startswith(".nii"):
        assert itk is None and mrml is None and "cannot open" in back.warnings[0]
    else:
        for theirs in (itk, mrml):
            for value in np.unique(data) if dtype == "bool" else [None]:  # few values: those of each, in any order
                chosen = np.sort(data.ravel()) == value if value is not None else np.ones(data.size, bool)
                distance = np.abs(theirs[chosen][:, None] - places(volume)[chosen]).max(-1)
                near = distance.min(1) if value is not None else np.diag(distance)
                assert near.max() < 1e-4
        assert back.warnings == ()


def test_a_header_and_its_data_are_named_after_each_other(tmp_path):
    """A .mhd and a .nhdr of the same name beside each other, written twice; nothing else is left in the folder."""
    volume = v.Volume(DATA, TURNED)
    for name in ("a.mhd", "b.nhdr", "C.MHD", "a.mhd"):
        volume_file.save(volume, tmp_path / name)
        assert np.array_equal(volume_file.load(tmp_path / name).data, DATA)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 6 and all(name.split(".")[0] in "abC" for name in kept)


def test_a_header_that_slicer_takes_otherwise_is_heard_of_in_the_volume_that_moves(tmp_path):
    path = nifti_file(tmp_path / "a.nii", sform=ELSEWHERE, codes=(1, 4))
    volume = volume_file.load(path)
    assert volume.moved(np.eye(4)).warnings == volume.warnings != ()
    assert v.resample(volume, volume).warnings == ()


# ----------------------------------------------------------------------------------------------------- locale
def test_a_decimal_comma_changes_no_file(tmp_path, decimal_comma):
    assert locale.localeconv()["decimal_point"] == ","
    volume = v.Volume(DATA, ROUNDED)
    for name in ("a.nrrd", "a.nhdr", "a.mha", "a.nii"):
        volume_file.save(volume, tmp_path / name)
        assert np.allclose(volume_file.load(tmp_path / name).voxel_to_ras, ROUNDED, atol=1e-5), name
    assert b"0,8" not in (tmp_path / "a.nrrd").read_bytes()[:600]
    assert locale.localeconv()["decimal_point"] == ","
    locale.setlocale(locale.LC_ALL, "C")
    for name in ("a.nrrd", "a.nhdr", "a.mha", "a.nii"):
        assert np.allclose(volume_file.load(tmp_path / name).voxel_to_ras, ROUNDED, atol=1e-5), name


# ------------------------------------------------------------------------------------------ names, 4D, damage
def test_numbers_of_a_nrrd_are_volumes_that_can_be_chosen(tmp_path):
    both = np.stack([DATA, DATA + 1000], axis=-1)
    for name, data, kinds, axes in (
        ("last", both, "domain domain domain list", "(2,0,0) (0,2,0) (0,0,2) none"),
        ("first", np.moveaxis(both, -1, 0), "list domain domain domain", "none (2,0,0) (0,2,0) (0,0,2)"),
    ):
        fields = ("space: LPS", f"kinds: {kinds}", f"space directions: {axes}", "space origin: (0,0,0)")
        path = nrrd_file(tmp_path / f"{name}.nrrd", fields, data)
        for index in (0, 1):
            chosen = volume_file.load(f"{path}@{index}", keep_type=True)
            assert np.array_equal(chosen.data, both[..., index]) and np.allclose(chosen.spacing, 2)
        with pytest.raises(InputError, match="holds 2 numbers per voxel.*@INDEX"):
            volume_file.load(path)
        with pytest.raises(InputError, match="no volume 2; it holds volumes 0 to 1"):
            volume_file.load(f"{path}@2")
    image = sitk.JoinSeries([sitk.GetImageFromArray(np.ascontiguousarray(d.T)) for d in (DATA, DATA + 1000)])
    sitk.WriteImage(image, str(tmp_path / "four.mha"))
    assert np.array_equal(volume_file.load(f"{tmp_path}/four.mha@1", keep_type=True).data, DATA + 1000)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.nii.gz", "a"),
        ("visit@2.nii.gz", "visit@2"),
        ("visit@2.nii.gz@3", "visit@2_3"),
        ("T1.v1.0.NII.GZ", "T1.v1.0"),
        ("köpfe 2 头.MHA", "köpfe 2 头"),
        ("a.b.nrrd@12", "a.b_12"),
        ("scan.hdr", "scan"),
        ("brain.mgz", "brain"),
        ("series.7/", "series.7"),
        (".nii", ".nii"),
    ],
)
def test_the_stem_of_a_name_is_the_name_without_its_extension(name, expected):
    assert volume_file.stem(f"folder.nii/x@1/{name}") == expected
    assert volume_file.stem(name) == expected


def test_an_existing_name_that_ends_like_a_choice_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nifti_file(tmp_path / "a.nii")
    os.rename("a.nii", "a.nii@1")
    assert volume_file.split_index("a.nii@1") == ("a.nii@1", None)
    assert volume_file.split_index("b.nii@1") == ("b.nii", 1)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz"])
@pytest.mark.parametrize("raw", [False, True], ids=["packed", "raw"])
def test_a_truncated_file_is_called_truncated(tmp_path, ending, raw):
    path = tmp_path / f"cut{ending}"
    data = np.random.default_rng(0).integers(0, 30000, (20, 21, 22)).astype(np.int16)
    if ending in (".mgh", ".mgz"):
        nibabel.save(nibabel.MGHImage(data, TURNED), path)
    elif ending == ".hdr":
        nibabel.save(nibabel.Nifti1Pair(data, TURNED), path)
    elif raw and ending[1] != "n" or raw and ending in (".nrrd", ".nhdr"):
        sitk.WriteImage(sitk.GetImageFromArray(data), str(path), useCompression=False)
    else:
        volume_file.save(v.Volume(data, TURNED), path)
    largest = max(tmp_path.iterdir(), key=lambda part: part.stat().st_size)
    content = largest.read_bytes()
    for share in (0.55, 0.97):
        largest.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=r"cut.* is truncated: it ends before the last of its voxels; copy"):
            volume_file.load(path)


def test_a_file_of_freesurfer_lies_where_its_header_says(tmp_path):
    for name in ("a.mgz", "b.MGH"):
        nibabel.save(nibabel.MGHImage(DATA, TURNED), tmp_path / name.lower())
        os.rename(tmp_path / name.lower(), tmp_path / name)
        volume = volume_file.load(tmp_path / name, keep_type=True)
        assert np.array_equal(volume.data, DATA) and np.allclose(volume.voxel_to_ras, TURNED, atol=1e-5)
        assert volume.warnings == ()
    raw = bytearray(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
    raw[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "c.mgh").write_bytes(raw)
    assert "in doubt" in volume_file.load(tmp_path / "c.mgh").warnings[0]


def test_every_orientation_is_the_same_volume_in_every_format(tmp_path, in_slicer):
    for number, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        if number % 7:
            continue  # seven of the 48; test_volume.py has them all for NIfTI
        matrix = g.from_parts((np.eye(3)[:, list(order)] * signs) * [1.5, 2.0, 0.8], (-31.5, 17.25, 8.0))
        for ending in (".nii", ".nrrd", ".mha"):
            path = tmp_path / f"{number}{ending}"
            volume_file.save(v.Volume(DATA, matrix), path)
            assert np.allclose(in_slicer(path), places(matrix, DATA), atol=1e-4)
            assert np.allclose(places(volume_file.load(path)), places(matrix, DATA), atol=1e-4)


_METAIMAGE = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "CompressedData": "False", "Offset": "0 0 0",
    "ElementSpacing": "1 1 1", "DimSize": "4 5 6", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        ({"NDims": "1e30"}, "NDims = 1e30"),
        ({"NDims": "-1"}, "NDims = -1"),
        ({"NDims": "100"}, "NDims = 100"),
        ({"NDims": "0"}, "NDims = 0"),
        ({"DimSize": "4 -5 6"}, "DimSize = 4 -5 6"),
        ({"DimSize": "4 1e9 6"}, "DimSize"),
        ({"ElementDataFile": "a%s%n%d 1 5 1"}, "ElementDataFile = a%s"),
        ({"HeaderSize": "99999999999"}, "HeaderSize"),
        ({"HeaderSize": "-5"}, "HeaderSize = -5"),
        ({"ElementDataFile": "LIST"}, "lists . of 6 files"),
        (
            {"CompressedData": "True", "CompressedDataSize": "99999999999999"},
            "cannot be read|damaged",
        ),
    ],
)
def test_a_metaimage_at_which_itks_reader_would_end_the_process_is_refused(tmp_path, change, words):
    path = tmp_path / "a.mha"
    fields = {**_METAIMAGE, **change}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # it comes last
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in fields.items()).encode() + bytes(240))
    with pytest.raises(InputError, match=words) as said:
        volume_file.load(path)
    assert "a.mha" in str(said.value)


def test_a_metaimage_that_lists_its_slices_is_read(tmp_path):
    for k in range(SHAPE[2]):
        (tmp_path / f"slice{k}.raw").write_bytes(DATA[:, :, k].astype("<i2").tobytes(order="F"))
    fields = {**_METAIMAGE, "DimSize": " ".join(map(str, SHAPE))}
    for listed in ("LIST\n" + "\n".join(f"slice{k}.raw" for k in range(SHAPE[2])), f"slice%d.raw 0 {SHAPE[2] - 1} 1"):
        fields["ElementDataFile"] = listed
        (tmp_path / "a.mhd").write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
        assert np.array_equal(volume_file.load(tmp_path / "a.mhd").data, DATA)
    (tmp_path / "slice3.raw").unlink()
    fields["ElementDataFile"] = "LIST\n" + "\n".join(f"slice{k}.raw" for k in range(SHAPE[2]))
    (tmp_path / "a.mhd").write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
    with pytest.raises(InputError, match="slice3.raw, which is not there"):
        volume_file.load(tmp_path / "a.mhd")


def test_the_sentences_need_no_nibabel(tmp_path, monkeypatch):
    path = nifti_file(tmp_path / "a.nii.gz", sform=ELSEWHERE, codes=(1, 4))
    expected = volume_file.load(path).warnings
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert volume_file.header_warnings(path) == expected != ()
