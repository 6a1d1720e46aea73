"""Cohorts: work over processes and Dask, the same answers as one process, and nothing done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from SpatialDiffusionCore import InputError, load, save
from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.many.executor import Dask, Here, Processes, WorkerLost, executor, in_order, values
from SpatialDiffusionCore.registration import share_of_rank
from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume

DEMO = Path(main.__globals__["__file__"]).parents[1] / "demo"


# What workers do; they import it by its name.


def squared(number: int) -> int:
    if number == 13:
        raise InputError("13 cannot be used.")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def threads(_) -> int:
    import torch

    print("this must not get among the answers")
    return torch.get_num_threads()


def slow(number: int) -> int:
    time.sleep(60 if number else 0)
    return os.getpid()


class Unpicklable(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def fails_oddly(_) -> None:
    raise Unpicklable("this", "that")


def test_processes_answer_and_a_killed_one_loses_its_item_only():
    numbers = [3, 13, 99, 4, 5, 6]
    outcomes = list(in_order(Processes(2).run(squared, numbers)))
    assert [one.value for one in outcomes] == [9, None, None, 16, 25, 36]
    assert isinstance(outcomes[1].error, InputError) and str(outcomes[1].error) == "13 cannot be used."
    assert isinstance(outcomes[2].error, WorkerLost) and "SIGKILL" in str(outcomes[2].error)


def test_workers_have_one_thread_and_may_print():
    assert values(Processes(1).run(threads, [1])) == [1]


def test_errors_that_cannot_be_sent_are_told():
    (outcome,) = Processes(1).run(fails_oddly, [0])
    assert "this and that" in str(outcome.error)


def test_closing_ends_the_work_and_its_processes():
    outcomes = Processes(2).run(slow, [0, 1, 1, 1])
    worker = next(outcomes).value
    before = time.monotonic()
    outcomes.close()
    while _alive(worker) and time.monotonic() < before + 30:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_one_process_is_the_same_interface():
    outcomes = list(Here().run(squared, [2, 13]))
    assert outcomes[0].value == 4 and isinstance(outcomes[1].error, InputError)
    with pytest.raises(InputError):
        values(Here().run(squared, [2, 13]))


def test_dask_is_the_same_interface():
    distributed = pytest.importorskip("distributed", reason="needs Dask (pip install distributed)")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        spread = Dask(cluster.scheduler_address)
        outcomes = list(in_order(spread.run(squared, [3, 13, 4])))
        spread.client.close()
    assert [one.value for one in outcomes] == [9, None, 16]
    assert isinstance(outcomes[1].error, InputError)


def test_what_jobs_may_be():
    assert isinstance(executor(None), Here) and executor("3").jobs == 3
    for jobs, words in (("0", "at least 1"), (-2, "at least 1"), ("many", "neither a number"), ("", "neither")):
        with pytest.raises(InputError, match=words):
            executor(jobs)


def test_a_scheduler_that_is_not_there_is_said_before_any_work(cohort, capsys):
    pytest.importorskip("distributed", reason="needs Dask (pip install distributed)")
    out = cohort / "none"
    status = main(["register", str(cohort / "scans"), str(cohort / "fixed.nii.gz"), "-o", f"{out}/",
                   "--jobs", "tcp://127.0.0.1:9"])  # fmt: skip
    assert status == 1 and "cannot be reached" in capsys.readouterr().err
    assert not list(out.glob("*.tfm"))


# Cohorts of real registrations; small volumes from where they lie, so that each takes a second.


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A template, and a folder of three brains and one volume that cannot be used."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "scans").mkdir()
    brain = load(DEMO / "fixed_mni152_brain.nii.gz")
    small = Volume(brain.data[::3, ::3, ::3], brain.voxel_to_ras @ np.diag([3, 3, 3, 1]))
    save(small, folder / "fixed.nii.gz")
    random = np.random.default_rng(0)
    for index in range(3):
        turn = geometry.about(geometry.rotation_about(random.normal(size=3), 0.1), small.center(), [3, -2, index])
        save(small.moved(turn), folder / "scans" / f"sub-{index:02d}.nii.gz")
    save(Volume(np.zeros(small.shape, np.float32), small.voxel_to_ras), folder / "scans" / "sub-03.nii.gz")
    return folder


def command(cohort: Path, out: Path, *more: str) -> list:
    quick = ["--transform", "rigid", "--no-search", "--steps", "0"]
    return ["register", str(cohort / "scans"), str(cohort / "fixed.nii.gz"), "-o", f"{out}/", *quick, *more]


def transforms(out: Path) -> dict:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tfm"))}


def test_processes_write_what_one_process_writes_and_nothing_is_done_twice(cohort, tmp_path, capsys):
    scans = tmp_path / "scans"
    shutil.copytree(cohort / "scans", scans)
    here = tmp_path / "here"
    both = tmp_path / "both"
    base = ["register", str(scans), str(cohort / "fixed.nii.gz"), "--transform", "rigid", "--no-search", "--steps", "0"]
    assert main([*base, "-o", f"{here}/"]) == 1  # one volume is constant
    assert main([*base, "-o", f"{both}/", "--jobs", "2", "--review", str(tmp_path / "page")]) == 1
    written = capsys.readouterr()
    assert "sub-03.nii.gz is constant" in written.err and "[4 of 4" not in written.err
    assert transforms(here) == transforms(both) and len(transforms(both)) == 3
    with open(both / "registrations.csv", newline="", encoding="utf-8") as file:
        assert [row["moving"] for row in csv.DictReader(file)] == [f"sub-{index:02d}.nii.gz" for index in range(4)]
    page = (tmp_path / "page" / "data.js").read_text()
    rows = json.loads(page[page.index("{") : page.rindex(";")])["pairs"]
    assert rows[0]["word"] == "failed" and {row["id"] for row in rows} == {f"sub-{index:02d}" for index in range(4)}

    # The same once more: nothing is written but the table. Another content: one volume. Another setting: all.
    times = {path: path.stat().st_mtime_ns for path in here.glob("*.tfm")}
    assert main([*base, "-o", f"{here}/"]) == 1
    assert "3 of them were done before" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in here.glob("*.tfm")}
    changed = load(scans / "sub-01.nii.gz")
    save(changed.moved(geometry.from_parts(np.eye(3), [4, 0, 0])), scans / "sub-01.nii.gz")
    os.unlink(here / "sub-02_to_fixed.tfm")
    assert main([*base, "-o", f"{here}/"]) == 1
    assert "1 of them were done before" in capsys.readouterr().out
    new = {path: path.stat().st_mtime_ns for path in here.glob("*.tfm")}
    assert [path.name for path in sorted(new) if new[path] == times[path]] == ["sub-00_to_fixed.tfm"]
    assert transforms(here)["sub-02_to_fixed.tfm"] == transforms(both)["sub-02_to_fixed.tfm"]
    assert main([*base, "-o", f"{here}/", "--seed", "1"]) == 1
    assert "done before" not in capsys.readouterr().out


def test_tasks_of_an_array_share_a_folder(cohort, tmp_path, monkeypatch, capsys):
    """As a cluster runs them: each with its number, all into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "out"
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        main(command(cohort, out))
    assert len(transforms(out)) == 3
    assert sorted(path.name for path in out.glob("*.csv")) == ["registrations_0.csv", "registrations_1.csv"]


@pytest.mark.parametrize("rank, world", [("7", "2"), ("2", "2"), ("-1", "2"), ("one", "2"), ("0", "many")])
def test_a_share_that_leaves_some_to_nobody_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(InputError, match="start all processes of a run"):
        share_of_rank([1, 2, 3])


def test_one_pair_may_have_a_page(cohort, tmp_path):
    page = tmp_path / "page"
    status = main(["register", str(cohort / "scans" / "sub-00.nii.gz"), str(cohort / "fixed.nii.gz"),
                   "--review", str(page), "--no-search", "--transform", "rigid", "--steps", "0"])  # fmt: skip
    assert status == 0 and (page / "index.html").is_file()


def test_a_page_does_not_go_into_a_folder_with_other_files(cohort, tmp_path, capsys):
    status = main(command(cohort, tmp_path / "out", "--review", str(cohort / "scans")))
    assert status == 1 and "holds other files" in capsys.readouterr().err
