"""Transforms of AFNI, nitransforms and DICOM: against nitransforms, the standard's definition, and worked examples."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g
from SpatialDiffusionCore.spatial import volume_file
from SpatialDiffusionCore.spatial.transform_file import read_transform, write_transform
from SpatialDiffusionCore.spatial.volume import Volume

AFFINE = np.array([[0.9, 0.2, -0.1, 11.5], [-0.3, 1.1, 0.15, -22.2], [0.05, -0.1, 1.3, 33.1], [0, 0, 0, 1]])
RIGID = g.about(g.rotation_about([1, -2, 3], 0.7), (10, -20, 30), (4, 5, 6))


IDENTITY = np.eye(3)


def grid(linear=IDENTITY, shape=(20, 24, 28), origin=(-30.0, 12.0, 7.0)):
    return SimpleNamespace(shape=shape, voxel_to_ras=g.from_parts(linear * [1.0, 1.5, 2.0], origin))


GRIDS = {
    "straight": grid(),
    "permuted": grid(np.eye(3)[:, [2, 0, 1]] * [-1, 1, -1]),
    "oblique": grid(g.rotation_about([1, 2, 3], 0.3)),
    "oblique, mirrored": grid(g.rotation_about([3, -1, 1], 0.4) * [-1, 1, 1]),
}


def as_nibabel(one):
    return nibabel.Nifti1Image(np.zeros(one.shape, np.uint8), one.voxel_to_ras)


# -------------------------------------------------------------------------------------------------------- AFNI
@pytest.mark.parametrize("fixed", GRIDS)
@pytest.mark.parametrize("moving", GRIDS)
def test_afni_agrees_with_nitransforms(tmp_path, moving, fixed):
    afni = pytest.importorskip("nitransforms.io.afni", reason="compares with nitransforms")
    moving, fixed = GRIDS[moving], GRIDS[fixed]
    images = {"moving": as_nibabel(moving), "reference": as_nibabel(fixed)}
    path = tmp_path / "a_to_b.aff12.1D"
    write_transform(AFFINE, path, moving, fixed)
    theirs = afni.AFNILinearTransform.from_string(path.read_text()).to_ras(**images)
    assert np.allclose(np.linalg.inv(theirs), AFFINE, atol=2e-4)  # their file has six digits, and they round spacings
    assert np.abs(read_transform(path, moving, fixed) - AFFINE).max() < 1e-9
    path.write_text(afni.AFNILinearTransform.from_ras(np.linalg.inv(AFFINE), **images).to_string())
    assert np.allclose(read_transform(path, moving, fixed), AFFINE, atol=1e-3)


def test_afni_by_hand(tmp_path):
    """3dAllineate -1Dmatrix_save stores base (fixed) → source (moving) in RAI coordinates, which are LPS."""
    path = tmp_path / "shift.aff12.1D"
    path.write_text("# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):\n 1 0 0 5 0 1 0 -3 0 0 1 2\n")
    # Fixed (0, 0, 0) comes from moving L 5, A 3, S 2: what is there moves 5 to the right, 3 back, 2 down.
    assert np.allclose(read_transform(path)[:3, 3], [5, -3, -2])
    path.write_text("1 0 0 5\n0 1 0 -3\n0 0 1 2\n")
    assert np.allclose(read_transform(path)[:3, 3], [5, -3, -2])
    path.write_text("1 0 0 5 0 1 0 -3 0 0 1 2\n" * 2)
    with pytest.raises(InputError, match="several"):
        read_transform(path)
    path.write_text("1 0 0 5 0\n")
    with pytest.raises(InputError, match="no matrix of AFNI"):
        read_transform(path)


# ---------------------------------------------------------------------------------------------------- X5, BIDS
def test_x5_agrees_with_nitransforms(tmp_path):
    # The last one for Python 3.9 is 24.1.
    pytest.importorskip("nitransforms", "25.0", reason="compares with nitransforms, which knows X5 since 25.0")
    linear = pytest.importorskip("nitransforms.linear")
    pytest.importorskip("h5py", reason="X5 is HDF5")
    fixed = GRIDS["oblique"]
    theirs = tmp_path / "sub-01_from-T1w_to-MNI152_mode-image_xfm.x5"
    linear.Affine(np.linalg.inv(AFFINE), reference=as_nibabel(fixed)).to_filename(theirs, fmt="X5")
    assert np.allclose(read_transform(theirs), AFFINE, atol=1e-12)
    linear.Affine(np.linalg.inv(AFFINE)).to_filename(theirs, fmt="X5")
    assert np.allclose(read_transform(theirs), AFFINE, atol=1e-12)
    for reference in (None, fixed):
        ours = tmp_path / "ours.x5"
        write_transform(AFFINE, ours, fixed=reference)
        back = linear.Affine.from_filename(ours, fmt="X5")
        assert np.allclose(np.linalg.inv(back.matrix), AFFINE, atol=1e-12)
        if reference is not None:
            assert np.allclose(back.reference.affine, fixed.voxel_to_ras) and tuple(back.reference.shape) == fixed.shape
        assert np.allclose(read_transform(ours), AFFINE, atol=1e-12)


def test_x5_of_several_or_of_other_kinds_is_refused(tmp_path):
    x5 = pytest.importorskip("nitransforms.io.x5", reason="writes the files")
    kinds = ("space", "space", "space", "vector")
    node = x5.X5Transform(type="linear", transform=AFFINE, dimension_kinds=kinds)
    x5.to_filename(tmp_path / "two.x5", [node, node])
    with pytest.raises(InputError, match="several"):
        read_transform(tmp_path / "two.x5")
    field = x5.X5Transform(type="nonlinear", transform=np.zeros((3, 3, 3, 3)), dimension_kinds=kinds)
    x5.to_filename(tmp_path / "field.x5", [field])
    with pytest.raises(InputError, match="non-linear"):
        read_transform(tmp_path / "field.x5")
    whole = (tmp_path / "two.x5").read_bytes()
    for length in (9, 100, len(whole) // 2):
        (tmp_path / "cut.x5").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut.x5"):
            read_transform(tmp_path / "cut.x5")


@pytest.mark.parametrize("ending, kind", [("txt", "itk"), ("tfm", "itk"), ("mat", "fsl"), ("lta", "fs")])
def test_a_bids_xfm_as_nitransforms_writes_it(tmp_path, ending, kind):
    linear = pytest.importorskip("nitransforms.linear", reason="compares with nitransforms")
    moving, fixed = GRIDS["permuted"], GRIDS["oblique"]
    path = tmp_path / f"sub-01_ses-1_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.{ending}"
    affine = linear.Affine(np.linalg.inv(AFFINE), reference=as_nibabel(fixed))
    affine.to_filename(str(path), fmt=kind, moving=as_nibabel(moving))
    assert np.allclose(read_transform(path, moving, fixed), AFFINE, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- DICOM
@dataclass(frozen=True)
class Scan(Volume):
    """A volume that knows its file."""

    path: str = ""


@pytest.fixture
def pair(tmp_path):
    """Two DICOM series of one patient, in frames of reference of their own: (moving, fixed, their headers)."""
    fixtures = pytest.importorskip("dicom_fixtures")
    data = np.arange(12 * 10 * 8).reshape(12, 10, 8)
    volumes, headers = [], []
    for name, matrix in (("moving", GRIDS["oblique"].voxel_to_ras), ("fixed", GRIDS["straight"].voxel_to_ras)):
        headers.append(fixtures.write_series(tmp_path / name, data, matrix, words=name))
        loaded = volume_file.load(tmp_path / name)
        volumes.append(Scan(loaded.data, loaded.voxel_to_ras, loaded.name, path=str(tmp_path / name)))
    return SimpleNamespace(
        moving=volumes[0], fixed=volumes[1], headers=headers, pydicom=fixtures.pydicom, save=fixtures.save
    )


def to_registered(data, point, frame):
    """Where the standard sends a point (LPS) of a source frame: C.20.2.1.1, one matrix, row by row."""
    for item in data.RegistrationSequence:
        if item.FrameOfReferenceUID == frame:
            entry = item.MatrixRegistrationSequence[0].MatrixSequence[0]
            matrix = np.array(entry.FrameOfReferenceTransformationMatrix, float).reshape(4, 4)
            return (matrix @ [*point, 1.0])[:3]
    raise AssertionError("no item of that frame")


def test_a_registration_takes_moving_points_to_fixed_ones_as_the_standard_says(tmp_path, pair):
    """A landmark at R 10, A 20, S 30 of the moving volume, which the transform takes to R 13, A 25, S 37."""
    matrix = g.from_parts(np.eye(3), (3.0, 5.0, 7.0))
    path = tmp_path / "reg.dcm"
    write_transform(matrix, path, pair.moving, pair.fixed)
    data = pair.pydicom.dcmread(path)
    moving_frame, fixed_frame = (headers[0].FrameOfReferenceUID for headers in pair.headers)
    assert data.FrameOfReferenceUID == fixed_frame and data.Modality == "REG"
    assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.1" and data.PatientID == "7"
    assert np.allclose(to_registered(data, (-10.0, -20.0, 30.0), moving_frame), (-13.0, -25.0, 37.0))
    assert np.allclose(to_registered(data, (-10.0, -20.0, 30.0), fixed_frame), (-10.0, -20.0, 30.0))
    references = {
        image.ReferencedSOPInstanceUID for item in data.RegistrationSequence for image in item.ReferencedImageSequence
    }
    assert references == {header.SOPInstanceUID for headers in pair.headers for header in headers}


@pytest.mark.parametrize(
    "kind, matrix",
    [
        ("RIGID", RIGID),
        ("RIGID_SCALE", RIGID @ np.diag([1.1, 0.9, 1.2, 1])),
        ("AFFINE", AFFINE),
        ("AFFINE", RIGID @ np.diag([-1.0, 1, 1, 1])),
        ("RIGID", np.eye(4)),
    ],
)
def test_a_registration_reads_back_and_has_the_right_type(tmp_path, pair, kind, matrix):
    path = tmp_path / "reg.dcm"
    write_transform(matrix, path, pair.moving, pair.fixed)
    item = pair.pydicom.dcmread(path).RegistrationSequence[1].MatrixRegistrationSequence[0].MatrixSequence[0]
    assert item.FrameOfReferenceTransformationMatrixType == kind
    assert all(len(str(value)) <= 16 for value in item.FrameOfReferenceTransformationMatrix)
    for moving, fixed in ((None, None), (pair.moving, pair.fixed), (None, pair.fixed), (pair.moving, None)):
        assert np.allclose(read_transform(path, moving, fixed), matrix, atol=1e-9)
    assert np.allclose(read_transform(path, pair.fixed, pair.moving), np.linalg.inv(matrix), atol=1e-9)
    write_transform(np.linalg.inv(matrix), tmp_path / "inverse.dcm", pair.fixed, pair.moving)
    assert np.allclose(read_transform(tmp_path / "inverse.dcm", pair.moving, pair.fixed), matrix, atol=1e-9)


def registration(pair, *items, frame="1.2.3", kind="1.2.840.10008.5.1.4.1.1.66.1"):
    """A registration of (frame, matrices in LPS…) items, as other programs write them."""
    pydicom = pair.pydicom
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.FrameOfReferenceUID, data.RegistrationSequence = frame, []
    for source, *matrices in items:
        item, register, entries = pydicom.Dataset(), pydicom.Dataset(), []
        for matrix in matrices:
            entry = pydicom.Dataset()
            entry.FrameOfReferenceTransformationMatrix = [f"{value:.10g}" for value in np.ravel(matrix)]
            entry.FrameOfReferenceTransformationMatrixType = "RIGID"
            entries.append(entry)
        register.MatrixSequence = entries
        item.FrameOfReferenceUID, item.MatrixRegistrationSequence = source, [register]
        data.RegistrationSequence.append(item)
    return data


def test_registrations_of_other_programs(tmp_path, pair):
    path = tmp_path / "other.dcm"
    lps = g.LPS_RAS @ RIGID @ g.LPS_RAS
    other = g.LPS_RAS @ AFFINE @ g.LPS_RAS
    one, two, three = "1.2.3", "1.2.4", "1.2.5"

    def read(*items, **about):
        pair.save(registration(pair, *items, **about), path)
        return read_transform(path)

    assert np.allclose(read((two, lps)), RIGID)
    assert np.allclose(read((one, np.eye(4)), (two, lps)), RIGID)
    assert np.allclose(read((two, lps), (one, np.eye(4))), RIGID)
    assert np.allclose(read((two, np.eye(4), lps)), RIGID)
    # Matrices in whatever order they are multiplied: shifts, or turns about one axis.
    turn, shift = g.from_parts(g.rotation_about([0, 0, 1], 0.2)), g.from_parts(np.eye(3), (0.0, 0.0, 7.0))
    assert np.allclose(read((two, turn, shift, turn)), g.LPS_RAS @ turn @ turn @ shift @ g.LPS_RAS)
    # Neither is in place: the fixed one is that of the registered frame, and its matrix is undone.
    assert np.allclose(read((one, other), (two, lps)), np.linalg.inv(AFFINE) @ RIGID, atol=1e-7)
    for items, words in (
        (((two, lps), (three, other)), "does not tell which is fixed"),
        (((one, np.eye(4)), (two, lps), (three, other)), "registers 3 series"),
        (((two, lps, other),), "product of 2 matrices"),
    ):
        with pytest.raises(InputError, match=words):
            read(*items)
    with pytest.raises(InputError, match="non-linear"):
        read((two, lps), kind="1.2.840.10008.5.1.4.1.1.66.3")
    with pytest.raises(InputError, match="not a Spatial Registration"):
        read((two, lps), kind="1.2.840.10008.5.1.4.1.1.4")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match="other.dcm"):
        read_transform(path)


_READS_DAMAGED = """
import sys, numpy as np
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial.transform_file import read_transform
content = open(sys.argv[1], "rb").read()
random, refused = np.random.default_rng(1), 0
for _ in range(40):
    damaged = bytearray(content)
    for place in random.integers(8, len(content), 3):
        damaged[place] = random.integers(0, 256)
    open(sys.argv[2], "wb").write(damaged)
    try:
        read_transform(sys.argv[2])
    except InputError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("ending", [".h5", ".x5"])
def test_damaged_files_in_hdf5_end_in_a_sentence_and_nothing_else(tmp_path, ending):
    """HDF5 itself prints pages where a file is damaged, and again when the process ends."""
    pytest.importorskip("h5py")
    write_transform(AFFINE, tmp_path / f"a{ending}")
    names = [str(tmp_path / f"{name}{ending}") for name in "ab"]
    done = subprocess.run([sys.executable, "-c", _READS_DAMAGED, *names], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0 and done.stderr == ""


def test_a_registration_needs_dicom_series(tmp_path, pair):
    for moving, fixed in ((None, None), (pair.moving, None), (GRIDS["straight"], pair.fixed)):
        with pytest.raises(InputError, match="refers to DICOM series; give the folders of both"):
            write_transform(RIGID, tmp_path / "reg.dcm", moving, fixed)
    assert not (tmp_path / "reg.dcm").exists()
