"""The search for the pose: its parts on known answers, and whole registrations where the first search is misled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from SpatialDiffusionCore import register
from SpatialDiffusionCore.alignment import correspondence_search, repetition, similarity, wide_search
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modelfile.model import load_model
from SpatialDiffusionCore.modelfile.model_cube import model_cube
from SpatialDiffusionCore.registration import registration_steps
from SpatialDiffusionCore.spatial import geometry, volume, volume_file
from SpatialDiffusionCore.spatial.sampling import prepare
from SpatialDiffusionCore.spatial.volume import Volume


@pytest.fixture(scope="module")
def brain():
    return volume_file.load(Path(volume.__file__).parents[1] / "demo" / "moving_t1_brain.nii.gz")


def error(result, truth, of) -> float:
    """RMS distance in mm from the answer's inverse to the true fixed → moving matrix over a tissue."""
    found = prepare(of)
    return geometry.displacement_rms(np.linalg.inv(result.matrix), truth, found.tissue_center, found.tissue_covariance)


def shifts_of(whole: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> list:
    """[(correlation, shift)] of the best shifts of a volume against a whole one, within its mask."""
    overview = wide_search.Overview(whole, torch.ones_like(whole), np.eye(4))
    score = wide_search.masked_correlation(overview, values, mask)
    return wide_search._peaks(score, whole.shape, values.shape)


@pytest.mark.parametrize("start", [(3, 2, 6), (0, 0, 0), (6, 6, 9), (0, 6, 3)])
def test_masked_correlation_finds_the_shift_of_a_part(start):
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(14, 16, 18, generator=generator)
    part = whole[tuple(slice(a, a + n) for a, n in zip(start, (8, 10, 9)))]
    (value, shift), *_ = shifts_of(whole, part, torch.ones_like(part))
    np.testing.assert_array_equal(shift, [-a for a in start])
    assert value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shift", [(5, -2, 1), (-4, 4, -3), (8, 0, 0), (0, 0, -8)])
def test_masked_correlation_finds_shifts_that_leave_little_in_common(shift):
    """The circular transforms are shorter than both volumes together; shifts must not be mixed up for it."""
    generator = torch.Generator().manual_seed(2)
    scene = torch.rand(34, 34, 34, generator=generator)
    first = scene[10:22, 10:22, 10:22]
    second = scene[tuple(slice(10 - s, 23 - s) for s in shift)]
    (value, found), *_ = shifts_of(first, second, torch.ones_like(second))
    np.testing.assert_array_equal(found, shift)


def test_the_wide_search_finds_a_cut_and_inverted_part_under_any_turn():
    """Blobs in a ball, the upper half of them with inverted intensities, turned and moved: edges tell."""
    from SpatialDiffusionCore.alignment.pair import Pair
    from SpatialDiffusionCore.spatial.cube import on_grid
    from SpatialDiffusionCore.spatial.volume import Grid

    random = np.random.default_rng(3)
    places = np.stack(np.meshgrid(*[np.arange(48.0)] * 3, indexing="ij"), axis=-1)
    data = np.zeros((48, 48, 48), np.float32)
    inside = np.linalg.norm((places - 23.5) / (20, 16, 18), axis=-1) < 1
    data[inside] = 120
    blobs = zip(random.uniform(10, 38, (9, 3)), random.uniform(3, 8, 9), random.uniform(10, 250, 9))
    for center, radius, value in blobs:
        data[(np.linalg.norm(places - center, axis=-1) < radius) & inside] = value
    to_ras = geometry.from_parts(3.5 * np.eye(3), [-80, -80, -80])
    fixed = Volume(data, to_ras, "fixed")
    part = np.where(inside, 260 - data, 0)[:, :, 14:].astype(np.float32)
    turn = geometry.about(geometry.rotation_about((1, 2, 0.5), np.radians(130)), np.zeros(3), np.array([20.0, -30, 10]))
    moving = Volume(part, turn @ to_ras @ geometry.from_parts(np.eye(3), [0, 0, 14]), "moving")
    cubes = [
        on_grid(prepare(v), Grid((64,) * 3, v.voxel_to_ras @ geometry.from_parts(np.eye(3), [-8, -8, -8])), "cpu")
        for v in (moving, fixed)
    ]
    for looks in wide_search.wide_poses(*cubes, keep=3):
        pass
    edges = looks[[look.edges for look in wide_search.LOOKS].index(True)]
    assert Pair(*cubes).apart(edges[0], turn) < 0.1


def test_masked_correlation_ignores_what_is_masked():
    generator = torch.Generator().manual_seed(1)
    whole = torch.rand(12, 12, 12, generator=generator)
    spoiled, mask = whole.clone(), torch.ones_like(whole)
    spoiled[:, :, :4], mask[:, :, :4] = 50.0, 0.0
    (value, shift), *_ = shifts_of(whole, spoiled, mask)
    assert value == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_array_equal(shift, 0)


def test_consensus_finds_the_similarity_that_most_points_obey():
    random = np.random.default_rng(0)
    x = random.normal(0, 50, (1, 40, 3))
    matrix = geometry.from_parts(1.1 * geometry.rotation_about(np.array([1.0, 2, -1]), 0.7), [20, -5, 9])
    y = geometry.transform_points(matrix, x[0])[None]
    y[0, :10] += random.normal(0, 80, (10, 3))
    other = random.normal(0, 50, (1, 40, 3))
    found, score = correspondence_search.consensus(
        torch.as_tensor(x).expand(2, -1, -1),
        torch.as_tensor(np.concatenate([other, y])),
        torch.zeros(2, 40, dtype=torch.float64),
    )
    assert int(score.argmax()) == 1 and score[1] > 0.7 and score[0] < 0.5
    np.testing.assert_allclose(
        geometry.transform_points(found[1].numpy(), x[0]), geometry.transform_points(matrix, x[0]), atol=2.0
    )


def part_of(volume: Volume, axis: int, first: float, last: float) -> Volume:
    """The slab of a volume between two fractions of its tissue along a voxel axis."""
    inside = np.argwhere(volume.data > 0.1 * volume.data.max())[:, axis]
    low, high = np.percentile(inside, [1, 99])
    start, stop = (int(low + f * (high - low)) for f in (first, last))
    cut = [slice(None)] * 3
    cut[axis] = slice(start, stop)
    origin = np.zeros(3)
    origin[axis] = start
    header = volume.voxel_to_ras @ geometry.from_parts(np.eye(3), origin)
    return Volume(np.ascontiguousarray(volume.data[tuple(cut)]), header, volume.name)


def remapped(volume: Volume, levels) -> Volume:
    """The same with its intensities sent through a piecewise linear curve over 0…maximum."""
    top = float(volume.data.max())
    data = np.interp(volume.data, np.linspace(0, top, len(levels)), levels).astype(np.float32)
    return Volume(data, volume.voxel_to_ras, volume.name)


TURN = geometry.rotation_about(np.array([0.4, 1.0, -0.5]), np.radians(130))


def test_parts_of_a_brain_find_each_other(brain):
    """The front and the upper 60 % of a brain, one turned by 130°: their centers are not the same place."""
    fixed, moving = part_of(brain, 1, 0.4, 1.0), part_of(brain, 2, 0.4, 1.0)
    truth = geometry.about(TURN, brain.center(), [15, -20, 10])
    result = register(moving.moved(truth), fixed, modality="t1-brain")
    assert error(result, truth, brain) < 3.0
    assert result.quality.confidence != "poor"


def test_a_contrast_that_correlation_cannot_follow_is_found(brain):
    """Dark, middle and bright tissue in another order: the first search is misled, the wider one is not."""
    truth = geometry.about(TURN, brain.center(), [15, -20, 10])
    moving = remapped(brain, [0.0, 0.9, 0.2, 1.0, 0.1]).moved(truth)
    result = register(moving, brain, modality="t1-brain")
    assert error(result, truth, brain) < 2.0


def test_repeated_runs_agree_about_a_right_answer_in_another_contrast_too_and_not_about_a_wrong_one(brain):
    """Of intensities, the second contrast would make nonsense; the wrong answers are 40 mm and 60° away."""
    card = load_model(None, "t1-brain", "t1-brain").card
    fixed, same, other = (
        model_cube(v, None, "t1-brain", card, "cpu") for v in (brain, brain, remapped(brain, [0.0, 0.9, 0.2, 1.0, 0.1]))
    )
    turned = geometry.about(geometry.rotation_about([0, 0, 1], np.radians(60)), brain.center(), [40, 0, 0])

    def spread(moving, world):
        return repetition.spread(moving, fixed, world, "affine", 0)

    right = [spread(moving, np.eye(4)) for moving in (same, other)]
    assert max(right) < 0.6 < 3 < min(spread(moving, turned) for moving in (same, other))
    assert spread(same, np.eye(4)) == right[0]
    assert repetition.spread(same, fixed, geometry.from_parts(np.eye(3), [900, 0, 0]), "affine", 0) is None


def test_the_wider_search_reports_steps_and_can_be_stopped(brain):
    """The number of steps grows once, when the wider search begins; every step stays below it."""
    noise = np.random.default_rng(0).normal(100, 20, brain.shape).astype(np.float32)
    process = registration_steps(Volume(noise, brain.voxel_to_ras, "noise"), brain, modality="t1-brain", steps=0)
    seen = []
    for step in process:
        seen.append(step)
        assert 1 <= step.index <= step.count
        if step.stage == "Searching further" and len(seen) > 8:
            process.close()
            break
    assert [s.index for s in seen] == sorted(s.index for s in seen)
    assert seen[-1].stage == "Searching further"


def test_who_has_no_time_gets_the_doubtful_answer_and_is_told(brain):
    noise = np.random.default_rng(0).normal(100, 20, brain.shape).astype(np.float32)
    seen = []
    found = register(
        Volume(noise, brain.voxel_to_ras, "noise"),
        brain,
        modality="t1-brain",
        steps=0,
        search="screen",
        on_step=lambda step: seen.append(step.stage),
    )
    assert seen[:3] == ["Searching the pose", "Comparing", "Refining"] and "Searching further" not in seen
    assert found.quality.confidence == "poor"
    turned = brain.moved(geometry.about(geometry.rotation_about([1, 1, 0], 2.0), brain.center(), (20, 0, -10)))
    found = register(turned, brain, modality="t1-brain", search="screen", transform="rigid")
    assert (
        np.abs(found.matrix @ turned.voxel_to_ras - brain.voxel_to_ras).max() < 0.5
        and found.quality.confidence == "good"
    )


def test_the_networks_points_alone_find_any_pose():
    """No similarity of intensities anywhere, and yet about where the whole chain ends."""
    folder = Path(volume.__file__).parents[1] / "demo"
    moving, fixed = (volume_file.load(folder / f) for f in ("moving_t1_brain.nii.gz", "fixed_mni152_brain.nii.gz"))
    expected = np.linalg.inv(register(moving, fixed, modality="t1-brain").matrix)
    moved = geometry.about(TURN, moving.center(), [15, -20, 10])
    result = register(moving.moved(moved), fixed, modality="t1-brain", search="network", polish=False)
    assert error(result, moved @ expected, fixed) < 10.0


def test_the_networks_points_need_a_network(brain):
    with pytest.raises(InputError, match="corresponding places"):
        register(brain, brain, modality="t1-brain", search="network", steps=0)


def test_likeness_is_highest_where_a_brain_lies_on_itself(brain):
    card = load_model(None, "t1-brain", "t1-brain").card
    cube = model_cube(brain, None, "t1-brain", card, "cpu")
    there = similarity.likeness(cube, cube, np.eye(4)).similarity
    turned = similarity.likeness(cube, cube, geometry.about(TURN, brain.center(), np.zeros(3))).similarity
    assert there > 0.95 and turned < 0.25


def test_matched_places_find_any_pose_and_agree_with_it_only():
    """The bundled model that matches all with all: what it agrees with is the pose it found, not one 40 mm off."""
    from SpatialDiffusionCore.modelfile.model import load_model
    from SpatialDiffusionCore.modelfile.model_cube import model_cube

    folder = Path(volume.__file__).parents[1] / "demo"
    moving, fixed = (volume_file.load(folder / f) for f in ("moving_t1_brain.nii.gz", "fixed_mni152_brain.nii.gz"))
    model = load_model("foundation", "t1-brain", "t1-brain")
    cubes = [model_cube(v, None, "t1-brain", model.card, "cpu") for v in (moving, fixed)]
    places = model.correspondences("t1-brain", "t1-brain")
    poses, _ = correspondence_search.network_poses(*cubes, places, keep=1)
    first = cubes[0].frame @ poses[0] @ np.linalg.inv(cubes[1].frame)
    expected = np.linalg.inv(register(moving, fixed, modality="t1-brain").matrix)
    tissue = cubes[1].prepared.tissue_center, cubes[1].prepared.tissue_covariance
    assert geometry.displacement_rms(first, expected, *tissue) < 25.0
    aside = geometry.from_parts(np.eye(3), [40.0, 0, 0]) @ expected
    right, wrong = (correspondence_search.agreement(*cubes, world, places) for world in (expected, aside))
    assert right > 0.8 and wrong < 0.5
