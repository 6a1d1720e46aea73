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
from .child import ROOT, Worker
from .tasks import TASKS


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
        **{k: round(v, 4) if isinstance(v, float) else v for k, v in answer["details"].items()},
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
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted((ROOT / "SpatialDiffusionCore").rglob("*.py"))))
    return f"{card['name']}-{digest.hexdigest()[:8]} (code {code.hexdigest()[:8]})"


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


def run(
    *,
    data,
    out,
    task="brains",
    methods=None,
    rotations=None,
    pairs=None,
    conditions=None,
    subjects=None,
    draws=None,
    seed=0,
    threads=1,
    timeout=900.0,
    python=None,
    peer_python=None,
    model=None,
    log=None,
    deadline=None,
    report=print,
) -> int:
    """Do what is not done yet; returns the number of new registrations.

    deadline: a function that says True when no further registration is to be started. The rest as on the command line.
    """
    task = TASKS[task]
    methods = list(methods or task.methods or all_methods())
    done = {results.key(r) for r in results.registrations(results.read(out))}
    python = python or sys.executable
    count, unavailable, made = 0, set(), (None, None)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = cases.Arguments(
            data=Path(data),
            scratch=Path(scratch),
            seed=seed,
            rotations=rotations,
            pairs=pairs,
            subjects=subjects,
            draws=draws,
            conditions=conditions,
        )
        todos, measure = task.cases(arguments), task.measure(arguments)
        results.append(out, machine(threads))
        workers = {}
        for method in methods:
            mine = is_ours(method)
            options = {"model": str(model)} if mine and model else {}
            workers[method] = Worker(method, python if mine else peer_python or python, threads, timeout, options, log)
        # Where cases are costly to make all methods get each in turn; a sweep goes method by method.
        by_method = [(m, t) for m in methods for t in todos]
        order = [(m, t) for t in todos for m in methods] if task.interleave else by_method
        last = None
        for method, todo in order:
            if last not in (None, method) and not task.interleave:
                workers[last].close()  # it has no more to do
            last = method
            if deadline is not None and deadline():
                break
            if (task.name, method, todo.name, todo.rotation, seed) in done or method in unavailable:
                continue
            if not task.takes(method, todo.name):
                continue
            if made[0] is not todo:
                made = todo, todo.make()
            case = made[1]
            answer = workers[method].register(case)
            if answer.pop("unavailable", False):
                report(f"{method}: cannot be started here ({answer['error']}); left out")
                unavailable.add(method)
                continue
            build = fingerprint(tables.parse(method).model or model, case.modality) if is_ours(method) else None
            record = {
                "task": task.name,
                "method": method,
                "case": case.name,
                "rotation": case.rotation,
                "seed": seed,
                **judge(case, answer, measure),
                "build": build,
            }
            results.append(out, record)
            count += 1
            value = (
                f"Dice {record['dice']:.3f}"
                if "dice" in record
                else f"{record['error_mm']:.2f} mm"
                if "error_mm" in record
                else ""
            )
            report(
                f"{method:16} {case.name:36} {case.rotation:6.1f}°  {value}  {record.get('cpu_seconds', 0):.2f} s"
                + (f"  {record['error']}" if "error" in record else "")
            )
        for worker in workers.values():
            worker.close()
    return count
