"""While a registration is computed, who steps it hears that it goes on, and can end it."""

from __future__ import annotations

import numpy as np
import pytest

from SpatialDiffusionCore import heartbeat, registration_steps


def test_nobody_need_listen():
    heartbeat.beat()
    with heartbeat.listening(None):
        heartbeat.beat()


def test_listeners_are_nested_and_forgotten():
    heard = []
    with heartbeat.listening(lambda: heard.append("outer")):
        heartbeat.beat()
        with heartbeat.listening(lambda: heard.append("inner")):
            heartbeat.beat()
        heartbeat.beat()
    heartbeat.beat()
    assert heard == ["outer", "inner", "outer"]


def test_every_step_of_a_registration_beats(brains):
    """The search of the first step many times; the answer does not depend on who listens."""
    beats, counts = [], []
    steps = registration_steps(*brains, steps=1, polish=False)
    with heartbeat.listening(lambda: beats.append(None)):
        for _ in steps:
            counts.append(len(beats))
            beats.clear()
    assert counts[0] >= 10
    alone = list(registration_steps(*brains, steps=1, polish=False))
    again = registration_steps(*brains, steps=1, polish=False)
    with heartbeat.listening(lambda: None):
        heard = list(again)
    np.testing.assert_array_equal(heard[-1].matrix, alone[-1].matrix)


def test_a_beat_that_raises_ends_the_registration(brains):
    class Stop(BaseException):
        pass

    def stop():
        raise Stop

    steps = registration_steps(*brains, steps=1, polish=False)
    with heartbeat.listening(stop), pytest.raises(Stop):
        next(steps)
    assert list(steps) == []
