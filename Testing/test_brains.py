"""Real brains from known poses, through the shell's files as other programs read them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from conftest import DEMO
from SpatialDiffusionCore import register, registration_steps
from SpatialDiffusionCore.alignment import similarity as similarity_module
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.registration import Cancelled
from SpatialDiffusionCore.spatial import geometry, volume_file
from SpatialDiffusionCore.spatial.volume import Volume


@pytest.fixture(scope="module")
def pair():
    return DEMO / "moving_t1_brain.nii.gz", DEMO / "fixed_mni152_brain.nii.gz"


@pytest.fixture(scope="module")
def brain(pair):
    return volume_file.load(pair[0])


def brain_corners(brain: Volume) -> np.ndarray:
    """The 8 corners (RAS mm) of the box around everything that is not background."""
    inside = np.argwhere(brain.data > 0)
    box = np.array([inside.min(0), inside.max(0)])
    return geometry.transform_points(
        brain.voxel_to_ras, np.array([[box[a][0], box[b][1], box[c][2]] for a, b, c in np.ndindex(2, 2, 2)])
    )


POSES = [
    ((1.0, 0.0, 0.0), 12.0, (5.0, -8.0, 3.0)),
    ((0.3, -1.0, 0.5), 75.0, (30.0, 10.0, -25.0)),
    ((-0.2, 0.4, 1.0), 180.0, (-60.0, 45.0, 20.0)),
]


@pytest.mark.parametrize("axis, degrees, shift", POSES)
def test_a_turned_header_is_found_through_the_file_that_simpleitk_reads(tmp_path, brain, axis, degrees, shift):
    truth = geometry.about(geometry.rotation_about(axis, np.radians(degrees)), brain.center(), shift)
    rng = np.random.default_rng(0)
    noisy = np.clip(0.8 * brain.data + rng.normal(0, 4, brain.shape) * (brain.data > 0), 0, None).astype(np.float32)
    moving = Volume(noisy, brain.voxel_to_ras, "moving").moved(truth)
    volume_file.save(moving, tmp_path / "moving.nii.gz")
    volume_file.save(brain, tmp_path / "fixed.nii.gz")
    status = main(
        [
            "register",
            str(tmp_path / "moving.nii.gz"),
            str(tmp_path / "fixed.nii.gz"),
            "--modality",
            "t1-brain",
            "--transform",
            "rigid",
            "-o",
            str(tmp_path / "m.tfm"),
            "--threads",
            "1",
            "--quiet",
        ]
    )
    assert status == 0
    transform = sitk.ReadTransform(str(tmp_path / "m.tfm"))  # LPS, fixed → moving
    corners = brain_corners(brain)
    expected = geometry.transform_points(truth, corners)
    found = np.array([transform.TransformPoint(p) for p in (corners * [-1, -1, 1]).tolist()]) * [-1, -1, 1]
    assert np.linalg.norm(found - expected, axis=1).max() < 0.5
    linear = np.array(transform.Downcast().GetMatrix()).reshape(3, 3)
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)


def test_an_affine_change_is_found_at_the_corners(brain):
    rng = np.random.default_rng(5)
    linear = geometry.rotation_about([0.2, 1, -0.4], 0.9) @ (np.eye(3) + 0.08 * rng.normal(size=(3, 3)))
    truth = geometry.about(linear, brain.center(), [12, -20, 30])
    result = register(brain.moved(truth), brain, modality="t1-brain")
    corners = brain_corners(brain)
    error = geometry.transform_points(result.matrix @ truth, corners) - corners
    assert np.linalg.norm(error, axis=1).max() < 0.5
    assert result.quality.confidence == "good" and result.quality.similarity_after > 0.9


def test_the_same_input_gives_the_same_output(brain, pair):
    fixed = volume_file.load(pair[1])
    first, second = (register(brain, fixed, modality="t1-brain") for _ in range(2))
    np.testing.assert_array_equal(first.matrix, second.matrix)


def test_the_demo_lays_the_brain_on_the_template(tmp_path, pair, capsys):
    assert main(["demo", "-o", str(tmp_path / "out"), "--threads", "1"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["quality"]["similarity_after"] > 0.5 > 0.1 > report["quality"]["similarity_before"]
    moved, fixed = volume_file.load(tmp_path / "out" / "moved.nii.gz"), volume_file.load(pair[1])
    np.testing.assert_allclose(moved.voxel_to_ras, fixed.voxel_to_ras, atol=1e-5)
    both = (moved.data > 20) & (fixed.data > 20)
    # 0.927 measured: the template's skull stripping leaves a thicker rim. Unregistered it is 0.5.
    assert 2 * both.sum() / ((moved.data > 20).sum() + (fixed.data > 20).sum()) > 0.9
    assert "turned 6" in capsys.readouterr().out  # the header was turned by 60°
    from PIL import Image

    from SpatialDiffusionCore import picture

    drawn = np.asarray(Image.open(tmp_path / "out" / "picture.png").convert("RGB")).astype(int)
    assert min(drawn.shape[:2]) >= 1200
    tops = [picture.tile(row, 0)[1] for row in (0, 1)]
    before, after = (np.abs(drawn[..., 0] - drawn[..., 1])[top : top + picture.SIZE].mean() for top in tops)
    assert after < 0.5 * before


def test_both_directions_are_inverse_to_each_other(brain, pair):
    fixed = volume_file.load(pair[1])
    there = register(brain, fixed, modality="t1-brain")
    back = register(fixed, brain, modality="t1-brain")
    corners = brain_corners(brain)
    np.testing.assert_allclose(geometry.transform_points(back.matrix @ there.matrix, corners), corners, atol=1e-6)
    assert there.quality.overlap > 0.9 and back.quality.overlap > 0.9


def test_steps_run_from_first_to_last_and_cancel_stops(brain, pair):
    fixed = volume_file.load(pair[1])
    process = registration_steps(brain, fixed, modality="t1-brain")
    seen = []
    while True:
        try:
            seen.append(next(process))
        except StopIteration as end:
            result = end.value
            break
    assert [s.index for s in seen] == list(range(1, seen[0].count + 1))
    assert {s.count for s in seen} == {len(seen)} and result.steps == seen
    calls = []
    with pytest.raises(Cancelled):
        register(brain, fixed, modality="t1-brain", on_step=lambda step: calls.append(step) or len(calls) < 2)
    assert len(calls) == 2


def test_a_start_keeps_the_search_away(brain):
    """From a start close to a wrong pose, the answer stays near that start: nothing else is searched."""
    start = geometry.about(geometry.rotation_about([0, 0, 1], np.pi), brain.center())
    result = register(brain, brain, modality="t1-brain", transform="rigid", init=start)
    assert geometry.rotation_angle(result.matrix[:3, :3]) > 90
    assert result.quality.confidence != "good"


def test_masks_choose_what_counts(brain):
    """Two halves moved differently: the mask decides which one the answer follows."""
    middle = brain.shape[0] // 2
    shifted = np.zeros_like(brain.data)
    shifted[:middle] = brain.data[:middle]
    shifted[middle:, 6:] = brain.data[middle:, :-6]
    mask = np.zeros(brain.shape, np.uint8)
    mask[:middle] = 1
    moving, mask = Volume(shifted, brain.voxel_to_ras, "m"), Volume(mask, brain.voxel_to_ras, "mask")
    result = register(moving, brain, modality="t1-brain", transform="rigid", moving_mask=mask, fixed_mask=mask)
    corners = geometry.transform_points(brain.voxel_to_ras, np.argwhere((mask.data > 0) & (brain.data > 0))[::500])
    assert np.linalg.norm(geometry.transform_points(result.matrix, corners) - corners, axis=1).max() < 1.5


def test_torch_is_not_imported_for_help():
    code = (
        "import sys; from SpatialDiffusionCore.cli import main\n"
        "try:\n    main(['register', '--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MOVING" in done.stdout and "--moving-mask" in done.stdout


def test_volumes_in_memory_need_only_torch_numpy_and_scipy(pair, brain, tmp_path):
    """Inside Slicer there is no nibabel, safetensors, pillow or tqdm; registering arrays must not need them."""
    fixed = volume_file.load(pair[1])
    code = (
        "import sys\n"
        "for name in ('nibabel', 'safetensors', 'PIL', 'tqdm', 'skimage'):\n    sys.modules[name] = None\n"
        "import numpy as np\nfrom SpatialDiffusionCore import Volume, register\n"
        "arrays = np.load(sys.argv[1])\n"
        "m, f = (Volume(arrays[k], arrays[k + '_ras'], k) for k in ('moving', 'fixed'))\n"
        "r = register(m, f, modality='t1-brain')\nassert r.quality.similarity_after > 0.5, r.quality\n"
        "r.apply(m, f)\nr.report()\n"
    )
    np.savez(
        tmp_path / "pair.npz",
        moving=brain.data,
        moving_ras=brain.voxel_to_ras,
        fixed=fixed.data,
        fixed_ras=fixed.voxel_to_ras,
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pair.npz")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr


def test_noise_gets_an_answer_that_calls_itself_poor(brain):
    noise = np.random.default_rng(3).normal(100, 20, (40, 44, 48)).astype(np.float32)
    result = register(Volume(noise, np.diag([4.0, 4, 4, 1]), "noise"), brain, modality="t1-brain")
    assert result.quality.confidence == "poor" and result.quality.warnings
    assert "poor" in result.quality.summary()


def test_a_brain_in_a_head_is_as_alike_one_way_as_the_other(brain):
    """The head: the brain in a thick shell of its own texture, so that most of its tissue is not in the brain."""
    from scipy import ndimage

    inside = ndimage.gaussian_filter((brain.data > 0).astype(np.float32), 2.0) > 0.5
    outer = ndimage.distance_transform_edt(~inside, sampling=brain.spacing) < 24
    texture = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=brain.shape), 3.0)
    shell = brain.data[inside].mean() * (0.8 + 0.5 * texture / texture.std()).clip(0.2, 1.6)
    array = np.where(inside, brain.data, np.where(outer, shell, 0)).astype(np.float32)
    head = Volume(array, brain.voxel_to_ras, "head")
    turned = brain.moved(geometry.about(geometry.rotation_about([0, 1, 1], 0.8), brain.center(), [15, 5, -10]))
    there, back = (register(*pair, modality="t1-brain") for pair in ((turned, head), (head, turned)))
    np.testing.assert_allclose(there.matrix @ back.matrix, np.eye(4), atol=1e-6)
    assert there.quality.similarity_after == pytest.approx(back.quality.similarity_after, abs=1e-5)
    assert there.quality.similarity_after > 0.8 and there.quality.confidence == back.quality.confidence == "good"


def test_a_neck_finds_its_place_in_an_upper_body_and_both_ways_agree(data_folder):
    """CTs of two people, all from head to chest under a turned header on a neck: without a network organs miss."""
    from Benchmark import cases

    ct, labels = (
        [volume_file.load(data_folder / "bench" / f"openkbp_{n}_{kind}.nii.gz") for n in (3, 6)]
        for kind in ("ct", "labels")
    )
    turn = cases.pose("openkbp_3-openkbp_6", 45.0, 0, cases.field_center(data_folder / "bench" / "openkbp_3_ct.nii.gz"))
    moving, organs = ct[0].moved(turn), labels[0].moved(turn)

    def overlap(found):
        moved = found.apply(organs, labels[1], "nearest").data.astype(int)
        there = [n for n in range(1, 8) if (labels[0].data == n).any() and (labels[1].data == n).any()]
        return similarity_module.dice(labels[1].data.astype(int), moved, 7)[np.array(there) - 1].mean()

    found = register(moving, ct[1], modality="ct-head-neck")
    assert overlap(found) > 0.3
    assert overlap(register(moving, ct[1], modality="any", steps=0)) < 0.1
    back = register(ct[1], moving, modality="ct-head-neck")
    assert np.abs(found.matrix @ back.matrix - np.eye(4)).max() < 1e-6
    scales = found.decomposition.scales_percent
    assert min(scales) > 70 and max(scales) < 140
