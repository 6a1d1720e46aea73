"""The extension around the module: packaging, the Extensions Index, what opening the module costs, self tests."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from SlicerHarness.fixtures import (
    DEMO,
    MODULE,
    REPOSITORY,
    slicer,
)

NAME = "SpatialDiffusionRegistration"
FOLDER = REPOSITORY / NAME


def cmakeText(path):
    return path.read_text(encoding="utf-8").replace("${MODULE_NAME}", NAME)


def cmakeList(path, variable):
    return re.search(rf"set\({variable}\n(.*?)\)", cmakeText(path), re.S).group(1).split()


def topLevel(variable):
    """A value of the top CMakeLists.txt, by the pattern that the Extensions Index uses (one line, quoted)."""
    return re.search(rf'set\({variable} "([^"]+)"\)', (REPOSITORY / "CMakeLists.txt").read_text()).group(1)


# Packaging


def test_the_cmake_list_of_scripts_is_what_is_on_disk():
    listed = set(cmakeList(FOLDER / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"))
    onDisk = {
        str(path.relative_to(FOLDER).as_posix())
        for path in FOLDER.rglob("*.py")
        if "Testing" not in path.parts and "__pycache__" not in path.parts
    }
    assert listed == onDisk


def test_the_cmake_list_of_resources_is_what_is_on_disk():
    listed = set(cmakeList(FOLDER / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES"))
    onDisk = {str(path.relative_to(FOLDER).as_posix()) for path in (FOLDER / "Resources").rglob("*") if path.is_file()}
    assert listed == onDisk


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The tree that the extension installs, built by CMake with stand-ins for Slicer's macros."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("packaging is tested with cmake, which is not installed")
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("install")
    configure = subprocess.run(
        [
            cmake,
            "-S",
            str(REPOSITORY),
            "-B",
            str(build),
            f"-DSlicer_DIR={Path(__file__).parent}/SlicerHarness/cmake",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
        ],
        capture_output=True,
        text=True,
    )
    if "CMAKE_CXX_COMPILER" in configure.stderr or "CMAKE_C_COMPILER" in configure.stderr:
        pytest.skip("packaging is tested with cmake and a compiler, which is not installed")
    assert configure.returncode == 0, configure.stderr
    for command in (["--build", str(build)], ["--install", str(build)]):
        done = subprocess.run([cmake, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return prefix / "lib/Slicer-5.10/qt-scripted-modules", configure.stdout


def test_the_installed_tree_holds_everything(installed):
    tree, log = installed
    for path in (REPOSITORY / "SpatialDiffusionCore").rglob("*"):
        if path.suffix == ".py" or path.suffix == ".safetensors" or "demo" in path.parts and path.is_file():
            assert (tree / path.relative_to(REPOSITORY)).read_bytes() == path.read_bytes(), path
    topLevelPython = [path.name for path in tree.glob("*.py")]
    assert topLevelPython == [f"{NAME}.py"]  # Slicer would take any other for a module
    assert f"generic tests of {NAME}" in log and f"unit test {NAME}.py" in log
    assert f"unit test {NAME}WindowTest.py" in log


def inFreshSlicer(script, modulePath, **environment):
    """Run a script in a new process that has the stand-in application, with `modulePath` and `loadModule` defined."""
    start = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from SlicerHarness.application import start, loadModule
        slicer = start()
        modulePath = {str(modulePath)!r}
    """
    code = textwrap.dedent(start) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": "", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_tree_opens_and_finds_its_own_core(installed):
    tree, _log = installed
    out = inFreshSlicer(
        """
        loaded = loadModule(modulePath)
        import SpatialDiffusionCore
        print(SpatialDiffusionCore.__file__)
        assert loaded.widget.ui.movingModalityCombo.count > 3
        from SpatialDiffusionRegistrationLib.sampledata import demoPair
        assert all(path.is_file() for path in demoPair())
    """,
        tree / f"{NAME}.py",
    )
    assert out.strip().startswith(str(tree))


def test_opening_the_module_needs_neither_torch_nor_scipy_nor_the_network():
    """With torch, safetensors and the network made unusable, from a checkout."""
    inFreshSlicer(
        """
        import socket
        for name in ("torch", "safetensors", "nibabel", "scipy"):
            sys.modules[name] = None
        def refuse(*arguments, **options):
            raise AssertionError("the network was used")
        socket.socket.connect = refuse
        loaded = loadModule(modulePath)
        assert loaded.instance.parent.title == "Spatial Diffusion Registration"
        loaded.enter(); loaded.exit(); loaded.enter()
    """,
        MODULE,
    )


def test_nothing_runs_at_file_scope_but_definitions():
    """No package is imported at file scope that is not Python's, Slicer's, VTK, Qt or numpy."""
    allowed = {*sys.stdlib_module_names, "slicer", "vtk", "qt", "ctk", "numpy", f"{NAME}Lib"}
    for path in (MODULE, *(FOLDER / f"{NAME}Lib").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom):
                assert node.level or node.module.split(".")[0] in allowed, path
            elif isinstance(node, ast.Expr):
                assert isinstance(node.value, ast.Constant), f"{path}: {ast.unparse(node)}"  # a docstring


def test_the_module_speaks_python_3_9():
    """Slicer 5.8 has Python 3.9."""
    for path in (MODULE, *(FOLDER / f"{NAME}Lib").glob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_the_module_describes_itself(loaded):
    parent = loaded.instance.parent
    assert parent.title and parent.contributors and parent.helpText.strip() and parent.acknowledgementText.strip()
    assert parent.categories == ["Registration"] and parent.dependencies == []


# The Extensions Index


def test_the_index_entry_keeps_the_rules():
    path = REPOSITORY / f"{NAME}.json"
    raw = path.read_bytes()
    entry = json.loads(raw)
    assert b"\r" not in raw and raw.endswith(b"\n")
    assert set(entry) <= {
        "$schema",
        "category",
        "scm_url",
        "scm_revision",
        "scm_type",
        "build_dependencies",
        "build_subdirectory",
        "enabled",
        "tier",
    }
    assert re.fullmatch(
        r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/"
        r"slicer-extension-catalog-entry-schema-v1\.0\.[12]\.json#",
        entry["$schema"],
    )
    assert entry["category"] == "Registration" and entry["scm_type"] == "git" and entry["scm_revision"] == "main"
    assert isinstance(entry["tier"], int) and 1 <= entry["tier"] <= 5
    repository = entry["scm_url"].rsplit("/", 1)[1]
    assert repository.startswith("Slicer") and not NAME.startswith("Slicer")
    assert entry["scm_url"].startswith("https://") and repository == f"Slicer{NAME}.git"


def test_the_index_entry_agrees_with_cmake():
    entry = json.loads((REPOSITORY / f"{NAME}.json").read_text())
    assert re.search(r"project\((\w+)\)", (REPOSITORY / "CMakeLists.txt").read_text()).group(1) == NAME
    assert topLevel("EXTENSION_DEPENDS").split() == entry["build_dependencies"]
    assert topLevel("EXTENSION_HOMEPAGE") + ".git" == entry["scm_url"]
    assert 60 < len(topLevel("EXTENSION_DESCRIPTION")) < 400


def test_icon_and_screenshots_are_there_and_small():
    prefix = topLevel("EXTENSION_HOMEPAGE").replace("github.com", "raw.githubusercontent.com") + "/main/"
    urls = [topLevel("EXTENSION_ICONURL"), *topLevel("EXTENSION_SCREENSHOTURLS").split()]
    assert len(urls) >= 2
    for url in urls:
        assert url.startswith(prefix)
        path = REPOSITORY / url[len(prefix) :]
        assert path.read_bytes().startswith(b"\x89PNG"), path
        assert path.stat().st_size < 200_000, path


def test_the_repository_has_a_license_and_is_small():
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()
    tracked = subprocess.run(["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    sizes = [
        (REPOSITORY / name).stat().st_size
        for name in tracked.stdout.split("\0")
        if name and (REPOSITORY / name).is_file()
    ]
    assert sum(sizes) < 100e6


# Sample data


def test_sample_data_offers_two_pairs(monkeypatch):
    registered, categories = [], []

    class SampleDataLogic:  # Slicer's own, which the wheel lacks
        @staticmethod
        def registerCustomSampleDataCategory(category, title):
            categories.append(category)

        @staticmethod
        def registerCustomSampleDataSource(**source):
            registered.append(source)

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=SampleDataLogic))
    slicer.app.emitSignal("startupCompleted()")
    assert categories and {source["category"] for source in registered} == set(categories)
    assert len(registered) >= 2
    for source in registered:
        assert len(source["uris"]) == len(source["fileNames"]) == len(source["nodeNames"]) == 2
        assert Path(source["thumbnailFileName"]).is_file()
    assert registered[0]["uris"][0] == (DEMO / "moving_t1_brain.nii.gz").as_uri()
    assert all(checksum.startswith("SHA256:") for checksum in registered[1]["checksums"])


# Self test


def test_reload_and_test(panel):
    """The button in developer mode: every test of the module, the ones that register among them."""
    panel.onReloadAndTest()


def test_each_self_test_stands_alone_and_skips_without_torch(loaded, monkeypatch):
    """ctest runs each test_ method by itself through unittest, in a Slicer without PyTorch."""
    import importlib.metadata
    import unittest

    real = importlib.metadata.version

    def version(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    cases = unittest.TestLoader().loadTestsFromTestCase(sys.modules[NAME].SpatialDiffusionRegistrationTest)
    result = unittest.TestResult()
    cases.run(result)
    assert result.testsRun >= 5 and len(result.skipped) == 2 and not result.errors and not result.failures, result
    loaded.instance.runTest(msec=0)


def test_the_window_test_for_the_application(panel, monkeypatch):
    """The test that ctest runs in Slicer, run here."""
    import unittest

    monkeypatch.syspath_prepend(str(FOLDER / "Testing" / "Python"))
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: panel)
    module = __import__(f"{NAME}WindowTest")
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromModule(module).run(result)
    assert result.testsRun == 4 and not result.errors and not result.failures, (result.errors, result.failures)
