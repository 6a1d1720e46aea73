"""What all tests share: one thread, repeatable examples, and folders that a machine may or may not have."""

from __future__ import annotations

import json
import locale
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

# Set before torch is imported, inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

#: The bundled pair: a person's brain and the MNI152 template.
DEMO = ROOT / "SpatialDiffusionCore" / "demo"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from SlicerHarness.window import exceptionsFail, loaded, pair, panel, scene, twins  # noqa: E402, F401

# The same examples on every run: a failure can be repeated, and the suite's time does not vary.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are added in the same order on every machine."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def brains() -> tuple:
    """(moving, fixed) Volumes: a person's brain and the MNI152 template."""
    from SpatialDiffusionCore.spatial import volume_file

    return tuple(volume_file.load(DEMO / name) for name in ("moving_t1_brain.nii.gz", "fixed_mni152_brain.nii.gz"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The optional development data (environment variable SPATIAL_DIFFUSION_DATA)."""
    folder = Path(os.environ.get("SPATIAL_DIFFUSION_DATA", ROOT.parent / "shared" / "data"))
    for candidate in (folder, folder / "data"):
        if (candidate / "t1").is_dir():
            return candidate
    pytest.skip("needs the development data (set SPATIAL_DIFFUSION_DATA)")


def published_folder() -> Path:
    """The published implementation's inputs and outputs (environment variable SPATIAL_DIFFUSION_FIXTURES)."""
    usual = ROOT.parent / "shared" / "reference" / "fixtures"
    return Path(os.environ.get("SPATIAL_DIFFUSION_FIXTURES", usual))


def read_published(name: str) -> SimpleNamespace:
    """checkpoint (path), config (dict), expected (arrays) of a folder of fixtures; skips where it is absent."""
    folder = published_folder() / name
    if not (folder / "expected.npz").is_file():
        pytest.skip("needs the fixtures of the published implementation (set SPATIAL_DIFFUSION_FIXTURES)")
    with np.load(folder / "expected.npz") as arrays:
        expected = {key: arrays[key] for key in arrays.files}
    config = json.loads((folder / "config.json").read_text())
    return SimpleNamespace(name=name, checkpoint=folder / "checkpoint.pth", config=config, expected=expected)


@pytest.fixture(scope="session", params=["unconditional", "conditional"])
def published(request) -> SimpleNamespace:
    """Each folder of fixtures in turn."""
    return read_published(request.param)


@pytest.fixture(scope="session")
def unconditional() -> SimpleNamespace:
    return read_published("unconditional")


@pytest.fixture(scope="session")
def conditional() -> SimpleNamespace:
    return read_published("conditional")


@pytest.fixture
def user_models(tmp_path, monkeypatch) -> Path:
    """An empty folder of the user's models; the bundled ones are out of sight."""
    from SpatialDiffusionCore.modelfile import catalog, model

    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("SPATIAL_DIFFUSION_MODELS", str(folder))
    monkeypatch.setattr(catalog, "BUNDLED", tmp_path / "nothing-bundled")
    model.LOADED.clear()
    yield folder
    model.LOADED.clear()


@pytest.fixture
def decimal_comma(tmp_path_factory):
    """A locale with a decimal comma, as a host program may have set it."""
    before = locale.setlocale(locale.LC_ALL)
    names = ["de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8"]
    folder = tmp_path_factory.mktemp("locale")
    try:
        subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", folder / "de_DE.UTF-8"], capture_output=True)
        os.environ["LOCPATH"] = str(folder)
    except OSError:
        pass
    for name in names:
        try:
            locale.setlocale(locale.LC_ALL, name)
            break
        except locale.Error:
            continue
    else:
        os.environ.pop("LOCPATH", None)
        pytest.skip("no locale with a decimal comma can be had here")
    yield
    locale.setlocale(locale.LC_ALL, before)
    os.environ.pop("LOCPATH", None)
