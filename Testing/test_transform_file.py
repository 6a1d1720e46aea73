"""Transform files, against the programs that own the formats, and what becomes of bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import extension, written_whole
from SpatialDiffusionCore.spatial.transform_file import FORMATS, read_transform, write_transform

sitk = pytest.importorskip("SimpleITK", reason="ITK files are read through SimpleITK")

ITK_EXTENSIONS = (".tfm", ".txt", ".mat", ".h5")
POINTS = np.array([[0, 0, 0], [100, 0, 0], [0, -90, 0], [0, 0, 80], [-70, 60, -50], [12.5, 33.25, 71]], float)
AFFINE = np.array([[0.9, 0.2, -0.1, 11.5], [-0.3, 1.1, 0.15, -22.2], [0.05, -0.1, 1.3, 33.1], [0, 0, 0, 1]])


def apply(matrix, points):
    return np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3]


def to_lps(points):
    return np.asarray(points) * [-1, -1, 1]


def rotation(axis, degrees):
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def volume(shape, steps, turn=None, flips=(1, 1, 1), order=(0, 1, 2), origin=(-31.0, 17.5, 8.25)):
    voxel_to_ras = np.eye(4)
    linear = np.eye(3) if turn is None else turn
    voxel_to_ras[:3, :3] = (linear @ np.diag(flips))[:, list(order)] * steps
    voxel_to_ras[:3, 3] = origin
    return SimpleNamespace(shape=shape, voxel_to_ras=voxel_to_ras)


# Both signs of the determinant, oblique, anisotropic, permuted axes, sheared.
VOLUMES = {
    "RAS": volume((40, 50, 60), (1.0, 1.5, 2.0)),
    "LAS": volume((64, 32, 20), (0.8, 0.9, 3.0), flips=(-1, 1, 1)),
    "LPS": volume((33, 44, 55), (2.0, 1.0, 1.25), flips=(-1, -1, 1)),
    "oblique": volume((30, 41, 52), (1.1, 2.2, 0.7), turn=rotation([1, 2, 3], 35)),
    "oblique-left": volume((30, 41, 52), (1.1, 2.2, 0.7), rotation([3, -1, 2], 140), flips=(1, -1, 1)),
    "permuted": volume((25, 60, 45), (1.2, 0.6, 1.8), order=(2, 0, 1)),
    "sheared": volume((25, 60, 45), (1.2, 0.6, 1.8), np.array([[1, 0.2, 0], [0, 1, -0.1], [0.05, 0, 1]])),
}
PAIRS = [
    ("RAS", "LAS"),
    ("LAS", "RAS"),
    ("LPS", "oblique"),
    ("oblique", "oblique-left"),
    ("oblique-left", "permuted"),
    ("permuted", "sheared"),
    ("sheared", "LPS"),
]


@st.composite
def affines(draw):
    number = st.floats(-1, 1, allow_nan=False)
    linear = np.eye(3) * draw(st.sampled_from([1.0, -1.0, 0.5, 2.0]))
    linear = linear + 0.3 * np.array(draw(st.lists(number, min_size=9, max_size=9))).reshape(3, 3)
    linear = rotation([1, 0.3, -2], 360 * draw(number)) @ linear
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = 300 * np.array(draw(st.lists(number, min_size=3, max_size=3)))
    # 0.2 from singular at the least: what is lost in the inverse stays far below the tolerances.
    assume(np.linalg.svd(linear, compute_uv=False).min() > 0.2)
    return matrix


few = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def itk_text(tmp_path):
    """Write an ITK text file of (type, parameters, fixed parameters) and return its path."""

    def write(*transforms, name="transform.tfm"):
        lines = ["#Insight Transform File V1.0"]
        for index, (kind, *values) in enumerate(transforms):
            lines += [f"#Transform {index}", f"Transform: {kind}"]
            lines += [f"{tag}: {value}" for tag, value in zip(("Parameters", "FixedParameters"), values)]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


# --- round trips -------------------------------------------------------------------------------------------


@few
@given(matrix=affines(), ending=st.sampled_from(ITK_EXTENSIONS))
def test_simpleitk_maps_fixed_points_back_to_moving_with_a_file_of_ours(matrix, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a{ending}"
        write_transform(matrix, path, format="itk")
        transform = sitk.ReadTransform(path)
        moving = np.array([transform.TransformPoint(p.tolist()) for p in to_lps(apply(matrix, POINTS))])
        assert np.abs(to_lps(moving) - POINTS).max() < 1e-6
        assert np.abs(read_transform(path) - matrix).max() < 1e-9


@few
@given(
    matrix=affines(),
    center=st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    ending=st.sampled_from(ITK_EXTENSIONS),
)
def test_a_file_of_simpleitk_with_a_center_is_read(matrix, center, ending):
    transform = sitk.AffineTransform(3)
    transform.SetCenter(center)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a{ending}"
        sitk.WriteTransform(transform, path)
        ours = read_transform(path)
    moving = to_lps([transform.TransformPoint(p.tolist()) for p in to_lps(POINTS)])
    assert np.abs(apply(ours, moving) - POINTS).max() < 1e-6


def test_a_center_is_not_ignored(itk_text):
    # A quarter turn about z at (10, 20, 0) LPS, fixed to moving: (x, y) LPS goes to (30 - y, 10 + x).
    path = itk_text(("AffineTransform_double_3_3", "0 -1 0 1 0 0 0 0 1 0 0 0", "10 20 0"))
    ours = read_transform(path)
    expected = np.array([[0, 1, 0, 10], [-1, 0, 0, -30], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    # LPS (0, 0, 5) on fixed comes from LPS (30, 10, 5) on moving.
    np.testing.assert_allclose(apply(ours, [[-30.0, -10.0, 5.0]]), [[0, 0, 5]], atol=1e-12)


def test_direction_and_frame_of_what_is_written(tmp_path):
    # Moving to fixed is 3 mm to the right, 5 forward, 7 up; ITK stores the way back, x and y reversed.
    matrix = np.eye(4)
    matrix[:3, 3] = [3, 5, 7]
    write_transform(matrix, tmp_path / "a.tfm")
    lines = (tmp_path / "a.tfm").read_text().splitlines()
    assert "Parameters: 1 0 0 0 1 0 0 0 1 3 5 -7" in lines
    assert "FixedParameters: 0 0 0" in lines
    write_transform(matrix, tmp_path / "a.txt")
    assert np.loadtxt(tmp_path / "a.txt").tolist() == matrix.tolist()


ITK_LINEAR = [
    ("Euler3DTransform", "0.1 0.2 -0.3 4 5 6", "1 2 3 0"),
    ("Euler3DTransform", "0.1 0.2 -0.3 4 5 6", "1 2 3 1"),
    ("VersorTransform", "0.1 0.2 -0.3", "1 2 3"),
    ("VersorRigid3DTransform", "0.1 0.2 -0.3 4 5 6", "1 2 3"),
    ("Similarity3DTransform", "0.1 0.2 -0.3 4 5 6 1.2", "1 2 3"),
    ("ScaleVersor3DTransform", "0.1 0.2 -0.3 4 5 6 1.2 0.9 1.1", "1 2 3"),
    ("ScaleSkewVersor3DTransform", "0.1 0.2 -0.3 4 5 6 1.2 0.9 1.1 0.01 0.02 0.03 0.04 0.05 0.06", "1 2 3"),
    ("ComposeScaleSkewVersor3DTransform", "0.1 0.2 -0.3 4 5 6 1.2 0.9 1.1 0.01 0.02 0.03", "1 2 3"),
    ("TranslationTransform", "4 5 6", ""),
    ("ScaleTransform", "1.2 0.9 1.1", "1 2 3"),
    ("ScaleLogarithmicTransform", "0.1 0.2 -0.3", "1 2 3"),
    ("QuaternionRigidTransform", "0.1 0.2 -0.3 0.927 4 5 6", "1 2 3"),
    ("IdentityTransform", "", ""),
    ("AffineTransform", "1.1 0.1 0 0 0.9 0.2 0 -0.1 1 4 5 6", "1 2 3"),
    ("MatrixOffsetTransformBase", "1.1 0.1 0 0 0.9 0.2 0 -0.1 1 4 5 6", "1 2 3"),
    ("ScalableAffineTransform", "1.1 0.1 0 0 0.9 0.2 0 -0.1 1 4 5 6", "1 2 3"),
    ("FixedCenterOfRotationAffineTransform", "1.1 0.1 0 0 0.9 0.2 0 -0.1 1 4 5 6", "1 2 3"),
]


@pytest.mark.parametrize("precision", ["double", "float"])
@pytest.mark.parametrize("kind, parameters, fixed", ITK_LINEAR)
def test_every_linear_type_of_itk_is_read_as_itk_maps_points(itk_text, kind, parameters, fixed, precision):
    ours = read_transform(itk_text((f"{kind}_{precision}_3_3", parameters, fixed), name="ours.tfm"))
    # A composite with the identity, since SimpleITK cannot load some of these types alone.
    theirs = sitk.ReadTransform(
        str(
            itk_text(
                ("CompositeTransform_double_3_3",),
                ("IdentityTransform_double_3_3", "", ""),
                (f"{kind}_double_3_3", parameters, fixed),
                name="theirs.tfm",
            )
        )
    )
    moving = to_lps([theirs.TransformPoint(p.tolist()) for p in to_lps(POINTS)])
    assert np.abs(apply(ours, moving) - POINTS).max() < 1e-9
    assert kind == "IdentityTransform" or np.abs(moving - POINTS).max() > 1


def test_euler_angles_and_a_versor_by_hand(itk_text):
    angle = 0.3
    path = itk_text(("Euler3DTransform_double_3_3", f"0 0 {angle} 4 5 6", "10 20 30 0"))
    c, s = np.cos(angle), np.sin(angle)
    turn, center = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), np.array([10, 20, 30])
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = turn, center - turn @ center + [4, 5, 6]
    flip = np.diag([-1.0, -1, 1, 1])
    np.testing.assert_allclose(read_transform(path), np.linalg.inv(flip @ lps @ flip), atol=1e-12)
    versor = f"0 0 {float(np.sin(angle / 2))!r} 4 5 6"
    path = itk_text(("VersorRigid3DTransform_double_3_3", versor, "10 20 30"))
    np.testing.assert_allclose(read_transform(path), np.linalg.inv(flip @ lps @ flip), atol=1e-12)


@pytest.mark.parametrize("ending", [".tfm", ".txt", ".h5"])
def test_a_composite_of_linear_transforms_keeps_its_order(tmp_path, ending):
    shift, scale = sitk.TranslationTransform(3, [1, 2, 3]), sitk.ScaleTransform(3, [2, 2, 4])
    path = tmp_path / f"composite{ending}"
    sitk.WriteTransform(sitk.CompositeTransform([shift, scale]), str(path))
    # The last one acts first: (1, 1, 1) LPS on fixed is (3, 4, 7) LPS on moving.
    np.testing.assert_allclose(apply(read_transform(path), [[-3.0, -4.0, 7.0]]), [[-1, -1, 1]], atol=1e-12)


@pytest.mark.parametrize("ending", [".TFM", ".Mat", ".H5"])
def test_extensions_in_capitals(tmp_path, ending):
    write_transform(AFFINE, tmp_path / f"a{ending}")
    np.testing.assert_allclose(read_transform(tmp_path / f"a{ending}"), AFFINE, atol=1e-12)


@few
@given(
    matrix=affines(),
    names=st.sampled_from(PAIRS),
    kind=st.sampled_from(  # .dcm: test_transform_formats.py
        [(ending, format) for ending, formats in FORMATS.items() if ending != ".dcm" for format in (*formats, None)]
    ),
)
def test_what_is_written_reads_back_without_saying_the_format_and_inverts(matrix, names, kind):
    ending, format = kind
    moving, fixed = (VOLUMES[name] for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a{ending}"
        write_transform(matrix, path, moving, fixed, format=format)
        again = read_transform(path, moving, fixed)
        assert again.dtype == np.float64 and again[3].tolist() == [0, 0, 0, 1]
        assert np.abs(again - matrix).max() < 1e-9
        write_transform(np.linalg.inv(matrix), path, fixed, moving, format=format)
        assert np.abs(read_transform(path, fixed, moving) @ matrix - np.eye(4)).max() < 1e-9
        assert os.listdir(folder) == [f"a{ending}"]


def test_plain_text_keeps_every_bit(tmp_path):
    matrix = AFFINE.copy()
    matrix[:3] += np.random.default_rng(0).normal(size=(3, 4)) * 1e-3
    for ending in (".txt", ".lta"):
        write_transform(matrix, tmp_path / f"a{ending}")
        assert (read_transform(tmp_path / f"a{ending}") == matrix).all()


def test_a_text_file_may_have_three_lines_commas_and_comments(tmp_path):
    path = tmp_path / "a.txt"
    text = "\ufeff# moving to fixed\r\n1, 0, 0, 5\r\n0, 1, 0, 6  # y\r\n\r\n0, 0, 1, 7\r\n"
    path.write_text(text, encoding="utf-8")
    assert read_transform(path)[:3, 3].tolist() == [5, 6, 7]


# --- Slicer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mrml():
    reason = "Slicer's own reader and writer come with the wheel slicer-core"
    vtk, slicer = pytest.importorskip("vtk", reason=reason), pytest.importorskip("slicer", reason=reason)
    scene = slicer.vtkMRMLScene()

    def storage(path):
        node = scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
        node.SetFileName(str(path))
        return node

    def write(matrix, path, center, class_name):
        node = scene.AddNewNodeByClass(class_name)
        elements = vtk.vtkMatrix4x4()
        elements.DeepCopy(np.asarray(matrix).ravel())
        node.SetMatrixTransformToParent(elements)
        node.SetCenterOfTransformation(*center)
        assert storage(path).WriteData(node)

    def read(path, class_name):
        node, elements = scene.AddNewNodeByClass(class_name), vtk.vtkMatrix4x4()
        assert storage(path).ReadData(node)
        assert node.IsLinear() and node.GetMatrixTransformToParent(elements)
        return np.array([[elements.GetElement(row, column) for column in range(4)] for row in range(4)])

    return SimpleNamespace(write=write, read=read)


SLICER_CLASSES = ("vtkMRMLLinearTransformNode", "vtkMRMLTransformNode")


@pytest.mark.parametrize("class_name", SLICER_CLASSES)
@pytest.mark.parametrize("ending", ITK_EXTENSIONS)
def test_slicer_puts_a_file_of_ours_on_the_moving_volume_unchanged(mrml, tmp_path, ending, class_name):
    path = tmp_path / f"ours{ending}"
    write_transform(AFFINE, path, format="itk")
    assert np.abs(apply(mrml.read(path, class_name), POINTS) - apply(AFFINE, POINTS)).max() < 1e-9


@pytest.mark.parametrize("class_name", SLICER_CLASSES)
@pytest.mark.parametrize("ending", ITK_EXTENSIONS)
def test_a_file_of_slicer_is_read_as_slicer_shows_it(mrml, tmp_path, ending, class_name):
    path = tmp_path / f"slicer{ending}"
    mrml.write(AFFINE, path, (10, -20, 30), class_name)
    assert np.abs(apply(read_transform(path), POINTS) - apply(AFFINE, POINTS)).max() < 1e-9


def test_slicer_writes_a_center_that_matters(mrml, tmp_path):
    path = tmp_path / "slicer.tfm"
    mrml.write(AFFINE, path, (10, -20, 30), "vtkMRMLLinearTransformNode")
    lines = dict(line.split(":") for line in path.read_text().splitlines() if ":" in line)
    center = np.array(lines["FixedParameters"].split(), float)
    parameters = np.array(lines["Parameters"].split(), float)
    naive, flip = np.eye(4), np.diag([-1.0, -1, 1, 1])
    naive[:3, :3], naive[:3, 3] = parameters[:9].reshape(3, 3), parameters[9:]
    naive = np.linalg.inv(flip @ naive @ flip)
    assert np.abs(center).max() > 1
    assert np.abs(apply(naive, POINTS) - apply(AFFINE, POINTS)).max() > 1, "the center no longer matters"
    assert np.abs(apply(read_transform(path), POINTS) - apply(AFFINE, POINTS)).max() < 1e-9


# --- FSL ---------------------------------------------------------------------------------------------------


def scaled_voxels(vol, ras):
    """FSL's coordinates of RAS points: mm from the first voxel, the first axis from its end if det > 0."""
    index = np.linalg.solve(vol.voxel_to_ras[:3, :3], (ras - vol.voxel_to_ras[:3, 3]).T).T
    if np.linalg.det(vol.voxel_to_ras[:3, :3]) > 0:
        index[:, 0] = vol.shape[0] - 1 - index[:, 0]
    return index * np.sqrt((vol.voxel_to_ras[:3, :3] ** 2).sum(axis=0))


@pytest.mark.parametrize("names", PAIRS)
def test_flirt_matrix_maps_moving_to_fixed_scaled_voxels(tmp_path, names):
    moving, fixed = (VOLUMES[name] for name in names)
    path = tmp_path / "flirt.mat"
    write_transform(AFFINE, path, moving, fixed, format="flirt")
    flirt = np.loadtxt(path)
    mapped = apply(flirt, scaled_voxels(moving, POINTS))
    np.testing.assert_allclose(mapped, scaled_voxels(fixed, apply(AFFINE, POINTS)), atol=1e-9)
    np.testing.assert_allclose(read_transform(path, moving, fixed), AFFINE, atol=1e-10)


def image(vol):
    nibabel = pytest.importorskip("nibabel", reason="nitransforms takes nibabel's images")
    return nibabel.Nifti1Image(np.zeros(vol.shape, np.uint8), vol.voxel_to_ras)


@pytest.mark.parametrize("names", PAIRS)
def test_flirt_matrix_agrees_with_nitransforms(tmp_path, names):
    fsl = pytest.importorskip("nitransforms.io.fsl", reason="compares with nitransforms")
    moving, fixed = (VOLUMES[name] for name in names)
    pair = {"moving": image(moving), "reference": image(fixed)}
    theirs = fsl.FSLLinearTransform.from_ras(np.linalg.inv(AFFINE), **pair)
    path = tmp_path / "flirt.mat"
    write_transform(AFFINE, path, moving, fixed, format="flirt")
    # NIfTI keeps the affine in float32.
    np.testing.assert_allclose(np.loadtxt(path), theirs.structarr["parameters"], atol=2e-4)
    ours = fsl.FSLLinearTransform.from_filename(path).to_ras(**pair)
    np.testing.assert_allclose(np.linalg.inv(ours), AFFINE, atol=2e-4)
    theirs.to_filename(path)
    np.testing.assert_allclose(read_transform(path, moving, fixed), AFFINE, atol=2e-4)


# --- FreeSurfer --------------------------------------------------------------------------------------------


def real_file(name):
    nitransforms = pytest.importorskip("nitransforms", reason="its wheel brings files written by real tools")
    path = Path(nitransforms.__file__).parent / "tests" / "data" / name
    if not path.exists():
        pytest.skip(f"this nitransforms does not bring {name}")
    return path


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique"])
def test_real_files_of_one_transform_agree(tmp_path, orientation):
    affine = {
        "RAS": [[2.75, 0, 0, -78], [0, 2.75, 0, -91], [0, 0, 2.75, -91]],
        "LAS": [[-2.75, 0, 0, 76], [0, 2.75, 0, -91], [0, 0, 2.75, -91]],
        "LPS": [[-2.75, 0, 0, 76], [0, -2.75, 0, 90.5], [0, 0, 2.75, -91]],
    }.get(orientation)
    if affine is None:
        lta = pytest.importorskip("nitransforms.io.lta", reason="compares with nitransforms")
        read = lta.FSLinearTransformArray.from_filename(real_file("affine-oblique.fs.lta"))
        affine = lta.VolumeGeometry(read.xforms[0].structarr["dst"]).as_affine()[:3]
    both = SimpleNamespace(shape=(57, 67, 56), voxel_to_ras=np.vstack([affine, [0, 0, 0, 1]]))
    itk = read_transform(real_file(f"affine-{orientation}.itk.tfm"))
    path = tmp_path / "flirt.mat"
    path.write_bytes(real_file(f"affine-{orientation}.fsl").read_bytes())
    np.testing.assert_allclose(read_transform(path, both, both), itk, atol=1e-3)
    # That project stores the opposite of its other files in its LTA.
    lta = read_transform(real_file(f"affine-{orientation}.fs.lta"))
    np.testing.assert_allclose(np.linalg.inv(lta), itk, atol=1e-4)


def test_lta_of_freesurfer_in_ras_and_in_voxels_agree_and_lead_from_moving_to_fixed():
    ras = read_transform(real_file("bold-to-t1w.lta"))
    voxels = read_transform(real_file("bold-to-t1w.v2v.lta"))
    np.testing.assert_allclose(ras, voxels, atol=1e-4)
    # The center of the functional volume (src) lands near that of the anatomical one (dst).
    src, dst = np.array([-4.697, -9.175, 11.42]), np.array([-1.009, 4.938, 1.716])
    there, back = (np.abs(apply(m, [src])[0] - dst)[2] for m in (ras, np.linalg.inv(ras)))
    assert there < 1 < 15 < back


@pytest.mark.parametrize("names", PAIRS)
def test_lta_agrees_with_nitransforms(tmp_path, names):
    lta = pytest.importorskip("nitransforms.io.lta", reason="compares with nitransforms")
    moving, fixed = (VOLUMES[name] for name in names)
    path = tmp_path / "ours.lta"
    write_transform(AFFINE, path, moving, fixed)
    theirs = lta.FSLinearTransform.from_filename(path)
    # It reads matrices in float32 and wants fixed to moving.
    np.testing.assert_allclose(np.linalg.inv(theirs.to_ras()), AFFINE, atol=1e-4)
    for role, vol in (("src", moving), ("dst", fixed)):
        geometry = lta.VolumeGeometry(theirs.structarr[role])
        assert geometry.structarr["valid"] == 1 and geometry.structarr["volume"].tolist() == list(vol.shape)
        np.testing.assert_allclose(geometry.as_affine(), vol.voxel_to_ras, atol=1e-4)
    back = lta.FSLinearTransform.from_ras(np.linalg.inv(AFFINE), moving=image(moving), reference=image(fixed))
    path.write_text(back.to_string())
    np.testing.assert_allclose(read_transform(path), AFFINE, atol=1e-12)


@pytest.mark.parametrize("names", PAIRS)
def test_lta_in_voxels(tmp_path, names):
    moving, fixed = (VOLUMES[name] for name in names)
    path = tmp_path / "a.lta"
    write_transform(AFFINE, path, moving, fixed)
    voxels = np.linalg.inv(fixed.voxel_to_ras) @ AFFINE @ moving.voxel_to_ras
    lines = path.read_text().splitlines()
    lines[0] = "type      = 0 # LINEAR_VOX_TO_VOX"
    lines[5:9] = [" ".join(map(repr, row)) for row in voxels.tolist()]
    path.write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(read_transform(path), AFFINE, atol=1e-10)
    # The file knows its own grids; the images given take their place only where it does not.
    np.testing.assert_allclose(read_transform(path, fixed, moving), AFFINE, atol=1e-10)
    path.write_text(path.read_text().replace("valid = 1", "valid = 0"))
    np.testing.assert_allclose(read_transform(path, moving, fixed), AFFINE, atol=1e-10)
    with pytest.raises(InputError, match="src volume information; give the moving image"):
        read_transform(path)
    with pytest.raises(InputError, match="dst volume information; give the fixed image"):
        read_transform(path, moving)


def test_lta_without_volumes_says_so(tmp_path):
    write_transform(AFFINE, tmp_path / "a.lta")
    text = (tmp_path / "a.lta").read_text()
    assert text.count("valid = 0  # volume info invalid") == 2 and "valid = 1" not in text
    assert (read_transform(tmp_path / "a.lta") == AFFINE).all()


# --- bad files ---------------------------------------------------------------------------------------------


def refused(path, *words, **given):
    with pytest.raises(InputError) as caught:
        read_transform(path, **given)
    message = str(caught.value)
    assert Path(path).name in message and message.endswith(".") and "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_missing_unknown_empty_and_unreadable(tmp_path):
    refused(tmp_path / "none.tfm", "There is no transform file")
    message = refused(tmp_path / "a.nii.gz", "extension")
    assert all(ending in message for ending in (".tfm", ".txt", ".mat", ".h5", ".lta"))
    refused(tmp_path / "none", "extension")
    for ending in FORMATS:
        (tmp_path / f"empty{ending}").write_bytes(b"")
        refused(tmp_path / f"empty{ending}", "is empty")
        (tmp_path / f"folder{ending}").mkdir()
        refused(tmp_path / f"folder{ending}", "Cannot read")


@pytest.mark.parametrize(
    "text, words",
    [
        ("1 0 0\n0 1 0\n0 0 1\n", "lines of 3, 3, 3 numbers"),
        ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n", "lines of 16 numbers"),
        ("1 0 0 0\n0 1 0 0\n", "lines of 4, 4 numbers"),
        ("# nothing\n", "lines of no numbers"),
        ("1 0 0 0\n0 1 0 0\n0 0 1\n0 0 0 1\n", "lines of 4, 4, 3, 4 numbers"),
        ("1 0 0 0\n0 one 0 0\n0 0 1 0\n0 0 0 1\n", "text where numbers are expected"),
        ("1 0 0 0\n0 nan 0 0\n0 0 1 0\n0 0 0 1\n", "NaN"),
        ("1 0 0 inf\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "infinite"),
        ("1 0 0 0\n0 1 0 0\n1 1 0 0\n0 0 0 1\n", "degenerate"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n5 0 0 1\n", "last row"),
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".mat"])
def test_bad_matrices(tmp_path, text, words, ending):
    (tmp_path / f"bad{ending}").write_text(text)
    refused(tmp_path / f"bad{ending}", words, moving=VOLUMES["RAS"], fixed=VOLUMES["LAS"])


def test_flirt_without_images(tmp_path):
    path = tmp_path / "flirt.mat"
    np.savetxt(path, np.eye(4))
    refused(path, "FLIRT", "the moving and the fixed image")
    refused(path, "give the fixed image", moving=VOLUMES["RAS"])
    with pytest.raises(InputError, match="give the moving and the fixed image"):
        write_transform(AFFINE, tmp_path / "b.mat", format="flirt")
    assert not (tmp_path / "b.mat").exists()
    assert (read_transform(path, format="ras") == np.eye(4)).all()


def test_formats_that_do_not_fit(tmp_path):
    matrix, lta, itk = tmp_path / "a.txt", tmp_path / "a.lta", tmp_path / "a.tfm"
    for path in (matrix, lta, itk):
        write_transform(AFFINE, path)
    refused(matrix, "bare numbers", format="itk")
    refused(itk, "an ITK transform", format="ras")
    refused(lta, "LTA", format="flirt")
    with pytest.raises(InputError, match="choose one of: itk, ras, flirt, lta"):
        read_transform(matrix, format="xfm")
    itk.write_text(matrix.read_text())
    refused(itk, "name it .txt")
    assert (read_transform(itk, format="ras") == AFFINE).all()
    lta.write_text(matrix.read_text())
    refused(lta, "not a FreeSurfer LTA")
    for path, format in ((itk, "ras"), (matrix, "flirt"), (lta, "itk"), (tmp_path / "b.h5", "xyz")):
        with pytest.raises(InputError, match="choose among the extensions"):
            write_transform(AFFINE, path, VOLUMES["RAS"], VOLUMES["LAS"], format=format)


@pytest.mark.parametrize(
    "transforms, words",
    [
        # ITK itself takes the first for the identity, drops the 13th number, and reads ScaleSkew's past the end.
        ([("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 5 6 7")], "no line 'FixedParameters:'"),
        ([("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 5 6", "0 0 0")], "has 11 parameters"),
        ([("ScaleSkewVersor3DTransform_double_3_3", "0 0 0 1 2 3", "0 0 0")], "has 6 parameters, expected 15"),
        ([("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 5 6 7 8", "0 0 0")], "has 13 parameters"),
        ([("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 5 6 7", "0 0")], "wrong number of values"),
        ([("AffineTransform_double_3_3", "1 0 0 0 nan 0 0 0 1 5 6 7", "0 0 0")], "NaN"),
        ([("AffineTransform_double_3_3", "1 0 0 0 x 0 0 0 1 5 6 7", "0 0 0")], "text where numbers"),
        ([("AffineTransform_double_3_3", "1 0 0 0 0 0 0 0 1 5 6 7", "0 0 0")], "degenerate"),
        ([("ScaleTransform_double_3_3", "1 0 1", "0 0 0")], "degenerate"),
        ([("AffineTransform_double_2_2", "1 0 0 1 5 6", "0 0")], "3D"),
        ([("UnheardOfTransform_double_3_3", "1 2 3", "0 0 0")], "ITK cannot load the UnheardOfTransform"),
        ([("TranslationTransform_double_3_3", "1 2 3", "")] * 2, "several transforms side by side"),
        ([("CompositeTransform_double_3_3",)], "no transform"),
        ([], "no transform"),
    ],
)
def test_bad_itk_text(itk_text, transforms, words):
    refused(itk_text(*transforms), words)


@pytest.mark.parametrize("ending", [".tfm", ".h5", ".mat"])
def test_non_linear_transforms_are_refused(tmp_path, ending):
    bspline = sitk.BSplineTransform(3, 3)
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64))
    transforms = [bspline, field]
    if ending != ".mat":  # ITK cannot write a composite there
        transforms.append(sitk.CompositeTransform([sitk.AffineTransform(3), field]))
    for transform in transforms:
        path = tmp_path / f"warp{ending}"
        sitk.WriteTransform(transform, str(path))
        refused(path, "non-linear", "only linear transforms")


def test_a_large_file_is_refused_before_it_is_loaded(tmp_path):
    path = tmp_path / "warp.h5"
    with open(path, "wb") as stream:
        stream.write(b"\x89HDF\r\n\x1a\n")
        stream.truncate(50 * 2**20)
    refused(path, "50 MB", "only linear transforms")


@pytest.mark.parametrize("ending", [".h5", ".mat"])
def test_damaged_binary_files_are_refused_quietly(tmp_path, capfd, ending):
    write_transform(AFFINE, tmp_path / f"good{ending}")
    whole, path = (tmp_path / f"good{ending}").read_bytes(), tmp_path / f"bad{ending}"
    for length in (9, 25, 47, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged")
    for junk in (b"\0" * 300, b"\x01\0" * 300, b"\0\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f" + b"\0" * 40):
        path.write_bytes(junk)
        refused(path)
    assert capfd.readouterr() == ("", "")


def test_two_dimensional_hdf5_and_matlab(tmp_path):
    for ending in (".h5", ".mat"):
        path = tmp_path / f"flat{ending}"
        sitk.WriteTransform(sitk.AffineTransform(2), str(path))
        refused(path, "3D")


@pytest.mark.parametrize(
    "change, words",
    [
        (("type      = 1", "type      = 14"), "type 14"),
        (("type      = 1", "kind      = 1"), "type ?"),
        (("nxforms   = 1", "nxforms   = 2"), "several transforms"),
        (("0.9 0.2", "0.9"), "lines of 3, 4, 4, 4"),
        (("0.9 0.2", "nan 0.2"), "NaN"),
        (("type      = 1", "type      = 0"), "volume information; give the moving image"),
    ],
)
def test_bad_lta(tmp_path, change, words):
    path = tmp_path / "bad.lta"
    write_transform(AFFINE, path)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    refused(path, words)


def test_lta_with_an_incomplete_volume(tmp_path):
    path = tmp_path / "bad.lta"
    write_transform(AFFINE, path, VOLUMES["RAS"], VOLUMES["LAS"])
    lines = [
        line
        for line in path.read_text().replace("type      = 1", "type      = 0").splitlines()
        if not line.startswith("cras")
    ]
    path.write_text("\n".join(lines))
    refused(path, "src volume information", "incomplete")


@pytest.mark.parametrize(
    "matrix, words",
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.diag([1.0, 0, 1, 1]), "degenerate"),
        (np.eye(3), "shape"),
        (np.eye(4) + np.eye(4)[::-1], "last row"),
    ],
)
def test_bad_matrices_are_not_written(tmp_path, matrix, words):
    for ending in FORMATS:
        with pytest.raises(InputError, match=f"The transform to write .*{words}"):
            write_transform(matrix, tmp_path / f"a{ending}")
    assert not list(tmp_path.iterdir())


# --- whole or not at all -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, ending",
    [
        ("moved.nii.gz", ".nii.gz"),
        ("sub-01.v2.tfm", ".tfm"),
        ("a.b.NII.GZ", ".NII.GZ"),
        ("a.H5", ".H5"),
        ("plain", ""),
    ],
)
def test_the_temporary_file_is_a_sibling_with_the_same_extensions(tmp_path, name, ending):
    with written_whole(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path and temporary.name != name
        assert "".join(temporary.suffixes[1:]) == ending.lower()  # all that some writers know
        temporary.write_text("new")
        assert not (tmp_path / name).exists()
    assert (tmp_path / name).read_text() == "new" and os.listdir(tmp_path) == [name]
    assert extension(name) == ending.lower()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, InputError])
def test_a_failing_write_leaves_the_old_file_as_it_was(tmp_path, error):
    path = tmp_path / "a.tfm"
    path.write_text("old")
    with pytest.raises(error), written_whole(path) as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.tfm"]


def test_a_failing_transform_writer_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_transform(AFFINE, path)

    def half(self, content):
        with open(self, "wb") as stream:
            stream.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match="no space left on device; make room"):
        write_transform(np.eye(4), path)
    assert (read_transform(path) == AFFINE).all() and os.listdir(tmp_path) == ["a.txt"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nothing was written"), written_whole(tmp_path / "a.tfm"):
        pass
    with pytest.raises(InputError, match="nothing was written"), written_whole(tmp_path / "a.tfm") as temporary:
        temporary.unlink()
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'.*none/a\.tfm': there is no folder '.*none'; create it"):
        write_transform(AFFINE, tmp_path / "none" / "a.tfm")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="there is no folder"):
        write_transform(AFFINE, tmp_path / "file" / "a.tfm")
    (tmp_path / "b.tfm").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        write_transform(AFFINE, tmp_path / "b.tfm")

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    refused = pytest.raises(InputError, match="refuses new files \\(permission denied\\)")
    with refused, written_whole(tmp_path / "a.tfm"):
        pytest.fail("the block must not run")


def test_a_name_in_use_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def busy(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(InputError, match="close what uses it"):
        write_transform(AFFINE, tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_are_those_of_any_new_file_and_links_stay_links(tmp_path):
    (tmp_path / "usual").write_text("")
    write_transform(AFFINE, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    write_transform(np.eye(4), tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink() and (read_transform(tmp_path / "a.txt") == np.eye(4)).all()


def test_a_file_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_transform(AFFINE, "a.tfm")
    np.testing.assert_allclose(read_transform("a.tfm"), AFFINE, atol=1e-12)


def test_importing_the_module_loads_nothing_heavy():
    code = (
        "import sys, SpatialDiffusionCore.spatial.transform_file; "
        "print(sorted({'torch', 'scipy', 'SimpleITK', 'nibabel', 'h5py'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
