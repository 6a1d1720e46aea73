"""The networks in parts that can be checked by hand; test_fixtures.py checks the published one as a whole."""

from __future__ import annotations

import inspect
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.method.diffusion import homogeneous  # noqa: E402
from SpatialDiffusionCore.networks import affine_transformer, build, front, layers, matches  # noqa: E402
from SpatialDiffusionCore.networks import points as points_module
from SpatialDiffusionCore.networks import pyramid as n

SMALL = {"volume_size": [20, 24, 18], "channels": [2, 4, 8, 8, 8, 8, 8], "groups": 4, "time_width": 16}
SHARED = {"volume_size": [24, 32, 16], "channels": [4, 8, 8, 8], "groups": 4, "time_width": 16}
SIZES = {"matrix": SMALL, "points": {**SHARED, "points": 6}, "matches": {**SHARED, "features": 8, "cells": 150}}


def built(head="matrix", seed=0, **more):
    torch.manual_seed(seed)
    return build.build({"head": head, **SIZES[head], **more}).eval()


def pair(batch=2, size=(20, 24, 18), seed=1):
    return torch.rand(2, batch, 1, *size, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- convolutions
@pytest.mark.parametrize("kernel, stride, padding, bias", [(3, 1, 1, True), (4, 2, 1, True), (1, 1, 0, False)])
@pytest.mark.parametrize("size", [(6, 5, 7), (32, 32, 32)])
def test_a_volume_alone_is_convolved_like_any_other(kernel, stride, padding, bias, size):
    torch.manual_seed(0)
    layer = layers.Convolution(3, 4, kernel, stride, padding, bias=bias)
    plain = torch.nn.Conv3d(3, 4, kernel, stride, padding, bias=bias)
    plain.load_state_dict(layer.state_dict())
    for volumes in (torch.rand(1, 3, *size), torch.rand(2, *size, 3).movedim(4, 1)[1:], torch.rand(2, 3, *size)):
        expected = plain(volumes)
        assert torch.allclose(layer(volumes), expected, atol=1e-5)  # with gradients, too
        with torch.no_grad():
            assert torch.allclose(layer(volumes), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- the codes
def test_the_time_code_is_sines_then_cosines_of_falling_frequencies():
    code = layers.sinusoidal_code(torch.tensor([1, 65]), 256)
    assert code.shape == (2, 256)
    for row, t in ((0, 1), (1, 65)):
        for k in (0, 1, 64, 127):
            frequency = math.exp(-k * math.log(10000) / 127)
            assert code[row, k] == pytest.approx(math.sin(t * frequency), abs=1e-5)
            assert code[row, 128 + k] == pytest.approx(math.cos(t * frequency), abs=1e-5)


@settings(max_examples=12)
@given(st.tuples(*[st.integers(6, 40)] * 3))
def test_the_head_covers_the_grid_that_remains_of_any_size(size):
    network = built(volume_size=list(size))
    with torch.no_grad():
        code = torch.zeros(1, 16)
        features = network.encoder(torch.zeros(1, 2, *size), code, [None] * 5)
    assert tuple(features.shape[2:]) == layers.remaining_grid(size) == tuple(network.output_head[2].kernel_size)
    a, b = pair(1, size)
    assert network(a, b, torch.ones(1)).shape == (1, 3, 4)


def test_the_network_has_the_published_defaults_and_keys():
    defaults = {k: p.default for k, p in inspect.signature(affine_transformer.AffineTransformer).parameters.items()}
    assert defaults["channels"] == (2, 64, 128, 256, 256, 512, 1024) and defaults["groups"] == 32
    assert (defaults["time_width"], defaults["class_dropout"]) == (256, 0.15)
    network = build.build(
        {"volume_size": [256] * 3, "channels": [2, 8, 16, 32, 32, 64, 128], "groups": 8, "n_classes": 4}
    )
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["time_mlp.0.weight"] == (1024, 256) and shapes["time_mlp.2.weight"] == (256, 1024)
    assert shapes["encoder.in_conv.weight"] == (8, 2, 4, 4, 4)
    assert shapes["encoder.encoder.0.conv1.2.weight"] == (16, 8, 3, 3, 3)
    assert shapes["encoder.encoder.4.conv2.2.weight"] == (128, 128, 3, 3, 3)
    assert shapes["encoder.encoder.0.res_conv.1.weight"] == (16, 8, 1, 1, 1)
    assert "encoder.encoder.2.res_conv.1.weight" not in shapes  # 32 → 32: no change of channels
    assert shapes["encoder.encoder.3.time_embed.1.weight"] == (64, 256)
    assert shapes["encoder.encoder.3.class_embedding.weight"] == (5, 64)
    assert shapes["output_head.2.weight"] == (12, 128, 4, 4, 4)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {m.eps for m in norms} == {1e-5} and len(norms) == 11
    assert {m.approximate for m in network.modules() if isinstance(m, torch.nn.GELU)} == {"none"}


def test_a_network_with_a_silent_head_predicts_the_identity():
    network = built()
    torch.nn.init.zeros_(network.output_head[2].weight)
    torch.nn.init.zeros_(network.output_head[2].bias)
    assert torch.equal(network(*pair(), torch.tensor([3, 60])), torch.eye(3, 4).repeat(2, 1, 1))


def test_rows_of_the_output_are_rows_of_the_affine():
    network = built()
    torch.nn.init.zeros_(network.output_head[2].weight)
    network.output_head[2].bias.data = torch.arange(12.0)
    theta = network(*pair(1), torch.tensor([3])) - torch.eye(3, 4)
    assert torch.allclose(theta[0], torch.arange(12.0).reshape(3, 4))


# ------------------------------------------------------------------------------------------------------- inputs
@pytest.mark.parametrize("head", ["matrix", "points", "matches"])
def test_each_input_counts_and_samples_do_not_mix(head):
    network = built(head, n_classes=2)
    size = tuple(network.volume_size)
    (a, b), t = pair(2, size), torch.tensor([5, 40])
    theta = network(a, b, t, torch.tensor([1, 2]))
    assert theta.shape == (2, 3, 4)
    for index in range(2):
        alone = network(a[index : index + 1], b[index : index + 1], t[index : index + 1], torch.tensor([index + 1]))
        assert torch.allclose(alone[0], theta[index], atol=1e-4)
    assert not torch.allclose(network(b, a, t, torch.tensor([1, 2])), theta, atol=1e-4)
    assert not torch.allclose(network(a, b, t + 20, torch.tensor([1, 2])), theta, atol=1e-6)
    assert not torch.allclose(network(a, b, t, torch.tensor([2, 1])), theta, atol=1e-5)
    assert torch.equal(network(a, b, t), network(a, b, t, torch.tensor([0, 0])))  # no class given: class 0


def test_volumes_of_another_size_are_resized_first():
    network = built()
    a, b = pair(2, (30, 17, 22))
    smaller = [torch.nn.functional.interpolate(v, size=(20, 24, 18), mode="trilinear") for v in (a, b)]
    t = torch.tensor([5, 40])
    assert torch.equal(network(a, b, t), network(*smaller, t))


def test_an_unconditional_network_has_no_classes_and_ignores_ids():
    network = built(n_classes=1)
    assert not any("class_embedding" in key for key in network.state_dict())
    a, b = pair()
    t = torch.tensor([5, 40])
    assert torch.equal(network(a, b, t, torch.tensor([3, 7])), network(a, b, t))


def test_without_class_dropout_there_is_no_row_for_no_modality():
    assert built(n_classes=3, class_dropout=0.0).encoder.encoder[0].class_embedding.num_embeddings == 3
    assert built(n_classes=3).encoder.encoder[0].class_embedding.num_embeddings == 4


def test_classes_are_dropped_in_training_only_and_independently_in_every_block():
    network = built(n_classes=3)
    ids = torch.full((4000,), 2)
    assert all(torch.equal(used, ids) for used in network.class_ids(ids, 4000, "cpu", 5))
    network.train()
    torch.manual_seed(0)
    used = torch.stack(network.class_ids(ids, 4000, "cpu", 5))
    assert set(used.unique().tolist()) == {0, 2}
    dropped = (used == 0).double()
    assert torch.allclose(dropped.mean(dim=1), torch.full((5,), 0.15, dtype=torch.float64), atol=0.025)
    assert (torch.corrcoef(dropped) - torch.eye(5)).abs().max() < 0.06


# ------------------------------------------------------------------------------------------------ preprocessing
@pytest.mark.parametrize("omega", [0.5, 0.95])
@pytest.mark.parametrize("angle", [0.0, math.pi / 2])
def test_the_gabor_kernel_follows_its_formula(omega, angle):
    kernel = affine_transformer.gabor_kernel(omega, angle)
    assert kernel.shape == (5, 5, 5) and kernel.sum() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(kernel, kernel.flip(0, 1, 2), atol=1e-7)

    def value(z, y, x):
        along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
        spread = -(omega**2) / (8 * math.pi**2) * (4 * along**2 + across**2 + z**2)
        return math.exp(spread) * math.cos(omega * along)

    total = sum(value(z, y, x) for z in range(-2, 3) for y in range(-2, 3) for x in range(-2, 3))
    for z, y, x in ((0, 0, 0), (-2, 1, 0), (1, -2, 2), (0, 0, 2), (0, 2, 0)):
        assert kernel[z + 2, y + 2, x + 2] == pytest.approx(value(z, y, x) / total, abs=1e-6)


def test_preprocessing_is_a_threshold_of_the_larger_response():
    volume = pair(1)[0]
    assert affine_transformer.preprocess(volume, "none") is volume
    for name, omega, threshold in (("oct", 0.5, -0.4), ("octa", 0.95, -0.5)):
        responses = [
            torch.nn.functional.conv3d(volume, affine_transformer.gabor_kernel(omega, angle)[None, None], padding=2) * 2
            - 1
            for angle in (math.pi / 2, 0.0)
        ]
        larger = torch.maximum(*responses)
        sure = (larger - threshold).abs() > 1e-5
        result = affine_transformer.preprocess(volume, name)
        assert set(result.unique().tolist()) <= {0.0, 1.0} and result.dtype == volume.dtype
        assert torch.equal(result[sure], (larger >= threshold).float()[sure])
    black, white = torch.zeros(1, 1, 9, 9, 9), torch.ones(1, 1, 9, 9, 9)
    assert (affine_transformer.preprocess(black, "oct") == 0).all() and (
        affine_transformer.preprocess(white, "oct")[..., 4, 4, 4] == 1
    ).all()
    with pytest.raises(ValueError, match="none, oct, octa"):
        affine_transformer.preprocess(volume, "mri")


@pytest.mark.parametrize("head", ["matrix", "points", "matches"])
def test_each_volume_is_preprocessed_by_its_own_modality(head):
    network = built(head)
    (a, b), t = pair(1, tuple(network.volume_size)), torch.tensor([9])
    mixed = network(a, b, t, None, ("octa", "none"))
    assert torch.allclose(mixed, network(affine_transformer.preprocess(a, "octa"), b, t), atol=1e-4)
    mixed = network(a, b, t, None, ("none", "oct"))
    assert torch.allclose(mixed, network(a, affine_transformer.preprocess(b, "oct"), t), atol=1e-4)


# ----------------------------------------------------------------------------------------------- feature points
def test_weighted_least_squares_finds_the_affine_of_exact_correspondences():
    generator = torch.Generator().manual_seed(0)
    theta = torch.eye(3, 4) + 0.3 * torch.randn(4, 3, 4, generator=generator)
    source = torch.rand(4, 40, 3, generator=generator) * 2 - 1
    points = torch.cat([source, torch.ones(4, 40, 1)], dim=2)
    target = (points @ homogeneous(theta).transpose(1, 2))[..., :3]
    weights = torch.rand(4, 40, generator=generator) + 0.1
    assert torch.allclose(n.solve_affine(source, target, weights, ridge=0.0), theta, atol=1e-4)
    target[:, 30:] += 1.0  # wrong points without weight do no harm
    weights[:, 30:] = 0
    assert torch.allclose(n.solve_affine(source, target, weights, ridge=1e-7), theta, atol=1e-4)


def test_points_in_a_plane_leave_the_missing_direction_alone():
    source = torch.rand(1, 30, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    source[..., 2] = 0.3
    theta = n.solve_affine(source, source * torch.tensor([1.2, 1.0, 1.0]), torch.ones(1, 30))
    expected = torch.diag(torch.tensor([1.2, 1.0, 1.0]))
    assert torch.isfinite(theta).all() and torch.allclose(theta[0, :, :3], expected, atol=1e-3)


def test_the_center_of_mass_of_a_sharp_heat_map_is_its_voxel_in_normalized_coordinates():
    heat = torch.full((1, 2, 6, 8, 10), -50.0)
    heat[0, 0, 1, 2, 3] = heat[0, 1, 5, 7, 0] = 50.0
    centers = points_module.centers_of_mass(heat)
    expected = [[2 * 3.5 / 10 - 1, 2 * 2.5 / 8 - 1, 2 * 1.5 / 6 - 1], [1 / 10 - 1, 2 * 7.5 / 8 - 1, 2 * 5.5 / 6 - 1]]
    assert torch.allclose(centers[0], torch.tensor(expected), atol=1e-5)


def test_the_point_network_maps_equal_volumes_by_the_identity_and_learns():
    network = built("points")
    a, b = pair(1, tuple(network.volume_size))
    assert torch.allclose(network(a, a, torch.tensor([9])), torch.eye(3, 4)[None], atol=1e-4)
    network(a, b, torch.tensor([9])).square().sum().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert not missing


# ------------------------------------------------------------------------------------------------------- matches
def test_unlearned_matches_find_a_shift_by_whole_cells():
    """Any features tell the cells of a volume apart; the same cells elsewhere are found where they went."""
    network = built("matches", volume_size=[32, 32, 32], cells=64)
    with torch.no_grad():  # no prior on where the likes lie, cosines that decide
        network.nearness[-1].weight.zero_()
        network.nearness[-1].bias.fill_(-20.0)
        network.log_sharpness.fill_(math.log(5000.0))
        network.up8.weight.zero_(), network.up8.bias.zero_(), network.up4.weight.zero_(), network.up4.bias.zero_()
    moving = torch.zeros(1, 1, 32, 32, 32)
    moving[..., 8:24, 8:24, 4:20] = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(2)) + 0.2
    fixed = moving.roll(8, dims=4)  # what is at x in the fixed volume lies 8 voxels = 0.5 lower in the moving one
    theta = network(fixed, moving, torch.tensor([9]))
    expected = torch.eye(3, 4)
    expected[0, 3] = -0.5
    assert torch.allclose(theta[0], expected, atol=0.02)


def test_the_entropy_of_matches_is_least_at_the_true_places():
    centers = matches.cell_centers((4, 4, 4), "cpu")[None]
    sure = torch.full((1, 64, 64), -20.0)
    sure[0].fill_diagonal_(20.0)
    rows, columns = sure.log_softmax(2), sure.log_softmax(1)
    shifted = torch.eye(3, 4)[None].clone()
    shifted[0, 0, 3] = 0.5  # one cell to the right
    mixed = torch.randperm(64, generator=torch.Generator().manual_seed(3))  # the order of the cells does not matter
    right = matches.match_entropy(
        rows[:, :, mixed], columns[:, :, mixed], centers, centers[:, mixed], torch.eye(3, 4)[None], (4, 4, 4)
    )
    wrong = matches.match_entropy(rows, columns, centers, centers, shifted, (4, 4, 4))
    assert right.item() == pytest.approx(0.0, abs=1e-4) and wrong.item() == pytest.approx(40.0, rel=1e-3)
    shifted[0, 0, 3] = 10.0  # nothing is there
    assert matches.match_entropy(rows, columns, centers, centers, shifted, (4, 4, 4)).item() == 0.0
    between = torch.eye(3, 4)[None].clone()
    between[0, 0, 3] = (
        0.125  # a quarter of a cell: a quarter of the weight lies where no match is, but for the last of a row
    )
    some = matches.match_entropy(rows, columns, centers, centers, between, (4, 4, 4)).item()
    assert some == pytest.approx(0.25 * 40 * 48 / (48 + 16 * 0.75), rel=1e-3)


def test_the_match_network_learns_from_its_matches_and_from_the_affine():
    for fine in (0, 8):
        network = built("matches", fine=fine).train()
        a, b = pair(1, tuple(network.volume_size))
        looks, entropy = network(a, b, torch.tensor([9]), target=torch.eye(3, 4)[None])
        assert len(looks) == (2 if fine else 1) and entropy.shape == (1,) and entropy > 0
        assert all(theta.shape == (1, 3, 4) for theta in looks)
        (sum(theta.square().sum() for theta in looks) + entropy.sum()).backward()
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_a_second_look_finds_what_lies_a_cell_from_where_the_first_one_ends():
    network = built("matches", volume_size=[32, 32, 32], cells=512, fine=8)
    with torch.no_grad():
        network.log_sharpness2.fill_(math.log(500.0))
    shift = 2  # fine cells, along W
    scene = torch.randn(1, 9, 16, 16, 20, generator=torch.Generator().manual_seed(4))
    fixed, moving = scene[..., shift : shift + 16], scene[..., :16]  # lies higher by two fine cells in the moving one
    kept = torch.arange(512)[None]
    theta, trust = torch.eye(3, 4)[None].clone(), torch.zeros(1, 512)
    theta[0, 0, 3] = 2 / 16  # the first look: one fine cell of the two
    source, places, found, sure = network.look_again(
        (*[None] * 4, kept, fixed), (*[None] * 4, kept, moving), trust, theta
    )
    assert source.shape == (1, 256, 3) and places.shape == (1, 256, 125, 3) and sure.shape == (1, 256)
    aim, inside = (found.exp()[..., None] * places).sum(2), source[0, :, 0] < 0.6
    assert torch.allclose((aim - source)[0, inside], torch.tensor([4 / 16, 0, 0]), atol=1e-3)


# ------------------------------------------------------------------------------------------------------ building
def test_an_architecture_that_went_through_json_builds_the_same_network():
    for head in ("matrix", "points", "matches"):
        network = built(head, n_classes=2)
        again = build.build(json.loads(json.dumps(network.architecture))).eval()
        again.load_state_dict(network.state_dict())
        (a, b), t = pair(1, tuple(network.volume_size)), torch.tensor([9])
        assert torch.equal(again(a, b, t), network(a, b, t))
    nothing = build.build({"head": "none", "volume_size": [16, 12, 16]})
    assert not list(nothing.parameters())
    assert torch.equal(nothing(*pair(2, (16, 12, 16)), torch.tensor([9, 9])), torch.eye(3, 4).repeat(2, 1, 1))
    with pytest.raises(ValueError, match="matrix, points"):
        build.build({"head": "flow", "volume_size": [16] * 3})


def test_one_fixed_volume_for_many_poses_is_seen_once_and_gives_the_same():
    network = built("points")
    fixed, moving = pair(3, (24, 32, 16))
    seen = []
    describe = network.describe
    network.describe = lambda volume, *more: seen.append(len(volume)) or describe(volume, *more)
    t = torch.full((3,), 7)
    with torch.no_grad():
        expanded = network(fixed[:1].expand(3, -1, -1, -1, -1), moving, t)
        copied = network(fixed[:1].repeat(3, 1, 1, 1, 1), moving, t)
    assert seen == [1, 3, 6]
    torch.testing.assert_close(expanded, copied, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------- from the front
def retina(shape=(48, 16, 48), seed=5):
    """A bright slab whose brightness varies from place to place and whose middle lies at the depths returned, D×W
    voxels.
    """
    coarse = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    light = torch.nn.functional.interpolate(coarse, size=(shape[0], shape[2]), mode="bilinear")[0, 0]
    middle = 7.0 + torch.linspace(-2, 2, shape[2]).expand(shape[0], -1)
    depth = torch.arange(shape[1]).float()[None, :, None]
    return (light[:, None] * 0.7 + 0.3) * (1 - (depth - middle[:, None]).abs() / 4).clamp_min(0), middle


def test_seen_from_the_front_a_scan_is_two_maps_and_the_depth_of_its_middle():
    scan, middle = retina()
    scan[:, :, 40:] = 0  # nothing was scanned there
    maps, height, known = front.front_view(scan[None, None])
    assert maps.shape == (1, 1, 48, 2, 48) and height.shape == known.shape == (1, 1, 48, 1, 48)
    assert (
        bool((known[..., :38] == 1).all())
        and bool((known[..., 42:] == 0).all())
        and bool((height[..., 42:] == 0).all())
    )
    assert maps.min() >= 0 and maps.max() <= 1
    inside = height[0, 0, 4:-4, 0, 4:34]
    assert torch.allclose(inside, ((2 * middle + 1) / 16 - 1)[4:-4, 4:34], atol=0.02)  # normalized y


def test_each_scan_of_a_batch_is_seen_as_it_is_alone():
    scans = torch.stack([retina()[0], retina(seed=6)[0] * 0.5, torch.zeros(48, 16, 48)])[:, None]
    scans[1, :, :, :, 30:] = 0
    for part, *alone in zip(front.front_view(scans), *(front.front_view(scan[None]) for scan in scans)):
        assert torch.allclose(part, torch.cat(alone), atol=1e-6) and bool(torch.isfinite(part).all())


def test_matches_of_maps_are_places_in_depth_too_and_learn():
    network = built("matches", volume_size=[48, 16, 48], cells=144, fine=8, front=True)
    with torch.no_grad():
        network.log_sharpness.fill_(math.log(5000.0))
        network.log_sharpness2.fill_(math.log(500.0))
    fixed = retina()[0][None, None]
    moving, seen = fixed.roll(1, dims=3), ("front", "front")  # a voxel deeper: 2/16 in normalized y
    theta = network(fixed, moving, torch.tensor([9]), preprocessing=seen)
    points = torch.tensor([[-0.3, -0.2, -0.4], [0.4, 0.0, 0.3], [0.0, -0.1, 0.1]])
    there = points @ theta[0, :, :3].T + theta[0, :, 3]
    assert torch.allclose(there, points + torch.tensor([0.0, 2 / 16, 0.0]), atol=0.01)
    looks, entropy = network.train()(fixed, moving, torch.tensor([9]), None, seen, target=torch.eye(3, 4)[None])
    (sum(look.square().sum() for look in looks) + entropy.sum()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
