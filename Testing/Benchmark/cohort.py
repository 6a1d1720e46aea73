"""A cohort: registrations an hour and memory of a worker, for several numbers of processes.

``python -m Benchmark.cohort --data DIR --out RESULTS [--scans N] [--jobs N …]`` registers the first N OASIS-1 scans of
``bench`` to the MNI brain and writes RESULTS/cohort.json and cohort.md. The transforms of all runs must be the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import SpatialDiffusionCore
from SpatialDiffusionCore.cli import main as command

FIXED = Path(SpatialDiffusionCore.__file__).parent / "demo" / "fixed_mni152_brain.nii.gz"


def one(scans: list, jobs: int, folder: Path) -> dict:
    """Seconds, peak memory of a worker in MB, and the transforms' bytes of one run."""
    begun = time.perf_counter()
    status = command(["register", *scans, str(FIXED), "-o", f"{folder}/", "--jobs", str(jobs), "--quiet"])
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    content = {path.name: path.read_bytes().hex() for path in sorted(folder.glob("*.tfm"))}
    return {"jobs": jobs, "status": status, "seconds": seconds, "worker_mb": memory, "transforms": content}


def table(rows: list) -> str:
    """Markdown."""
    lines = [
        "| processes | registrations | an hour | peak MB of a process | same transforms |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        count, same = len(row["transforms"]), row["transforms"] == rows[0]["transforms"]
        hourly = 3600 * count / row["seconds"]
        lines.append(f"| {row['jobs']} | {count} | {hourly:.0f} | {row['worker_mb']:.0f} | {'yes' if same else 'NO'} |")
    return "\n".join(lines) + "\n"


def main(argv=None) -> int:
    """Run; returns the exit status. Each number of processes is a process of its own, so that memory is its own."""
    parser = argparse.ArgumentParser(prog="python -m Benchmark.cohort", description=__doc__)
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="folder with bench/")
    parser.add_argument("--out", required=True, type=Path, metavar="RESULTS")
    parser.add_argument("--scans", type=int, default=10, metavar="N", help="the first N scans (default: 10)")
    parser.add_argument("--jobs", type=int, nargs="+", default=(1, 2), metavar="N", help="default: 1 2")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        scans = sorted(map(str, (arguments.data / "bench").glob("oasis_*_t1.nii.gz")))[: arguments.scans]
        with tempfile.TemporaryDirectory() as folder:
            Path(arguments.child).write_text(json.dumps(one(scans, arguments.jobs[0], Path(folder))))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for jobs in arguments.jobs:
            target = Path(folder) / f"{jobs}.json"
            program = [sys.executable, "-m", "Benchmark.cohort", "--data", str(arguments.data), "--out", "."]
            more = ["--scans", str(arguments.scans), "--jobs", str(jobs), "--child", str(target)]
            subprocess.run([*program, *more], check=True)
            rows.append(json.loads(target.read_text()))
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "cohort.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "cohort.md").write_text(table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
