"""Affine algebra: what must hold for any transform, and the frames against torch itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g


def numbers(low, high, count):
    return st.lists(st.floats(low, high), min_size=count, max_size=count).map(np.array)


@st.composite
def rotations(draw, most=np.pi):
    """A 3×3 rotation by at most ``most`` radians."""
    axis = draw(numbers(-1, 1, 3))
    assume(np.linalg.norm(axis) > 1e-3)
    return g.rotation_about(axis, draw(st.floats(-most, most)))


@st.composite
def affines(draw, most=np.pi, mirrored=None):
    """A well-conditioned 4×4 affine: rotation, scales 0.5…2, shears up to 0.4, shifts up to 200 mm."""
    stretch = np.diag(np.exp(draw(numbers(-0.7, 0.7, 3))))
    stretch[np.triu_indices(3, 1)] = draw(numbers(-0.4, 0.4, 3))
    if mirrored is None:
        mirrored = draw(st.booleans())
    mirror = np.diag([-1.0 if mirrored else 1.0, 1, 1])
    return g.from_parts(draw(rotations(most)) @ mirror @ stretch, draw(numbers(-200, 200, 3)))


@st.composite
def clouds(draw, count=12):
    """Points that span space."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 3)) * draw(numbers(5, 80, 3)) + draw(numbers(-100, 100, 3))


def moments(points):
    return points.mean(0), np.cov(points.T, bias=True)


def rms(differences):
    return np.sqrt((differences**2).sum(1).mean())


def random_of_kind(kind, rotation, scale, translation, affine):
    if kind == "affine":
        return affine
    return g.from_parts(rotation * (scale if kind == "similarity" else 1.0), translation)


# ------------------------------------------------------------------------------------------------- checking
@pytest.mark.parametrize(
    "matrix, words",
    [
        ([["a"] * 4] * 4, "not made of numbers"),
        ([[1, 2], [3]], "not made of numbers"),
        (np.eye(3), r"shape \(3, 3\)"),
        (np.diag([1, 1, np.nan, 1]), "NaN or infinite"),
        (np.diag([1, 1, np.inf, 1]), "NaN or infinite"),
        (np.diag([1, 1, 1, 2.0]), "last row"),
        (np.diag([1, 1, 0, 1.0]), "degenerate"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "degenerate"),
    ],
)
def test_what_is_no_affine_is_refused_in_one_sentence(matrix, words):
    with pytest.raises(InputError, match=words) as error:
        g.as_affine(matrix, "the start")
    message = str(error.value)
    assert message.startswith("the start") and message.endswith(".") and "\n" not in message


def test_an_affine_is_completed_copied_and_may_be_tiny_or_huge():
    given_matrix = np.eye(4)[:3]
    result = g.as_affine(given_matrix.tolist())
    assert result.shape == (4, 4) and result.dtype == np.float64
    source = np.eye(4)
    g.as_affine(source)[0, 0] = 5
    assert source[0, 0] == 1
    for size in (1e-6, 1e6):  # a spacing in meters or nanometers is no degeneracy
        assert np.array_equal(g.as_affine(np.diag([size, size, size, 1])), np.diag([size, size, size, 1]))


# ---------------------------------------------------------------------------------------------------- words
def recomposed(parts: g.Decomposition, center) -> np.ndarray:
    """The 4×4 affine of a Decomposition about the same center."""
    x, y, z = np.radians(parts.rotations_deg)
    rotation = g.rotation_about([0, 0, 1], z) @ g.rotation_about([0, 1, 0], y) @ g.rotation_about([1, 0, 0], x)
    sx, sy, sz = np.array(parts.scales_percent) / 100
    xy, xz, yz = parts.shears
    stretch = np.array([[sx, sx * xy, sx * xz], [0, sy, sy * yz], [0, 0, sz]])
    return g.about(rotation @ stretch, center, parts.translation_mm)


@given(affines(), numbers(-150, 150, 3))
def test_recomposing_a_decomposition_gives_the_affine_back(matrix, center):
    parts = g.decompose(matrix, center)
    assume(abs(abs(parts.rotations_deg[1]) - 90) > 1e-3)  # where two of the three angles turn about one axis
    assert np.allclose(recomposed(parts, center), matrix, atol=1e-8)
    assert parts.mirrored == (np.linalg.det(matrix[:3, :3]) < 0)
    assert 0 <= parts.rotation_deg <= 180
    assert "\n" not in parts.text() and ("mirrored" in parts.text()) == parts.mirrored


@given(rotations(), numbers(0.5, 2, 3), numbers(-0.4, 0.4, 3), numbers(-90, 90, 3), numbers(-50, 50, 3))
def test_a_decomposition_names_the_parts_it_was_made_of(rotation, scales, shears, shift, center):
    stretch = np.diag(scales) @ np.array([[1, shears[0], shears[1]], [0, 1, shears[2]], [0, 0, 1]])
    parts = g.decompose(g.about(rotation @ stretch, center, shift), center)
    assert np.allclose(parts.scales_percent, 100 * scales)
    assert np.allclose(parts.shears, shears)
    assert np.allclose(parts.translation_mm, shift)
    assert np.isclose(parts.rotation_deg, g.rotation_angle(rotation), atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 1e-7, 0.5, 90, 179.9999999, 180])
def test_rotation_angles_are_accurate_at_both_ends(degrees):
    rotation = g.rotation_about([1, -2, 3], np.radians(degrees))
    assert abs(g.rotation_angle(rotation) - degrees) < 1e-9


def test_angles_are_about_x_then_y_then_z_and_text_says_what_happens():
    x, y, z = np.radians([10, 20, 30])
    about_x, about_y, about_z = (g.rotation_about(e, a) for e, a in zip(np.eye(3), (x, y, z)))
    rotation = about_z @ about_y @ about_x
    parts = g.decompose(g.from_parts(rotation, [3, 4, 0]))
    assert np.allclose(parts.rotations_deg, [10, 20, 30])
    assert "moved 5.0 mm (3.0 R, 4.0 A, 0.0 S)" in parts.text() and "scaled 100.0, 100.0, 100.0 %" in parts.text()
    assert "shear" not in parts.text()


# ------------------------------------------------------------------------------------------- log, exp, mean
@settings(max_examples=25)
@given(affines(most=3.0, mirrored=False))
def test_exp_undoes_log(matrix):
    try:
        generator = g.log(matrix)
    except ValueError:
        assume(False)
    assert np.array_equal(generator[3], np.zeros(4))
    assert np.allclose(g.exp(generator), matrix, atol=1e-7)
    half = g.exp(generator / 2)
    assert np.allclose(half @ half, matrix, atol=1e-7)
    assert np.allclose(g.exp(-generator) @ matrix, np.eye(4), atol=1e-7)


def test_there_is_no_log_of_a_mirror_or_a_half_turn():
    with pytest.raises(ValueError, match="reflection"):
        g.log(np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(ValueError, match="180"):
        g.log(np.diag([-1.0, -1, 1, 1]))


@settings(max_examples=4)
@given(st.lists(affines(most=0.5, mirrored=False), min_size=2, max_size=3), affines(mirrored=False))
def test_the_mean_knows_no_frame_order_or_direction(matrices, frame):
    middle = g.mean(matrices)
    assert np.allclose(g.mean(matrices[::-1]), middle, atol=1e-6)
    inverse = g.mean([np.linalg.inv(m) for m in matrices])
    assert np.allclose(inverse @ middle, np.eye(4), atol=1e-6)
    back = np.linalg.inv(frame)
    assert np.allclose(back @ g.mean([frame @ m for m in matrices]), middle, atol=1e-6)
    assert np.allclose(back @ g.mean([frame @ m @ back for m in matrices]) @ frame, middle, atol=1e-5)


@settings(max_examples=25)
@given(affines(most=1.0, mirrored=False))
def test_the_mean_of_a_transform_and_the_identity_is_its_square_root(matrix):
    assert np.allclose(g.mean([matrix, matrix]), matrix, atol=1e-9)
    half = g.mean([matrix, np.eye(4)])
    assert np.allclose(half @ half, matrix, atol=1e-6)


# ---------------------------------------------------------------------------------------- kinds of transform
@pytest.mark.parametrize("kind", g.TRANSFORM_KINDS)
@given(rotations(), st.floats(0.4, 2.5), numbers(-100, 100, 3), affines(), clouds())
def test_a_transform_of_the_kind_comes_back_unchanged(kind, rotation, scale, shift, affine, points):
    matrix = random_of_kind(kind, rotation, scale, shift, affine)
    assert np.allclose(g.fit(points, g.transform_points(matrix, points), kind), matrix, atol=1e-6)
    assert np.allclose(g.project(matrix, kind, *moments(points)), matrix, atol=1e-6)


@pytest.mark.parametrize("kind", ["rigid", "similarity"])
@given(affines(), clouds(), st.integers(0, 2**32 - 1))
def test_projection_is_the_closest_of_its_kind_over_the_points(kind, affine, points, seed):
    mean, covariance = moments(points)
    best = g.project(affine, kind, mean, covariance)
    # The same as fitting the points themselves.
    target = g.transform_points(affine, points)
    assert np.allclose(g.fit(points, target, kind), best, atol=1e-6)
    least = g.displacement_rms(affine, best, mean, covariance)
    assert np.isclose(least, rms(g.transform_points(best, points) - target), atol=1e-7)
    random = np.random.default_rng(seed)
    for _ in range(10):
        step = random.normal(size=3) * 0.03
        growth = 1 + step[1] if kind == "similarity" else 1
        linear = g.rotation_about(random.normal(size=3), step[0]) * growth
        other = best @ g.about(linear, mean, random.normal(size=3))
        assert g.displacement_rms(affine, other, mean, covariance) >= least - 1e-9


@given(affines(), clouds())
def test_rigid_is_orthonormal_without_reflection(affine, points):
    """Mirrored affines too: the nearest rotation is still a rotation."""
    for matrix in (
        g.project(affine, "rigid", *moments(points)),
        g.fit(points, g.transform_points(affine, points), "rigid"),
    ):
        rotation = matrix[:3, :3]
        assert np.abs(rotation.T @ rotation - np.eye(3)).max() < 1e-10
        assert np.linalg.det(rotation) > 0.999999
    similar = g.project(affine, "similarity", *moments(points))[:3, :3]
    scale = np.cbrt(np.linalg.det(similar))
    assert scale > 0 and np.allclose(similar.T @ similar, scale**2 * np.eye(3), atol=1e-9)


def test_rigid_is_a_rotation_for_points_in_a_plane_too():
    points = np.random.default_rng(0).normal(size=(9, 3)) * [30, 40, 0]
    turn = g.about(g.rotation_about([1, 2, 3], 2.0), [1, 2, 3], [5, 6, 7])
    assert np.allclose(g.fit(points, g.transform_points(turn, points), "rigid"), turn, atol=1e-9)


def test_weights_choose_among_points_and_unknown_kinds_are_named():
    random = np.random.default_rng(1)
    points, shift = random.normal(size=(10, 3)) * 20, np.array([1.0, -2, 3])
    target = points + shift
    target[5:] += random.normal(size=(5, 3)) * 50
    fitted = g.fit(points, target, "affine", [1] * 5 + [0] * 5)
    assert np.allclose(fitted, g.from_parts(np.eye(3), shift), atol=1e-8)
    with pytest.raises(InputError, match="rigid, similarity, affine"):
        g.project(np.eye(4), "perspective", np.zeros(3), np.eye(3))


# --------------------------------------------------------------------------------------------------- frames
shapes = st.tuples(*[st.integers(2, 9)] * 3)


def torch_grid(theta, shape):
    """N×3 normalized coordinates of the voxels of a shape under a 3×4 θ, as torch has them (float64)."""
    torch = pytest.importorskip("torch")
    theta = torch.from_numpy(np.asarray(theta, float))[None]
    grid = torch.nn.functional.affine_grid(theta, [1, 1, *shape], align_corners=False)
    return grid[0].numpy().reshape(-1, 3)


@given(shapes)
def test_normalized_coordinates_are_those_of_torch(shape):
    voxels = g.transform_points(g.normalized_to_voxel(shape), torch_grid(np.eye(3, 4), shape))
    assert np.allclose(voxels, np.argwhere(np.ones(shape)), atol=1e-12)


@given(affines(most=0.4, mirrored=False), shapes, shapes, affines(), affines())
def test_theta_and_world_are_the_same_map(theta, fixed_shape, moving_shape, fixed_to_world, moving_to_world):
    """affine_grid's own output coordinates, carried to the world, are where the world matrix says."""
    theta = theta[:3] * [1, 1, 1, 0.002]
    fixed_frame = fixed_to_world @ g.normalized_to_voxel(fixed_shape)
    moving_frame = moving_to_world @ g.normalized_to_voxel(moving_shape)
    world = g.theta_to_world(theta, fixed_frame, moving_frame)
    arrived = g.transform_points(moving_frame, torch_grid(theta, fixed_shape))
    started = g.transform_points(fixed_to_world, np.argwhere(np.ones(fixed_shape)))
    assert np.allclose(g.transform_points(world, started), arrived, atol=1e-8)
    assert np.allclose(g.world_to_theta(world, fixed_frame, moving_frame), theta, atol=1e-8)


def test_theta_pulls_the_moving_volume_where_the_world_matrix_says():
    """The network's convention end to end: grid_sample with θ, against the world, on unequal axes."""
    torch = pytest.importorskip("torch")
    shape, voxel_to_ras = (8, 10, 14), g.from_parts(np.diag([2.0, 3, 1.5]), [5, -7, 11])
    frame = voxel_to_ras @ g.normalized_to_voxel(shape)
    ras = g.transform_points(voxel_to_ras, np.argwhere(np.ones(shape))).reshape(*shape, 3)
    shift = np.array([2.0, -3, 1.5])  # one voxel along each axis
    theta = g.world_to_theta(g.from_parts(np.eye(3), shift), frame, frame)
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta)[None], [1, 1, *shape], align_corners=False)
    pulled = (
        torch.nn.functional.grid_sample(
            torch.from_numpy(ras).permute(3, 0, 1, 2)[None].contiguous(), grid, align_corners=False
        )[0]
        .permute(1, 2, 3, 0)
        .numpy()
    )
    inside = (slice(0, -1), slice(1, None), slice(0, -1))
    assert np.allclose(pulled[inside], ras[inside] + shift, atol=1e-9)


@given(affines(), affines(), clouds())
def test_displacement_is_that_of_the_points(a, b, points):
    distance = rms(g.transform_points(a, points) - g.transform_points(b, points))
    assert np.isclose(g.displacement_rms(a, b, *moments(points)), distance, rtol=1e-7, atol=1e-7)
    assert g.displacement_rms(a, a, *moments(points)) == 0


# ---------------------------------------------------------------------------------------------------- group
def test_the_sixty_rotations_are_a_group():
    group = g.rotation_group()
    assert group.shape == (60, 3, 3) and np.array_equal(group[0], np.eye(3))
    assert np.abs(np.einsum("nij,nkj->nik", group, group) - np.eye(3)).max() < 1e-12
    assert np.allclose(np.linalg.det(group), 1)

    def same(a, b):
        return np.abs(a[:, None] - b[None]).max(axis=(2, 3)) < 1e-9

    assert np.array_equal(same(group, group), np.eye(60, dtype=bool))
    products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 3, 3)
    assert (same(products, group).sum(axis=1) == 1).all()
    assert (same(group.transpose(0, 2, 1), group).sum(axis=1) == 1).all()
    angles = sorted(round(g.rotation_angle(r)) for r in group)
    assert angles == [0] + [72] * 12 + [120] * 20 + [144] * 12 + [180] * 15


def test_no_rotation_is_further_than_44_5_degrees_from_the_group():
    group = g.rotation_group()
    quaternions = np.random.default_rng(0).normal(size=(40000, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    turns = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    traces = np.einsum("nij,ijm->nm", group, turns)
    furthest = np.degrees(np.arccos(np.clip((traces.max(axis=0).min() - 1) / 2, -1, 1)))
    assert 42 < furthest <= 44.5


def test_strain_is_cut_along_its_own_axes_and_the_center_stays():
    turn, axes = g.rotation_about([1, 2, 3], 0.7), g.rotation_about([0, 1, 1], 0.4)
    matrix = g.from_parts(turn @ axes @ np.diag([0.5, 1.1, 1.6]) @ axes.T, [5.0, -3, 8])
    center = np.array([10.0, 20, -30])
    limited = g.limit_strain(matrix, 0.2, center)
    expected = turn @ axes @ np.diag([np.exp(-0.2), 1.1, np.exp(0.2)]) @ axes.T
    np.testing.assert_allclose(limited[:3, :3], expected, atol=1e-12)
    np.testing.assert_allclose(g.transform_points(limited, center[None]), g.transform_points(matrix, center[None]))
    np.testing.assert_allclose(g.limit_strain(matrix, 1.0, center), matrix, atol=1e-12)
