"""Six of the golden registrations give their stored answers, and the comparison sees what differs."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from Golden import __main__ as shell  # noqa: E402
from Golden import answers, cases, sources  # noqa: E402


@pytest.mark.parametrize("name", cases.QUICK)
def test_an_answer_is_the_stored_one(name):
    try:
        found = answers.answer(cases.CASES[name])
    except sources.Missing as missing:
        pytest.skip(str(missing))
    assert answers.differences(found, answers.read()[name], "elsewhere") == []


def test_every_case_has_an_answer_and_every_answer_a_case():
    stored = answers.read()
    assert list(stored) == list(cases.CASES) and set(cases.QUICK) <= set(stored)
    assert {entry["confidence"] for entry in stored.values()} == {"good", "fair", "poor"}
    assert all({"code", "machine"} <= set(entry) for entry in stored.values())


@pytest.fixture
def stored():
    return answers.read()["demo"]


def changed(stored: dict, **entries) -> dict:
    return {**copy.deepcopy(stored), **entries}


def shifted(stored: dict, mm: float) -> dict:
    matrix = np.array(stored["matrix"])
    matrix[1, 3] += mm
    return changed(stored, matrix=matrix.tolist())


@pytest.mark.parametrize(
    "mm, exact, same, elsewhere",
    [
        (0.0, True, True, True),
        (1e-9, False, True, True),
        (1e-5, False, False, True),
        (0.2, False, False, False),
    ],
)
def test_levels_allow_what_they_promise(stored, mm, exact, same, elsewhere):
    found = shifted(stored, mm)
    agree = [answers.differences(found, stored, level) == [] for level in answers.LEVELS]
    assert agree == [exact, same, elsewhere]
    assert answers.distance(found, stored) == pytest.approx(mm, abs=1e-10)


def test_distance_is_the_rms_over_the_tissue(stored):
    found = changed(stored, matrix=(sources.rotation((1, 2, 3), 4, (1, 2, 3)) @ np.array(stored["matrix"])).tolist())
    mean, covariance = (np.array(stored["tissue"][name]) for name in ("mean", "covariance"))
    points = np.random.default_rng(0).normal(size=(1000, 3))
    points = (points - points.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T, bias=True))).T
    points = points @ np.linalg.cholesky(covariance).T + mean  # exactly this mean and covariance
    there = points @ np.linalg.inv(stored["matrix"])[:3, :3].T + np.linalg.inv(stored["matrix"])[:3, 3]
    back = there @ np.array(found["matrix"])[:3, :3].T + np.array(found["matrix"])[:3, 3]
    assert answers.distance(found, stored) == pytest.approx(np.sqrt(((back - points) ** 2).sum(1).mean()), rel=1e-6)


def test_words_figures_and_other_volumes_are_told(stored):
    for entry, value in (
        ("confidence", "fair"),
        ("warnings", ["Look."]),
        ("steps", 99),
        ("spread_mm", None),
        ("similarity_after", stored["similarity_after"] + 1e-3),
        ("input", "other"),
    ):
        for level in ("exact", "same"):
            said = answers.differences(changed(stored, **{entry: value}), stored, level)
            assert len(said) == 1 and (entry in said[0] or entry == "input" and "volumes" in said[0])
    poor = answers.differences(changed(stored, confidence="poor"), stored, "elsewhere")
    assert poor == ["confidence good → poor"]
    assert answers.differences(changed(stored, confidence="fair"), stored, "elsewhere") == []
    assert (
        answers.differences(
            shifted(changed(stored, confidence="poor"), 5.0), changed(stored, confidence="poor"), "elsewhere"
        )
        == []
    )


def test_check_says_what_differs_and_record_replaces_only_what_was_named(stored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answers, "STORE", tmp_path / "answers.json")
    real = {"demo": stored, "brains": changed(stored, warnings=["kept"])}
    answers.write(real)
    assert answers.read() == real
    monkeypatch.setattr(answers, "work", lambda name: (name, shifted(stored, 0.2), "", 0.0))
    assert shell.main(["check", "--elsewhere", "demo"]) == 1
    assert "matrix 0.2 mm" in capsys.readouterr().out
    assert shell.main(["record", "demo"]) == 0
    assert answers.read()["brains"] == real["brains"]
    assert shell.main(["check", "--exact", "demo"]) == 0
    monkeypatch.setattr(answers, "work", lambda name: (name, None, "failed: out of order", 0.0))
    assert shell.main(["record", "demo"]) == 1 and shell.main(["check", "demo"]) == 1
    assert "out of order" in capsys.readouterr().out
    monkeypatch.setattr(answers, "work", lambda name: (name, None, "skipped: needs data", 0.0))
    assert shell.main(["check", "demo"]) == 0
    with pytest.raises(SystemExit):
        shell.main(["check", "demmo"])
    assert "demmo" in capsys.readouterr().err


def test_without_the_development_data_only_the_demo_is_compared(monkeypatch, tmp_path):
    monkeypatch.setenv("SPATIAL_DIFFUSION_DATA", str(tmp_path))
    for name in cases.QUICK:
        case = cases.CASES[name]
        if name == "demo":
            assert case.moving().shape and case.fixed().shape
        else:
            with pytest.raises(sources.Missing, match="development data"):
                case.moving()
