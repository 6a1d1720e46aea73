"""Values as they come: NaN, infinite, padding, signed maps, labels; and masks of every kind."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g
from SpatialDiffusionCore.spatial import mask as m
from SpatialDiffusionCore.spatial import sampling, volume_file
from SpatialDiffusionCore.spatial import volume as v

SHAPE = (40, 44, 48)
SHIFT = g.from_parts(np.eye(3), (1000.0, 0, 0))
TURNED = g.from_parts(g.rotation_about([1, 2, 3], 0.3) * [1.0, 1.2, 2.0], (-20, 10, 5))


def smooth(seed=0, shape=SHAPE):
    """A body of smooth texture, 200 to 1200, in air of 0 to 20."""
    random = np.random.default_rng(seed)
    texture = gaussian_filter(random.standard_normal(shape), 3)
    data = 700 + 500 * texture / np.abs(texture).max()
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return np.where((places**2).sum(0) < 0.6, data, random.uniform(0, 20, shape)).astype(np.float32)


def ct(seed=0):
    """Hounsfield units: air at -1000, tissue, bone up to 1500."""
    data = smooth(seed)
    return np.where(data < 100, -1000 + data, data * 2.0 - 900).astype(np.float32)


def window(data, mask=None):
    prepared = sampling.prepare(v.Volume(data, TURNED, "scan"), mask)
    return prepared, np.array(prepared.window)


def same_place(one, other):
    """Whether two prepared volumes have their tissue at the same place, of the same extent."""
    extent = np.sqrt(np.trace(one.tissue_covariance))
    close = np.linalg.norm(one.tissue_center - other.tissue_center) < 0.02 * extent
    return close and np.allclose(one.tissue_covariance, other.tissue_covariance, atol=0.05 * extent**2)


# ---------------------------------------------------------------------------------------------- NaN and padding
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300, -1e300])
@pytest.mark.parametrize("where", ["background", "one voxel", "a plane", "a tenth"])
def test_what_is_not_a_number_is_background_and_said(wrong, where):
    data = smooth().astype(np.float64)
    clean, spoilt = window(data)[0], data.copy()
    chosen = {
        "background": data < 100,
        "one voxel": np.arange(data.size).reshape(SHAPE) == 45000,
        "a plane": np.indices(SHAPE)[0] == 3,
        "a tenth": np.random.default_rng(1).random(SHAPE) < 0.1,
    }[where]
    spoilt[chosen] = wrong
    prepared, low_high = window(spoilt)
    assert same_place(prepared, clean) or where == "a tenth"
    assert np.isfinite(prepared.volume.data).all() and np.isfinite(low_high).all()
    assert np.allclose(low_high, clean.window, rtol=0.05, atol=25) or where == "background"
    assert low_high[1] - low_high[0] > 800
    assert len(prepared.warnings) == 1 and "scan hold NaN or infinite values" in prepared.warnings[0]
    values = sampling.sample(prepared, v.Grid((20, 20, 20), TURNED))
    assert np.isfinite(values.numpy()).all()


#: Fill values of every sign and type, and where they lie: outside a round field of view.
PADDINGS = [-2000, -3024, -32768, 63536, 32767, 65535, -9999, 1e30, -1e30, 4096 * 4]


@pytest.mark.parametrize("value", PADDINGS)
@pytest.mark.parametrize("kind", ["ct", "mr"])
@pytest.mark.parametrize("blurred", [False, True])
def test_padding_outside_the_field_of_view_changes_nothing(kind, value, blurred):
    data = ct() if kind == "ct" else smooth()
    clean = window(data)[0]
    i, j, _ = np.indices(SHAPE)
    outside = ((i - 19.5) ** 2 + (j - 21.5) ** 2) > 21.5**2
    padded = np.where(outside, np.float32(value), data)
    if blurred:  # interpolated once: values in between along the border
        border = outside & ~np.roll(outside, 1, 0)
        share = np.random.default_rng(3).random(SHAPE)
        padded = np.where(border, (share * padded + (1 - share) * data).astype(np.float32), padded)
    prepared, low_high = window(padded)
    assert same_place(prepared, clean)
    assert np.allclose(low_high, clean.window, atol=0.06 * (clean.window[1] - clean.window[0]))
    if value > 5000:
        assert "what the scanner did not see" in prepared.warnings[0]


@pytest.mark.parametrize("value", [1e30, -1e30, 3e38])
def test_one_wild_voxel_changes_nothing(value):
    data = smooth()
    clean = window(data)[0]
    data[20, 22, 24] = value
    prepared, low_high = window(data)
    assert same_place(prepared, clean) and np.allclose(low_high, clean.window, atol=30)
    assert np.isfinite(sampling.sample(prepared, v.Grid((10, 10, 10), TURNED @ np.diag([4.0, 4, 4, 1]))).numpy()).all()


def test_what_is_bright_on_purpose_is_no_padding():
    """A bright implant, a drawing of two values, a cropped bright organ and a saturated scan stay as they are."""
    implant = smooth()
    implant[15:20, 15:20, 15:20] = 8000
    drawing = (smooth() > 100).astype(np.float32)
    drawing[0] = 1
    saturated = np.minimum(smooth() * 2, 1500)
    inverted = 1200 - smooth()
    for data in (implant, drawing, saturated, inverted, (smooth() > 100) * 1000 + smooth(1) * 0.01):
        prepared = window(data.astype(np.float32))[0]
        assert prepared.volume.data is prepared.volume.data and prepared.warnings == ()
        assert np.array_equal(prepared.volume.data, data.astype(np.float32))


def test_a_constant_slab_and_a_volume_of_two_values_are_prepared():
    for data in (
        np.repeat(np.arange(2.0), 20)[:, None, None] * np.ones((40, 40, 40)),
        np.eye(40)[:, :, None] * np.ones(40),
    ):
        prepared = window(data)[0]
        assert np.isfinite(prepared.tissue_center).all() and np.linalg.eigvalsh(prepared.tissue_covariance)[0] > 0


# --------------------------------------------------------------------------------------------------- resampling
def test_outside_is_zero_in_a_map_of_both_signs_and_air_in_ct():
    field = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 3).astype(np.float32)
    field *= 8 / np.abs(field).max()
    velocity = (np.random.default_rng(0).standard_normal(SHAPE) * 600).astype(np.int16)
    phase = np.random.default_rng(0).integers(-4096, 4096, SHAPE).astype(np.int16)
    for data in (field, -np.abs(field), velocity, phase, smooth(), smooth().astype(np.uint8)):
        for how in v.INTERPOLATIONS:
            volume = v.Volume(data, TURNED)
            assert (v.resample(volume, volume, SHIFT, how).data == 0).all(), data.dtype
    for value in (None, -2000, -3024, -32768):
        data = np.round(ct())
        if value is not None:
            data[:3] = value
        for stored in (data.astype(np.int16), data):
            volume = v.Volume(stored, TURNED)
            for how in v.INTERPOLATIONS:
                moved = v.resample(volume, volume, SHIFT, how).data
                assert (moved == moved.flat[0]).all() and -1024 <= moved.flat[0] <= -980


def test_the_background_can_be_said():
    volume = v.Volume(smooth().astype(np.int16), TURNED, "map")
    for how in v.INTERPOLATIONS:
        assert (v.resample(volume, volume, SHIFT, how, background=-7).data == -7).all()
    assert np.isnan(v.resample(volume, volume, SHIFT, "linear", background=np.nan).data).all()
    with pytest.raises(InputError, match="background 100000 cannot be stored in map, which holds int16"):
        v.resample(volume, volume, SHIFT, "nearest", background=1e5)
    with pytest.raises(InputError, match="cannot be stored"):
        v.resample(volume, volume, SHIFT, "nearest", background=0.5)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="cannot be stored in map, which holds int16"):
            v.resample(volume, volume, SHIFT, "nearest", background=value)


@pytest.mark.parametrize("how", ["nearest", "linear", "cubic"])
def test_no_face_is_lost_on_the_volumes_own_grid_however_it_is_turned(how):
    draw = np.random.default_rng(0)
    for shape in ((9, 8, 7), (9, 8, 1), (1, 1, 1)):
        data = draw.random(shape).astype(np.float32) + 1
        for _ in range(5):
            matrix = g.from_parts(
                np.linalg.qr(draw.normal(size=(3, 3)))[0] * draw.uniform(0.3, 3, 3), draw.normal(size=3)
            )
            volume = v.Volume(data, matrix)
            assert np.allclose(v.resample(volume, volume, interpolation=how).data, data, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8, 1)])
def test_the_field_of_view_ends_where_it_ends_in_itk(shape):
    volume = v.Volume(np.random.default_rng(1).random(shape).astype(np.float32) + 1, np.diag([2.0, 2.0, 2.0, 1.0]))
    for shift in ((0.7, 0.5, -0.9), (-0.99, 3.1, 0.4), (0.0, -1.01, 0.0)):
        # ITK's transform takes points of the grid to the volume, in LPS.
        there = SimpleITK.TranslationTransform(3, (shift[0], shift[1], -shift[2]))
        image = volume.to_simpleitk()
        for how, itk in (("linear", SimpleITK.sitkLinear), ("cubic", SimpleITK.sitkBSpline)):
            moved = v.resample(volume, volume, g.from_parts(np.eye(3), shift), how).data
            expected = SimpleITK.GetArrayFromImage(SimpleITK.Resample(image, image, there, itk, 0.0)).T
            assert np.array_equal(moved == 0, expected == 0)
            assert np.allclose(moved, expected, atol=1e-5 if how == "linear" else 0.02)


@pytest.mark.parametrize("how", ["linear", "cubic"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_stays_where_it_is(how, wrong):
    data = smooth()
    chosen = data < 100
    chosen[20, 22, 24] = True
    move = g.from_parts(g.rotation_about([0, 0, 1], 0.1), (0.3, -0.4, 0.5))
    spoilt = v.Volume(np.where(chosen, wrong, data), TURNED)
    moved = v.resample(spoilt, spoilt, move, how, background=0).data
    nearest = v.resample(v.Volume(chosen, TURNED), spoilt, move, "nearest").data
    assert np.array_equal(~np.isfinite(moved), nearest) and (moved[nearest] == wrong).all() or np.isnan(wrong)
    assert np.array_equal(np.isnan(moved), nearest & np.isnan(wrong))
    clean = v.resample(v.Volume(data, TURNED), spoilt, move, how, background=0).data
    inner = (
        v.resample(v.Volume((gaussian_filter(chosen * 1.0, 2) < 1e-3) * 1, TURNED), spoilt, move, "nearest").data > 0
    )
    assert inner.sum() > 1000 and np.allclose(moved[inner], clean[inner], atol=1.0)
    everything = v.Volume(np.full(SHAPE, np.nan), TURNED)
    assert np.isnan(v.resample(everything, everything, interpolation=how).data).all()


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32", "float64"])
def test_many_labels_and_labels_as_floats_are_kept(tmp_path, dtype, ending):
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)  # 84,480 of them
    volume_file.save(v.Volume(labels, TURNED), tmp_path / f"a{ending}")
    back = volume_file.load(tmp_path / f"a{ending}", keep_type=True)
    moved = v.resample(back, back, g.from_parts(np.eye(3), TURNED[:3, 0]), "nearest")  # by one voxel along i
    assert moved.data.dtype == np.dtype(dtype) and np.array_equal(moved.data[1:], labels[:-1])
    assert (moved.data[0] == 0).all()


# -------------------------------------------------------------------------------------------------------- masks
def ball(shape=SHAPE, center=(14, 20, 30), radius=6.0):
    return (((np.indices(shape) - np.reshape(center, (3, 1, 1, 1))) ** 2).sum(0) < radius**2) * 1.0


def center_of(mask, matrix=TURNED):
    return g.transform_points(matrix, np.argwhere(mask > 0)).mean(0)


def test_nan_is_outside_a_mask(tmp_path):
    chosen = ball()
    spm = np.where(chosen > 0, 1.0, np.nan).astype(np.float32)
    image = nibabel.Nifti1Image(spm, TURNED)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "spm.nii.gz")
    prepared = window(smooth(), volume_file.load(tmp_path / "spm.nii.gz"))[0]
    assert same_place(prepared, window(smooth(), v.Volume(chosen, TURNED))[0])
    support = sampling.sample_with_support(prepared, v.Grid(SHAPE, TURNED))[1]
    assert np.array_equal(support[0, 0].numpy() > 0, chosen > 0)


@pytest.mark.parametrize("parity", [0, 1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("finer", [1, 2, 3, 5])
def test_a_mask_of_single_layers_is_found_on_any_grid(axis, parity, finer):
    """Drawn on one slice, or on every fourth; on the volume's grid or a finer one; looked at on coarse grids."""
    fine = v.Volume(np.zeros([n * finer for n in SHAPE], np.uint8), TURNED @ np.diag([*[1 / finer] * 3, 1.0]), "layers")
    for step in (4, 1000):
        layers = np.zeros(fine.shape, np.uint8)
        index = [slice(8 * finer, 30 * finer)] * 3
        index[axis] = slice(16 * finer + parity, 28 * finer, step)
        layers[tuple(index)] = 1
        mask = v.Volume(layers, fine.voxel_to_ras, "layers")
        prepared = window(smooth(), mask)[0]
        extent = np.sqrt(np.trace(prepared.tissue_covariance))
        assert np.linalg.norm(prepared.tissue_center - center_of(layers, mask.voxel_to_ras)) < 0.2 * extent
        for size in (1.0, 1.9, 2.5, 4.0, 6.0):
            grid = v.Grid((16, 16, 16), g.from_parts(np.eye(3) * size, prepared.tissue_center - 7.5 * size))
            support = sampling.sample_with_support(prepared, grid)[1][0, 0].numpy() > 0
            assert support.any()
            center = center_of(support, grid.voxel_to_ras)
            if size >= 2.5 and step == 4:
                assert np.linalg.norm(center - prepared.tissue_center) < max(4.0, 0.5 * extent)


def test_a_mask_of_one_voxel_selects_it_and_one_elsewhere_is_refused():
    for place in ((0, 0, 0), (17, 21, 33), (39, 43, 47)):
        single = np.zeros(SHAPE, np.uint8)
        single[place] = 1
        prepared = window(smooth(), v.Volume(single, TURNED))[0]
        assert np.allclose(prepared.tissue_center, center_of(single), atol=1e-6)
        assert np.linalg.eigvalsh(prepared.tissue_covariance)[0] > 0.05
    large = v.Volume(smooth(shape=(200, 150, 150)), np.eye(4), "scan")  # seen at every fourth voxel
    single = np.zeros(large.shape, np.uint8)
    single[101, 77, 31] = 1
    assert np.allclose(sampling.prepare(large, v.Volume(single, np.eye(4))).tissue_center, (101, 77, 31), atol=1e-6)
    for mask in (np.zeros(SHAPE), np.full(SHAPE, np.nan)):
        with pytest.raises(InputError, match="The mask empty selects no part of scan"):
            window(smooth(), v.Volume(mask, TURNED, "empty"))
    with pytest.raises(InputError, match="check that they overlap"):
        window(smooth(), v.Volume(np.ones(SHAPE), SHIFT @ TURNED))


def test_an_ordinary_mask_on_a_coarser_grid_keeps_its_volume():
    chosen = v.Volume(ball(radius=11.3, center=(20, 22, 24)), np.eye(4))
    for size in (1.0, 1.5, 2.0, 3.0, 4.0):
        grid = v.Grid(tuple(int(44 / size) + 1 for _ in range(3)), np.diag([size, size, size, 1.0]))
        inside = m.on_grid(m.binary(chosen), grid)
        assert inside.sum() * size**3 == pytest.approx(chosen.data.sum(), rel=0.12)
        assert np.allclose(center_of(inside, grid.voxel_to_ras), (20, 22, 24), atol=0.4 * size)


def test_the_warnings_of_a_mask_are_heard_of(tmp_path):
    image = nibabel.Nifti1Image(ball().astype(np.uint8), TURNED)
    image.set_sform(SHIFT @ TURNED, 4)
    image.set_qform(TURNED, 1)
    nibabel.save(image, tmp_path / "m.nii")
    prepared = window(smooth(), volume_file.load(tmp_path / "m.nii"))[0]
    assert len(prepared.warnings) == 1 and "m.nii" in prepared.warnings[0]
