"""Volumes: files in the world of other programs, resampling against analytic functions, and refusals."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g
from SpatialDiffusionCore.spatial import sampling, volume_file
from SpatialDiffusionCore.spatial import volume as v

sitk = pytest.importorskip("SimpleITK", reason="reads .nrrd and .mha, and judges headers")

SHAPE = (17, 19, 23)
OBLIQUE = g.rotation_about([1, -2, 0.5], 0.6)
SHEAR = np.array([[1, 0.15, -0.1], [0, 1, 0.2], [0, 0, 1]])
IDENTITY = np.eye(3)
SLOPE = np.array([0.7, -1.1, 0.4])  # of the ramp, intensity per mm


def header(linear=IDENTITY, steps=(1.5, 2.0, 0.8), origin=(-31.5, 17.25, 8.0)):
    return g.from_parts(linear * np.array(steps), origin)


def orientations():
    """All 48 ways in which array axes can lie along R, A and S."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.eye(3)[:, list(order)] * signs


HEADERS = {
    "axial": header(),
    "oblique": header(OBLIQUE),
    "anisotropic": header(OBLIQUE, steps=(0.4, 6.0, 1.1)),
    "mirrored": header(OBLIQUE * [-1, 1, 1]),
}
SHEARED = header(OBLIQUE @ SHEAR)
SCAN = [0, 2, 1]  # "oblique" has its finest spacing along the last array axis: depth, which the cube has in the middle


def ramp(points):
    """A function of the world (RAS mm) that trilinear interpolation reproduces exactly."""
    return np.asarray(points) @ SLOPE + 300.0


def world(shape, voxel_to_ras):
    """RAS mm of every voxel, I×J×K×3."""
    return g.transform_points(voxel_to_ras, np.argwhere(np.ones(shape))).reshape(*shape, 3)


def ramp_volume(voxel_to_ras, shape=SHAPE, dtype=np.float32):
    return v.Volume(ramp(world(shape, voxel_to_ras)).astype(dtype), voxel_to_ras, "ramp")


def noise(dtype, shape=SHAPE, seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, size=shape, dtype=dtype, endpoint=True)


def write_nifti(path, data, voxel_to_ras, **scaling):
    image = nibabel.Nifti1Image(data, voxel_to_ras, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    if scaling:
        image.header.set_slope_inter(scaling["slope"], scaling["inter"])
    nibabel.save(image, path)
    return path


# --------------------------------------------------------------------------------------------- NIfTI, in and out
def test_every_orientation_survives_and_is_where_nibabel_says(tmp_path):
    data = noise(np.int16)
    for number, linear in enumerate(orientations()):
        matrix = header(linear)
        path = tmp_path / f"{number}.nii"
        write_nifti(path, data, matrix)
        volume = volume_file.load(path)
        assert np.array_equal(volume.data, data) and volume.data.dtype == np.float32
        assert np.allclose(volume.voxel_to_ras, nibabel.load(path).affine, atol=1e-6)
        volume_file.save(volume, path)
        again = nibabel.load(path)
        assert np.allclose(again.affine, matrix, atol=1e-5)
        assert np.allclose(again.get_qform(), matrix, atol=1e-4) and int(again.header["qform_code"]) > 0
    assert number == 47


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_is_where_itk_and_nibabel_see_it(tmp_path, name, ending):
    """Written here, read by SimpleITK (LPS) and nibabel (RAS): a voxel has the same place and value everywhere."""
    volume = ramp_volume(HEADERS[name])
    path = tmp_path / f"ramp{ending}"
    volume_file.save(volume, path)
    image = sitk.ReadImage(str(path))
    for index in ((0, 0, 0), (16, 0, 5), (3, 18, 22)):
        place = g.transform_points(volume.voxel_to_ras, np.array([index]))[0]
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place * [-1, -1, 1], atol=1e-3)
        assert image[index] == pytest.approx(volume.data[index])
    back = volume_file.load(path)
    assert np.allclose(back.voxel_to_ras, volume.voxel_to_ras, atol=1e-4)
    assert np.array_equal(back.data, volume.data)
    assert np.allclose(back.data, ramp(world(back.shape, back.voxel_to_ras)), atol=1e-2)
    assert np.allclose(back.spacing, volume.spacing, atol=1e-5)
    if ending.startswith(".nii"):
        assert np.allclose(nibabel.load(path).affine, volume.voxel_to_ras, atol=1e-4)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("name", HEADERS)
def test_what_itk_wrote_is_where_the_same_nifti_is(tmp_path, name, ending):
    matrix, data = HEADERS[name], noise(np.int16)
    lps = g.LPS_RAS @ matrix
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    spacing = g.spacing(matrix)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    write_nifti(tmp_path / "a.nii.gz", data, matrix)
    from_itk, from_nifti = volume_file.load(tmp_path / f"a{ending}"), volume_file.load(tmp_path / "a.nii.gz")
    assert np.allclose(from_itk.voxel_to_ras, from_nifti.voxel_to_ras, atol=1e-5)
    assert np.array_equal(from_itk.data, from_nifti.data)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_sheared_header_is_kept(tmp_path, ending):
    """Where Slicer and ITK read such files: test_headers.py."""
    volume = ramp_volume(SHEARED)
    volume_file.save(volume, tmp_path / f"a{ending}")
    back = volume_file.load(tmp_path / f"a{ending}")
    assert np.allclose(back.voxel_to_ras, SHEARED, atol=1e-5)
    assert np.allclose(back.data, ramp(world(back.shape, back.voxel_to_ras)), atol=1e-2)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_label_maps_keep_type_and_values(tmp_path, dtype, ending):
    data = noise(dtype)
    path = tmp_path / f"labels{ending}"
    volume_file.save(v.Volume(data, HEADERS["oblique"]), path)
    back = volume_file.load(path, keep_type=True)
    assert back.data.dtype == np.dtype(dtype) and np.array_equal(back.data, data)
    assert volume_file.load(path).data.dtype == np.float32
    moved = v.resample(back, back, interpolation="nearest")
    assert moved.data.dtype == np.dtype(dtype) and np.array_equal(moved.data, data)


def test_labels_beyond_what_a_float_can_count_stay_apart(tmp_path):
    data = np.zeros(SHAPE, np.int64)
    data[5:9, 5:9, 5:9], data[9:12, 5:9, 5:9], data[0, 0, 0] = 2**53 + 1, 2**53 + 2, -(2**62) - 1
    volume_file.save(v.Volume(data, HEADERS["axial"]), tmp_path / "labels.nii.gz")
    back = volume_file.load(tmp_path / "labels.nii.gz", keep_type=True)
    assert np.array_equal(back.data, data)
    shifted = v.resample(back, back, g.from_parts(np.eye(3), (3.0, 0, 0)), "nearest")  # two voxels
    assert np.array_equal(shifted.data[2:], data[:-2]) and shifted.data.dtype == np.int64


def test_booleans_are_written_as_bytes(tmp_path):
    data = noise(np.float32) > 0
    volume_file.save(v.Volume(data, HEADERS["axial"]), tmp_path / "mask.nii.gz")
    back = volume_file.load(tmp_path / "mask.nii.gz", keep_type=True)
    assert back.data.dtype == np.uint8 and np.array_equal(back.data, data)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_scaling_is_applied_with_and_without_keeping_the_type(tmp_path, dtype):
    stored = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200).astype(dtype)
    image = nibabel.Nifti1Image(stored, HEADERS["axial"], dtype=stored.dtype)
    path = tmp_path / "scaled.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2.5, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    for volume in (volume_file.load(path), volume_file.load(path, keep_type=True)):
        assert np.allclose(volume.data, stored * 2.5 - 1024)
    assert volume_file.load(path).data.dtype == np.float32


def test_real_scans_read_alike_here_in_nibabel_and_in_itk(data_folder):
    for path in sorted((data_folder / "t1").glob("*.nii.gz"))[:240:60]:
        volume, image = volume_file.load(path), sitk.ReadImage(str(path))
        reference = nibabel.load(path)
        assert np.allclose(volume.voxel_to_ras, reference.affine) and volume.data.dtype == np.float32
        index = tuple(n // 3 for n in volume.shape)
        assert volume.data[index] == pytest.approx(float(reference.dataobj[index]))
        place = g.transform_points(volume.voxel_to_ras, np.array([index]))[0] * [-1, -1, 1]
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------- 4D
@pytest.fixture
def series(tmp_path):
    data = np.stack([noise(np.int16, seed=s) for s in range(3)], axis=-1)
    return SimpleNamespace(path=write_nifti(tmp_path / "bold@1.nii.gz", data, HEADERS["axial"]), data=data)


def test_a_volume_does_not_change_with_its_file(tmp_path):
    data = np.arange(210, dtype=np.float32).reshape(5, 6, 7)
    for ending in (".nii", ".mgh", ".img"):
        path = tmp_path / f"a{ending}"
        kind = {".nii": nibabel.Nifti1Image, ".mgh": nibabel.MGHImage, ".img": nibabel.Nifti1Pair}[ending]
        nibabel.save(kind(data, np.eye(4)), path)
        volumes = [volume_file.load(path), volume_file.load(path, keep_type=True)]
        path.write_bytes(b"something else")
        for volume in volumes:
            assert np.array_equal(volume.data, data) and type(volume.data) is np.ndarray


def test_one_volume_of_a_4d_file_is_chosen_by_its_index(series):
    for index in range(3):
        assert np.array_equal(volume_file.load(f"{series.path}@{index}").data, series.data[..., index])
    kept = volume_file.load(f"{series.path}@2", keep_type=True)
    assert kept.data.dtype == np.int16 and kept.shape == SHAPE


def test_a_4d_file_without_index_says_how_to_choose(series):
    with pytest.raises(InputError, match=r"is 4D \(17×19×23×3\).*0 to 2.*@INDEX, for example .*@0\."):
        volume_file.load(series.path)
    with pytest.raises(InputError, match="has no volume 3; it holds volumes 0 to 2"):
        volume_file.load(f"{series.path}@3")


def test_axes_of_length_one_are_no_fourth_dimension(tmp_path):
    data = noise(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", data[..., None], HEADERS["axial"])
    assert volume_file.load(path).shape == SHAPE and volume_file.load(f"{path}@0").shape == SHAPE
    with pytest.raises(InputError, match="not 4D, so @1 selects nothing"):
        volume_file.load(f"{path}@1")


# ---------------------------------------------------------------------------------------------------- bad input
def refusal(action):
    """The message of an InputError: one sentence for a person."""
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and "Traceback" not in message
    return message


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert "does not exist" in refusal(lambda: volume_file.load(tmp_path / "none.nii.gz"))
    assert "is a folder" in refusal(lambda: volume_file.load(tmp_path))
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        path = tmp_path / name
        path.write_bytes(b"this is no image, whatever its name says " * 20)
        assert name in refusal(lambda path=path: volume_file.load(path))
        path.write_bytes(b"")
        assert f"{name} is empty" in refusal(lambda path=path: volume_file.load(path))
    (tmp_path / "a.jpg").write_bytes(b"0")
    assert ".nii.gz" in refusal(lambda: volume_file.load(tmp_path / "a.jpg"))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.98])
def test_a_truncated_file_is_refused(tmp_path, ending, share):
    path = tmp_path / f"cut{ending}"
    volume_file.save(v.Volume(noise(np.int16), HEADERS["axial"]), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert path.name in refusal(lambda: volume_file.load(path))


def test_two_dimensional_color_and_complex_images_are_refused(tmp_path):
    write_nifti(tmp_path / "2d.nii", noise(np.int16)[:, :, 0], np.eye(4))
    assert "not a 3D volume" in refusal(lambda: volume_file.load(tmp_path / "2d.nii"))
    sitk.WriteImage(sitk.GetImageFromArray(noise(np.int16)[0]), str(tmp_path / "2d.nrrd"))
    assert "not a 3D volume" in refusal(lambda: volume_file.load(tmp_path / "2d.nrrd"))
    color = sitk.GetImageFromArray(noise(np.uint8, (16, 17, 18, 3)), isVector=True)
    sitk.WriteImage(color, str(tmp_path / "rgb.nrrd"))
    assert "3 numbers per voxel" in refusal(lambda: volume_file.load(tmp_path / "rgb.nrrd"))
    write_nifti(tmp_path / "complex.nii", noise(np.float32).astype(np.complex64), np.eye(4))
    assert "complex64" in refusal(lambda: volume_file.load(tmp_path / "complex.nii"))
    colors = np.zeros((16, 17, 18), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colors, np.eye(4)), tmp_path / "colors.nii")
    assert "holds colors" in refusal(lambda: volume_file.load(tmp_path / "colors.nii"))


def test_a_header_that_spans_no_space_is_refused(tmp_path):
    flat = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    image = nibabel.Nifti1Image(noise(np.int16), np.eye(4))
    image.set_sform(flat, code="scanner")
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "flat.nii")
    assert "degenerate" in refusal(lambda: volume_file.load(tmp_path / "flat.nii"))
    zero = bytearray((tmp_path / "flat.nii").read_bytes())
    zero[80:92] = np.zeros(3, "<f4").tobytes()  # pixdim
    zero[280:328] = np.diag([0, 1, 1, 1])[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "zero.nii").write_bytes(zero)
    assert "spacing of 0 mm" in refusal(lambda: volume_file.load(tmp_path / "zero.nii"))
    assert "spacing of 0 mm" in refusal(lambda: v.Volume(np.zeros(SHAPE), np.diag([1, 0, 1, 1.0])))
    assert "NaN" in refusal(lambda: v.Volume(np.zeros(SHAPE), np.diag([1, np.nan, 1, 1.0])))
    assert "3D" in refusal(lambda: v.Volume(np.zeros((4, 4)), np.eye(4)))
    assert "numbers" in refusal(lambda: v.Volume(np.full(SHAPE, "a"), np.eye(4)))


@pytest.mark.parametrize(
    "data, words",
    [
        (np.zeros((0, 20, 20), np.float32), "is empty"),
        (noise(np.float32, (3, 40, 40)), "3×40×40 voxels; at least 4"),
        (np.full(SHAPE, 7, np.float32), "is constant .every voxel is 7"),
        (np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 99, np.nan, 1.0), "is constant .every voxel is 1"),
        (np.full(SHAPE, np.nan), "nothing but NaN or infinite"),
        (np.full(SHAPE, -np.inf), "nothing but NaN or infinite"),
    ],
)
def test_what_cannot_be_registered_is_refused(data, words):
    volume = v.Volume(data, np.eye(4), "scan.nii.gz")
    with pytest.raises(InputError, match=words):
        v.validate(volume, "moving")
    message = refusal(lambda: v.validate(volume, "fixed"))
    assert message.startswith("Fixed volume scan.nii.gz")


def test_what_can_be_registered_is_accepted():
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        v.validate(v.Volume(noise(dtype, (16, 16, 16)), SHEARED))
    v.validate(v.Volume(noise(np.int16, (64, 64, 5)), header(steps=(1, 1, 8))))
    v.validate(v.Volume(np.where(noise(np.float32) > 0, np.nan, noise(np.float32)), SHEARED))


# --------------------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch, ending):
    path = tmp_path / f"out{ending}"
    path.write_bytes(b"what was there before")

    def broken(image, name, *args, **kwargs):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", broken)
    monkeypatch.setattr(sitk, "WriteImage", broken)
    assert "make room" in refusal(lambda: volume_file.save(ramp_volume(HEADERS["axial"]), path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"what was there before"


def test_outputs_that_cannot_be_are_refused_before_anything_is_written(tmp_path):
    volume = ramp_volume(HEADERS["axial"])
    (tmp_path / "folder.nii").mkdir()
    assert "does not exist" in refusal(lambda: volume_file.save(volume, tmp_path / "none" / "a.nii"))
    assert "is a folder" in refusal(lambda: volume_file.save(volume, tmp_path / "folder.nii"))
    assert "no known extension" in refusal(lambda: volume_file.save(volume, tmp_path / "a.tiff"))
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nii"]


def test_what_was_written_over_is_the_new_file_and_nothing_else_is_left(tmp_path):
    volume_file.save(v.Volume(noise(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    volume_file.save(ramp_volume(HEADERS["oblique"]), tmp_path / "a.nii.gz")
    assert np.allclose(volume_file.load(tmp_path / "a.nii.gz").data, ramp_volume(HEADERS["oblique"]).data)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


# ------------------------------------------------------------------------------------------------- resampling
def inside(volume, points, margin=0.0):
    """Which world points (…×3) lie among a volume's voxel centers, ``margin`` voxels off its faces."""
    voxels = g.transform_points(np.linalg.inv(volume.voxel_to_ras), points.reshape(-1, 3))
    last = np.array(volume.shape) - 1
    return ((voxels >= margin) & (voxels <= last - margin)).all(1).reshape(points.shape[:-1])


MOVE = g.about(g.rotation_about([3, 1, -2], 0.3) @ np.diag([1.1, 0.9, 1.05]), [-20, 30, 15], [4, -3, 2])


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("moving_header", [*HEADERS.values(), SHEARED], ids=[*HEADERS, "sheared"])
def test_a_moved_ramp_is_the_ramp_of_the_moved_world(interpolation, moving_header):
    """resample(volume, reference, M)(x) = volume(M⁻¹ x), for every pair of headers."""
    moving = ramp_volume(moving_header, shape=(40, 42, 44))
    middle = g.transform_points(MOVE, moving.center()[None])[0]
    axes = OBLIQUE.T @ np.diag([1.3, 0.9, 1.1])
    reference = v.Grid((12, 14, 16), g.from_parts(axes, middle - axes @ [5.5, 6.5, 7.5]))
    moved = v.resample(moving, reference, MOVE, interpolation)
    came_from = world(reference.shape, np.linalg.inv(MOVE) @ reference.voxel_to_ras)
    # Cubic splines bend within a few voxels of the end of the data.
    use = inside(moving, came_from, 0.001 if interpolation == "linear" else 9)
    assert use.sum() > 50 and moved.data.dtype == np.float32
    assert np.abs(moved.data - ramp(came_from))[use].max() < (2e-3 if interpolation == "linear" else 2e-2)
    assert np.array_equal(moved.voxel_to_ras, reference.voxel_to_ras)


def test_nearest_takes_the_nearest_voxel():
    labels = v.Volume(noise(np.uint16), HEADERS["oblique"])
    reference = v.Grid((30, 31, 32), header(OBLIQUE @ g.rotation_about([0, 1, 0], 0.1), steps=(0.9, 0.9, 0.9)))
    moved = v.resample(labels, reference, MOVE, "nearest")
    places = world(reference.shape, np.linalg.inv(MOVE @ labels.voxel_to_ras) @ reference.voxel_to_ras)
    index = np.floor(places + 0.5).astype(int)
    among = ((index >= 0) & (index < labels.shape)).all(-1)
    assert among.any() and not among.all()
    assert np.array_equal(moved.data[among], labels.data[tuple(index[among].T)])
    assert (moved.data[~among] == 0).all() and moved.data.dtype == np.uint16


def test_outside_is_zero_or_the_air_of_ct():
    shift = g.from_parts(np.eye(3), (1000.0, 0, 0))
    for low, expected in ((0, 0), (-1000, -1000), (5, 0)):
        data = np.full(SHAPE, low, np.int16)
        data[8:] = 400
        volume = v.Volume(data, HEADERS["axial"])
        for interpolation in v.INTERPOLATIONS:
            assert (v.resample(volume, volume, shift, interpolation).data == expected).all()


def test_an_unknown_interpolation_or_a_bad_transform_is_refused():
    volume = ramp_volume(HEADERS["axial"])
    assert "nearest, linear, cubic" in refusal(lambda: v.resample(volume, volume, np.eye(4), "sinc"))
    assert "degenerate" in refusal(lambda: v.resample(volume, volume, np.zeros((4, 4)) + np.diag([0, 0, 0, 1])))


def test_moving_the_header_and_resampling_back_is_the_identity():
    volume = ramp_volume(HEADERS["oblique"])
    moved = volume.moved(MOVE)
    back = v.resample(moved, volume, np.linalg.inv(MOVE))
    assert np.abs(back.data - volume.data)[inside(volume, world(SHAPE, volume.voxel_to_ras), 0.01)].max() < 1e-3


def test_resampling_agrees_with_itk():
    """The matrix that ITK needs is the inverse, in LPS."""
    data = np.random.default_rng(3).normal(size=(20, 22, 24)).astype(np.float32)
    moving, fixed = v.Volume(data, HEADERS["oblique"]), v.Volume(data, HEADERS["anisotropic"])

    def as_itk(volume):
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
        lps = g.LPS_RAS @ volume.voxel_to_ras
        image.SetSpacing(volume.spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
        return image

    resampling = g.LPS_RAS @ np.linalg.inv(MOVE) @ g.LPS_RAS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(resampling[:3, :3].ravel().tolist())
    transform.SetTranslation(resampling[:3, 3].tolist())
    theirs = sitk.Resample(as_itk(moving), as_itk(fixed), transform, sitk.sitkLinear, 0.0)
    theirs = sitk.GetArrayFromImage(theirs).T
    ours = v.resample(moving, fixed, MOVE).data
    use = inside(moving, world(fixed.shape, np.linalg.inv(MOVE) @ fixed.voxel_to_ras), 0.01)
    assert use.sum() > 500 and np.abs(ours - theirs)[use].max() < 1e-3


# ------------------------------------------------------------------------------------------ canonical cube
def exact(volume):
    """Prepared without clipping: intensities lowest…highest become 0…1."""
    from dataclasses import replace

    prepared = sampling.prepare(volume)
    return replace(prepared, window=(float(volume.data.min()), float(volume.data.max())))


@st.composite
def headers(draw):
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3))) + [0, 0, 1.5]
    linear = g.rotation_about(axis, draw(st.floats(-3.1, 3.1))) * [draw(st.sampled_from([-1, 1])), 1, 1]
    if draw(st.booleans()):
        linear = linear @ SHEAR
    steps = draw(st.tuples(*[st.floats(0.6, 2.5)] * 3))
    return header(linear, steps, draw(st.tuples(*[st.floats(-150, 150)] * 3)))


@settings(max_examples=25)
@given(headers(), st.tuples(*[st.integers(5, 14)] * 3), st.floats(0.5, 6), st.booleans())
def test_a_ramp_sampled_on_any_cube_has_the_world_values(voxel_to_ras, size, spacing, oriented):
    """Whatever the header, cube and averaging of fine voxels: the value is the world function's at the voxel."""
    prepared = exact(ramp_volume(voxel_to_ras, shape=(30, 32, 34)))
    grid = sampling.canonical_grid(prepared, size, spacing, oriented)
    values, support = (t[0, 0].numpy() for t in sampling.sample_with_support(prepared, grid))
    places = world(grid.shape, grid.voxel_to_ras)
    low, high = prepared.window
    # At the far end fewer voxels than usual may be averaged into the last one, and zeros lie beyond.
    margin = 1.5 * max(1.0, np.abs(np.linalg.inv(voxel_to_ras)[:3, :3] @ grid.voxel_to_ras[:3, :3]).max())
    use = inside(prepared.volume, places, margin)
    assert values.shape == tuple(size) and values.dtype == np.float32
    assert np.abs(values * (high - low) + low - ramp(places))[use].max(initial=0) < 2e-4 * (high - low)
    assert (support[inside(prepared.volume, places, -0.499)] == 1).all()
    assert (support[~inside(prepared.volume, places, -0.501)] == 0).all()


def test_the_cube_is_anatomical_or_along_the_scan_and_holds_the_tissue_in_its_middle():
    data = np.zeros((40, 44, 48), np.float32)
    data[10:20, 20:34, 12:40] = 100
    volume = v.Volume(data, HEADERS["oblique"])
    assert sampling.scan_order(volume) == tuple(SCAN)
    prepared = sampling.prepare(volume)
    middle = g.transform_points(volume.voxel_to_ras, np.array([[14.5, 26.5, 25.5]]))[0]
    assert np.allclose(prepared.tissue_center, middle, atol=1e-6)
    for oriented, axes in (
        (True, sampling.anatomical_axes(volume)),
        (False, OBLIQUE[:, SCAN] * [1, 1, np.linalg.det(OBLIQUE[:, SCAN])]),
    ):
        grid = sampling.canonical_grid(prepared, (16, 18, 20), 2.5, oriented)
        assert np.allclose(grid.voxel_to_ras[:3, :3], axes * 2.5)
        assert np.allclose(g.transform_points(grid.normalized_to_ras, np.zeros((1, 3)))[0], middle)
    spacing = sampling.canonical_grid(prepared, 16, (1, 2, 3)).voxel_to_ras[:3, :3]
    assert np.allclose(spacing, sampling.anatomical_axes(volume) * [1, 2, 3])
    assert np.abs(sampling.anatomical_axes(volume) @ sampling.anatomical_axes(volume).T - np.eye(3)).max() < 1e-9


#: Array orders in which programs write OCT: (A-scan, B-scan, depth), (B-scan, depth, A-scan), … with µm spacings.
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_axis_with_the_finest_spacing_is_depth_and_no_cube_is_a_mirror_image(order):
    data = np.random.default_rng(0).random((20, 24, 28)).astype(np.float32)
    steps = np.array([0.0224, 0.0596, 0.0039])
    volume = v.Volume(data.transpose(order), np.diag([*steps[list(order)], 1.0]))
    lateral, depth, other = sampling.scan_order(volume)
    assert steps[order[depth]] == steps.min() and lateral < other
    grid = sampling.canonical_grid(sampling.prepare(volume), (12, 14, 16), (0.02, 0.004, 0.03), oriented=False)
    assert np.allclose(grid.voxel_to_ras[:3, 1], np.eye(3)[depth] * 0.004)
    assert np.linalg.det(grid.voxel_to_ras[:3, :3]) > 0
    assert np.allclose(np.linalg.norm(grid.voxel_to_ras[:3, :3], axis=0), (0.02, 0.004, 0.03), atol=1e-12)


def test_among_nearly_equal_spacings_the_shortest_extent_is_depth():
    volume = v.Volume(np.arange(30 * 40 * 18).reshape(30, 40, 18), np.diag([0.0100, 0.0101, 0.0102, 1]))
    assert sampling.scan_order(volume) == (0, 2, 1)


def test_affines_of_an_anisotropic_cube_convert_to_the_world_and_back():
    """By hand: one voxel of shift along each axis of the cube is one voxel's micrometers in the world."""
    grid = v.Grid((64, 48, 64), g.from_parts(OBLIQUE @ np.diag([0.1, 0.03, 0.12]), (5, -3, 8)))
    for axis, (size, step) in enumerate(zip(grid.shape, (0.1, 0.03, 0.12))):
        theta = np.eye(3, 4)
        theta[2 - axis, 3] = 2 / size
        moved = g.theta_to_world(theta, grid.normalized_to_ras, grid.normalized_to_ras)
        assert np.allclose(moved[:3, :3], np.eye(3), atol=1e-12)
        assert np.allclose(moved[:3, 3], OBLIQUE[:, axis] * step, atol=1e-12)
        back = g.world_to_theta(moved, grid.normalized_to_ras, grid.normalized_to_ras)
        assert np.abs(back - theta).max() < 1e-13
    turn = g.about(g.rotation_about(OBLIQUE[:, 1], 0.7), (5, -3, 8), (0.1, 0.2, -0.05))
    theta = g.world_to_theta(turn, grid.normalized_to_ras, grid.normalized_to_ras)
    again = g.theta_to_world(theta, grid.normalized_to_ras, grid.normalized_to_ras)
    assert np.abs(again - turn).max() < 1e-12


def test_outside_the_field_of_view_the_cube_is_zero_without_support():
    volume = v.Volume(np.full((20, 20, 20), 7, np.float32), np.eye(4))
    volume.data[10, 10, 10] = 9
    prepared = exact(volume)
    grid = v.Grid((60, 10, 10), g.from_parts(np.eye(3), (-20, 5, 5)))
    values, support = (t[0, 0].numpy() for t in sampling.sample_with_support(prepared, grid))
    inner = np.zeros(60, bool)
    inner[20:40] = True
    assert (support[~inner] == 0).all() and (support[inner] == 1).all() and (values[~inner] == 0).all()


def test_parts_and_refinements_of_a_grid_cover_the_same_world():
    grid = v.Grid((12, 15, 18), HEADERS["oblique"])
    corners = np.array(list(itertools.product((-1, 1), repeat=3)), float)
    faces = g.transform_points(grid.normalized_to_ras, corners)
    finer = grid.with_shape((24, 5, 36))
    assert finer.shape == (24, 5, 36) and np.allclose(g.transform_points(finer.normalized_to_ras, corners), faces)
    part = grid.around([0.0, -1, -1], [1, 1, 0.0])
    assert part.shape == (6, 15, 9)
    whole_world = world(grid.shape, grid.voxel_to_ras)
    assert np.allclose(world(part.shape, part.voxel_to_ras), whole_world[:6, :, 9:])
    assert np.allclose(grid.moved(MOVE).voxel_to_ras, MOVE @ grid.voxel_to_ras)


# --------------------------------------------------------------------------------------------------- preparing
def test_a_mask_chooses_the_tissue_in_world_space_and_an_empty_one_is_refused():
    data = np.zeros((40, 40, 40), np.float32)
    data[5:15, 10:30, 10:30] = 100
    data[25:35, 10:30, 10:30] = 100
    volume = v.Volume(data, HEADERS["oblique"], "scan")
    chosen = np.zeros(data.shape, np.uint8)
    chosen[22:38] = 1
    coarse = v.Volume(chosen[::2, ::2, ::2], volume.voxel_to_ras @ np.diag([2.0, 2, 2, 1]), "mask")
    center = g.transform_points(volume.voxel_to_ras, np.array([[29.5, 19.5, 19.5]]))[0]
    assert np.linalg.norm(sampling.prepare(volume, coarse).tissue_center - center) < 0.1
    elsewhere = coarse.moved(g.from_parts(np.eye(3), (900.0, 0, 0)))
    assert "selects no part of scan" in refusal(lambda: sampling.prepare(volume, elsewhere))


def test_the_threshold_separates_two_classes_and_the_window_ignores_a_few_bright_voxels():
    random = np.random.default_rng(0)
    data = random.normal(10, 2, (32, 32, 32)).astype(np.float32)
    data[8:24, 8:24, 8:24] += 100
    data[16, 16, 16] = 1e6
    prepared = sampling.prepare(v.Volume(data, np.eye(4)))
    wrong = (data > prepared.threshold) != (data > 60)
    assert wrong.sum() < 10 and prepared.window[1] < 130
    assert np.allclose(prepared.tissue_center, 15.5, atol=0.2)
    assert np.allclose(np.sqrt(np.diag(prepared.tissue_covariance)), 16 / np.sqrt(12), atol=0.2)


def test_a_volume_with_little_in_it_is_still_prepared():
    data = np.zeros((200, 200, 20), np.uint8)
    data[100, 101, 7] = 1  # between the samples that the window is taken from
    prepared = sampling.prepare(v.Volume(data, np.eye(4)))
    assert prepared.window == (0.0, 1.0) and np.isfinite(prepared.tissue_center).all()


@pytest.mark.parametrize("named, held, words", [
    ("a.nii", ".nii.gz", "holds a NIfTI file packed by gzip; let its name end in .nii.gz"),
    ("a.nii.gz", ".nii", "holds a NIfTI file that is not packed; let its name end in .nii"),
    ("a.nrrd", ".nii.gz", "holds a NIfTI file packed by gzip; let its name end in .nii.gz"),
    ("a.nii.gz", ".nrrd", "holds a NRRD file that is not packed; let its name end in .nrrd"),
    ("a.mha", ".nrrd", "holds a NRRD file; let its name end in .nrrd"),
    ("a.nrrd", ".mha", "holds a MetaImage file; let its name end in .mha"),
    ("a.nii", "page", "holds a web page, as failed downloads do; download it again"),
    ("a.nrrd", "page", "holds a web page, as failed downloads do; download it again"),
    ("a.nii", "noise", r"\(no header of NIfTI\); copy or export it again"),
])  # fmt: skip
def test_a_name_that_does_not_fit_the_content_is_told(tmp_path, named, held, words):
    if held == "page":
        (tmp_path / named).write_bytes(b"\n<!DOCTYPE html><html>404</html>" * 20)
    elif held == "noise":
        (tmp_path / named).write_bytes(bytes(range(256)) * 4)
    else:
        volume_file.save(v.Volume(np.arange(60.0).reshape(3, 4, 5), np.eye(4)), tmp_path / f"b{held}")
        (tmp_path / f"b{held}").rename(tmp_path / named)
    with pytest.raises(InputError, match=words) as caught:
        volume_file.load(tmp_path / named)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("shape, words", [
    ((4, 5), "2 axes; export one with three axes"),
    ((4, 5, 6, 1, 3), "a fifth axis; export one with three axes"),
])  # fmt: skip
def test_what_is_no_volume_is_told_what_to_do(tmp_path, shape, words):
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=words):
        volume_file.load(tmp_path / "a.nii")
