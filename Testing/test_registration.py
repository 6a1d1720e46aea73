"""The registration call: its options, its steps, and the published process through it.

Accuracy is measured elsewhere; here the networks are random, so that what is tested is everything around them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from SpatialDiffusionCore import InputError, Registration, Volume, register, register_many
from SpatialDiffusionCore.method import diffusion
from SpatialDiffusionCore.method.schedule import Schedule  # noqa: E402
from SpatialDiffusionCore.modelfile import checkpoint_import, model, safetensors_file
from SpatialDiffusionCore.modelfile.card import ModelCard, ModelGrid  # noqa: E402
from SpatialDiffusionCore.networks.build import build  # noqa: E402
from SpatialDiffusionCore.registration import Cancelled, registration_steps, share_of_rank  # noqa: E402
from SpatialDiffusionCore.spatial import geometry

SIZE = (20, 24, 18)
SCHEDULE = Schedule(timesteps=9)  # short, for speed; the published 65 are run once
HEADER = geometry.from_parts(geometry.rotation_about([1, -2, 0.5], 0.4) * [6.0, 5, 7], (-60, -50, -55))


def head(seed=0, shape=SIZE, header=HEADER, name="head"):
    """A lopsided blob with structure inside."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    data = 80.0 * (((grid / [0.7, 0.8, 0.75]) ** 2).sum(-1) < 1)
    for _ in range(6):
        center, radius = random.uniform(-0.4, 0.4, 3), random.uniform(0.15, 0.3)
        data += random.uniform(20, 90) * np.exp(-((grid - center) ** 2).sum(-1) / radius**2)
    return Volume(data.astype(np.float32), header, name)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random small model in its file, with the class for anything and one modality."""
    torch.manual_seed(3)
    architecture = {
        "head": "matrix",
        "volume_size": list(SIZE),
        "channels": [2, 4, 8, 8, 8, 8, 8],
        "groups": 4,
        "time_width": 16,
        "n_classes": 2,
    }
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    network = build(architecture)
    with torch.no_grad():  # predictions near the identity, as a trained network's are
        for parameter in network.output_head[2].parameters():
            parameter *= 0.1
    safetensors_file.save_model(
        path,
        network,
        ModelCard(
            name="small",
            architecture=architecture,
            grid=ModelGrid(tuple(SIZE), 8.0, "canonical"),
            schedule=SCHEDULE,
            modalities={"any": 0, "t1-brain": 1},
        ),
    )
    return path


def steps_and_result(*volumes, **options):
    steps = []
    result = register(*volumes, on_step=steps.append, **options)
    return steps, result


# ---------------------------------------------------------------------------------------- the published process
def test_an_imported_checkpoint_registers_as_the_published_process_does(unconditional, tmp_path):
    """Volumes of the checkpoint's size under oblique headers: 65 steps, θ of the tensors themselves, in the world."""
    size = unconditional.config["volume_size"]
    path = tmp_path / "published.safetensors"
    checkpoint_import.import_checkpoint(unconditional.checkpoint, path, volume_size=size)
    fixed_array, moving_array = (unconditional.expected["pair"][0] + 1) / 2
    turned = geometry.from_parts(geometry.rotation_about([3, 1, 1], -0.7) * [1.0, 1.5, 0.8], (12, -80, 4))
    fixed, moving = Volume(fixed_array, HEADER, "fixed"), Volume(moving_array, turned, "moving")
    steps, result = steps_and_result(moving, fixed, model=path, sampler="reference")
    assert [s.index for s in steps] == list(range(1, 66)) and {s.count for s in steps} == {65}
    assert {s.stage for s in steps} == {"Diffusion"}
    theta = unconditional.expected["predict_affine"][0]
    frames = [m @ geometry.normalized_to_voxel(size) for m in (HEADER, turned)]
    expected = np.linalg.inv(geometry.theta_to_world(theta, *frames))
    corners = moving.corners()
    distance = geometry.transform_points(result.matrix, corners) - geometry.transform_points(expected, corners)
    assert np.abs(distance).max() < 0.05  # mm; the arrays' own minimum and maximum are not quite 0 and 1
    assert np.array_equal(result.matrix, steps[-1].matrix) and result.matrix.dtype == np.float64
    assert not result.polished and result.sampler == "reference" and result.model == "published"


def test_the_reference_sampler_is_the_reverse_process_on_the_models_cube(small):
    fixed, moving = head(1), head(2, header=HEADER @ np.diag([1, -1, 1, 1.0]))
    steps, result = steps_and_result(moving, fixed, model=small, sampler="reference", modality="t1-brain")
    from SpatialDiffusionCore.modelfile.model_cube import model_cube

    loaded = model.load_model(small)
    a, b = (model_cube(x, None, "t1-brain", loaded.card, "cpu") for x in (fixed, moving))
    process = diffusion.reverse(loaded.denoiser("t1-brain", "t1-brain"), a.values, b.values, SCHEDULE)
    for step, expected in zip(steps, process):
        world = geometry.theta_to_world(
            expected.theta[0].double().numpy(), a.grid.normalized_to_ras, b.grid.normalized_to_ras
        )
        assert np.allclose(step.matrix, np.linalg.inv(world), rtol=1e-4, atol=1e-3)
    assert len(steps) == 9 and len(result.steps) == 9


def test_both_directions_take_twice_the_steps(small):
    steps, result = steps_and_result(head(2), head(1), model=small, sampler="reference", bidirectional=True)
    assert [s.index for s in steps] == list(range(1, 19)) and {s.count for s in steps} == {18}
    one, _ = steps_and_result(head(2), head(1), model=small, sampler="reference")
    assert np.array_equal(one[-1].matrix, steps[8].matrix)
    assert not np.allclose(result.matrix, one[-1].matrix)


# ------------------------------------------------------------------------------------------------------ results
@pytest.mark.parametrize("sampler", ["fast", "reference"])
@pytest.mark.parametrize("transform", geometry.TRANSFORM_KINDS)
def test_the_result_is_of_the_kind_that_was_asked_for(small, sampler, transform):
    result = register(head(2), head(1), model=small, sampler=sampler, transform=transform)
    assert isinstance(result, Registration) and result.transform == transform
    linear = result.matrix[:3, :3]
    assert result.matrix.shape == (4, 4) and np.array_equal(result.matrix[3], [0, 0, 0, 1])
    if transform != "affine":
        scale = 1.0 if transform == "rigid" else np.cbrt(np.linalg.det(linear))
        assert np.abs(linear.T @ linear / scale**2 - np.eye(3)).max() < 1e-10
        assert np.linalg.det(linear) > 0
    assert 0 <= result.quality.overlap <= 1 and result.quality.confidence in ("good", "fair", "poor")
    assert result.seconds > 0 and result.decomposition.text()


@pytest.mark.parametrize("sampler", ["fast", "reference"])
def test_the_same_input_gives_the_same_output(small, sampler):
    first, second = (register(head(2), head(1), model=small, sampler=sampler) for _ in range(2))
    assert np.array_equal(first.matrix, second.matrix)
    assert first.quality.to_dict() == second.quality.to_dict()


@pytest.mark.parametrize("sampler", ["fast", "reference"])
def test_steps_count_up_to_their_announced_number_and_end_at_the_result(small, sampler):
    steps, result = steps_and_result(head(2), head(1), model=small, sampler=sampler)
    assert [s.index for s in steps] == list(range(1, len(steps) + 1)) and steps[-1].count == len(steps)
    counts = [s.count for s in steps]
    assert counts == sorted(counts)  # it grows where the search goes on
    assert all(s.matrix.shape == (4, 4) and np.isfinite(s.matrix).all() and s.stage for s in steps)
    assert [s.index for s in result.steps] == [s.index for s in steps]
    assert np.allclose(steps[-1].matrix, result.matrix)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_number_of_diffusion_steps_can_be_chosen(small, count):
    steps, _ = steps_and_result(head(2), head(1), model=small, steps=count, polish=False)
    assert sum(s.stage == "Diffusion" for s in steps) == count
    assert not any(s.stage == "Refining" for s in steps)


def test_a_start_is_where_the_reference_begins(small):
    """Registering from a start is registering the volume moved there: the same steps on the same pictures."""
    fixed, moving = head(1), head(2)
    start = geometry.about(geometry.rotation_about([0, 0, 1], 0.3), fixed.center(), (5, -3, 2))
    seen = next(registration_steps(moving, fixed, model=small, sampler="reference", init=start))
    blank = next(registration_steps(moving, fixed, model=small, sampler="reference"))
    assert not np.allclose(seen.matrix, blank.matrix)
    # The first share is small, so the first step is still near the start.
    corners = moving.corners()
    far = geometry.transform_points(seen.matrix, corners) - geometry.transform_points(start, corners)
    assert np.abs(far).max() < np.abs(corners - geometry.transform_points(start, corners)).max() + 40


def test_moving_both_headers_moves_the_answer(small):
    """The answer belongs to the world: registering in another room gives the same transform, seen from there."""
    fixed, moving = head(1), head(2)
    shift = geometry.from_parts(np.eye(3), (100.0, -40, 25))
    here = register(moving, fixed, model=small, sampler="reference").matrix
    there = register(moving.moved(shift), fixed.moved(shift), model=small, sampler="reference").matrix
    assert np.allclose(np.linalg.inv(shift) @ there @ shift, here, atol=0.05)


def test_the_result_writes_itself_and_resamples(small, tmp_path):
    fixed, moving = head(1), head(2)
    result = register(moving, fixed, model=small, sampler="reference")
    result.save(tmp_path / "a.tfm")
    from SpatialDiffusionCore.spatial.transform_file import read_transform

    assert np.allclose(read_transform(tmp_path / "a.tfm"), result.matrix, atol=1e-6)
    moved = result.apply(moving, fixed)
    assert moved.shape == fixed.shape and np.array_equal(moved.voxel_to_ras, fixed.voxel_to_ras)
    import json

    report = json.loads(json.dumps(result.report()))
    assert np.allclose(report["matrix_moving_to_fixed_ras"], result.matrix) and report["model"] == "small"


# ---------------------------------------------------------------------------------------------------- cancelling
def test_false_or_an_exception_from_on_step_stops_at_once(small):
    seen = []

    def after_three(step):
        seen.append(step.index)
        return step.index < 3

    with pytest.raises(Cancelled):
        register(head(2), head(1), model=small, sampler="reference", on_step=after_three)
    assert seen == [1, 2, 3]

    def loud(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register(head(2), head(1), model=small, sampler="reference", on_step=loud)
    register(head(2), head(1), model=small, sampler="reference", on_step=lambda step: None)  # no answer: go on


# ------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    "options, words",
    [
        ({"modality": "xray"}, "Unknown modality 'xray'; choose one of: auto, any, t1-brain"),
        ({"moving_modality": "xray"}, "Unknown modality"),
        ({"fixed_modality": "xray"}, "Unknown modality"),
        ({"transform": "warp"}, "rigid, similarity, affine"),
        ({"sampler": "slow"}, "fast, reference"),
        ({"sampler": "reference", "steps": 4}, "every timestep"),
        ({"steps": -1}, "at least 0, got -1"),
        ({"steps": 10}, "to 9, got 10"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
        ({"device": "cpu:1"}, "Unknown device"),
        ({"init": np.zeros((4, 4))}, "initial transform"),
        ({"init": np.eye(2)}, "initial transform"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_first_step(small, options, words):
    def no_step(step):
        raise AssertionError("work had begun")

    with pytest.raises(InputError, match=words) as error:
        register(head(2), head(1), model=small, on_step=no_step, **options)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_refused(small):
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA"):
            register(head(2), head(1), model=small, device="cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="no MPS"):
            register(head(2), head(1), model=small, device="mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gives_the_answer_of_the_cpu():
    from SpatialDiffusionCore.spatial import volume, volume_file

    brain = volume_file.load(Path(volume.__file__).parents[1] / "demo" / "moving_t1_brain.nii.gz")
    turned = brain.moved(geometry.about(geometry.rotation_about([1, 2, 0], 1.5), brain.center(), [20, 5, -10]))
    answers = [register(turned, brain, modality="t1-brain", device=device).matrix for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*answers, atol=0.05)


def test_volumes_that_cannot_be_registered_are_refused_by_role(small):
    constant = Volume(np.ones(SIZE, np.float32), HEADER, "flat.nii")
    for volumes, role in (((constant, head(1)), "Moving"), ((head(1), constant), "Fixed")):
        with pytest.raises(InputError, match=f"{role} volume flat.nii is constant"):
            register(*volumes, model=small)


def test_a_model_that_is_missing_or_of_another_modality_is_refused(small, user_models):
    with pytest.raises(InputError, match="does not exist"):
        register(head(2), head(1), model=user_models / "none.safetensors")
    with pytest.raises(InputError, match="There is no model 'none'"):
        register(head(2), head(1), model="none")
    with pytest.raises(InputError, match="No installed model"):
        register(head(2), head(1), modality="oct")


# ---------------------------------------------------------------------------------------------------------- many
def test_many_volumes_give_what_one_at_a_time_gives_and_read_late(small):
    fixed, volumes = head(1), [head(s, name=f"head{s}") for s in (2, 3, 4)]
    read = []

    def later(volume):
        def get():
            read.append(volume.name)
            return volume

        return get

    results = register_many([later(x) for x in volumes], fixed, model=small, sampler="reference")
    assert read == ["head2", "head3", "head4"] and [r.moving for r in results] == read
    for result, volume in zip(results, volumes):
        assert np.array_equal(result.matrix, register(volume, fixed, model=small, sampler="reference").matrix)


def test_one_bad_volume_does_not_stop_the_others_where_someone_listens(small):
    volumes = [head(2), Volume(np.ones(SIZE, np.float32), HEADER, "flat"), head(3)]
    heard = {}
    results = register_many(volumes, head(1), model=small, sampler="reference", on_result=heard.__setitem__)
    assert len(results) == 2 and isinstance(heard[1], InputError) and heard[2] is results[1]
    with pytest.raises(InputError, match="flat"):
        register_many(volumes[1:], head(1), model=small, sampler="reference")


def test_each_rank_takes_its_share_and_together_they_take_all(small, monkeypatch):
    volumes, fixed = [head(s, name=str(s)) for s in range(2, 7)], head(1)
    taken = {}
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        got = []
        register_many(
            volumes,
            fixed,
            model=small,
            sampler="reference",
            on_result=lambda index, result, got=got: got.append((index, result.moving)),
        )
        taken[rank] = got
    assert sorted(sum(taken.values(), [])) == [(i, str(i + 2)) for i in range(5)]
    assert [len(taken[r]) for r in range(3)] == [2, 2, 1]
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert share_of_rank("abc") == ["a", "b", "c"]
