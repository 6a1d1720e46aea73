"""Runs methods on cases, each method in a child process of its own, and writes down what comes out."""
from __future__ import annotations

import hashlib
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from SpatialDiffusionCore import geometry

from . import cases, measures, ours, peers, results

ROOT = Path(__file__).resolve().parents[1]

#: A registration counts as a success where its mean Dice is at least, or its error in mm below, this.
SUCCESS_DICE, SUCCESS_MM = 0.45, 5.0


class Worker:
    """A child process with one method; it is started anew after a crash or a timeout."""

    def __init__(self, method: str, python: str, threads: int, timeout: float, options: dict, log=None):
        self.command = [python, "-m", f"{__package__}.worker", method, json.dumps(options)]
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                 "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        self.environment = {**os.environ, **{name: str(threads) for name in names}}
        self.timeout, self.log, self.process = timeout, log, None

    def _start(self):
        log = open(self.log, "ab") if self.log else subprocess.DEVNULL
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
            env=self.environment, text=True,
        )
        if self.log:
            log.close()
        self.lines = queue.Queue()

        def read(stream, lines):
            for line in stream:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, args=(self.process.stdout, self.lines), daemon=True).start()
        return self._receive()

    def _receive(self) -> dict:
        try:
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            self.close(kill=True)
            return {"error": f"no answer within {self.timeout:g} s"}
        if line is None:
            code = self.process.wait()
            self.process = None
            return {"error": f"the process ended with status {code}"}
        return json.loads(line)

    def register(self, case: cases.Case) -> dict:
        """The worker's answer for a case (see worker.py)."""
        if self.process is None:
            ready = self._start()
            if "error" in ready:
                return {**ready, "unavailable": True}
        request = {"moving": str(case.moving), "fixed": str(case.fixed), "moved": case.moved.tolist(),
                   "seed": case.seed}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended; the answer says how
        return self._receive()

    def close(self, kill=False):
        """End the child process."""
        if self.process is not None:
            if kill:
                self.process.kill()
            else:
                self.process.stdin.close()
            self.process.wait()
            self.process = None


def judge(case: cases.Case, answer: dict, overlap) -> dict:
    """The record of a registration: what the worker measured and how right the transform is."""
    record = {}
    if "error" in answer:
        record["error"] = answer["error"]
        matrix = None
    else:
        matrix = np.array(answer["matrix"])
        record.update(
            seconds=round(answer["seconds"], 4), cpu_seconds=round(answer["cpu_seconds"], 4),
            peak_mb=round(answer["peak_mb"]), matrix=[round(v, 6) for v in matrix[:3].ravel().tolist()],
        )
        record.update({k: round(v, 4) if isinstance(v, float) else v for k, v in answer["details"].items()})
    if case.truth is not None:
        if matrix is not None:
            error = geometry.displacement_rms(matrix, case.truth, case.mean, case.covariance)
            record["error_mm"] = round(error, 3)
        record["success"] = matrix is not None and record["error_mm"] < SUCCESS_MM
    else:
        value = 0.0 if matrix is None else overlap(case.labels, case.moved, matrix)
        record["dice"] = round(value, 4)
        record["success"] = value >= SUCCESS_DICE
    return record


def fingerprint(model) -> str:
    """Name and hash of the weights of the model that ours would use; what else its card says does not count."""
    from SpatialDiffusionCore.model import choose, read_weights

    path, card = choose(model, "t1-brain", "t1-brain")
    digest = hashlib.sha256()
    for key, value in sorted(read_weights(path).items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return f"{card['name']}-{digest.hexdigest()[:8]}"


def machine(threads: int) -> dict:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    import torch

    return {"task": "machine", "cpu": name, "cores": os.cpu_count(), "threads": threads, "system": platform.system(),
            "python": platform.python_version(), "torch": torch.__version__}


def all_methods() -> list:
    """Names of all methods, ours first."""
    return [*ours.METHODS, *peers.METHODS]


def run(
    *, data, out, task="brains", methods=None, rotations=(0, 15, 30, 45, 90, 135, 180), pairs=20, conditions=None,
    subjects=10, seed=0, threads=1, timeout=900.0, python=None, peer_python=None, model=None, log=None,
    deadline=None, report=print,
) -> int:
    """Do what is not done yet, method by method; returns the number of new registrations.

    deadline: a function that says True when no further registration is to be started.
    """
    methods = methods or all_methods()
    done = {results.key(r) for r in results.registrations(results.read(out))}
    python = python or sys.executable
    overlap = measures.Overlap(cases.data_root(data) / "oasis_labels.tsv")
    results.append(out, machine(threads))
    count = 0
    with tempfile.TemporaryDirectory() as scratch:
        if task == "brains":
            todo = [(c.name, c.rotation, lambda c=c: c) for c in cases.brains(data, rotations, pairs, seed)]
        else:
            made = cases.hard(data, conditions or list(cases.CONDITIONS), subjects, seed, scratch)
            todo = [(name, None, make) for name, make in made]
        workers = {}
        for method in methods:
            mine = method in ours.METHODS
            options = {"model": str(model)} if mine and model else {}
            build = fingerprint(model) if mine else None
            workers[method] = (Worker(
                method, python if mine else peer_python or python, threads, timeout, options, log
            ), build)
        # Hard cases are costly to make, so all methods get each in turn; a sweep goes method by method.
        order = [(m, c) for c in todo for m in methods] if task == "hard" else [(m, c) for m in methods for c in todo]
        made, rotation_of = (None, None), {r["case"]: r["rotation"] for r in results.read(out) if r.get("task") == task}
        unavailable = set()
        for method, (name, rotation, make) in order:
            if deadline is not None and deadline():
                break
            if rotation is None and name in rotation_of:
                rotation = rotation_of[name]
            if (task, method, name, rotation, seed) in done or method in unavailable:
                continue
            if made[0] != (name, rotation):
                case = make()
                rotation = case.rotation
                rotation_of[name] = rotation
                made = ((name, rotation), case)
            case = made[1]
            if (task, method, name, case.rotation, seed) in done:
                continue
            worker, build = workers[method]
            answer = worker.register(case)
            if answer.pop("unavailable", False):
                report(f"{method}: cannot be started here ({answer['error']}); left out")
                unavailable.add(method)
                continue
            record = {"task": task, "method": method, "case": name, "rotation": case.rotation, "seed": seed,
                      **judge(case, answer, overlap), "build": build}
            results.append(out, record)
            count += 1
            value = f"Dice {record['dice']:.3f}" if "dice" in record else f"{record.get('error_mm', np.nan):.2f} mm"
            report(f"{method:16} {name:36} {case.rotation:6.1f}°  {value}  {record.get('seconds', 0):.2f} s"
                   + (f"  {record['error']}" if "error" in record else ""))
        for worker, _ in workers.values():
            worker.close()
    return count
