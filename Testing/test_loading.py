"""The published loading: the arrays that the published method would feed its network, and exact in the world."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from SpatialDiffusionCore.method import published_loading  # noqa: E402
from SpatialDiffusionCore.modelfile import catalog  # noqa: E402
from SpatialDiffusionCore.spatial import geometry as g  # noqa: E402
from SpatialDiffusionCore.spatial import sampling
from SpatialDiffusionCore.spatial import volume as v  # noqa: E402

HEADER = g.from_parts(g.rotation_about([1, -2, 0.5], 0.6) * [0.9, 1.2, 2.5], (-31.5, 17.25, 8))


def volume(shape, seed=0, header=HEADER):
    data = np.random.default_rng(seed).uniform(20, 220, shape).astype(np.float32)
    return v.Volume(data, header, "scan")


def loaded(scan, key, size):
    """(array fed to the network, grid, volume that was sampled)."""
    prepared, grid = published_loading.published(sampling.prepare(scan), catalog.get(key).published_loader, size)
    return sampling.sample(prepared, grid)[0, 0].numpy(), grid, prepared.volume


def minmax(data):
    return (data - data.min()) / (data.max() - data.min())


@settings(max_examples=15)
@given(st.tuples(*[st.integers(16, 24)] * 3), st.tuples(*[st.integers(0, 9)] * 3), st.sampled_from(["any", "t1", "ct"]))
def test_a_volume_that_fits_is_padded_by_whole_voxels_around_its_middle(shape, more, key):
    size = tuple(a + b for a, b in zip(shape, more))
    scan = volume(shape)
    array, grid, _ = loaded(scan, key, size)
    before = [b // 2 for b in more]
    expected = np.pad(minmax(scan.data), [(a, b - a) for a, b in zip(before, more)])
    assert array.shape == size and np.abs(array - expected).max() < 1e-4
    # The header says so too: array voxel b is the file's voxel 0.
    assert np.allclose(g.transform_points(grid.voxel_to_ras, np.array([before])), HEADER[:3, 3])
    assert np.allclose(grid.voxel_to_ras[:3, :3], HEADER[:3, :3])


def test_a_larger_volume_is_scaled_evenly_until_it_fits():
    scan = volume((40, 30, 20))
    array, grid, _ = loaded(scan, "t1", (20, 20, 20))
    assert array.shape == (20, 20, 20)
    assert np.allclose(grid.voxel_to_ras[:3, :3], 2 * HEADER[:3, :3])  # all axes alike: the aspect is kept
    middle = g.transform_points(grid.voxel_to_ras, np.array([[9.5, 9.5, 9.5]]))[0]
    assert np.allclose(middle, scan.center())
    halves = minmax(scan.data).reshape(20, 2, 15, 2, 10, 2).mean(axis=(1, 3, 5))
    assert np.abs(array[:, 3:17, 5:15] - (halves[:, :-1] + halves[:, 1:])[:, :14] / 2).max() < 1e-4
    assert (array[:, :2] == 0).all() and (array[:, :, :5] == 0).all()


@pytest.mark.parametrize("key, band", [("oct", 0.8), ("octa", 0.7)])
def test_retinas_are_flipped_and_cropped_above_the_tissue(key, band):
    data = np.random.default_rng(0).integers(0, 120, (18, 40, 20)).astype(np.uint8)
    data[:, :25][data[:, :25] > 100] = 230  # tissue below, counted from the far end of axis 1
    data[0, 0, 0], data[3, 5, 4] = 0, 255
    flipped = data[:, ::-1, ::-1]
    first = next(j for j in range(40) if (flipped[:, j] > band * 255).any())
    assert first == 15
    array, grid, _ = loaded(v.Volume(data, HEADER), key, (24, 44, 20))
    expected = np.pad(flipped[:, first:] / 255.0, [(3, 3), (0, 44 - (40 - first)), (0, 0)])
    assert np.abs(array - expected).max() < 1e-4
    # Flips, cropping and padding are in the header: array (3, 0, 0) is the file's (0, 24, 19).
    here, there = np.array([[3, 0, 0]]), np.array([[0, 40 - 1 - first, 19]])
    assert np.allclose(g.transform_points(grid.voxel_to_ras, here), g.transform_points(HEADER, there))


@pytest.mark.parametrize("key", ["any", "t1-brain", "oct", "octa"])
@pytest.mark.parametrize("size", [(30, 52, 33), (24, 30, 22)])
def test_every_array_voxel_shows_what_lies_at_its_place_in_the_world(key, size):
    header = g.from_parts(g.rotation_about([0, 1, 2], 1.0) * [1.5, 1.1, 0.8], (5, -6, 7))
    points = g.transform_points(header, np.argwhere(np.ones((26, 50, 28)))).reshape(26, 50, 28, 3)
    slope = np.array([0.7, -1.1, 0.4])
    scan = v.Volume((points @ slope).astype(np.float32), header)
    prepared, grid = published_loading.published(sampling.prepare(scan), catalog.get(key).published_loader, size)
    values, support = (t[0, 0].numpy() for t in sampling.sample_with_support(prepared, grid))
    places = g.transform_points(grid.voxel_to_ras, np.argwhere(np.ones(size))).reshape(*size, 3)
    low, high = prepared.window
    voxels = g.transform_points(np.linalg.inv(header), places.reshape(-1, 3)).reshape(*size, 3)
    use = (support > 0) & ((voxels >= 0.01) & (voxels <= np.array(scan.shape) - 1.01)).all(-1)
    # The cropped edge of a retina: its half voxel is mixed with zeros.
    inner = g.transform_points(np.linalg.inv(prepared.volume.voxel_to_ras), places.reshape(-1, 3)).reshape(*size, 3)
    use &= (inner >= -1e-3).all(-1)
    assert use.sum() > 2000
    assert np.abs(values * (high - low) + low - places @ slope)[use].max() < 1e-3 * (high - low)


def test_head_and_neck_volumes_become_isotropic_and_equalized():
    pytest.importorskip("skimage", reason="adaptive histogram equalization comes from scikit-image")
    header = np.diag([0.8, 0.8, 3.0, 1.0])
    scan = volume((60, 50, 20), header=header)
    size = (40, 40, 40)
    array, grid, sampled = loaded(scan, "t2-head-neck", size)
    assert array.shape == size and array.min() == 0 and array.max() <= 1
    spacing = g.spacing(sampled.voxel_to_ras)
    assert np.allclose(spacing, spacing[0]) and max(sampled.shape) <= 40
    assert np.allclose(sampled.center(), scan.center(), atol=1e-6)
    extent = np.array(sampled.shape) * spacing
    assert np.allclose(extent, np.array(scan.shape) * scan.spacing, atol=spacing[0])
    assert np.allclose(g.spacing(grid.voxel_to_ras), spacing)
