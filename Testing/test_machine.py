"""Machines as they come: few letters, forks, busy processors, no home, read-only folders, failures of the program."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from SpatialDiffusionCore import failure, machine
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import volume_file
from SpatialDiffusionCore.spatial.volume import Volume

ROOT = Path(__file__).resolve().parents[1]


def program(code: str, timeout=300, **environment):
    """Run Python code in a process of its own; returns what it printed (bytes)."""
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HOME")}
    clean.update(PYTHONPATH=str(ROOT), **environment)
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, timeout=timeout)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "encoding, expected", [("cp1252", b"a -> b 60 deg"), ("ascii", b"a -> b 60 deg"), ("utf-8", "a → b 60°".encode())]
)
def test_every_letter_can_be_printed(encoding, expected):
    code = "from SpatialDiffusionCore.machine import print_anything; print_anything(); print('a → b 60°', end='')"
    assert program(code, PYTHONIOENCODING=encoding) == expected
    code = "from SpatialDiffusionCore.machine import print_anything; print_anything(); print('köpfe 头', end='')"
    named = program(code, PYTHONIOENCODING=encoding)
    assert named == ("köpfe 头".encode() if encoding == "utf-8" else b"k\\xf6pfe \\u5934")


def test_help_is_printed_where_there_are_few_letters():
    code = (
        "import sys; from SpatialDiffusionCore.cli import main\n"
        "try: main(['register', '--help'])\nexcept SystemExit: pass"
    )
    assert b"spatial-diffusion register" in program(code, PYTHONIOENCODING="ascii")


def test_a_forked_process_works_with_one_thread_and_ends():
    code = """
import multiprocessing, torch
from SpatialDiffusionCore.device import resolve_device
torch.set_num_threads(2)
resolve_device("cpu")
def work(_):
    a = torch.rand(400, 400)
    pooled = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 64, 64, 64), 2)
    return torch.get_num_threads(), float(pooled.sum() + (a @ a).sum())
work(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print([threads for threads, _ in pool.map_async(work, range(4)).get(240)], torch.get_num_threads())
"""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    assert program(code) == b"[1, 1, 1, 1] 2\n"


@pytest.mark.parametrize(
    "busy, processors, expected", [(0.0, 8, 8), (5.2, 8, 3), (30.0, 8, 1), (1.4, 2, 1), (0.3, 2, 2)]
)
def test_processors_that_others_use_are_left_to_them(monkeypatch, busy, processors, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(os, "getloadavg", lambda: (busy, 0, 0), raising=False)
    monkeypatch.setattr(machine, "_quota", lambda: None)
    assert machine.threads() == expected
    monkeypatch.setattr(machine, "_quota", lambda: 1)
    assert machine.threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.threads() is None


def test_waiting_threads_sleep_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    machine.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    machine.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_user_without_a_home_has_the_bundled_models(monkeypatch):
    from SpatialDiffusionCore.modelfile import catalog

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(none))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("SPATIAL_DIFFUSION_MODELS", raising=False)
    assert catalog.user_folder().name == "models" and catalog.catalog()


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path):
    """Stood in for by the system's limit on the size of files, which stops writers in the same way."""
    pytest.importorskip("resource", reason="this system sets no limits")
    code = f"""
import os, resource
import numpy as np
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import volume_file
from SpatialDiffusionCore.spatial.volume import Volume
volume = Volume(np.random.default_rng(0).random((30, 30, 30)), np.eye(4))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
for ending in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"):
    path = os.path.join({str(tmp_path)!r}, "a" + ending)
    try:
        volume_file.save(volume, path)
    except InputError as error:
        message = str(error)
        assert message.startswith(f"Cannot write '{{path}}'"), message
        assert message.endswith(".") and "\\n" not in message, message
    else:
        raise AssertionError(ending)
    assert os.listdir({str(tmp_path)!r}) == [], ending
print("all", end="")
"""
    assert program(code) == b"all"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_read_only_folder_is_said_before_anything_is_written(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        volume_file.save(Volume(np.ones((4, 4, 4)), np.eye(4)), tmp_path / "closed" / "a.nii")


# ------------------------------------------------------------------------------------- failures of the program
def failed(error):
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_failure_of_the_program_is_one_sentence_and_a_report_to_send(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = failure.sentence(failed(IndexError("median(): need at least one")), "registering a.nii.gz")
    assert said.count(". ") == 0 and said.endswith(".") and "median" not in said and "IndexError" not in said
    assert "failed at registering a.nii.gz" in said and "through no fault of yours" in said
    report = next(tmp_path.iterdir())
    assert str(report) in said
    text = report.read_text(encoding="utf-8")
    for part in ("Spatial Diffusion Registration 0.", "numpy", "command:", "IndexError: median(): need", "Traceback"):
        assert part in text


def test_errors_that_are_meant_for_the_user_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failure.sentence(InputError("a.nii is empty."), "x") == "a.nii is empty."
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")):
        assert "not enough memory for registering a" in failure.sentence(failed(error), "registering a")
    assert list(tmp_path.iterdir()) == []


def test_where_no_report_can_be_written_the_sentence_says_what_to_do(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("builtins.open", refused)
    said = failure.sentence(failed(KeyError("x")), "the command register")
    assert "SPATIAL_DIFFUSION_DEBUG=1" in said and said.endswith(".")


def test_the_shell_never_shows_internal_words(tmp_path, monkeypatch, capsys):
    from SpatialDiffusionCore.cli import convert, main

    monkeypatch.chdir(tmp_path)

    def broken(_):
        raise ZeroDivisionError("median(): inside")

    monkeypatch.setattr(convert, "run", broken)
    assert main(["convert", "a.tfm", "b.tfm"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "median" not in error and "failed at the command convert" in error


def test_standard_output_without_a_terminal_or_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    machine.print_anything()
