"""Motion of a series against known truth: this project and its peers on the same frames, one thread each.

``python -m Benchmark motion --data DIR --out RESULTS [--peer-python PATH]`` writes RESULTS/motion.json and motion.md.
Truth: real frames of a BOLD run, moved by up to 3 mm and 3° by cubic splines on a finer grid, with independent noise
and 3 % drift of intensity (moving_series.py). All methods are told the reference frame; errors are over the tissue.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from . import motion_child

BASES, FRAMES = (10, 50), 16
METHODS = {"ours": "this project", "ants": "ants.motion_correction", "dipy": "dipy.align.motion_correction"}


def series_of(data: Path, base: int, seed: int):
    """A series of known motion made of frame ``base`` of the BOLD run."""
    from moving_series import MovingSeries
    from SpatialDiffusionCore import load

    return MovingSeries(load(data / "series" / f"bold_60.nii.gz@{base}"), FRAMES, seed=seed)


def measured(data: Path, python: dict, timeout: float, bases: tuple = BASES) -> list:
    """A row {method, base, median, p95, worst, cpu} for each method and series."""
    rows = []
    for seed, base in enumerate(bases):
        series = series_of(data, base, seed)
        with tempfile.TemporaryDirectory() as folder:
            frames = np.stack([frame.data for frame in series.frames], axis=-1)
            np.savez(Path(folder) / "series.npz", frames=frames, to_ras=series.frames[0].voxel_to_ras)
            for method in python:
                program = [python[method], motion_child.__file__, method, folder]
                try:
                    subprocess.run(program, check=True, timeout=timeout, env=motion_child.environment())
                except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                    rows.append({"method": method, "base": base, "failed": type(error).__name__})
                    continue
                found = np.load(Path(folder) / f"{method}.npz")
                errors = series.errors(found["matrices"])
                rows.append(
                    {
                        "method": method,
                        "base": base,
                        "frames": FRAMES,
                        "median": float(np.median(errors)),
                        "p95": float(np.percentile(errors, 95)),
                        "worst": float(errors.max()),
                        "cpu_whole": float(found["whole"]),
                        "cpu_frame": float(found["frame"]),
                        "memory_mb": float(found["memory"]),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list) -> str:
    """Markdown."""
    lines = [
        "| method | series | median mm | 95 % mm | worst mm | CPU s a frame after the first | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, name in METHODS.items():
        mine = [row for row in rows if row["method"] == method and "median" in row]
        if mine:
            numbers = [np.mean([row[key] for row in mine]) for key in ("median", "p95", "worst", "cpu_frame")]
            memory = max(row["memory_mb"] for row in mine)
            lines.append(f"| {name} | {len(mine)} | " + " | ".join(f"{v:.3f}" for v in numbers) + f" | {memory:.0f} |")
        failed = sum(row["method"] == method and "failed" in row for row in rows)
        if failed:
            lines.append(f"| {name} | {failed} failed | | | | | |")
    return "\n".join(lines) + "\n"


def add_command(commands: Any) -> None:
    """Put ``motion`` among the benchmark's commands."""
    parser = commands.add_parser("motion", help="motion of a series against known truth, beside the peers")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="folder with series/bold_60.nii.gz")
    parser.add_argument("--out", required=True, type=Path, metavar="RESULTS")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="Python that has the peers")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), metavar="METHOD")
    parser.add_argument("--series", type=int, default=len(BASES), metavar="N", help="the first N series")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for one series")


def run(arguments: argparse.Namespace) -> None:
    """Carry it out; methods that are not asked for keep the rows that RESULTS has of them."""
    python = {method: sys.executable if method == "ours" else arguments.peer_python for method in arguments.methods}
    arguments.out.mkdir(exist_ok=True)
    kept = arguments.out / "motion.json"
    before = json.loads(kept.read_text()) if kept.exists() else []
    rows = [row for row in before if row["method"] not in python]
    rows += measured(arguments.data, python, arguments.timeout, BASES[: arguments.series])
    kept.write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "motion.md").write_text(table(rows))
    print(table(rows))
