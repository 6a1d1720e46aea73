"""The pytest fixtures of ``test_slicer_*.py``, which Testing/conftest.py holds for all of them.

Nothing here needs Slicer's wheels before a test asks for it: ``SlicerHarness.fixtures``, which the tests import what
they call from, skips a whole file where there are none.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def exceptionsFail(request):
    """Exceptions in slots and VTK observers are printed and lost; here they fail the test."""
    if "SlicerHarness.fixtures" not in sys.modules or not request.module.__name__.startswith("test_slicer_"):
        yield []
        return
    from .fixtures import slicer

    raised = []
    previous = sys.excepthook

    def remember(kind, value, trace):
        raised.append(value)
        previous(kind, value, trace)

    sys.excepthook = remember
    yield raised
    slicer.app.processEvents()
    sys.excepthook = previous
    assert not raised, f"an exception was raised in a slot or an observer: {raised!r}"


@pytest.fixture(scope="session")
def loaded():
    """The module, loaded once."""
    from .fixtures import MODULE, application

    return application.loadModule(MODULE)


@pytest.fixture
def scene():
    """The scene, empty before and after."""
    from .fixtures import slicer

    slicer.mrmlScene.Clear()
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear()


@pytest.fixture
def panel(loaded, scene):
    """The module's widget on an empty scene, with the module open."""
    from .fixtures import settleViews

    loaded.enter()
    settleViews()
    yield loaded.widget
    loaded.widget.cancel()


@pytest.fixture
def pair(scene):
    """A real brain (`moving`, turned and shifted in its header) and a real template (`fixed`), as volume nodes."""
    from .fixtures import BRAIN, TEMPLATE, slicer

    nodes = SimpleNamespace(moving=slicer.util.loadVolume(str(BRAIN)), fixed=slicer.util.loadVolume(str(TEMPLATE)))
    nodes.moving.SetName("Brain")
    nodes.fixed.SetName("Template")
    return nodes


@pytest.fixture
def twins(scene):
    """A real brain as `fixed`, and the same turned by 25 degrees and shifted by 20 mm in its header as `moving`."""
    from .fixtures import BRAIN, duplicate, slicer, turn, turnHeader

    nodes = SimpleNamespace(moving=slicer.util.loadVolume(str(BRAIN)))
    nodes.moving.SetName("Brain")
    nodes.fixed = duplicate(nodes.moving, "Same brain")
    turnHeader(nodes.moving, turn())
    return nodes
