"""Blocks that vote: exact where a third of them agrees, and right where descent on all voxels is not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
from Benchmark import hard  # noqa: E402
from conftest import DEMO
from SpatialDiffusionCore.alignment import block_matching, self_similarity  # noqa: E402
from SpatialDiffusionCore.modelfile.model import load_model  # noqa: E402
from SpatialDiffusionCore.modelfile.model_cube import model_cube  # noqa: E402
from SpatialDiffusionCore.spatial import geometry, sampling, volume_file  # noqa: E402
from SpatialDiffusionCore.spatial.volume import Volume  # noqa: E402


@pytest.fixture(scope="module")
def brain():
    return volume_file.load(DEMO / "moving_t1_brain.nii.gz")


def cube_of(scan):
    return model_cube(scan, None, "t1-brain", load_model(None, "t1-brain", "t1-brain").card, "cpu")


def off(found, truth, cube):
    return geometry.displacement_rms(found, truth, cube.prepared.tissue_center, cube.prepared.tissue_covariance)


def test_the_affine_of_a_third_of_the_places_is_found_whatever_the_others_do():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 50, (400, 3))
    truth = geometry.from_parts(np.eye(3) + rng.normal(0, 0.03, (3, 3)), (1.5, -2, 0.5))
    moves = geometry.transform_points(truth, places) - places
    wrong = rng.permutation(400)[:230]
    moves[wrong] = rng.uniform(-3, 3, (230, 3))
    found = block_matching.trimmed_fit(places, moves)
    # The ridge pulls it a little towards no change.
    assert np.abs(geometry.transform_points(found, places) - geometry.transform_points(truth, places)).max() < 0.02
    assert (
        np.abs(
            block_matching.trimmed_fit(places, np.tile([1.0, 2, 3], (400, 1)))
            - geometry.from_parts(np.eye(3), (1, 2, 3))
        ).max()
        < 1e-9
    )


def test_with_votes_brains_corrupted_in_every_way_settle_at_the_truth(brain):
    """Motion, crops, thick slices, bias, noise and contrast at once: without votes half of them end 4 mm off."""
    prepared = sampling.prepare(brain)
    grid = sampling.canonical_grid(prepared, 96, 2.0)
    clean = sampling.sample(prepared, grid)
    errors = []
    for seed in range(3, 8):
        rng = np.random.default_rng(seed)
        scans = [
            Volume(*hard.corrupt(clean.clone(), grid.voxel_to_ras, hard.CONDITIONS["together"], rng), "scan")
            for _ in range(2)
        ]
        turn = geometry.rotation_about(rng.normal(size=3), 0.07)
        truth = geometry.about(1.03 * turn, prepared.tissue_center, 2.5 * rng.normal(size=3))
        moving, fixed = cube_of(scans[0].moved(truth)), cube_of(scans[1])
        answers = []
        without = self_similarity.polish(moving, fixed, np.eye(4), kind="affine", seed=0)
        for world in (without, block_matching.refine(moving, fixed, without, "affine")):
            answers.append(geometry.displacement_rms(world, truth, prepared.tissue_center, prepared.tissue_covariance))
        errors.append(answers)
    without, voted = np.array(errors).T
    assert voted.max() < 4 < 2 * voted.max() < without.max()


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", geometry.TRANSFORM_KINDS)
def test_known_transforms_of_each_kind_are_found_whatever_the_contrast(brain, kind, inverted):
    fixed = cube_of(brain)
    other = np.where(brain.data > 0, 1.1 * brain.data.max() - brain.data, 0).astype(np.float32)
    moving = cube_of(Volume(other, brain.voxel_to_ras, "inverted")) if inverted else fixed
    start = geometry.about(geometry.rotation_about([1, 1, 0], 0.05), brain.center(), (3.0, 2, -4))
    found = block_matching.refine(moving, fixed, start, kind)
    # Voxels of 4 mm; the edge to the black background does not invert.
    assert off(start, np.eye(4), fixed) > 4 and off(found, np.eye(4), fixed) < (1.0 if inverted else 0.5)
    stretches = np.linalg.svd(found[:3, :3])[1]
    assert kind == "affine" or np.ptp(stretches) < 1e-9
    assert kind != "rigid" or abs(stretches[0] - 1) < 1e-9


def test_where_nothing_can_vote_nothing_moves(brain):
    fixed = cube_of(brain)
    away = geometry.from_parts(np.eye(3), (500.0, 0, 0))
    assert (block_matching.refine(fixed, fixed, away, "affine") == away).all()
