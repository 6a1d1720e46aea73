"""The schedule against its definition in closed form, and the timesteps and shares of a short run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SpatialDiffusionCore.method.schedule import KINDS, Schedule


def schedules():
    low = st.floats(1e-3, 0.1)
    return st.builds(
        lambda n, a, b, c, d, kind: Schedule(n, (a, a + b), (c, c + d), kind),
        st.integers(1, 120),
        low,
        low,
        low,
        low,
        st.sampled_from(KINDS),
    )


def test_the_published_schedule_in_numbers():
    schedule = Schedule()
    assert (schedule.timesteps, schedule.kind) == (65, "cosine")
    u = np.arange(65) / 64
    assert np.allclose(schedule.step_transform, 0.01 + 0.06 * np.sin(np.pi / 2 * u) ** 2, atol=1e-15)
    assert np.allclose(schedule.step_translation, 0.5 + 3.5 * np.sin(np.pi / 2 * u) ** 2, atol=1e-15)
    linear = Schedule(kind="linear")
    assert np.allclose(np.diff(linear.step_transform), 0.06 / 64)
    # The sum of squares of an arithmetic series.
    squares = sum((0.01 + 0.06 * i / 64) ** 2 for i in range(65))
    assert np.isclose(linear.total_transform[-1], np.sqrt(squares))


@given(schedules())
def test_totals_accumulate_variances_and_never_fall(schedule):
    for steps, totals in (
        (schedule.step_transform, schedule.total_transform),
        (schedule.step_translation, schedule.total_translation),
    ):
        assert steps.dtype == totals.dtype == np.float64 and len(steps) == len(totals) == schedule.timesteps
        assert (np.diff(steps) >= -1e-12).all() and (np.diff(totals) > 0).all()
        assert np.allclose(np.diff(totals**2, prepend=0), steps**2)


@given(schedules(), st.data())
def test_visits_descend_from_the_last_timestep_without_repeats(schedule, data):
    count = data.draw(st.integers(1, schedule.timesteps))
    visited = schedule.visit(count)
    assert len(visited) == count and visited[0] == schedule.timesteps
    assert all(a > b >= 1 for a, b in zip(visited, visited[1:]))
    gaps = -np.diff([*visited, 0])
    assert gaps.max() - gaps.min() <= 1
    assert schedule.visit(schedule.timesteps) == list(range(schedule.timesteps, 0, -1))


@given(schedules())
def test_the_published_share_is_step_over_total(schedule):
    for t in range(1, schedule.timesteps + 1):
        a, b = schedule.reference_share(t)
        assert a == schedule.step_transform[t - 1] / schedule.total_transform[t - 1]
        assert b == schedule.step_translation[t - 1] / schedule.total_translation[t - 1]
    assert schedule.reference_share(1) == (1, 1)


def test_visits_are_spaced_evenly():
    assert Schedule().visit(4) == [65, 49, 33, 17] and Schedule().visit(2) == [65, 33] and Schedule().visit(1) == [65]


@given(schedules())
def test_settings_survive_json(schedule):
    assert Schedule(**json.loads(json.dumps(schedule.to_dict()))) == schedule


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kind": "square"}, "cosine, linear"),
        ({"timesteps": 0}, "at least one"),
        ({"transform_range": (0.0, 0.1)}, "transform_range must be two positive"),
        ({"transform_range": (0.2, 0.1)}, "ascending"),
        ({"translation_range": (1.0,)}, "translation_range"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Schedule(**settings)


@pytest.mark.parametrize("count", [0, 66, -1])
def test_a_number_of_steps_that_does_not_exist_is_refused(count):
    with pytest.raises(ValueError, match="between 1 and 65"):
        Schedule().visit(count)
