"""The calibrated probability: the fit is monotone and finds what made the answers, and figures are scikit-learn's."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

from Benchmark import anatomy_report, calibrate, calibration, calibration_report, subjects
from Benchmark.__main__ import main
from SpatialDiffusionCore.pipeline import confidence as core
from SpatialDiffusionCore.pipeline.evidence import VERSION, Evidence


def made_up(count=3000, seed=0):
    """Rows whose answers are right with a known probability: 1.5 a + 0.5 b − 1, c says nothing, d speaks against."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(count, 4))
    chances = 1 / (1 + np.exp(1 - 1.5 * values[:, 0] - 0.5 * values[:, 1] + 0.8 * values[:, 3]))
    rows = [dict(zip("abcd", row)) for row in values.tolist()]
    return rows, chances, generator.random(count) < chances


def test_the_fit_finds_the_weights_and_none_is_negative():
    rows, _, right = made_up()
    fitted = calibration.fit([{k: row[k] for k in "abc"} for row in rows], right)
    assert fitted["weights"]["a"] == pytest.approx(1.4, abs=0.15)  # smaller, as what d explains is left out
    assert fitted["weights"]["b"] == pytest.approx(0.45, abs=0.15)
    assert fitted["weights"].get("c", 0) < 0.1
    assert "d" not in calibration.fit(rows, right)["weights"]
    lone = calibration.probabilities(fitted, [{"a": 3.0, "b": None, "c": None}, {"a": -3.0, "b": None, "c": None}])
    assert lone[0] > 0.9 > 0.1 > lone[1]
    usual = calibration.probabilities(fitted, [{"a": None, "b": None, "c": None}])[0]
    assert usual == pytest.approx(1 / (1 + np.exp(-fitted["intercept"])))
    with pytest.raises(ValueError):
        calibration.fit(rows, [True] * len(rows))


def test_separated_answers_give_finite_weights_and_the_same_ones_again():
    rows = [{"a": float(x)} for x in range(-20, 20)]
    right = [row["a"] >= 0 for row in rows]
    fitted = calibration.fit(rows, right)
    assert 0 < fitted["weights"]["a"] < 10 and fitted == calibration.fit(rows, right)


def test_left_out_people_are_judged_by_fits_to_others():
    rows, _, right = made_up(400)
    people = [{f"p{n % 10}"} for n in range(400)]
    chances = calibration.left_out(rows, right, people)
    others = [n for n in range(400) if n % 10 not in (0, 5)]
    fold = calibration.fit([rows[n] for n in others], [right[n] for n in others])
    np.testing.assert_allclose(chances[[0, 5]], calibration.probabilities(fold, [rows[0], rows[5]]))
    alone = calibration.left_out(rows, right, [{"one"}] * 400)
    assert np.isnan(alone).all()


def test_true_probabilities_have_small_errors_and_wrong_ones_large():
    _, chances, right = made_up(20000)
    assert calibration.calibration_error(chances, right) < 0.02
    assert calibration.calibration_error(1 - chances, right) > 0.3
    assert calibration.brier(chances, right) < calibration.constant_brier(right)
    points = calibration.reliability(np.array([0.05, 0.08, 0.95, 1.0]), np.array([0, 1, 1, 1]))
    assert points == [(pytest.approx(0.065), 0.5, 2), (pytest.approx(0.975), 1.0, 2)]
    assert calibration.calibration_error(np.array([0.05, 0.08, 0.95, 1.0]), np.array([0, 1, 1, 1])) == pytest.approx(
        (0.435 * 2 + 0.025 * 2) / 4
    )


def test_bounds_are_clopper_and_pearsons():
    assert calibration.upper_bound(0, 598) < 0.005 < calibration.upper_bound(0, 597)
    assert calibration.upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert calibration.upper_bound(3, 3) == calibration.upper_bound(0, 0) == 1


def test_a_cut_off_keeps_wrong_answers_below_its_bound_and_is_none_where_too_few_can_tell():
    chances = np.concatenate([np.linspace(0.9, 1.0, 700), np.linspace(0.1, 0.5, 300)])
    right = np.concatenate([np.ones(700), np.tile([1, 0], 150)])
    off = calibration.cut_off(chances, right, 0.005)
    accepted = chances >= off
    assert calibration.upper_bound(int((1 - right[accepted]).sum()), int(accepted.sum())) <= 0.005
    assert 0.45 < off <= 0.9
    assert calibration.cut_off(chances[:100], right[:100], 0.005) is None
    tied = calibration.cut_off(np.full(1000, 0.9), np.concatenate([np.ones(700), np.zeros(300)]), 0.005)
    assert tied is None  # answers of one probability belong together


def test_fair_answers_are_told_from_those_that_are_good_already():
    chances = [0.999] * 700 + [0.95] * 20 + [0.8] * 10 + [0.6] * 30 + [0.2] * 40
    right = [True] * 700 + [True] * 19 + [False] + [True] * 8 + [False] * 2 + [True, False] * 15 + [False] * 40
    judged = [calibration_report.Judged("A/spine/spine_04/0", c, r) for c, r in zip(chances, right)]
    assert calibrate.cut_offs(judged, 0.98) == {"good": 0.999, "fair": 0.8}  # 3 of 30 wrong; with the next 18 of 60
    few = [j for j in judged if j.chance < 0.999] + judged[:50]
    assert calibrate.cut_offs(few, 0.98) == {"good": None, "fair": 0.8}
    all_right = [calibration_report.Judged("A/spine/spine_04/0", c, True) for c in [0.999] * 700 + [0.3] * 10]
    assert calibrate.cut_offs(all_right, 0.98)["fair"] in (None, 0.5)


def test_a_cases_people_are_found_in_its_name():
    assert calibrate.people_of("K/spine/spine_04/1") == {"spine_04"}
    pair = "P/t1/ds002748_sub-13-ds002748_sub-24/0"
    assert calibrate.people_of(pair) == {"ds002748_sub-13", "ds002748_sub-24"}
    assert calibrate.people_of("P/multi/openms_01_study1_t1-openms_01_study1_t2/0") == {"openms-01"}


def records_of(count=400, seed=3):
    """Made-up records of calibrating animals, right the likelier the more alike and the less strained."""
    generator = np.random.default_rng(seed)
    names = sorted({s.name for s in subjects.read() if s.calibrates and s.collection == "mouse-brain"})
    records = []
    for number in range(count):
        alike, strain = generator.uniform(0.2, 0.95), generator.uniform(0.2, 0.4)
        right = generator.random() < 1 / (1 + np.exp(-8 * (alike - 0.5) + 20 * (strain - 0.3)))
        figures = dict.fromkeys(("least_similarity", "correlation", "information", "overlap"), 0.5)
        evidence = {"similarity": alike, "strain": strain, **figures, "refined": 1.0}
        evidence["spread"] = None if number % 3 else 0.01
        records.append(
            {
                "case": f"A/mouse-brain/{names[number % len(names)]}/{number}",
                "success": bool(right),
                "wrong": not right,
                "modality": ["any", "any"],
                "quality": {"evidence": {f.name: evidence.get(f.name) for f in fields(Evidence)}},
            }
        )
    return records


def test_coefficients_follow_again_from_the_table_that_is_written(tmp_path, monkeypatch, capsys):
    before = json.loads(core.COEFFICIENTS.read_text())
    (tmp_path / "confidence.json").write_text(json.dumps(before))
    monkeypatch.setattr(core, "COEFFICIENTS", tmp_path / "confidence.json")
    monkeypatch.setattr(calibrate, "ROWS", tmp_path / "evidence.tsv")
    monkeypatch.setattr(calibrate.read_rows, "__defaults__", (tmp_path / "evidence.tsv",))
    monkeypatch.setattr(calibrate.write_rows, "__defaults__", (tmp_path / "evidence.tsv",))
    records = records_of()
    crash = {"case": records[0]["case"][:-1] + "x", "error": "IndexError", "success": False, "wrong": False}
    near = {**records[1], "case": records[1]["case"] + "0", "success": False, "wrong": False}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in [*records, crash, near]))
    assert main(["calibrate", "--from", str(file), "--write"]) == 0
    written = json.loads((tmp_path / "confidence.json").read_text())
    rows = calibrate.read_rows()
    assert len(rows) == 400 == written["strategies"]["any"]["n"] and written["cutoffs"] == before["cutoffs"]
    assert calibrate.coefficients(rows)["any"].items() <= written["strategies"]["any"].items()
    assert {"similarity", "strain"} <= set(written["strategies"]["any"]["weights"])
    said = capsys.readouterr().out
    assert "| all but X | all | 400 |" in said
    assert main(["calibrate", "--write"]) == 1 and "--write needs --from" in capsys.readouterr().err
    reported = next(s for s in subjects.read() if s.half == "report" and s.collection == "spine").name
    file.write_text(json.dumps({**records[0], "case": f"A/spine/{reported}/0"}))
    assert main(["calibrate", "--from", str(file)]) == 1
    assert "may not calibrate" in capsys.readouterr().err


def test_the_cores_coefficients_follow_from_the_committed_table():
    if not calibrate.ROWS.is_file():
        pytest.skip("no table of evidence is committed yet")
    found, stored = calibrate.coefficients(calibrate.read_rows()), json.loads(core.COEFFICIENTS.read_text())
    assert stored["evidence_version"] == VERSION and set(found) == set(stored["strategies"])
    for strategy, fitted in found.items():
        there = stored["strategies"][strategy]
        assert {k: fitted[k] for k in ("n", "wrong", "subjects")} == {k: there[k] for k in ("n", "wrong", "subjects")}
        assert fitted["intercept"] == pytest.approx(there["intercept"], abs=2e-3)
        assert set(fitted["weights"]) == set(there["weights"])
        for name, weight in fitted["weights"].items():
            assert weight == pytest.approx(there["weights"][name], rel=2e-3, abs=2e-3)
            assert fitted["usual"][name] == pytest.approx(there["usual"][name], abs=1e-4)


def test_probabilities_of_a_run_are_judged(tmp_path, capsys):
    file = tmp_path / "run.jsonl"
    lines = []
    for number, chance in enumerate(np.linspace(0.01, 0.99, 50)):
        right = number >= 25
        record = {"probability": chance, "success": right, "wrong": not right, "word": "fair", "cpu_seconds": 1.0}
        lines.append(json.dumps({"case": f"A/spine/spine_04/{number}", **record}))
    lines.append(json.dumps({"case": "X/a-b/c/0", "probability": 0.9, "success": False, "wrong": True}))
    file.write_text("\n".join(lines))
    assert main(["calibrate", "--judge", str(file), "--figure", str(tmp_path / "r.png")]) == 0
    said = capsys.readouterr().out
    assert "| all but X | all | 50 | 25 | 0.500 | 0.25" in said and "| X | all | 1 | 1 | 0.900 | 0.900 |" in said
    assert (tmp_path / "r.png").stat().st_size > 1000
    assert main(["calibrate", "--judge", str(file), "--write"]) == 1
    assert "--write has no effect beside --judge" in capsys.readouterr().err
    assert main(["calibrate", "--judge", str(tmp_path / "none.jsonl")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_an_affine_fitted_to_labels_finds_the_one_between_them():
    from Benchmark import ceiling
    from SpatialDiffusionCore.spatial import geometry, volume

    place = np.indices((48, 50, 52)) - np.array([24, 25, 26]).reshape(3, 1, 1, 1)
    inside = (place**2 * np.array([1, 1.6, 2.3]).reshape(3, 1, 1, 1)).sum(axis=0) < 400
    numbers = np.where(inside, 1 + (place[0] > 2) + 2 * (place[1] > -3) + 4 * (place[2] > 1), 0).astype(np.uint8)
    fixed = volume.Volume(numbers, np.diag([2.0, 2, 2, 1]))
    stretch = np.array([[1.15, 0.1, 0], [0, 0.9, 0.05], [0, 0, 1.0]])
    known = geometry.about(geometry.rotation_about([1, 2, 3], 0.5) @ stretch, fixed.center(), [5, -4, 3])
    moving = volume.resample(fixed.moved(known), fixed.moved(known), interpolation="nearest")
    moving = volume.resample(moving, volume.Volume(numbers, fixed.voxel_to_ras), None, "nearest")
    found = ceiling.best_affine(moving, fixed, np.random.default_rng(0))
    covariance = np.eye(3) * 400
    assert geometry.displacement_rms(found @ known, np.eye(4), fixed.center(), covariance) < 0.7


def test_paired_differences_come_with_students_interval():
    from Benchmark import tables

    records = [
        {"method": method, "case": str(n), "dice": value}
        for method, values in {"default": (0.62, 0.64, 0.66, 0.70), "elastix": (0.60, 0.61, 0.65)}.items()
        for n, value in enumerate(values)
    ]
    # Differences 0.02, 0.03, 0.01: mean 0.02, standard error 0.01/√3, t(0.975, 2) = 4.303.
    assert tables.paired_difference(records, "default", "elastix") == "+0.020 [-0.005, +0.045] (3)"
    assert tables.paired_difference(records[:5], "default", "elastix") == "–"


def test_the_report_says_how_true_a_runs_probabilities_are():
    records = [
        {
            "method": "untold",
            "case": f"A/spine/spine_04/{n}",
            "probability": n / 40,
            "success": n > 20,
            "wrong": n <= 20,
        }
        for n in range(40)
    ]
    others = [{k: v for k, v in {**r, "method": "elastix"}.items() if k != "probability"} for r in records]
    said = "\n".join(anatomy_report.section([{"peak_mb": 1, **r} for r in [*records, *others]]))
    assert said.count("**Its probability of being right**") == 1 and "| all but X | all | 40 | 21 |" in said
    assert len(anatomy_report.panels([*records, *others])) == 1 and anatomy_report.panels(others) == []
