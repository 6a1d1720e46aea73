"""The benchmark on made-up brains: what it measures, that it goes on where it stopped, and what it prints."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from Benchmark import (
    cases,
    child,
    cohort,
    confidence,
    contrast,
    hard,
    hopeless,
    measures,
    models,
    motion,
    ours,
    peers,
    report,
    results,
    retinas,
    runner,
    severity,
    steps,
    tables,
)
from Benchmark import group as group_task
from Benchmark import heads as heads_task
from Benchmark.__main__ import main
from Benchmark.tasks import TASKS
from conftest import DEMO
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.many import averaging
from SpatialDiffusionCore.many.group import PairAnswer
from SpatialDiffusionCore.spatial import geometry, volume, volume_file

TABLE = "id\tname\tgroup\n1\tUnlabeled\t\n4\tLeft\tSide\n5\tRight\tSide\n9\tMiddle\tMiddle\n"


@pytest.fixture
def bench(tmp_path):
    """A data folder with ten labelled blobs."""
    folder = tmp_path / "data" / "bench"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "oasis_labels.tsv").write_text(TABLE)
    for subject in range(10):
        place = np.indices((20, 22, 24)) - np.array([9, 10, 11 + 0.2 * subject]).reshape(3, 1, 1, 1)
        radius = np.sqrt((place**2).sum(0))
        labels = np.where(radius < 3, 9, np.where(radius < 7, np.where(place[0] < 0, 4, 5), 0)).astype(np.uint8)
        header = np.diag([3.0, 3.0, 3.0, 1.0])
        nibabel.save(
            nibabel.Nifti1Image(np.maximum(0, 9 - radius).astype(np.float32), header),
            folder / f"oasis_{subject}_t1.nii.gz",
        )
        nibabel.save(nibabel.Nifti1Image(labels, header), folder / f"oasis_{subject}_labels.nii.gz")
    return tmp_path / "data"


def sweep(bench, rotations, pairs, seed=0):
    """The first cases of the brains task."""
    arguments = cases.Arguments(bench, bench, seed, rotations, pairs)
    return [todo.make() for todo in TASKS["brains"].cases(arguments)]


# --- measures ----------------------------------------------------------------------------------------------


def test_dice_of_known_labels():
    first = np.array([1, 1, 1, 1, 2, 2, 0, 0])
    second = np.array([1, 1, 0, 0, 3, 2, 2, 0])
    values = measures.dice(first, second, 4)
    np.testing.assert_allclose(values[:3], [2 * 2 / 6, 2 * 1 / 4, 0.0])
    assert np.isnan(values[3])


def test_labels_are_merged_into_groups_and_others_dropped(tmp_path):
    (tmp_path / "labels.tsv").write_text(TABLE)
    groups = measures.read_groups(tmp_path / "labels.tsv")
    numbers, names = measures.group_labels(np.array([0, 1, 4, 5, 9, 200]), groups)
    assert names == ["Middle", "Side"]
    assert numbers.tolist() == [0, 0, 2, 2, 1, 0]


def test_overlap_is_whole_where_the_transform_undoes_the_pose_and_skips_what_one_lacks(bench):
    overlap = measures.Overlap(measures.read_groups(bench / "oasis_labels.tsv"), 0.45).dice
    labels = bench / "bench" / "oasis_0_labels.nii.gz"
    moved = geometry.about(geometry.rotation_about([1, 2, 3], 2.0), [30, 30, 30], [20, 0, 0])
    assert overlap((labels, labels), moved, np.linalg.inv(moved)) == 1.0
    assert overlap((labels, labels), moved, np.eye(4)) < 0.5
    lacking = bench / "bench" / "lacking.nii.gz"
    image = nibabel.load(labels)
    data = np.asarray(image.dataobj).copy()
    data[data == 9] = 0
    nibabel.save(nibabel.Nifti1Image(data, image.affine), lacking)
    assert overlap((labels, lacking), np.eye(4), np.eye(4)) == 1.0  # "Middle" is in one only and does not count


# --- cases -------------------------------------------------------------------------------------------------


def test_the_pairs_are_the_twenty_of_the_protocol():
    every = cases.pairs()
    assert len(every) == 20 == len(set(every))
    assert every[0] == (0, 3) and every[9] == (9, 2) and every[10] == (0, 7)
    assert cases.pairs(5) == every[:5]


def test_poses_are_the_same_every_time_and_differ_between_pairs_and_seeds(bench):
    first, second = (sweep(bench, (0, 90), 2, seed=1) for _ in range(2))
    assert [c.name for c in first] == ["oasis_0-oasis_3"] * 2 + ["oasis_1-oasis_4"] * 2
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.moved, b.moved)
    turned, center = first[1], np.array([28.5, 31.5, 34.5])
    assert geometry.decompose(turned.moved).rotation_deg == pytest.approx(90)
    assert np.linalg.norm(geometry.transform_points(turned.moved, center[None])[0] - center) == pytest.approx(20)
    assert np.abs(turned.moved - first[3].moved).max() > 0.1
    assert np.abs(turned.moved - sweep(bench, (90,), 1, seed=2)[0].moved).max() > 0.1


def test_a_hard_case_is_repeatable_and_its_truth_lays_the_volumes_on_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(hard, "SIZE", 56)
    monkeypatch.setattr(hard, "SPACING", 4.5)
    scan = DEMO / "moving_t1_brain.nii.gz"
    case = hard.hard_case(scan, "clean", 0, tmp_path)
    moving, fixed = volume_file.load(case.moving), volume_file.load(case.fixed)
    there = volume.resample(moving.moved(case.moved), fixed, case.truth)
    inside = fixed.data > 100
    assert np.corrcoef(there.data[inside], fixed.data[inside])[0, 1] > 0.93
    hard.known_pair.cache_clear()
    once = [
        hard.hard_case(scan, "together", 0, tmp_path) and volume_file.load(tmp_path / "moving.nii") for _ in range(2)
    ]
    np.testing.assert_array_equal(once[0].data, once[1].data)
    assert once[0].data.size < moving.data.size  # cropped
    assert np.abs(hard.hard_case(scan, "clean", 1, tmp_path).truth - case.truth).max() > 0.01
    hard.known_pair.cache_clear()


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_keeps_sixty_percent_of_the_box(seed):
    first, last = hard.crop_box([10, 20, 30], [110, 100, 130], np.random.default_rng(seed))
    assert np.prod(last - first) == pytest.approx(0.6 * 100 * 80 * 100, rel=0.03)
    assert (first >= [10, 20, 30]).all() and (last <= [110, 100, 130]).all()


# --- methods -----------------------------------------------------------------------------------------------


def test_itk_transforms_become_moving_to_fixed_in_ras():
    turn = geometry.rotation_about([0, 0, 1], 0.5)
    lps = peers.centered(turn, [1.0, 2.0, 3.0], np.array([10.0, 20.0, 30.0]))
    point = np.array([4.0, 5.0, 6.0])
    expected = turn @ (point - [10, 20, 30]) + [10, 20, 30] + [1, 2, 3]
    np.testing.assert_allclose(lps[:3] @ [*point, 1], expected)
    ras = peers.ras_moving_to_fixed(lps)
    np.testing.assert_allclose(ras[:3] @ [*(expected * [-1, -1, 1]), 1], point * [-1, -1, 1])


def test_an_elastix_euler_map_is_read_as_elastix_means_it():
    values = {
        "Transform": ["EulerTransform"],
        "TransformParameters": ["0.1", "0.2", "0.3", "1", "2", "3"],
        "CenterOfRotationPoint": ["5", "6", "7"],
        "ComputeZYX": ["false"],
    }
    import SimpleITK as sitk

    euler = sitk.Euler3DTransform((5.0, 6.0, 7.0), 0.1, 0.2, 0.3, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(peers.elastix_matrix(values)[:3] @ [8, 9, 1, 1], euler.TransformPoint((8.0, 9.0, 1.0)))


def test_every_method_has_one_name():
    assert not set(ours.METHODS) & set(peers.METHODS)
    assert set(runner.all_methods()) == set(tables.LABELS)


# --- running and reporting ---------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped_and_reports_from_its_file_alone(bench, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = ["run", "--data", str(bench), "--methods", "centers", "--rotations", "0", "90", "--out", str(out)]
    assert main([*arguments, "--pairs", "1"]) == 0
    before = (out / results.FILE).read_bytes()
    with open(out / results.FILE, "ab") as file:
        file.write(b'{"task": "brains", "method": "cen')  # the machine went down here
    assert main([*arguments, "--pairs", "2"]) == 0
    assert "2 new registrations" in capsys.readouterr().out
    assert (out / results.FILE).read_bytes().startswith(before)
    records = results.registrations(results.read(out))
    assert len(records) == 4 == len({results.key(r) for r in records})
    assert all(r["dice"] > 0.5 for r in records if r["rotation"] == 0)
    assert all(r["seconds"] >= 0 and r["peak_mb"] > 10 for r in records)
    assert main(["report", str(out)]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    mean = np.mean([r["dice"] for r in records if r["rotation"] == 90])
    assert f"{mean:.3f}" in text and "centers of mass" in text
    assert (out / "brains.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_cannot_start_is_left_out_and_a_failing_one_counts_as_wrong(bench, tmp_path):
    said = []
    count = runner.run(
        data=bench,
        out=tmp_path,
        methods=["ants-affine"],
        rotations=(0,),
        pairs=1,
        peer_python="/bin/false" if Path("/bin/false").exists() else "false",
        report=said.append,
    )
    assert count == 0 and "left out" in said[0]
    case = sweep(bench, (0,), 1)[0]
    record = runner.judge(case, {"error": "no answer within 1 s"}, measures.Overlap({}, 0.45))
    assert record == {"error": "no answer within 1 s", "dice": 0.0, "success": False}


def test_the_report_compares_methods_on_shared_pairs_and_judges_the_error_bar(tmp_path):
    for method, count in (("default", 6), ("greedy", 2)):
        for index in range(count):
            results.append(
                tmp_path,
                {
                    "task": "brains",
                    "method": method,
                    "case": f"p{index}",
                    "rotation": 0.0,
                    "seed": 0,
                    "dice": 0.5 + 0.02 * index,
                    "success": True,
                    "seconds": 1.0,
                    "cpu_seconds": 1.0,
                    "peak_mb": 9,
                    "build": "m-1" if method == "default" else None,
                },
            )
            results.append(
                tmp_path,
                {
                    "task": "hard",
                    "method": method,
                    "case": f"clean/s{index}",
                    "rotation": 9.0,
                    "seed": 0,
                    "error_mm": 20.0 if index == 5 else 1.0 + index / 10,
                    "success": index < 5,
                    "seconds": 1.0,
                    "cpu_seconds": 1.0,
                    "peak_mb": 9,
                    "spread_mm": float(index),
                    "confidence": "poor" if index == 5 else "good",
                    "build": None,
                },
            )
    text = report.text(tmp_path)
    assert "| greedy | 0.510 (2) |" in text and "| Spatial Diffusion (default) | 0.510 [2] |" in text
    assert "| Spatial Diffusion (default) | 6 | 1 | 1.00 | 1.00 | 1 of 1 | 0 of 5 |" in text
    assert [results.forget(tmp_path, ["greedy"], task) for task in ("brains", "hard")] == [2, 2]
    assert "greedy" not in report.text(tmp_path)


def test_area_and_rank_correlation_of_known_numbers():
    assert tables.auroc([1, 2, 3, 4], [False, True, False, True]) == pytest.approx(0.75)
    assert tables.auroc([1, 2], [True, True]) is None
    assert tables.spearman([1, 2, 3, 9], [10, 20, 30, 31]) == pytest.approx(1.0)


def test_a_folder_without_data_or_results_is_told_in_a_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert main(["run", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "holds no folder 'bench'" in capsys.readouterr().err
    with pytest.raises(InputError, match="Unknown conditions"):
        TASKS["hard"].cases(cases.Arguments(tmp_path, tmp_path, conditions=("fog",)))
    assert not (tmp_path / results.FILE).exists() or json.loads((tmp_path / results.FILE).read_text() or "{}")


# --- further tasks -----------------------------------------------------------------------------------------


@pytest.fixture
def heads(tmp_path, monkeypatch):
    """A data folder with the bundled brain as ten scans, templates of blobs and small cubes."""
    for name in ("bench", "t1", "templates"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in range(10):
        shutil.copy(DEMO / "moving_t1_brain.nii.gz", tmp_path / "data" / "t1" / f"made_{index:02}.nii.gz")
    monkeypatch.setattr(hard, "SIZE", 56)
    monkeypatch.setattr(hard, "SPACING", 4.5)
    yield tmp_path / "data"
    hard.known_pair.cache_clear()


def todos(task, data, scratch, **chosen):
    return TASKS[task].cases(cases.Arguments(data, scratch, **chosen))


def save(array, path, spacing=4.0):
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.diag([spacing] * 3 + [1.0])), path)


def test_ct_pairs_are_taken_in_the_order_of_their_numbers_and_judged_by_organs(bench, tmp_path):
    blob = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0)
    for number in range(1, 21):
        save(np.maximum(0, 200 - 20 * blob), bench / "bench" / f"openkbp_{number}_ct.nii.gz")
        save(np.where(blob < 3, 1, np.where(blob < 5, 7, 0)), bench / "bench" / f"openkbp_{number}_labels.nii.gz")
    made = todos("ct", bench, tmp_path, pairs=9, rotations=(0, 180))
    assert [t.name for t in made[::2]][:3] == ["openkbp_1-openkbp_4", "openkbp_2-openkbp_5", "openkbp_3-openkbp_6"]
    assert {t.rotation for t in made} == {0, 180} and len(made) == 18
    case = made[0].make()
    assert case.modality == ("ct-head-neck", "ct-head-neck")
    measure = TASKS["ct"].measure(cases.Arguments(bench, tmp_path))
    assert measure(case, np.linalg.inv(case.moved)) == {"dice": 1.0, "success": True}
    assert measure(case, geometry.from_parts(np.eye(3), [100, 0, 0]))["success"] is False
    assert measure(case, None) == {"dice": 0.0, "success": False}
    records = [
        {"task": "ct", "method": "greedy", "case": case.name, "rotation": 0.0, **measure(case, m)}
        for m in (np.linalg.inv(case.moved), None)
    ]
    assert "0.500 · 50 %" in "\n".join(TASKS["ct"].summary(records))


@pytest.mark.parametrize("name", severity.ARTIFACTS)
def test_an_artifact_grows_with_its_severity_and_keeps_the_transform(heads, tmp_path, name):
    made = [t for t in todos("severity", heads, tmp_path, subjects=1, conditions=(name,))]
    assert [t.name.split("/")[0] for t in made] == [f"{name}@{s:g}" for s in severity.SEVERITIES]
    clean = hard.hard_case(hard.held_out(heads)[0], "clean", 0, tmp_path)
    references = [volume_file.load(p) for p in (clean.fixed, clean.moving)]
    away = []
    for todo in made:
        case = todo.make()
        np.testing.assert_array_equal(case.truth, clean.truth)
        changed = [volume.resample(volume_file.load(p), r) for p, r in zip((case.fixed, case.moving), references)]
        away.append(sum(float(np.abs(c.data - r.data).mean()) for c, r in zip(changed, references)))
    assert away == sorted(away) and away[0] > 0 and away[-1] > 1.5 * away[0]


def test_draws_of_the_diffusion_are_repeatable_and_their_truth_lays_the_volumes_on_each_other(heads, tmp_path):
    made = todos("steps", heads, tmp_path, subjects=1)
    assert [t.name.split("/")[0] for t in made] == ["near", "far"]
    for todo in made:
        case = todo.make()
        assert case.rotation == todo.rotation
        np.testing.assert_array_equal(case.truth, todo.make().truth)
        moving, fixed = volume_file.load(case.moving), volume_file.load(case.fixed)
        inside = fixed.data > 150
        alike = [
            np.corrcoef(volume.resample(moving, fixed, matrix).data[inside], fixed.data[inside])[0, 1]
            for matrix in (case.truth, np.eye(4))
        ]
        assert alike[0] > 0.85 > alike[1]


def test_the_single_shot_is_one_step_of_either_sampler_and_names_carry_their_steps(heads, tmp_path):
    case = todos("steps", heads, tmp_path, subjects=1)[0].make()
    answers = {}
    for name in ("diffusion@1", "naive@1", "naive@3"):
        method = ours.make(name)
        method.prepare(*case.modality)
        answers[name] = method.run(*(volume_file.load(p) for p in (case.moving, case.fixed)), 0)[0]
    np.testing.assert_allclose(answers["diffusion@1"], answers["naive@1"], atol=2e-3)
    assert np.abs(answers["naive@3"] - answers["naive@1"]).max() > 0.01
    assert tables.label("diffusion@4") == "· diffusion alone, 4 steps"
    assert tables.parse("greedy") == ("greedy", None, None, False)
    assert tables.parse("diffusion@8:foundation:any") == ("diffusion", 8, "foundation", True)
    records = [
        {
            "task": "steps",
            "method": f"diffusion@{k}",
            "case": f"{group}/s",
            "rotation": 9.0,
            "seed": 0,
            "error_mm": 8.0 / k,
            "success": 8.0 / k < 5,
            "seconds": 1.0 * k,
            "cpu_seconds": 1.0 * k,
            "peak_mb": 9,
        }
        for k in (16, 2)
        for group in steps.TIMESTEPS
    ]
    text = "\n".join(TASKS["steps"].section(records))
    assert text.index("2 steps | 4.00 | 4.00 | 100") < text.index("16 steps | 0.50")
    with pytest.raises(SystemExit):
        main(["run", "--data", "x", "--out", "y", "--methods", "naive@some"])


def test_models_meet_the_modalities_they_know_told_or_not(heads, tmp_path):
    made = {t.name.split("/")[0]: t for t in todos("models", heads, tmp_path, subjects=1)}
    assert set(made) == {"t1-brain", "oct", "octa", "any"}  # the folder holds no other heads
    methods = TASKS["models"].methods
    assert [m for m in methods if models.takes(m, "oct/eye00")][0] == "centers"
    assert models.takes("diffusion:t1-brain", "ct-head-neck/x") and not models.takes("diffusion:t1-brain", "oct/eye00")
    assert not models.takes("diffusion:retina", "t1-brain/x") and not models.takes("diffusion:absent", "t1-brain/x")
    case = made["oct"].make()
    np.testing.assert_array_equal(case.truth, made["oct"].make().truth)
    assert retinas.measure(case, case.truth)["error_mm"] == 0 < retinas.measure(case, np.eye(4))["error_mm"] < 3
    told, untold = ours.make("diffusion:foundation"), ours.make("diffusion:foundation:any")
    for method in (told, untold):
        method.prepare("ct-head-neck", "ct-head-neck")
    assert [m.model.class_id("ct-head-neck", "ct-head-neck") for m in (told, untold)] == [3, 0]
    assert told.model.name == untold.model.name == "foundation"
    records = [
        {
            "task": "models",
            "method": m,
            "case": "oct/eye00",
            "rotation": 0.0,
            "seed": 0,
            "error_mm": 0.5,
            "success": False,
        }
        for m in methods[:2]
    ]
    assert "| 0.50 · 0.50 |" in "\n".join(TASKS["models"].summary(records))


def test_contrast_pairs_alternate_their_direction_and_the_truth_undoes_the_header(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(contrast, "CONSENSUS", tmp_path / "consensus.json")
    place = (np.indices((30, 30, 30)) - 14.5) * np.array([2, 3, 4]).reshape(3, 1, 1, 1)
    blob = np.maximum(0, 100 - 4 * np.linalg.norm(place, axis=0))
    save(blob, heads / "templates" / "mni152_t1_2mm.nii.gz")
    save(np.where(blob > 0, 110 - blob, 0), heads / "templates" / "mni152_t2_2mm.nii.gz")
    monkeypatch.setitem(contrast.TEMPLATES, "T1-T2", contrast.TEMPLATES["T1-T2"][:1])
    made = todos("contrast", heads, tmp_path, draws=2, conditions=("T1-T2", "raw T1-T2"))
    assert len(made) == 2  # no raw scan has an agreed transform here
    there, back = (t.make() for t in made)
    assert (there.moving, there.fixed) == (back.fixed, back.moving) and there.modality == ("t1-brain", "t2-head-neck")
    for case in (there, back):
        moving, fixed = volume_file.load(case.moving), volume_file.load(case.fixed)
        found = volume.resample(moving.moved(case.moved), fixed, case.truth)
        np.testing.assert_allclose(found.data, moving.data, atol=0.1)  # templates share their voxels
        assert measures.known(case, case.truth)["error_mm"] == 0
        turned = case.truth @ geometry.about(geometry.rotation_about([1, 0, 0], 0.2), case.mean)
        assert measures.known(case, turned)["error_mm"] > 1


def test_peers_agree_by_their_median_and_one_that_strayed_is_left_out():
    points = np.random.default_rng(0).normal(size=(500, 3)) * 50
    right = geometry.about(geometry.rotation_about([0, 0, 1], 0.3), [5, 5, 5], [1, 2, 3])
    shifted = [geometry.from_parts(np.eye(3), [d, 0, 0]) @ right for d in (0.4, -0.4, 60.0)]
    found = contrast.agree(dict(zip("abc", shifted)), points)
    np.testing.assert_allclose(np.array(found["matrix"]), right[:3], atol=1e-5)
    assert found["peers"]["a"] == found["peers"]["b"] == 0.4 and found["peers"]["c"] == 60.0
    apart = [geometry.from_parts(np.eye(3), [d, 0, 0]) for d in (-40.0, 0.0, 40.0)]
    assert contrast.agree(dict(zip("abc", apart)), points)["matrix"] is None


def test_hopeless_cases_have_no_answer_but_half_a_head(heads, tmp_path):
    ball = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
    part = np.indices(ball.shape)[0] < 14
    for number in range(4):
        save(np.maximum(0, 100 - 8 * ball) * part, heads / "bench" / f"oasis_{number}_t1.nii.gz")
        save(np.maximum(0, 100 - 8 * ball), heads / "bench" / f"openkbp_{number}_ct.nii.gz")
    made = {t.name.split("/")[0]: t for t in todos("hopeless", heads, tmp_path, subjects=1)}
    assert list(made) == list(hopeless.GROUPS)
    measure = TASKS["hopeless"].measure(None)
    records = []
    for group, todo in made.items():
        case = todo.make()
        record = {
            "task": "hopeless",
            "method": "default",
            "case": case.name,
            "rotation": case.rotation,
            "seed": 0,
            **measure(case, np.eye(4) if case.truth is None else case.truth),
            "spread_mm": 9.0,
            "confidence": "poor",
            "similarity_after": 0.2 if group == "true" else 0.1,
            "seconds": 1.0,
            "cpu_seconds": 1.0,
            "peak_mb": 9,
        }
        records.append(record)
        assert record["success"] == (group in ("half", "true")) and ("error_mm" in record) == (group == "half")
        volume.validate(volume_file.load(case.moving))
    half = made["half"].make()
    assert volume_file.load(half.moving).data.size < 0.75 * volume_file.load(half.fixed).data.size
    text = "\n".join(TASKS["hopeless"].section(records))
    assert "| half of a head on the whole | 0 | 0 | 1 | 9.0 | 0.00 |" in text
    assert "more alike than its mirror image in 1 of 1 pairs of people (by 0.100 in the median)" in text
    scan = volume_file.load(DEMO / "moving_t1_brain.nii.gz")
    np.testing.assert_array_equal(hopeless.mirror(hopeless.mirror(scan)).data, scan.data)
    assert np.abs(hopeless.mirror(scan).data - scan.data).max() > 0


def test_confidence_is_judged_over_all_tasks_with_mirrored_heads_apart():
    def record(task, case, spread, word, **judged):
        return {
            "task": task,
            "method": "default",
            "case": case,
            "rotation": 0.0,
            "seed": 0,
            "spread_mm": spread,
            "similarity_after": 1 / (1 + spread),
            "confidence": word,
            **judged,
        }

    records = [
        record("hard", "clean/a", 0.1, "good", error_mm=0.5, success=True),
        record("hard", "clean/b", 0.2, "good", error_mm=3.0, success=True),
        record("hard", "clean/c", 8.0, "poor", error_mm=50.0, success=False),
        record("brains", "a-b", 0.3, "good", dice=0.6, success=True),
        record("hopeless", "noise/a", 9.0, "poor", success=False),
        record("hopeless", "mirror/a", 0.1, "good", success=False),
    ]
    text = "\n".join(confidence.section(records))
    assert "| Spatial Diffusion (default) | 5 | 2 | 1.00 | 1.00 | 1.00 | 2 of 2 | 0 of 3 |" in text
    assert "| good | 1 | 1 | 0 | 0 | 1 | 0 | 0 | 1 |" in text and "| poor | 0 | 0 | 0 | 1 | 0 | 0 | 1 | 0 |" in text
    assert "called mirrored" not in text
    for index, sides in ((0, [0.9, 0.8]), (1, [0.9, -0.05]), (3, [-0.3, 0.7]), (5, [0.8, -0.6])):
        records[index]["sides"] = sides
    records.append(record("hopeless", "mirror-other/a", 0.1, "good", success=False))
    text = "\n".join(confidence.section(records))
    assert "Of 2 pairs with a mirrored head 1 were called mirrored, of 3 others" in text and text.endswith(
        "measured 1."
    )


def test_the_readme_gets_its_tables_between_the_markers_and_nowhere_else(bench, tmp_path, capsys):
    out, readme = tmp_path / "results", tmp_path / "README.md"
    run = ["run", "--data", str(bench), "--methods", "centers", "--rotations", "0", "--pairs", "1", "--out", str(out)]
    assert main(run) == 0
    readme.write_text("before\n" + report.BEGIN + "\nold\n" + report.END + "\nafter\n")
    assert main(["report", str(out), "--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text and "centers of mass" in text and "--task brains" in text
    assert "](results/brains.png)" in text and tables.FIGURE not in text
    assert main(["report", str(out), "--readme", str(readme)]) == 0 and readme.read_text(encoding="utf-8") == text
    readme.write_text("no markers")
    assert main(["report", str(out), "--readme", str(readme)]) == 1 and readme.read_text() == "no markers"


@pytest.mark.parametrize(
    "builds, mixed",
    [
        (["a-1 (code c)"], False),
        (["a-1 (code c)", "b-2 (code c)"], False),
        (["a-1 (code c)", "a-2 (code c)"], True),
        (["a-1 (code c)", "b-1 (code d)"], True),
    ],
)
def test_results_of_unlike_states_are_said_not_to_belong_together(tmp_path, builds, mixed):
    for number, build in enumerate(builds):
        results.append(
            tmp_path,
            {
                "task": "hard",
                "method": "default",
                "case": f"clean/{number}",
                "rotation": 1.0,
                "seed": 0,
                "build": build,
                "error_mm": 0.1,
                "success": True,
                "seconds": 1.0,
                "cpu_seconds": 1.0,
                "peak_mb": 9,
            },
        )
    results.append(
        tmp_path,
        {
            "task": "machine",
            "cpu": "x",
            "cores": 1,
            "threads": 1,
            "memory_gb": 1,
            "system": "y",
            "python": "3",
            "torch": "2",
        },
    )
    said = report.text(tmp_path)
    assert ("do not belong together" in said) == mixed
    assert ("has changed since" in said) == (not mixed)


def test_results_of_the_code_that_is_here_are_not_said_to_be_older(tmp_path):
    build = f"a-1 (code {child.code_hash()})"
    record = {"task": "hard", "method": "default", "case": "clean/0", "rotation": 1.0, "seed": 0, "build": build}
    results.append(tmp_path, {**record, "error_mm": 0.1, "success": True, "cpu_seconds": 1.0, "peak_mb": 9})
    said = report.text(tmp_path)
    assert build in said and "has changed since" not in said


def test_a_dressed_brain_keeps_its_place_inside_another_head(bench, tmp_path, monkeypatch):
    """Brain, fluid and the other's head lie where they should, on the scan's own coordinates; the labels fit."""
    (bench / "t1").mkdir()
    radius = np.linalg.norm(np.indices((60, 60, 60)) - 29.5, axis=0) * 3
    other = np.where(radius < 85, 50.0, 0).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(other, np.diag([3.0, 3, 3, 1])), bench / "t1" / "ixi_7.nii.gz")
    to_brain = geometry.from_parts(np.eye(3), np.array([27, 30, 33]) - 88.5)  # the head's middle on the blob's
    places = {f"oasis_{n}_t1": {"head": "ixi_7", "matrix": to_brain[:3].tolist()} for n in range(10)}
    (tmp_path / "heads.json").write_text(json.dumps(places))
    monkeypatch.setattr(heads_task, "PLACES", tmp_path / "heads.json")
    heads_task.dressed.cache_clear()
    made = [t.make() for t in TASKS["heads"].cases(cases.Arguments(bench, tmp_path, rotations=(0,), pairs=2))]
    assert [c.name for c in made] == [
        "head on head/oasis_0-oasis_3",
        "brain on head/oasis_0-oasis_3",
        "head on head/oasis_1-oasis_4",
        "head on brain/oasis_1-oasis_4",
    ]
    head = volume_file.load(made[0].moving)
    assert made[1].moving.name == "oasis_0_t1.nii.gz" and made[3].fixed.name == "oasis_4_t1.nii.gz"
    place = geometry.transform_points(head.voxel_to_ras, np.indices(head.shape).reshape(3, -1).T)
    apart = np.linalg.norm(place - [27, 30, 33], axis=1).reshape(head.shape)
    inner = volume.resample(volume_file.load(bench / "bench" / "oasis_0_t1.nii.gz"), head).data
    assert np.allclose(head.data[apart < 22], inner[apart < 22])
    ring = head.data[(apart > 29) & (apart < 30)]
    assert np.allclose(ring, ring[0]) and 0 < ring[0] < 0.3 * inner.max()
    shell = head.data[(apart > 36) & (apart < 55)]
    assert shell.min() > 2 * ring[0] and shell.std() < 0.05 * shell.mean()
    measure = TASKS["heads"].measure(cases.Arguments(bench, tmp_path))
    assert measure(made[0], np.linalg.inv(made[0].moved))["dice"] > 0.9
    assert measure(made[0], np.eye(4))["dice"] < 0.5


# ----------------------------------------------------------------------------------------------- many volumes
def test_a_cohort_whose_transforms_differ_is_told(tmp_path):
    row = {"jobs": 1, "seconds": 100.0, "cpu_seconds": 80.0, "worker_mb": 512.0, "load": 1.5,
           "transforms": {"a.tfm": "1", "b.tfm": "2"}}  # fmt: skip
    same = {**row, "jobs": 2, "seconds": 50.0}
    lines = cohort.table([row, same, {**same, "transforms": {"a.tfm": "1", "b.tfm": "3"}}]).splitlines()
    assert lines[2] == "| 1 | 2 | 72 | 40.0 | 512 | 1.5 | yes |"
    assert lines[3].startswith("| 2 | 2 | 144 |") and lines[3].endswith("| yes |") and lines[4].endswith("| NO |")
    scans = tmp_path / "t1"
    scans.mkdir()
    for number in range(9):
        (scans / f"scan{number}.nii.gz").touch()
    assert [Path(one).name[4] for one in cohort.scans_of(tmp_path, 3)] == ["0", "4", "8"]
    assert len(cohort.scans_of(tmp_path, 40)) == 9


def test_planted_wrong_pairs_are_counted():
    pairs = {(i, j): group_answer() for i in range(6) for j in range(i + 1, 6)}
    clouds = [averaging.Cloud(np.zeros(3), 1000 * np.eye(3))] * 6
    for seed in range(3):
        assert group_task.planted(pairs, clouds, seed) == {"planted": 2, "found": 2, "right_dropped": 0}


def group_answer():
    return PairAnswer(np.eye(4), "good")


def test_methods_of_the_motion_benchmark_that_are_not_asked_for_keep_their_rows(tmp_path, monkeypatch):
    def row(method, median):
        numbers = {"median": median, "p95": 0.2, "worst": 0.3, "cpu_whole": 9.0, "cpu_frame": 1.0, "memory_mb": 100.0}
        return {"method": method, "base": 10, "frames": 16, **numbers}

    (tmp_path / "motion.json").write_text(json.dumps([row("ours", 0.5), row("ants", 0.07)]))
    monkeypatch.setattr(motion, "measured", lambda *_: [row("ours", 0.02)])
    assert main(["motion", "--data", ".", "--out", str(tmp_path), "--methods", "ours"]) == 0
    table = (tmp_path / "motion.md").read_text()
    assert "| this project | 1 | 0.020 |" in table and "| ants.motion_correction | 1 | 0.070 |" in table
