"""Any object, any size, in any order of axes: the same course and the same answer, and doubt where it is due."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

pytest.importorskip("torch")
from conftest import DEMO
from SpatialDiffusionCore import Volume, load, register  # noqa: E402
from SpatialDiffusionCore.alignment.pair import Pair  # noqa: E402
from SpatialDiffusionCore.pipeline import confidence  # noqa: E402
from SpatialDiffusionCore.pipeline.evidence import Evidence  # noqa: E402
from SpatialDiffusionCore.spatial import geometry  # noqa: E402
from SpatialDiffusionCore.spatial.sampling import anatomical_axes, canonical_grid, prepare  # noqa: E402

ANYTHING = {"modality": "any", "device": "cpu"}


@pytest.fixture(scope="module")
def brain() -> Volume:
    return load(DEMO / "moving_t1_brain.nii.gz")


@pytest.fixture(scope="module")
def template() -> Volume:
    """Coarser than the file, for speed."""
    whole = load(DEMO / "fixed_mni152_brain.nii.gz")
    return Volume(
        np.ascontiguousarray(whole.data[::2, ::2, ::2]), whole.voxel_to_ras @ np.diag([2.0, 2.0, 2.0, 1.0]), "template"
    )


def scaled(volume: Volume, factor: float) -> Volume:
    return volume.moved(np.diag([factor, factor, factor, 1.0]))


def apart(first, second, volume: Volume) -> float:
    """RMS distance over a volume's tissue, as a share of its size."""
    tissue = prepare(volume)
    return geometry.displacement_rms(first, second, tissue.tissue_center, tissue.tissue_covariance) / tissue.size


def turn(volume: Volume, degrees: float, shift: float = 0.25) -> np.ndarray:
    center, size = prepare(volume).tissue_center, prepare(volume).size
    rotation = geometry.rotation_about([2, -1, 2], np.radians(degrees))
    return geometry.about(rotation, center, shift * size * np.array([0.6, -0.6, 0.5]))


# --- size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.05, 0.1, 20.0])
def test_scaling_both_headers_scales_the_answer_and_changes_nothing_else(brain, template, factor):
    moving = brain.moved(turn(brain, 100))
    usual, other = (register(scaled(moving, k), scaled(template, k), **ANYTHING) for k in (1.0, factor))
    back = other.matrix.copy()
    back[:3, 3] /= factor
    assert apart(np.linalg.inv(back), np.linalg.inv(usual.matrix), template) < 1e-3
    assert other.quality.confidence == usual.quality.confidence == "good"
    assert other.quality.spread_mm == pytest.approx(factor * usual.quality.spread_mm, rel=0.05)
    assert all(np.isfinite(step.matrix).all() for step in other.steps)
    assert np.allclose(other.steps[-1].matrix, other.matrix)


@pytest.mark.parametrize("size", [0.02, 7.0])
def test_a_cropped_and_turned_copy_of_any_size_comes_back(brain, size):
    """65 % of the longest axis and 80 % of the next, gamma and noise: where small objects lay on their side before."""
    data = brain.data / brain.data.max()
    noisy = 100 * (data**0.7 + 0.04 * np.random.default_rng(1).normal(size=data.shape))
    part = (slice(None), slice(20, 20 + int(0.65 * data.shape[1])), slice(10, 10 + int(0.8 * data.shape[2])))
    cut = brain.voxel_to_ras @ geometry.from_parts(np.eye(3), (0, 20, 10))
    fixed = scaled(brain, size)
    moving = scaled(Volume(np.ascontiguousarray(noisy[part], np.float32), cut, "cut"), size)
    truth = turn(fixed, 130)
    result = register(moving.moved(truth), fixed, **ANYTHING)
    assert apart(np.linalg.inv(result.matrix), truth, fixed) < 0.01
    assert result.quality.confidence == "good"


@pytest.mark.parametrize("slices", [4, 6])
def test_few_thick_slices_are_registered_and_said(brain, slices):
    step = brain.shape[2] // (slices + 1)
    data = np.ascontiguousarray(brain.data[:, :, step // 2 :: step][:, :, :slices])
    header = brain.voxel_to_ras @ geometry.from_parts(np.diag([1.0, 1.0, step]), (0, 0, step // 2))
    stack = Volume(data, header, "stack")
    truth = turn(stack, 50)
    result = register(stack.moved(truth), stack, **ANYTHING)
    assert apart(np.linalg.inv(result.matrix), truth, stack) < 0.02
    assert f"{slices} slices" in " ".join(result.quality.warnings)


# --- pose and bookkeeping ----------------------------------------------------------------------------------


def test_the_order_of_axes_and_the_type_do_not_matter(brain, template):
    """What the shell and Slicer hand over differs in these only: 2.4 mm apart before."""
    usual = register(brain, template, modality="t1-brain", device="cpu")
    reordered = []
    for volume in (brain, template):
        data = np.asfortranarray(volume.data.transpose(2, 0, 1)[::-1]).astype(np.float64)
        change = np.zeros((4, 4))
        change[2, 0], change[0, 1], change[1, 2], change[3, 3] = -1, 1, 1, 1
        change[2, 3] = volume.shape[2] - 1
        reordered.append(Volume(data, volume.voxel_to_ras @ change, volume.name))
    for moving, fixed in (reordered, (reordered[0], template), (brain, reordered[1])):
        other = register(moving, fixed, modality="t1-brain", device="cpu")
        tissue = prepare(template)
        off = geometry.displacement_rms(
            np.linalg.inv(other.matrix), np.linalg.inv(usual.matrix), tissue.tissue_center, tissue.tissue_covariance
        )
        assert off < 0.05 and other.quality.confidence == usual.quality.confidence


def test_a_turned_header_changes_the_answer_by_a_millimeter_at_most(brain, template):
    usual = register(brain, template, modality="t1-brain", device="cpu")
    tissue = prepare(template)
    for degrees in (30, 95, 175):
        moved = turn(brain, degrees)
        other = register(brain.moved(moved), template, modality="t1-brain", device="cpu")
        off = geometry.displacement_rms(
            np.linalg.inv(other.matrix @ moved),
            np.linalg.inv(usual.matrix),
            tissue.tissue_center,
            tissue.tissue_covariance,
        )
        assert off < 1.0 and other.quality.confidence == "good", degrees


def test_the_cubes_axes_are_the_scans_and_right_handed():
    rng = np.random.default_rng(0)
    for number in range(20):
        turned = geometry.rotation_about(rng.normal(size=3), rng.uniform(0, 0.6))
        order, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
        header = geometry.from_parts(turned[:, order] * signs * [0.5, 1.0, 3.0], rng.normal(size=3))
        axes = anatomical_axes(Volume(np.ones((4, 5, 6)), header, f"scan {number}"))
        assert np.abs(axes - turned).max() < 1e-9 and np.linalg.det(axes) > 0
    straight = Volume(np.ones((4, 5, 6)), np.diag([-2.0, 1.0, 1.0, 1.0]), "straight")
    assert (anatomical_axes(straight) == np.eye(3)).all()
    grid = canonical_grid(prepare(Volume(rng.normal(size=(9, 9, 9)), header, "scan")), 8, 2.0)
    assert np.allclose(grid.voxel_to_ras[:3, :3], 2.0 * turned)


def test_a_candidate_never_mirrors():
    pair = Pair.__new__(Pair)
    pair.fixed = type("Cube", (), {"prepared": type("Prepared", (), {"tissue_center": np.zeros(3)})})
    kept = pair.plausible([np.diag([-1.0, 1.0, 1.0, 1.0]), np.diag([1.0, 1.0, 1.6, 1.0])])
    assert len(kept) == 1 and np.linalg.det(kept[0][:3, :3]) > 0
    assert np.abs(np.log(np.linalg.svd(kept[0][:3, :3])[1])).max() < 0.2 + 1e-9


def test_a_mirrored_copy_of_any_organ_is_named(brain):
    """A brain is nearly symmetric, so its mirror image fits well enough to be called good."""
    other = 0.7 * brain.data + 20 * np.random.default_rng(3).normal(size=brain.shape)
    image = Volume(other.astype(np.float32), np.diag([-1.0, 1, 1, 1]) @ brain.voxel_to_ras, "image")
    result = register(image.moved(turn(image, 60)), brain, **ANYTHING)
    assert result.quality.confidence == "poor" and "mirror image" in " ".join(result.quality.warnings)
    assert result.quality.mirrored > result.quality.similarity_after + 0.15
    copy = Volume(other.astype(np.float32), brain.voxel_to_ras, "copy")
    assert register(copy.moved(turn(copy, 60)), brain, **ANYTHING).quality.mirrored is None


# --- the probability ---------------------------------------------------------------------------------------

SURE = Evidence(0.8, 0.75, 0.8, 0.3, 1.0, 0.02, spread=0.002, margin=0.4, searches=1.0)


def test_every_figure_can_only_speak_for_an_answer_the_better_it_is():
    worse = {
        "similarity": 0.3, "least_similarity": 0.2, "correlation": 0.2, "information": 0.05, "overlap": 0.3,
        "strain": 0.5, "spread": 0.05, "margin": 0.0, "lead": 0.0, "searches": 0.0, "refined": 0.0, "detour": 0.2,
        "agreement": 0.1,
    }  # fmt: skip
    assert set(worse) == {f.name for f in fields(Evidence)}
    known = {"detour": 0.005, "agreement": 0.99, "lead": 0.4}
    for strategy in confidence.coefficients()["strategies"]:
        best = confidence.probability(replace(SURE, **known), strategy)
        for name, value in worse.items():
            changed = replace(SURE, **{**known, name: value})
            assert confidence.probability(changed, strategy) <= best + 1e-12, (strategy, name)


def test_an_answer_that_another_basin_equals_is_not_good():
    doubtful = replace(SURE, similarity=0.35, least_similarity=0.3, margin=0.0, searches=0.0, spread=0.01)
    assert confidence.word(confidence.probability(SURE, "any")) == "good"
    assert confidence.word(confidence.probability(doubtful, "any")) != "good"


def test_coefficients_belong_to_this_version_of_the_evidence(monkeypatch):
    monkeypatch.setattr(confidence, "VERSION", confidence.VERSION + 1)
    confidence.coefficients.cache_clear()
    with pytest.raises(ValueError, match="calibrate"):
        confidence.coefficients()
    monkeypatch.undo()
    confidence.coefficients.cache_clear()
    assert 0 < confidence.accept_from() <= 1


def test_volumes_that_show_different_things_are_poor(brain, template):
    noise = np.random.default_rng(2).normal(100, 30, template.shape).astype(np.float32)
    result = register(brain, Volume(noise, template.voxel_to_ras, "noise"), **ANYTHING)
    assert result.quality.confidence == "poor" and result.quality.probability < 0.5
    assert result.quality.warnings
