"""The local refinement: known transforms of synthetic volumes, what is kept exact, and the descriptors."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.alignment import descriptors, gauss_newton  # noqa: E402
from SpatialDiffusionCore.alignment.similarity import local_similarity  # noqa: E402
from SpatialDiffusionCore.networks import layers  # noqa: E402
from SpatialDiffusionCore.spatial import (  # noqa: E402
    geometry,  # noqa: E402
    sampling,
)
from SpatialDiffusionCore.spatial import volume as v

SHAPE, SPACING = (36, 40, 32), (4.0, 3.5, 5.0)


def picture(places):
    """A smooth function of N×3 mm without symmetry, near 0 far from the middle."""
    value = np.zeros(len(places))
    for x, y, z, radius, height in (
        (0, 0, 0, 32, 1.0),
        (20, -8, 10, 14, 0.7),
        (-12, 22, -15, 12, -0.6),
        (5, 10, 30, 11, 0.8),
        (-25, -20, 5, 13, 0.5),
        (10, -30, -20, 10, -0.5),
    ):
        value += height * np.exp(-((places - [x, y, z]) ** 2).sum(1) / radius**2)
    return value


def sides(matrix, features=lambda x: x, gain=1.0, offset=0.0, count=4000):
    """(fixed, moving) Sides of the picture and of the picture moved by ``matrix`` (fixed → moving frame)."""
    center = (np.array(SHAPE) - 1) / 2
    places = (np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3) - center) * SPACING
    both = []
    for seen_at, g, o in ((places, 1.0, 0.0), (geometry.transform_points(np.linalg.inv(matrix), places), gain, offset)):
        raw = picture(seen_at)
        values = torch.as_tensor((g * raw + o).reshape(1, 1, *SHAPE), dtype=torch.float32)
        tissue = torch.as_tensor((np.abs(raw) > 0.05).reshape(1, 1, *SHAPE), dtype=torch.float32)
        both.append(gauss_newton.side(features(values), torch.ones_like(values), tissue, SPACING, count, 0))
    return both


def known(kind):
    turn = geometry.rotation_about([1, 2, -1], 0.12)
    linear = {
        "rigid": turn,
        "similarity": 1.06 * turn,
        "affine": turn @ (np.eye(3) + [[0.05, 0.03, 0], [0, -0.04, 0.02], [0, 0, 0.06]]),
    }[kind]
    return geometry.from_parts(linear, (3.0, -4, 2.5))


def rms(a, b):
    return geometry.displacement_rms(a, b, np.zeros(3), np.eye(3) * 30.0**2)


def batch(*matrices):
    return np.array(matrices)


@pytest.mark.parametrize("boldest", [1.0, 4.0])
@pytest.mark.parametrize("kind", geometry.TRANSFORM_KINDS)
def test_a_known_transform_is_found_whatever_the_gain_and_the_offset(kind, boldest):
    truth = known(kind)
    for gain, offset in ((1.0, 0.0), (-0.4, 0.7)):
        fixed, moving = sides(truth, gain=gain, offset=offset)
        found = gauss_newton.refine(
            fixed, moving, batch(np.eye(4)), kind=kind, iterations=int(100 / boldest), enough=1e-3, boldest=boldest
        )[0]
        assert rms(np.eye(4), truth) > 5 and rms(found, truth) < 0.3  # voxels of 3.5 to 5 mm, read linearly
        if kind == "rigid":
            assert np.abs(found[:3, :3].T @ found[:3, :3] - np.eye(3)).max() < 1e-12


def test_where_gradients_agree_in_part_only_longer_steps_get_to_the_same_place_sooner():
    noise = torch.Generator().manual_seed(0)

    def textured(values):
        return values + 0.3 * layers.blur(torch.randn(values.shape, generator=noise), 1.0)

    fixed, moving = sides(geometry.from_parts(np.eye(3), (2.0, -1.5, 1.0)), features=textured)

    def refined(iterations, boldest):
        return gauss_newton.refine(
            fixed, moving, batch(np.eye(4)), kind="rigid", iterations=iterations, enough=0, boldest=boldest
        )[0]

    end = refined(200, 1.0)
    assert rms(np.eye(4), end) > 1 and rms(refined(60, 4.0), end) < 0.05
    assert rms(refined(6, 4.0), end) < 0.5 * rms(refined(6, 1.0), end)


def test_the_two_directions_are_inverse_to_each_other():
    fixed, moving = sides(known("affine"))
    there = gauss_newton.refine(fixed, moving, batch(np.eye(4)), iterations=25, enough=1e-4)[0]
    back = gauss_newton.refine(moving, fixed, batch(np.eye(4)), iterations=25, enough=1e-4)[0]
    assert rms(there @ back, np.eye(4)) < 0.1


def test_each_of_a_batch_ends_where_it_ends_alone():
    fixed, moving = sides(known("rigid"))
    starts = [np.eye(4), geometry.from_parts(geometry.rotation_about([0, 0, 1], 0.2), (1, 2, 3))]
    together = gauss_newton.refine(fixed, moving, batch(*starts), kind="rigid", iterations=5, enough=0)
    for start, expected in zip(starts, together):
        alone = gauss_newton.refine(fixed, moving, batch(start), kind="rigid", iterations=5, enough=0)[0]
        assert rms(alone, expected) < 1e-3


def test_points_carry_their_features_and_the_slopes_of_a_ramp_up_to_the_edge():
    slope = np.array([0.3, -0.2, 0.5])
    center = (np.array(SHAPE) - 1) / 2
    places = (np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) - center) * SPACING
    ramp = torch.as_tensor(places @ slope, dtype=torch.float32)[None, None]
    side = gauss_newton.side(ramp, torch.ones_like(ramp), torch.ones_like(ramp), SPACING, 10**6, 0)
    assert len(side.points) == np.prod(SHAPE)
    assert np.allclose(side.values[0].numpy(), side.points.numpy() @ slope, atol=1e-3)
    assert np.abs(side.slopes[0].numpy() - slope).max() < 1e-4
    sampled, support = side.seen(side.points, batch(np.eye(4)))
    assert torch.allclose(sampled[0, 0], side.values[0], atol=1e-3) and bool((support > 0.999).all())
    far = side.seen(side.points, batch(geometry.from_parts(np.eye(3), (1000.0, 0, 0))))[1]
    assert bool((far == 0).all())


def test_descriptors_do_not_depend_on_contrast_and_follow_their_formula():
    volume = torch.rand(1, 1, 9, 10, 11, generator=torch.Generator().manual_seed(0))
    found = descriptors.self_similarity(volume)
    assert found.shape == (1, 6, 9, 10, 11) and torch.allclose(
        found, descriptors.self_similarity(3 - 2 * volume), atol=1e-5
    )
    assert torch.allclose(found.amax(1), torch.ones(1, 9, 10, 11))
    distances = []
    for axis in (2, 3, 4):
        ahead = torch.cat(
            [volume.narrow(axis, 1, volume.shape[axis] - 1), volume.narrow(axis, volume.shape[axis] - 1, 1)], dim=axis
        )
        patch = layers.blur((ahead - volume) ** 2, 0.8)
        distances += [torch.cat([patch.narrow(axis, 0, 1), patch.narrow(axis, 0, patch.shape[axis] - 1)], axis), patch]
    distances = torch.cat(distances, dim=1)
    relative = distances / distances.mean(1, keepdim=True)
    assert torch.allclose(found, torch.exp(relative.amin(1, keepdim=True) - relative), atol=1e-5)


@pytest.mark.parametrize("sigma", [0.6, 2.0, 7.0])
def test_blurs_are_gaussians_that_count_what_is_inside_only(sigma):
    """Against SciPy's, cut off at the same distance: of the volume and of ones, beyond which there is nothing."""
    from scipy import ndimage

    values = np.random.default_rng(0).random((2, 3, 9, 12, 15)).astype(np.float32)
    mine = layers.blur(torch.from_numpy(values), sigma).numpy()

    def theirs(array):
        return ndimage.gaussian_filter(array.astype(float), sigma, mode="constant", radius=layers.reach(sigma))

    ones = theirs(np.ones(values.shape[2:]))
    for sample, blurred in zip(values.reshape(6, 9, 12, 15), mine.reshape(6, 9, 12, 15)):
        np.testing.assert_allclose(blurred, theirs(sample) / ones, atol=1e-6)


def test_exponentials_of_steps_are_those_of_scipy():
    from scipy.linalg import expm

    random, steps = np.random.default_rng(0), np.zeros((5, 4, 4))
    steps[:, :3, :3], steps[:, :3, 3] = 0.3 * random.normal(size=(5, 3, 3)), 20 * random.normal(size=(5, 3))
    np.testing.assert_allclose(gauss_newton._exponential(steps), [expm(step) for step in steps], rtol=0, atol=1e-10)


def test_points_that_are_not_chosen_do_not_count():
    """Half of the points see a volume in which everything but they was made to misfit."""
    matrix = geometry.from_parts(geometry.rotation_about([0.2, 1, 0.3], 0.08), [3, -2, 2])
    fixed, moving = sides(matrix)
    bad = fixed.points[:, 0] > 0
    spoiled = gauss_newton.Side(fixed.grid, fixed.spacing, fixed.points, fixed.values + bad * 0.7, fixed.slopes)
    start = batch(np.eye(4))
    options = {"kind": "rigid", "iterations": 12, "linear_fit": False}
    kept = (~bad).float()[None], torch.ones(1, len(moving.points))
    found = gauss_newton.refine(spoiled, moving, start, chosen=kept, **options)[0]
    reference = gauss_newton.refine(
        gauss_newton.Side(
            *(getattr(fixed, k) for k in ("grid", "spacing")),
            *(
                getattr(fixed, k)[..., ~bad, :] if k != "values" else fixed.values[:, ~bad]
                for k in ("points", "values", "slopes")
            ),
        ),
        moving,
        start,
        **options,
    )[0]
    np.testing.assert_allclose(found, matrix, atol=0.15)
    np.testing.assert_allclose(found, reference, atol=0.05)


def test_likeness_is_that_of_the_tissue_and_its_surroundings_alone():
    random = torch.Generator().manual_seed(1)
    fixed, moved = (layers.blur(torch.rand(1, 1, 30, 32, 34, generator=random), 1.0) for _ in range(2))
    support, tissue = torch.ones_like(fixed), torch.zeros_like(fixed)
    support[:, :, :14] = 0
    tissue[..., 12:18, 13:19, 14:20] = 1
    alike = local_similarity(fixed, moved, support, tissue)
    assert 0 < alike < 1
    far = torch.zeros_like(fixed, dtype=torch.bool)
    far[..., :7, :, :] = far[..., :8, :] = far[..., 26:] = True  # five voxels and more from the tissue
    assert local_similarity(fixed, torch.where(far, 9.0, moved), support, tissue) == alike
    assert local_similarity(fixed, 2 - 3 * fixed, torch.ones_like(fixed), tissue) > 0.9


def test_sampling_does_not_depend_on_memory_order_and_averages_once():
    data = np.random.default_rng(0).random((40, 36, 44)).astype(np.float32)
    header = geometry.from_parts(geometry.rotation_about([1, 1, 0], 0.5), (5, 6, 7))
    expected = None
    for array in (
        data,
        np.asfortranarray(data),
        np.ascontiguousarray(data.transpose(1, 2, 0)).transpose(2, 0, 1),
        data[::-1].copy()[::-1],
        data.astype(np.float64),
    ):
        prepared = sampling.prepare(v.Volume(array, header))
        for spacing in (0.7, 2.1, 4.3):
            grid = sampling.canonical_grid(prepared, (12, 13, 14), spacing)
            first, again = sampling.sample(prepared, grid), sampling.sample(prepared, grid)
            assert torch.equal(first, again)
            if array is data:
                expected = {**(expected or {}), spacing: first}
            assert torch.allclose(first, expected[spacing], atol=1e-6)
        assert set(factors for factors, _ in prepared.levels) == {(1, 1, 1), (2, 2, 2), (4, 4, 4)}


def test_a_start_that_shows_nothing_of_the_moving_volume_stays():
    """A wide search may offer such poses; they must not end the registration."""
    from SpatialDiffusionCore.alignment.self_similarity import LEVELS, polish, polish_level
    from SpatialDiffusionCore.spatial.cube import on_grid

    place = np.indices((40, 40, 40)) - 19.5
    blob = np.maximum(0, 100 - 8 * np.linalg.norm(place, axis=0)).astype(np.float32)
    prepared = sampling.prepare(v.Volume(blob, np.diag([4.0, 4.0, 4.0, 1.0])))
    cube = on_grid(prepared, sampling.canonical_grid(prepared, (32, 32, 32), 4.0), "cpu")
    away = geometry.from_parts(np.eye(3), (900, 0, 0))
    np.testing.assert_array_equal(polish_level(cube, cube, away, "affine", 0, *LEVELS[0]), away)
    np.testing.assert_array_equal(polish(cube, cube, away, kind="rigid", seed=0), away)
    near = geometry.from_parts(np.eye(3), (6, 0, 0))
    assert np.abs(polish(cube, cube, near, kind="rigid", seed=0)[:3, 3]).max() < 0.5


def test_strain_costs_and_turning_does_not():
    """Held back hard, the refinement turns and shifts as before, and hardly stretches; a little changes nothing."""
    start, stretch = batch(np.eye(4)), geometry.from_parts(np.diag([1.12, 1, 1]), np.zeros(3))
    ends = [gauss_newton.refine(*sides(stretch), start, iterations=40, stiffness=s)[0, 0, 0] for s in (0.0, 0.01, 1e4)]
    assert abs(ends[0] - 1.12) < 0.02 and abs(ends[1] - ends[0]) < 0.005 and abs(ends[2] - 1) < 0.005
    turned = gauss_newton.refine(*sides(known("rigid")), start, iterations=100, stiffness=1e4)[0]
    assert rms(turned, known("rigid")) < 0.3


def test_strain_counts_from_the_untouched_volume_and_a_tenth_of_it_is_free():
    start, before = batch(np.eye(4)), np.diag([1.3, 1.05, 1.0])
    end = gauss_newton.refine(*sides(np.eye(4)), start, iterations=60, stiffness=1e8, free=0.1, already=before)[
        0, :3, :3
    ]
    # The data ask for nothing; the first axis is too long by more than a tenth, the second is not.
    np.testing.assert_allclose(np.diag(before @ end), [np.exp(0.1), 1.05, 1.0], atol=0.01)
