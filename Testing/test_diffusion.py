"""Draws in closed form, and the reverse process with a denoiser that knows the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore.method import diffusion as d  # noqa: E402
from SpatialDiffusionCore.method.schedule import Schedule  # noqa: E402

SIZE = (20, 24, 30)
SCHEDULE = Schedule()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def volumes(batch=1, size=SIZE, seed=0):
    return torch.rand(batch, 1, *size, generator=seeded(seed))


def drawn(t, count=20000, **options):
    theta, target = d.draw(SCHEDULE, torch.full((count,), t), SIZE, generator=seeded(t), **options)
    return theta.double(), target.double()


# ---------------------------------------------------------------------------------------------------- algebra
def test_affines_compose_and_invert_as_four_by_four_matrices_do():
    a, b = (d.draw(SCHEDULE, torch.full((5,), 40), SIZE, generator=seeded(s))[0] for s in (1, 2))
    product = d.homogeneous(a) @ d.homogeneous(b)
    assert torch.allclose(d.homogeneous(d.compose(a, b)), product, atol=1e-6)
    assert torch.allclose(d.compose(a, d.invert(a)), d.identity(5), atol=1e-5)
    assert torch.equal(d.compose(a, d.identity(5)), a) and torch.equal(d.blend(a, 1.0, 1.0), a)
    assert torch.equal(d.blend(a, 0.0, 0.0), d.identity(5))


def test_a_share_of_its_own_for_the_translation():
    theta = torch.arange(12.0).reshape(1, 3, 4)
    blended = d.blend(theta, 0.25, 0.5)
    assert torch.allclose(blended[:, :, :3], 0.75 * torch.eye(3) + 0.25 * theta[:, :, :3])
    assert torch.allclose(blended[:, :, 3], 0.5 * theta[:, :, 3])


def test_warping_by_two_affines_is_warping_by_their_product():
    """M ← M·θ' is the right side: the new affine acts on fixed coordinates first."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    smooth = (torch.exp(-3 * ((x - 0.1) ** 2 + (y + 0.1) ** 2 + 2 * z**2)))[None, None]
    a, b = (d.draw(SCHEDULE, torch.full((1,), 15), SIZE, generator=seeded(s))[0] for s in (3, 4))
    once, twice = d.warp(smooth, d.compose(a, b)), d.warp(d.warp(smooth, a), b)
    assert (once - twice).abs().mean() < 0.002
    assert (once - d.warp(d.warp(smooth, b), a)).abs().mean() > 3 * (once - twice).abs().mean()


def test_warping_is_exact_for_the_identity_and_zero_outside():
    volume = volumes(2)
    assert torch.allclose(d.warp(volume, d.identity(2)), volume, atol=5e-5)  # grid coordinates are float32
    away = d.identity(2)
    away[:, 0, 3] = 4.0
    assert (d.warp(volume, away) == 0).all()


# -------------------------------------------------------------------------------------------------------- draws
@pytest.mark.parametrize("t", [1, 20, 65])
@pytest.mark.parametrize("rigid_share", [0.0, 1.0])
def test_the_target_undoes_the_draw(t, rigid_share):
    theta, target = drawn(t, 200, rigid_share=rigid_share)
    assert theta.shape == target.shape == (200, 3, 4)
    assert torch.allclose(d.compose(theta, target), d.identity(200, theta), atol=2e-4)
    assert (torch.linalg.det(theta[:, :, :3]) > 0).all()


def clipped_std(deviation):
    """Standard deviation of a normal clipped at 2.5 deviations, in closed form."""
    c = d.CLIP
    density, beyond = math.exp(-c * c / 2) / math.sqrt(2 * math.pi), math.erfc(c / math.sqrt(2))
    return deviation * math.sqrt((1 - beyond) - 2 * c * density + c * c * beyond)


@pytest.mark.parametrize("t", [1, 20, 65])
def test_affine_draws_have_the_spectral_norm_of_their_timestep(t):
    """I + a·N/‖N‖₂ with a ~ N(0, S_t²): the spectral norm of the change is |a|."""
    theta, _ = drawn(t, rigid_share=0.0)
    change = theta[:, :, :3] - torch.eye(3, dtype=torch.float64)
    amount = torch.linalg.matrix_norm(change, ord=2)
    total = SCHEDULE.total_transform[t - 1]
    assert amount.square().mean().sqrt() == pytest.approx(clipped_std(total), rel=0.03)
    assert amount.max() <= min(0.99, d.CLIP * total) + 1e-5
    share_clipped = (amount > 0.999 * d.CLIP * total).double().mean()
    assert share_clipped == pytest.approx(math.erfc(d.CLIP / math.sqrt(2)), abs=0.004)
    # Neither direction nor sign is preferred.
    assert change.mean(0).abs().max() < 5 * total / math.sqrt(len(theta))


@pytest.mark.parametrize("t", [1, 20, 65])
def test_rigid_draws_are_rotations_with_log_scales(t):
    theta, _ = drawn(t, rigid_share=1.0)
    linear = theta[:, :, :3]
    gram = linear.transpose(1, 2) @ linear
    off_diagonal = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-5
    total = SCHEDULE.total_transform[t - 1]
    log_scales = gram.diagonal(dim1=1, dim2=2).log() / 2
    assert torch.allclose(log_scales.std(0), torch.full((3,), clipped_std(total), dtype=torch.float64), rtol=0.04)
    assert log_scales.abs().max() <= d.CLIP * total + 1e-5
    rotation = linear / log_scales.exp()[:, None]
    # Rx·Ry·Rz: the angles can be read off the product.
    angles = torch.stack(
        [
            torch.atan2(-rotation[:, 1, 2], rotation[:, 2, 2]),
            torch.asin(rotation[:, 0, 2].clamp(-1, 1)),
            torch.atan2(-rotation[:, 0, 1], rotation[:, 0, 0]),
        ],
        dim=1,
    )
    assert torch.allclose(angles.std(0), torch.full((3,), clipped_std(total), dtype=torch.float64), rtol=0.04)
    correlation = np.corrcoef(np.hstack([angles.numpy(), log_scales.numpy()]).T) - np.eye(6)
    assert np.abs(correlation).max() < 0.04


def test_euler_angles_are_turns_about_x_then_y_then_z():
    a, b, c = 0.3, -0.5, 0.7
    turns = [
        [[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]],
        [[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]],
        [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]],
    ]
    expected = torch.linalg.multi_dot([torch.tensor(t) for t in turns])
    assert torch.allclose(d.euler(torch.tensor([[a, b, c]]))[0], expected, atol=1e-6)


@pytest.mark.parametrize("t", [1, 65])
def test_translations_are_in_voxels_of_their_own_axis(t):
    """Rows of θ are x = W, y = H, z = D: each is divided by half of its own size."""
    theta, _ = drawn(t)
    voxels = theta[:, :, 3] * torch.tensor([SIZE[2], SIZE[1], SIZE[0]], dtype=torch.float64) / 2
    total = SCHEDULE.total_translation[t - 1]
    assert torch.allclose(voxels.std(0), torch.full((3,), clipped_std(total), dtype=torch.float64), rtol=0.03)
    assert voxels.abs().max() == pytest.approx(d.CLIP * total, rel=1e-5)


def test_one_in_five_draws_is_rigid_and_draws_follow_the_generator():
    t = torch.randint(1, 66, (4000,), generator=seeded(9))
    theta, target = d.draw(SCHEDULE, t, SIZE, generator=seeded(5))
    gram = theta[:, :, :3].transpose(1, 2) @ theta[:, :, :3]
    rigid = (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().amax(dim=(1, 2)) < 1e-6
    assert rigid.double().mean() == pytest.approx(0.2, abs=0.03)
    again, _ = d.draw(SCHEDULE, t, SIZE, generator=seeded(5))
    assert torch.equal(theta, again)
    other, _ = d.draw(SCHEDULE, t, SIZE, generator=seeded(6))
    assert not torch.equal(theta, other)


def test_each_sample_has_its_own_timestep_and_scale_widens_the_draw():
    t = torch.tensor([1, 65] * 3000)
    theta, _ = d.draw(SCHEDULE, t, SIZE, generator=seeded(1), rigid_share=0.0)
    amount = torch.linalg.matrix_norm(theta[:, :, :3] - torch.eye(3), ord=2)
    ratio = SCHEDULE.total_transform[64] / SCHEDULE.total_transform[0]
    assert amount[1::2].square().mean().sqrt() / amount[::2].square().mean().sqrt() == pytest.approx(ratio, rel=0.05)
    wide, _ = d.draw(SCHEDULE, t, SIZE, generator=seeded(1), rigid_share=0.0, scale=1.2)
    wider = torch.linalg.matrix_norm(wide[:, :, :3] - torch.eye(3), ord=2)
    assert torch.allclose(wider[::2], 1.2 * amount[::2], rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ reverse
class Oracle:
    """A denoiser that knows the affine to be found: it returns what is left of it, whatever it is shown.

    Its own copy of the affine so far is kept from the shares of the schedule, so that it checks them too.
    """

    def __init__(self, wanted, shares):
        self.wanted, self.shares = wanted.double(), list(shares)
        self.so_far = d.identity(len(wanted)).double()
        self.timesteps = []

    def __call__(self, fixed, moved, t):
        self.timesteps.append(int(t[0]))
        left = d.compose(d.invert(self.so_far), self.wanted)
        self.so_far = d.compose(self.so_far, d.blend(left, *self.shares[len(self.timesteps) - 1]))
        return left.float()


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_published_shares_are_the_schedules_in_single_precision(kind):
    schedule = Schedule(kind=kind)
    shares = np.array(d.published_shares(schedule))
    assert shares.shape == (65, 2) and np.array_equal(shares, shares.astype(np.float32))
    assert np.allclose(shares, [schedule.reference_share(t) for t in range(1, 66)], rtol=3e-6)
    assert tuple(shares[0]) == (1, 1)


def shares_of(steps):
    if steps is None:
        return [SCHEDULE.reference_share(t) for t in range(65, 0, -1)]
    return [(1.0, 1.0)] * steps


@pytest.fixture(scope="module")
def wanted():
    theta, _ = d.draw(SCHEDULE, torch.full((3,), 65), SIZE, generator=seeded(11))
    return theta


@pytest.mark.parametrize("steps", [None, *range(1, 66)])
def test_an_oracle_is_followed_to_the_known_transform(wanted, steps):
    """With any number of steps the last share is 1 (few apply all of every one), so a perfect prediction arrives."""
    oracle = Oracle(wanted, shares_of(steps))
    tiny = torch.zeros(3, 1, 2, 2, 2)
    visited = list(d.reverse(oracle, tiny, tiny, SCHEDULE, steps=steps))
    count = steps or 65
    assert [s.index for s in visited] == list(range(1, count + 1)) and {s.count for s in visited} == {count}
    assert (
        [s.timestep for s in visited]
        == oracle.timesteps
        == (SCHEDULE.visit(steps) if steps else list(range(65, 0, -1)))
    )
    assert (visited[-1].theta - wanted).abs().max() < 2e-5
    assert visited[-1].theta.dtype == torch.float32


def test_pure_translations_shrink_as_the_shares_say(wanted):
    """Without a 3×3 part the errors multiply in closed form: each step leaves 1 − share of what was left before."""
    shift = d.identity(1)
    shift[0, :, 3] = torch.tensor([0.3, -0.2, 0.1])
    for steps in (3, 8, None):
        shares = shares_of(steps)
        left = 1.0
        tiny = torch.zeros(1, 1, 2, 2, 2)
        for step, (_, share) in zip(d.reverse(Oracle(shift, shares), tiny, tiny, SCHEDULE, steps=steps), shares):
            left *= 1 - share
            assert torch.allclose(step.theta[0, :, 3], (1 - left) * shift[0, :, 3], atol=1e-6)


def test_the_moving_volume_is_always_warped_from_the_original_and_starts_where_told(wanted):
    volume, seen = volumes(3), []
    start = d.draw(SCHEDULE, torch.full((3,), 30), SIZE, generator=seeded(2))[0]

    def denoise(fixed, moved, t):
        seen.append(moved.clone())
        return wanted

    first = next(d.reverse(denoise, volume, volume, SCHEDULE))
    assert first.index == 1 and torch.equal(seen.pop(), volume)  # as it is, without the rounding of a warp
    states = list(d.reverse(denoise, volume, volume, SCHEDULE, steps=4, start=start))
    assert torch.equal(seen[0], d.warp(volume, start))
    for moved, step in zip(seen[1:], states):
        assert torch.equal(moved, d.warp(volume, step.theta))


def test_half_precision_predictions_are_composed_in_single(wanted):
    tiny = torch.zeros(3, 1, 2, 2, 2)
    for step in d.reverse(lambda f, m, t: wanted.half(), tiny, tiny, SCHEDULE, steps=2):
        assert step.theta.dtype == torch.float32


def test_reversing_keeps_no_gradients(wanted):
    parameter = torch.nn.Parameter(wanted.clone())
    tiny = torch.zeros(3, 1, 2, 2, 2)
    for step in d.reverse(lambda f, m, t: parameter * 1, tiny, tiny, SCHEDULE, steps=2):
        assert not step.theta.requires_grad


# ------------------------------------------------------------------------------------------------ bidirectional
@pytest.mark.parametrize("steps", [None, 4])
def test_both_directions_give_the_first_times_the_inverse_of_the_second(wanted, steps):
    there = wanted
    back, _ = d.draw(SCHEDULE, torch.full((3,), 20), SIZE, generator=seeded(21))
    fixed, moving, seen = volumes(3, seed=1), volumes(3, seed=2), []
    second = Oracle(back, shares_of(steps))

    def denoise_back(new_fixed, new_moving, t):
        seen.append((new_fixed, new_moving))
        return second(new_fixed, new_moving, t)

    states = list(
        d.reverse_bidirectional(Oracle(there, shares_of(steps)), denoise_back, fixed, moving, SCHEDULE, steps=steps)
    )
    count = steps or 65
    assert [s.index for s in states] == list(range(1, 2 * count + 1)) and {s.count for s in states} == {2 * count}
    assert (states[count - 1].theta - there).abs().max() < 2e-5
    assert (states[-1].theta - d.compose(there, d.invert(back))).abs().max() < 1e-4
    # In the second half the moved volume is fixed, and the first fixed one moves.
    assert torch.equal(seen[0][0], d.warp(moving, states[count - 1].theta))
    assert torch.equal(seen[0][1], fixed)


def test_a_singular_way_back_leaves_the_way_there(wanted):
    there, flat = wanted[:2], d.identity(2)
    flat[1, :, :3] = 0.0
    tiny = torch.zeros(2, 1, 2, 2, 2)
    *_, last = d.reverse_bidirectional(lambda f, m, t: there, lambda f, m, t: flat, tiny, tiny, SCHEDULE, steps=1)
    assert torch.allclose(last.theta, there, atol=1e-6) and torch.isfinite(last.theta).all()


# ----------------------------------------------------------------------------------------------------- self-test
def test_the_self_test_is_near_zero_for_an_oracle_and_not_for_one_that_does_nothing():
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    volume = torch.exp(-8 * (x**2 + y**2 + z**2))[None, None].repeat(4, 1, 1, 1, 1)
    t = torch.full((4,), 65)
    theta, target = d.draw(SCHEDULE, t, SIZE, generator=seeded(3), scale=0.15)
    knowing = d.self_test(lambda f, m, t: target, volume, SCHEDULE, scale=0.15, generator=seeded(3), steps=1)
    idle = d.self_test(lambda f, m, t: d.identity(4), volume, SCHEDULE, scale=0.15, generator=seeded(3), steps=1)
    assert knowing < 0.2 * idle
