"""A cohort: registrations an hour and memory of a worker, for several numbers of processes.

``python -m Benchmark cohort --data DIR --out RESULTS [--scans N] [--jobs N …]`` registers N T1 scans of development
(``t1/``, spread over its sources) to the MNI brain and writes RESULTS/cohort.json and cohort.md. The transforms of all
runs must be the same, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import SpatialDiffusionCore
from SpatialDiffusionCore.cli import main as command

FIXED = Path(SpatialDiffusionCore.__file__).parent / "demo" / "fixed_mni152_brain.nii.gz"


def scans_of(data: Path, count: int) -> list[str]:
    """``count`` T1 scans, evenly spread over the folder's names and with them over scanners and preparations."""
    found = sorted(map(str, (data / "t1").glob("*.nii.gz")))
    return [found[int(index)] for index in np.linspace(0, len(found) - 1, min(count, len(found))).round()]


def one(scans: list, jobs: int, folder: Path) -> dict:
    """Seconds, CPU seconds, peak memory of a worker in MB, and a digest of each transform of one run."""
    begun = time.perf_counter()
    status = command(["register", *scans, str(FIXED), "-o", f"{folder}/", "--jobs", str(jobs), "--quiet"])
    seconds = time.perf_counter() - begun
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    transforms = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tfm"))}
    return {
        "jobs": jobs,
        "status": status,
        "seconds": seconds,
        "cpu_seconds": spent.ru_utime + spent.ru_stime,
        "worker_mb": spent.ru_maxrss / 1024,
        "load": os.getloadavg()[0],
        "transforms": transforms,
    }


def table(rows: list) -> str:
    """Markdown."""
    lines = [
        "| processes | registrations | an hour | CPU s each | peak MB of a process | load | same files |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        count, same = len(row["transforms"]), row["transforms"] == rows[0]["transforms"]
        numbers = [3600 * count / row["seconds"], row["cpu_seconds"] / max(count, 1), row["worker_mb"], row["load"]]
        words = f"{numbers[0]:.0f} | {numbers[1]:.1f} | {numbers[2]:.0f} | {numbers[3]:.1f}"
        lines.append(f"| {row['jobs']} | {count} | {words} | {'yes' if same else 'NO'} |")
    return "\n".join(lines) + "\n"


def add_command(commands: Any) -> None:
    """Put ``cohort`` among the benchmark's commands."""
    parser = commands.add_parser("cohort", help="registrations an hour and memory, for several numbers of processes")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="folder with t1/")
    parser.add_argument("--out", required=True, type=Path, metavar="RESULTS")
    parser.add_argument("--scans", type=int, default=40, metavar="N", help="how many scans (default: 40)")
    parser.add_argument("--jobs", type=int, nargs="+", default=(1, 2), metavar="N", help="default: 1 2")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Carry it out. Each number of processes is a process of its own, so that its children's memory is its own."""
    if arguments.child:
        scans = scans_of(arguments.data, arguments.scans)
        with tempfile.TemporaryDirectory() as folder:
            Path(arguments.child).write_text(json.dumps(one(scans, arguments.jobs[0], Path(folder))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for jobs in arguments.jobs:
            target = Path(folder) / f"{jobs}.json"
            program = [sys.executable, "-m", "Benchmark", "cohort", "--data", str(arguments.data), "--out", "."]
            more = ["--scans", str(arguments.scans), "--jobs", str(jobs), "--child", str(target)]
            subprocess.run([*program, *more], check=True)
            rows.append(json.loads(target.read_text()))
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "cohort.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "cohort.md").write_text(table(rows))
    print(table(rows))
