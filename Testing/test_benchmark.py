"""The benchmark on made-up brains: what it measures, that it goes on where it stopped, and what it prints."""
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from Benchmark import cases, hard, measures, ours, peers, report, results, runner, tables
from Benchmark.__main__ import main
from Benchmark.tasks import TASKS
from SpatialDiffusionCore import geometry, volume
from SpatialDiffusionCore.errors import InputError

DEMO = Path(volume.__file__).parent / "demo"
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
        nibabel.save(nibabel.Nifti1Image(np.maximum(0, 9 - radius).astype(np.float32), header),
                     folder / f"oasis_{subject}_t1.nii.gz")
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
    moving, fixed = volume.load(case.moving), volume.load(case.fixed)
    there = volume.resample(moving.moved(case.moved), fixed, case.truth)
    inside = fixed.data > 100
    assert np.corrcoef(there.data[inside], fixed.data[inside])[0, 1] > 0.93
    hard.known_pair.cache_clear()
    once = [hard.hard_case(scan, "together", 0, tmp_path) and volume.load(tmp_path / "moving.nii") for _ in range(2)]
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
    values = {"Transform": ["EulerTransform"], "TransformParameters": ["0.1", "0.2", "0.3", "1", "2", "3"],
              "CenterOfRotationPoint": ["5", "6", "7"], "ComputeZYX": ["false"]}
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
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_cannot_start_is_left_out_and_a_failing_one_counts_as_wrong(bench, tmp_path):
    said = []
    count = runner.run(data=bench, out=tmp_path, methods=["ants-affine"], rotations=(0,), pairs=1,
                       peer_python="/bin/false" if Path("/bin/false").exists() else "false", report=said.append)
    assert count == 0 and "left out" in said[0]
    case = sweep(bench, (0,), 1)[0]
    record = runner.judge(case, {"error": "no answer within 1 s"}, measures.Overlap({}, 0.45))
    assert record == {"error": "no answer within 1 s", "dice": 0.0, "success": False}


def test_the_report_compares_methods_on_shared_pairs_and_judges_the_error_bar(tmp_path):
    for method, count in (("default", 6), ("greedy", 2)):
        for index in range(count):
            results.append(tmp_path, {
                "task": "brains", "method": method, "case": f"p{index}", "rotation": 0.0, "seed": 0,
                "dice": 0.5 + 0.02 * index, "success": True, "seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 9,
                "build": "m-1" if method == "default" else None})
            results.append(tmp_path, {
                "task": "hard", "method": method, "case": f"clean/s{index}", "rotation": 9.0, "seed": 0,
                "error_mm": 20.0 if index == 5 else 1.0 + index / 10, "success": index < 5, "seconds": 1.0,
                "cpu_seconds": 1.0, "peak_mb": 9, "spread_mm": float(index), "confidence": "poor" if index == 5
                else "good", "build": None})
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
