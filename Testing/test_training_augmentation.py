"""What every artifact of training must keep, whatever its random numbers."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.method import diffusion  # noqa: E402
from SpatialDiffusionTraining import augmentation as a  # noqa: E402
from SpatialDiffusionTraining import losses  # noqa: E402

SHAPE = (20, 24, 22)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def volumes(count=3, shape=SHAPE):
    """Smooth blobs in air, 0..1."""
    controls = torch.randn(count, 4, 4, 4, 1, generator=generator(9))
    field = a.smooth_field(controls, shape).permute(0, 4, 1, 2, 3).contiguous()
    inside = a.smooth_field(torch.zeros(1, 4, 4, 4, 1), shape) * 0 + 1
    for axis, n in enumerate(shape):
        view = [1, 1, 1, 1, 1]
        view[axis + 1] = n
        inside = inside * (a.voxel_centers(n).abs() < 0.7).view(view)
    return (field.sigmoid() * inside.permute(0, 4, 1, 2, 3)).contiguous()


def grid_points(shape=SHAPE):
    z, y, x = torch.meshgrid(*(a.voxel_centers(n) for n in shape), indexing="ij")
    return torch.stack([x, y, z], -1)


@pytest.mark.parametrize("name", list(a.FILTERS))
def test_filters_keep_range_shape_and_other_samples(name):
    pipeline = a.Corruption({name: {"probability": 1.0}})
    source = volumes()
    draws = pipeline.draw(3, generator(1))
    draws[name]["on"] = torch.tensor([True, False, True])
    result = pipeline.filter(source.clone(), draws)
    assert result.shape == source.shape and torch.isfinite(result).all()
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(result[1], source[1].clamp(0, 1))
    assert not torch.equal(result[0], source[0]) or not torch.equal(result[2], source[2])


@pytest.mark.parametrize("name", list(a.FILTERS))
def test_a_sample_does_not_depend_on_its_batch(name):
    """So that processes which share a global batch see what one process would see."""
    pipeline = a.Corruption({name: {"probability": 1.0}})
    source, draws = volumes(), pipeline.draw(3, generator(2))
    whole = pipeline.filter(source.clone(), draws)
    rows = torch.tensor([2])
    alone = pipeline.filter(source[rows].clone(), a.take(draws, rows))
    assert torch.allclose(whole[2], alone[0], atol=1e-5)


def test_strength_zero_leaves_the_volume_alone():
    pipeline = a.Corruption({n: {"probability": 1.0} for n in a.ARTIFACTS}, strength=0.0)
    source = volumes()
    draws = pipeline.draw(3, generator(3))
    identity = torch.eye(3, 4).expand(3, -1, -1)
    result = pipeline.filter(pipeline.warp(source, identity, draws), draws)
    assert torch.allclose(result, source, atol=1e-4)


def test_unknown_artifacts_and_impossible_probabilities_are_refused():
    with pytest.raises(ValueError, match="unknown artifacts"):
        a.Corruption({"sparkle": {}})
    with pytest.raises(ValueError, match="probability"):
        a.Corruption({"noise": {"probability": 2}})


@pytest.mark.parametrize(
    "shape, controls", [((24, 24, 24), (7, 7, 7)), ((20, 32, 26), (14, 7, 7)), ((16, 16, 16), (4, 5, 6))]
)
def test_deformation_carries_no_affine(shape, controls):
    deformation = a.Deformation(controls=controls, amplitude=0.05)
    settled = deformation.displace(deformation.draw(4, generator(4)), shape)
    field = a.smooth_field(settled, shape).reshape(4, -1, 3).double()
    points = grid_points(shape).reshape(-1, 3).double()
    design = torch.cat([torch.ones(len(points), 1, dtype=torch.float64), points], 1)
    fitted = torch.linalg.lstsq(design, field[0]).solution
    assert field[0].abs().max() > 0.02  # there is a deformation left
    assert fitted.abs().max() < 1e-5


def test_deformation_of_an_affine_field_is_nothing():
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (14, 7, 7)), indexing="ij")
    places = torch.stack([torch.ones_like(x), x, y, z], -1)
    controls = places[None] @ torch.randn(4, 3, generator=generator(5))
    assert a.Deformation().settle(controls, (24, 20, 28)).abs().max() < 1e-5


def test_splines_reproduce_lines():
    matrix = a.spline_matrix(31, 9)
    line = torch.linspace(-1, 1, 9)
    assert torch.allclose(matrix.sum(1), torch.ones(31), atol=1e-6)
    assert torch.allclose(matrix @ line, a.voxel_centers(31), atol=1e-6)


def test_one_read_equals_pose_after_affine():
    """Sampling at pose(affine(x)) is what sampling twice would give, up to interpolation."""
    source = volumes(2, (32, 32, 32))
    pose = a.Pose(rotation_degrees=20, shift=0.03, scale=0.05).draw(2, generator(6), (32, 32, 32))
    affine = a.Pose(rotation_degrees=10, shift=0.02, scale=0.0).draw(2, generator(7), (32, 32, 32))
    twice = a.warp(a.warp(source, pose), affine)
    once = a.warp(source, diffusion.compose(pose, affine))
    assert (twice - once).abs().mean() < 0.01


def test_pose_is_a_similarity_of_voxels_on_any_grid():
    half = torch.tensor([11.0, 12.0, 10.0])
    pose = a.Pose(rotation_degrees=70, scale=0.2, free=0.5).draw(8, generator(8), SHAPE)
    voxels = pose[:, :, :3] * half[:, None] / half
    gram = voxels @ voxels.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    assert torch.allclose(gram / size, torch.eye(3).expand(8, 3, 3), atol=1e-5)
    assert (torch.linalg.det(voxels) > 0).all()
    assert (size.sqrt().log().abs() <= 0.2 + 1e-5).all()


def test_published_pose_turns_in_one_plane():
    pose = a.Pose(rotation_degrees=180, rotation_axis="y", scale=0.0).draw(4, generator(9), (16, 16, 16))
    assert torch.allclose(pose[:, 1, :3], torch.tensor([0.0, 1.0, 0.0]).expand(4, 3))


def test_motion_moves_slabs_rigidly_and_leaves_the_rest():
    motion = a.Motion(most=3, thickness=(0.1, 0.2), shift=(0.05, 0.1))
    draw = motion.draw(50, generator(10))
    profile = motion.profile(draw, 64)
    used = profile.abs().sum((2, 3)) > 0
    assert (used.sum(1) == 1).all()  # one slab axis per sample
    for sample in range(50):
        axis = int(draw["axis"][sample])
        moved = profile[sample, axis]
        assert (moved[:, 2 - axis] == 0).all()  # never across the slices
        assert ((moved != 0).any(1).float().mean()) < 0.7
    assert profile.abs().max() <= 0.5


def test_published_motion_rolls_slabs_in_their_plane():
    """As numpy.roll by whole voxels: what leaves on one side comes in on the other, under any affine afterwards."""
    size = 20
    source = torch.rand(2, 1, size, size, size, generator=generator(10))
    pipeline = a.Corruption({"motion": {"probability": 1.0, "roll": True}})
    cases = {"axis": [0, 2], "direction": [1, 0], "shift": [2 * 4 / size, -2 * 5 / size]}
    draw = {"start": torch.tensor([[0.25], [0.5]]), "length": torch.tensor([[0.25], [0.2]]),
            "shift": torch.tensor(cases["shift"])[:, None], "axis": torch.tensor(cases["axis"]),
            "direction": torch.tensor(cases["direction"]), "on": torch.tensor([True, True])}  # fmt: skip
    result = pipeline.warp(source, torch.eye(3, 4).repeat(2, 1, 1), {"motion": draw})
    expected = source.clone()
    expected[0, 0, 5:10] = torch.roll(source[0, 0, 5:10], -4, dims=1)
    expected[1, 0, :, :, 10:14] = torch.roll(source[1, 0, :, :, 10:14], 5, dims=0)
    assert torch.allclose(result, expected, atol=1e-4)
    black = a.Corruption({"motion": {"probability": 1.0}}).warp(
        source, torch.eye(3, 4).repeat(2, 1, 1), {"motion": draw}
    )
    assert (black[0, 0, 5:10, -3:] == 0).all() and (result[0, 0, 5:10, -3:] > 0).any()
    # Under an affine: the same as rolling first and moving then, up to interpolation.
    smooth = volumes(1, (24, 24, 24))
    pose = a.Pose(rotation_degrees=0, shift=0.0, scale=0.1).draw(1, generator(3), (24, 24, 24))
    one = a.take(draw, torch.tensor([0]))
    whole = pipeline.warp(smooth, torch.eye(3, 4)[None], {"motion": one})
    assert (whole.mean() - smooth.mean()).abs() < 1e-3  # nothing is lost
    assert torch.isfinite(pipeline.warp(smooth, pose, {"motion": one})).all()


def test_stretch_repeats_one_slice():
    stretch = a.Stretch(most=1, thickness=(0.3, 0.3))
    draw = stretch.draw(1, generator(11))
    axis = int(draw["axis"])
    place = a.voxel_centers(40) + stretch.profile(draw, 40)[0, axis, :, 2 - axis]
    repeated = place[1:] - place[:-1] < 1e-5
    assert 10 <= int(repeated.sum()) <= 13


def test_contrast_keeps_air_and_monotone_curves_rise():
    contrast = a.Contrast(monotone=1.0)
    draw = contrast.draw(20, generator(12))
    assert (draw["curve"].diff(dim=1) >= 0).all() and draw["curve"].max() <= 1 + 1e-6
    source = volumes()
    changed = contrast.apply(source, {"curve": a.Contrast(monotone=0.0).draw(3, generator(13))["curve"]})
    assert (changed[source == 0] == 0).all()
    values = source[0].flatten().mul(255).round()
    for level in values.unique()[:20]:
        assert changed[0].flatten()[values == level].unique().numel() == 1  # one map for the whole volume


def test_field_of_view_keeps_what_it_promises():
    view = a.FieldOfView(keep=0.6, rotation_degrees=0, one_sided=0.0)
    kept = view.apply(torch.ones(40, 1, 50, 50, 50), view.draw(40, generator(14))) > 0
    for others in ((1, 3, 4), (1, 2, 4), (1, 2, 3)):
        assert kept.amax(dim=others).float().mean(1).min() >= 0.58
    half = a.FieldOfView(keep=0.6, axes=(0, 2), rotation_degrees=0)
    kept = half.apply(torch.ones(40, 1, 20, 20, 20), half.draw(40, generator(15))) > 0
    assert kept.amax(dim=(1, 2, 4)).all()  # never cut along H


def test_blur_and_thick_slices_keep_constants_and_smooth():
    flat = torch.full((2, 1, *SHAPE), 0.5)
    for artifact in (a.Blur(), a.ThickSlices()):
        draw = artifact.draw(2, generator(16))
        assert torch.allclose(artifact.apply(flat, draw), flat, atol=1e-4)
    noise = torch.rand(2, 1, 32, 32, 32, generator=generator(17))
    thick = a.ThickSlices(thickness=(0.1, 0.1))
    draw = thick.draw(2, generator(18))
    result = thick.apply(noise, draw)
    for sample in range(2):
        steps = [result[sample, 0].diff(dim=d).abs().mean() for d in range(3)]
        assert int(torch.stack(steps).argmin()) == int(draw["axis"][sample])


def test_doubling_shows_the_copy_where_it_was_shifted():
    point = torch.zeros(1, 1, 32, 32, 32)
    point[0, 0, 16, 16, 16] = 1
    shifted = {"shift": torch.tensor([[4 / 32, -2 / 32, 0.0]]), "weight": torch.tensor([0.25])}
    result = a.Doubling().apply(point, shifted)
    assert result[0, 0, 16, 16, 16] == pytest.approx(0.75)
    assert result[0, 0, 12, 18, 16] == pytest.approx(0.25, abs=1e-4)


def test_noise_has_its_deviation_and_spares_air():
    source = torch.full((1, 1, 32, 32, 32), 0.5)
    source[:, :, :16] = 0
    draw = {
        "sigma": torch.tensor([0.05]),
        "start": torch.tensor([0.3], dtype=torch.float64),
        "inside": torch.tensor([True]),
    }
    result = a.Noise().apply(source.clone(), draw)
    assert (result[:, :, :16] == 0).all()
    assert result[:, :, 16:].std().item() == pytest.approx(0.05, rel=0.05)


def test_shadow_only_darkens():
    source = volumes()
    shadow = a.Shadow()
    draw = shadow.draw(3, generator(19))
    mask = a.smooth_field(draw["mask"], SHAPE).clamp(0, 1)
    assert mask.min() < 0.9
    result = shadow.apply(source, draw)
    assert result.min() == 0 and torch.allclose(result.amax((1, 2, 3, 4)), torch.ones(3))


def test_describe_names_every_parameter():
    described = a.describe()
    assert set(described) == set(a.ARTIFACTS) and "sigma" in described["noise"] and "most" in described["motion"]


# ------------------------------------------------------------------------------------------------- losses
def test_displacement_loss_is_the_mean_over_points():
    points = grid_points().reshape(-1, 3)[::7]
    mean, covariance = points.mean(0), torch.cov(points.T, correction=0)
    first = torch.eye(3, 4) + 0.1 * torch.randn(3, 4, generator=generator(20))
    second = torch.eye(3, 4) + 0.1 * torch.randn(3, 4, generator=generator(21))
    half = losses.half_edges(SHAPE, 2.5, points)
    assert half.tolist() == [22 * 1.25, 24 * 1.25, 20 * 1.25]
    moved = [(points @ m[:, :3].T + m[:, 3]) * half for m in (first, second)]
    expected = (moved[0] - moved[1]).square().sum(1).mean().sqrt()
    got = losses.displacement(first[None], second[None], mean[None], covariance[None], half)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)


def test_errors_and_expected_displacements_on_an_anisotropic_grid_are_millimeters():
    from SpatialDiffusionCore.method import diffusion
    from SpatialDiffusionCore.method.schedule import Schedule

    shape, spacing = (16, 24, 20), (0.1, 0.03, 0.12)
    half = losses.half_edges(shape, spacing, torch.zeros(1))
    assert half.tolist() == pytest.approx([20 * 0.06, 24 * 0.015, 16 * 0.05])
    shifted = torch.eye(3, 4)[None].clone()
    shifted[0, 1, 3] = 2 / 24  # one voxel along H
    mean, covariance = torch.zeros(1, 3), 0.1 * torch.eye(3)[None]
    error = losses.displacement(shifted, torch.eye(3, 4)[None], mean, covariance, half).item()
    assert error == pytest.approx(math.hypot(0.03, 0.01), rel=1e-5)  # 0.01: the root's floor
    schedule, count = Schedule(transform_range=(0.01, 0.05), translation_range=(0.1, 0.5)), 4000
    mean, covariance = torch.zeros(count, 3), torch.diag(torch.tensor([0.25, 0.04, 0.25])).expand(count, 3, 3)
    for step in (5, 40):
        t = torch.full((count,), step)
        theta, _ = diffusion.draw(schedule, t, shape, generator(23), rigid_share=0.0)
        real = losses.displacement(theta, torch.eye(3, 4).expand(count, 3, 4), mean, covariance, half)
        expected = losses.expected_displacement(schedule, t, mean, covariance, half, spacing)
        assert 0.5 < (real.square().mean().sqrt() / expected[0]).item() < 1.3


def test_a_pose_on_an_anisotropic_grid_is_a_rotation_of_millimeters_about_depth_with_a_small_tilt():
    shape, spacing = (16, 24, 20), (0.1, 0.03, 0.12)
    draw = a.Pose(rotation_degrees=180, rotation_axis="y", tilt_degrees=5, shift=0.0, scale=0.0)
    pose = draw.draw(200, generator(9), shape, spacing)[:, :, :3]
    half = losses.half_edges(shape, spacing, torch.zeros(1))
    turned = half[:, None] * pose / half
    assert torch.allclose(turned @ turned.transpose(1, 2), torch.eye(3).expand(200, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turned), torch.ones(200), atol=1e-5)
    tilt = torch.rad2deg(torch.acos(turned[:, 1, 1].clamp(max=1)))
    assert tilt.max() <= 5.05 and 1.5 < tilt.median() < 3.5
    about_depth = torch.rad2deg(torch.atan2(turned[:, 0, 2], turned[:, 0, 0]))
    assert about_depth.min() < -170 and about_depth.max() > 170


def test_moments_follow_the_tissue():
    """Tissue at p in the source appears at affine⁻¹(p) in a volume sampled at affine."""
    points = grid_points().reshape(-1, 3)[::5] * 0.4
    affine = a.Pose(rotation_degrees=40, shift=0.05, scale=0.1).draw(1, generator(22), SHAPE)
    mean, covariance = losses.moved_moments(points.mean(0)[None], torch.cov(points.T, correction=0)[None], affine)
    inverse = torch.linalg.inv(affine[0, :, :3])
    seen = (points - affine[0, :, 3]) @ inverse.T
    assert torch.allclose(mean[0], seen.mean(0), atol=1e-5)
    assert torch.allclose(covariance[0], torch.cov(seen.T, correction=0), atol=1e-5)


def test_the_expected_displacement_is_what_the_diffusion_does():
    from SpatialDiffusionCore.method import diffusion
    from SpatialDiffusionCore.method.schedule import Schedule

    schedule, count = Schedule(transform_range=(0.01, 0.05), translation_range=(0.1, 0.5)), 4000
    points = grid_points((16, 16, 16)).reshape(-1, 3) * 0.6
    mean, covariance = points.mean(0).expand(count, 3), torch.cov(points.T, correction=0).expand(count, 3, 3)
    half = losses.half_edges((16, 16, 16), 4.0, points)
    for step in (5, 40):
        t = torch.full((count,), step)
        theta, _ = diffusion.draw(schedule, t, (16, 16, 16), generator(23), rigid_share=0.0)
        real = losses.displacement(theta, torch.eye(3, 4).expand(count, 3, 4), mean, covariance, half)
        expected = losses.expected_displacement(schedule, t, mean, covariance, half, 4.0)
        assert 0.5 < (real.square().mean().sqrt() / expected[0]).item() < 1.3
    assert math.isfinite(losses.physical(theta, theta, t, schedule, mean, covariance, half, 4.0).sum().item())
