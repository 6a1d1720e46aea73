"""Runs methods on cases, each method in a child process of its own, and writes down what comes out."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from . import cases, ours, peers, results, tables
from .child import Worker, code_hash
from .tasks import TASKS


def _rounded(value):
    """Numbers with four decimals, in whatever dicts and lists they are."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def judge(case: cases.Case, answer: dict, measure) -> dict:
    """The record of a registration: what the worker measured and how right the transform is."""
    if "error" in answer:
        return {"error": answer["error"], **measure(case, None)}
    matrix = np.array(answer["matrix"])
    return {
        "seconds": round(answer["seconds"], 4),
        "cpu_seconds": round(answer["cpu_seconds"], 4),
        "peak_mb": round(answer["peak_mb"]),
        "matrix": [round(v, 6) for v in matrix[:3].ravel().tolist()],
        **_rounded(answer["details"]),
        **measure(case, matrix),
    }


@cache
def fingerprint(model, modality=("t1-brain", "t1-brain")) -> str:
    """Name and hash of the weights of the model that ours would use, and hash of the code around it.

    What else the model's card says does not count.
    """
    from SpatialDiffusionCore.modelfile.catalog import choose
    from SpatialDiffusionCore.modelfile.safetensors_file import read_weights

    path, card = choose(model, *modality)
    digest = hashlib.sha256()
    for key, value in sorted(read_weights(path).items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return f"{card.name}-{digest.hexdigest()[:8]} (code {code_hash()})"


def machine(threads: int) -> dict:
    """What the figures were measured on."""
    name, memory = platform.processor() or platform.machine(), None
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (OSError, ValueError, AttributeError):
        pass
    import torch

    return {
        "task": "machine",
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": memory,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def is_ours(method: str) -> bool:
    """Whether a method is this project's."""
    return tables.parse(method).base in ours.METHODS


def all_methods() -> list:
    """Names of all methods, ours first."""
    return [*ours.METHODS, *peers.METHODS]


def _in_order(task: cases.Task, methods: list, todos: list) -> list:
    """(method, case) pairs: where cases are costly to make all methods get each in turn, else method by method."""
    if task.interleave:
        return [(method, todo) for todo in todos for method in methods]
    return [(method, todo) for method in methods for todo in todos]


def _line(record: dict) -> str:
    """A record for people."""
    value = f"{record['error_mm']:.2f} mm" if "error_mm" in record else ""
    value = f"Dice {record['dice']:.3f}" if "dice" in record else value
    error = f"  {record['error']}" if "error" in record else ""
    seconds = f"{record.get('cpu_seconds', 0):.2f} s"
    return f"{record['method']:16} {record['case']:36} {record['rotation']:6.1f}°  {value}  {seconds}{error}"


class _Run:
    """A task's workers, one a method, and the case at hand. worker: function of a method that makes its Worker."""

    def __init__(self, task: cases.Task, arguments: cases.Arguments, worker, model, report):
        self.task, self.measure, self.seed = task, task.measure(arguments), arguments.seed
        self.worker, self.model, self.report = worker, model, report
        self.workers: dict[str, Worker] = {}
        self.unavailable: set[str] = set()
        self.made: tuple = (None, None)

    def record(self, method: str, todo: cases.Todo) -> dict | None:
        """The record of one registration; None where the method cannot be started here."""
        if method not in self.workers:
            if not self.task.interleave:
                self.close()  # the method before has no more to do
            self.workers[method] = self.worker(method)
        if self.made[0] is not todo:
            self.made = todo, todo.make()
        case = self.made[1]
        answer = self.workers[method].register(case)
        if answer.pop("unavailable", False):
            self.report(f"{method}: cannot be started here ({answer['error']}); left out")
            self.unavailable.add(method)
            return None
        build = fingerprint(tables.parse(method).model or self.model, case.modality) if is_ours(method) else None
        names = {"task": self.task.name, "method": method, "case": case.name, "rotation": case.rotation}
        return {**names, "seed": self.seed, **judge(case, answer, self.measure), "build": build}

    def close(self) -> None:
        """End the child processes."""
        for worker in self.workers.values():
            worker.close()


def run(
    *,
    data,
    out,
    task="brains",
    methods=None,
    seed=0,
    threads=1,
    timeout=900.0,
    python=None,
    peer_python=None,
    model=None,
    log=None,
    deadline=None,
    report=print,
    **choices,
) -> int:
    """Do what is not done yet; returns the number of new registrations.

    deadline: a function that says True when no further registration is to be started. choices: see cases.CHOICES. The
    rest as on the command line.
    """
    task = TASKS[task]
    methods = list(methods or task.methods or all_methods())
    done = {results.key(r) for r in results.registrations(results.read(out))}
    python, count = python or sys.executable, 0

    def worker(method: str) -> Worker:
        mine = is_ours(method)
        options = {"model": str(model)} if mine and model else {}
        return Worker(method, python if mine else peer_python or python, threads, timeout, options, log)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = cases.Arguments(data=Path(data), scratch=Path(scratch), seed=seed, **choices)
        todos, mine = task.cases(arguments), _Run(task, arguments, worker, model, report)
        results.append(out, machine(threads))
        for method, todo in _in_order(task, methods, todos):
            if deadline is not None and deadline():
                break
            skipped = (task.name, method, todo.name, todo.rotation, seed) in done or method in mine.unavailable
            if skipped or not task.takes(method, todo.name):
                continue
            record = mine.record(method, todo)
            if record is not None:
                results.append(out, record)
                count += 1
                report(_line(record))
        mine.close()
    return count
