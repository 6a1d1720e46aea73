"""Task anatomies: copies lie where they should, the halves keep people apart, and what is right is called right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from Benchmark import anatomies, anatomy_report, anatomy_run, copies, peer_programs, peers, subjects
from Benchmark.__main__ import main
from Benchmark.cases import rng
from Benchmark.subjects import Subject
from conftest import DEMO
from SpatialDiffusionCore.spatial import geometry, volume, volume_file
from SpatialDiffusionCore.spatial.sampling import prepare
from SpatialDiffusionCore.spatial.volume import Volume


@pytest.fixture(scope="module")
def brain():
    return volume_file.load(DEMO / "moving_t1_brain.nii.gz")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with the demo's two brains as one mouse each."""
    (tmp_path / "bench").mkdir()
    mine = []
    for name in ("moving_t1_brain", "fixed_mni152_brain"):
        (tmp_path / f"{name}.nii.gz").write_bytes((DEMO / f"{name}.nii.gz").read_bytes())
        mine.append(Subject("mouse-brain", name, "development", "unseen", "unused", f"{name}.nii.gz"))
    monkeypatch.setattr(subjects, "read", lambda: mine)
    anatomy_run._all.cache_clear()
    return tmp_path


def case_of(data, name, draws=2):
    todo = {todo.name: todo for todo in anatomies.todos(data, "development", draws=draws)}[name]
    case = todo.make()
    assert case.rotation == todo.rotation  # results are found again by it
    return case


# --- copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", copies.KINDS)
def test_a_copy_lies_where_its_volume_lies(brain, kind):
    oblique = brain.moved(geometry.about(geometry.rotation_about([1, 2, 3], 0.4), brain.center(), [5, 0, 2]))
    prepared = prepare(oblique)
    for draw in range(3):
        copy = copies.make_copy(kind, oblique, prepared, rng(kind, draw))
        np.testing.assert_array_equal(copy.data, copies.make_copy(kind, oblique, prepared, rng(kind, draw)).data)
        back = volume.resample(oblique, copy).data
        # The outermost voxels of a resampled copy lie between the source's last centers and its faces.
        inner = (slice(1, -1),) * 3
        tissue = back[inner] > prepared.threshold
        alike = np.corrcoef(back[inner][tissue], copy.data[inner][tissue])[0, 1]
        # Another contrast, or slabs that moved, leave less of the likeness.
        assert alike < -0.9 if kind in "CI" else abs(alike) > (0.4 if kind == "S" else 0.9)
    if kind == "I":
        low, high = prepared.window
        np.testing.assert_allclose(copy.data, low + high - np.clip(oblique.data, low, high), rtol=1e-6)
    if kind == "C":
        np.testing.assert_array_equal(copy.data[0], oblique.data[0])  # air stays air


def test_a_cut_copy_loses_a_third_of_the_longest_axis_and_a_fifth_of_the_next(brain):
    prepared = prepare(brain)
    first, last = copies.tissue_box(brain, prepared)
    for draw in range(4):
        copy = copies.cut(brain, prepared, rng("cut", draw))
        order = np.argsort(-(last - first) * brain.spacing)
        kept = np.array(copy.shape) / (last - first)
        np.testing.assert_allclose(kept[order[:2]], [0.65, 0.8], atol=0.01)
        assert copy.shape[order[2]] == brain.shape[order[2]]


def test_a_resampled_copy_keeps_the_field_of_view_in_other_axes(brain):
    def faces(of: Volume) -> np.ndarray:
        ends = np.array(list(np.ndindex(2, 2, 2))) * np.array(of.shape) - 0.5
        return np.array(sorted(np.round(geometry.transform_points(of.voxel_to_ras, ends), 3).tolist()))

    made = [copies.resampled(brain, prepare(brain), rng("resampled", draw)) for draw in range(6)]
    for copy in made:
        np.testing.assert_allclose(faces(copy), faces(brain), atol=0.01)
    signs = [np.sign(copy.voxel_to_ras[:3, :3][np.abs(copy.voxel_to_ras[:3, :3]) > 0.1]).tolist() for copy in made]
    orders = [np.abs(copy.voxel_to_ras[:3, :3]).argmax(axis=0).tolist() for copy in made]
    assert len({*map(tuple, signs)}) > 1 and len({*map(tuple, orders)}) > 1


# --- truth and words ---------------------------------------------------------------------------------------


def test_the_truth_is_right_and_errors_are_shares_of_the_size(data):
    for kind in copies.KINDS:
        case = case_of(data, f"{kind}/mouse-brain/moving_t1_brain/1")
        assert 40 <= case.rotation <= 180
        fixed = prepare(case.volumes[1])
        assert case.size == pytest.approx(2 * np.sqrt(np.trace(fixed.tissue_covariance)))
        center = fixed.tissue_center
        apart = np.linalg.norm(geometry.transform_points(case.moved, center[None])[0] - center)
        scales = np.linalg.svd(case.moved[:3, :3], compute_uv=False)
        assert scales.min() < 0.99 and scales.max() < 1.4 if kind == "S" else np.allclose(scales, 1)
        assert apart == pytest.approx(case.size / 4)
        truth = anatomies.judge(case, case.truth)
        assert truth["success"] and truth["error_mm"] < 1e-3
        for share, right, wrong in ((0.7, True, False), (1.5, False, False), (3.5, False, True)):
            away = geometry.from_parts(np.eye(3), [share * case.limits[0], 0, 0]) @ case.truth
            found = anatomies.judge(case, away)
            assert (found["success"], found["wrong"]) == (right, wrong)
            assert found["error_share"] == pytest.approx(share * case.limits[0] / case.size, abs=1e-4)
        assert anatomies.judge(case, np.eye(4))["wrong"]
        assert anatomies.judge(case, None) == {"success": False, "wrong": False}


def test_half_a_coarse_voxel_is_right_and_never_wrong():
    assert anatomies._within((0.01, 0.03), 100.0, 1.0) == (1.0, 3.0)
    assert anatomies._within((0.01, 0.03), 100.0, 7.5) == (3.75, 3.75)


def test_landmarks_are_read_in_the_system_that_their_file_names(tmp_path):
    points = {"3": [7.0, 8.0, 9.0], "1": [1.0, 2.0, 3.0]}
    wanted = [[-1, -2, 3], [-7, -8, 9]]
    for system, sign in (("LPS", 1), ("1", 1), ("RAS", -1), ("0", -1)):
        anatomies._landmarks.cache_clear()
        control = [{"label": k, "position": [sign * v[0], sign * v[1], v[2]]} for k, v in points.items()]
        markups = {"markups": [{"coordinateSystem": system, "controlPoints": control}]}
        (tmp_path / "skull.mrk.json").write_text(json.dumps(markups))
        np.testing.assert_array_equal(anatomies._landmarks(str(tmp_path / "skull.nii.gz")), wanted)


def test_vertebrae_are_in_order_whatever_their_numbers(tmp_path):
    numbers = np.zeros((40, 10, 10), np.uint8)
    for place, number in ((5, 3), (15, 1), (25, 2)):
        numbers[place : place + 3, 4:7, 4:7] = number
    volume_file.save(Volume(numbers, np.diag([2.0, 2, 2, 1])), tmp_path / "spine_labels.nii.gz")
    found = anatomies._vertebrae(str(tmp_path / "spine.nii.gz"))
    np.testing.assert_allclose(found, [[12, 10, 10], [32, 10, 10], [52, 10, 10]])


# --- halves ------------------------------------------------------------------------------------------------


def test_nobody_is_in_both_halves_and_nobody_reported_calibrates():
    mine = subjects.read()
    halves = {}
    for subject in mine:
        halves.setdefault(subject.person, set()).add(subject.half)
    assert all(len(found) == 1 for found in halves.values())
    for collection in {s.collection for s in mine} - set(subjects.SINGLE):
        people = {s.person: s.half for s in mine if s.collection == collection}
        unseen = {s.person for s in mine if s.collection == collection and s.network == "unseen"} or set(people)
        assert sum(people[p] == "report" for p in unseen) == len(unseen) // 2
    able = [s for s in mine if s.calibrates]
    assert able and all(s.half == "development" and s.network == "unseen" for s in able)
    assert not {s.person for s in able} & set(subjects.IN_TABLES)


def test_the_list_is_what_the_data_give(data_folder, tmp_path):
    subjects.make_subjects(str(data_folder), tmp_path / "subjects.tsv")
    assert (tmp_path / "subjects.tsv").read_text() == subjects.SUBJECTS.read_text()
    every = {todo.name for todo in anatomies.todos(data_folder, "development")}
    check = anatomy_run.CHECK.read_text().split()
    assert len(set(check)) == 300 and set(check) <= every
    assert {name[0] for name in check} == set(anatomies.KINDS) - {"S"}


def test_pairs_of_real_animals_and_people_are_judged(data_folder):
    todos = {}
    for todo in anatomies.todos(data_folder, "development", kinds=("P", "X")):
        todos.setdefault("/".join(todo.name.split("/")[:2]), todo)
    for family in ("P/mouse-brain", "P/mouse-skull", "P/spine", "P/multi", "P/chest-ct"):
        case = todos[family].make()
        best = case.truth
        if case.points is not None:
            best = geometry.fit(case.points[0], case.points[1]) @ np.linalg.inv(case.moved)
        if case.labels is None:
            assert anatomies.judge(case, best)["success"], family
        assert anatomies.judge(case, np.eye(4))["wrong"], family
    hopeless = next(todo for name, todo in todos.items() if name.startswith("X/")).make()
    assert anatomies.judge(hopeless, np.eye(4)) == {"success": False, "wrong": True}


# --- the runner and its table ------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_and_a_copy_of_a_brain_is_right(data, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    command = ["anatomies", "--data", str(data), "--out", str(out), "--draws", "1", "--kinds", "A"]
    assert main([*command, "--limit", "1"]) == 0
    (record,) = anatomy_run.read(out).values()
    assert record["success"] and not record["wrong"] and record["word"] == "good" and record["error_share"] < 1e-3
    assert record["quality"]["confidence"] == "good" and record["cpu_seconds"] > 0 and len(record["matrix"]) == 12
    out.write_text(out.read_text() + '{"case": "torn')
    assert main([*command, "--limit", "1"]) == 0 and len(anatomy_run.read(out)) == 1
    anatomy_run.append(out, {**record, "case": "A/mouse-brain/other/0"})
    assert len(anatomy_run.read(out)) == 2
    assert "1 cases, 1 of them done" in capsys.readouterr().out
    assert main([*command[:5], "--table"]) == 0
    assert "2/2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (["--kinds", "A,Z"], "Unknown kinds: Z"),
        (["--collections", "moon"], "no collection moon"),
        (["--cases", "A/moon/x/0"], "no case A/moon/x/0"),
        (["--check", "--kinds", "A"], "--kinds has no effect"),
        (["--options", "[1]"], "needs a JSON object"),
        (["--table", "--kinds", "A"], "--kinds has no effect beside --table"),
        (["--table", "--limit", "3"], "--limit has no effect beside --table"),
    ],
)
def test_what_the_runner_cannot_do_is_said_in_a_sentence(data, tmp_path, capsys, options, words):
    assert main(["anatomies", "--data", str(data), "--out", str(tmp_path / "out.jsonl"), *options]) == 1
    assert words in capsys.readouterr().err


def test_choices_that_a_task_does_not_know_are_refused(data, tmp_path, capsys):
    for task, choice in (("brains", "--subjects"), ("hard", "--pairs"), ("steps", "--draws"), ("ct", "--draws")):
        command = ["run", "--task", task, "--data", str(data), "--out", str(tmp_path), choice, "3"]
        assert main(command) == 1
        assert f"{choice} has no effect on task {task}" in capsys.readouterr().err
    command = ["run", "--data", str(data), "--out", str(tmp_path), "--methods"]
    assert main([*command, "greedy", "--model", "mine"]) == 1
    assert "--model has no effect on other programs" in capsys.readouterr().err
    assert main([*command, "default", "--peer-python", "python"]) == 1
    assert "--peer-python has no effect" in capsys.readouterr().err
    command = ["run", "--task", "contrast", "--data", str(data), "--out", str(tmp_path), "--conditions", "moon"]
    assert main(command) == 1 and "Unknown conditions: moon" in capsys.readouterr().err


def test_the_table_counts_silent_answers_refusals_and_crashes():
    def record(word, success, wrong, **more):
        return {"case": "K/spine/a/0", "word": word, "success": success, "wrong": wrong, "cpu_seconds": 2.0, **more}

    records = [
        record("good", True, False),
        record("poor", True, False, cpu_seconds=9.0),
        record("good", False, True),
        record("fair", False, True),
        record("good", False, False),
        {"case": "K/spine/b/0", "error": "InputError: too small.", "success": False, "wrong": False},
        {"case": "K/spine/c/0", "error": "IndexError: x", "success": False, "wrong": False},
    ]
    assert anatomy_report.row(records) == ["7", "2", "2", "1", "1", "1", "1", "1/2", "2.0", "9.0"]
    hopeless = {"case": "X/a-b/c/0", "word": "good", "success": False, "wrong": True}
    rows = anatomy_report.rows([*records, hopeless])
    assert rows[-1][:4] == ["all but X", "all", "7", "2"] and rows[-2][:2] == ["X", "all"]


# --- peers that are programs -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", peer_programs.METHODS)
def test_a_peers_matrix_maps_moving_to_fixed_in_ras(brain, name):
    try:
        method = peers.METHODS[name]()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    moved = geometry.about(geometry.rotation_about([1, 2, 0.5], 0.15), brain.center(), [6, -4, 5])
    moving, fixed = (method.load(brain.data, matrix @ brain.voxel_to_ras) for matrix in (moved, np.eye(4)))
    found = method.run(moving, fixed, 0)
    tissue = prepare(brain)
    error = geometry.displacement_rms(found @ moved, np.eye(4), tissue.tissue_center, tissue.tissue_covariance)
    assert error < 0.5
    assert not list(Path(method.folder.name).glob("volume*"))


def test_an_itk_affine_is_read_with_its_center():
    text = (
        "#Insight Transform File V1.0\n# Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 0 -1 0 1 0 0 0 0 1 10 20 30\nFixedParameters: 1 2 3\n"
    )
    found = peer_programs.read_itk(text)
    np.testing.assert_allclose(geometry.transform_points(found, np.array([[1.0, 2, 3]])), [[11, 22, 33]])
    np.testing.assert_allclose(geometry.transform_points(found, np.array([[2.0, 2, 3]])), [[11, 23, 33]])
