"""The child process that registers with one method: a JSON line in, a JSON line out, until its input ends.

A request is {"moving", "fixed": files, "moved": 4×4 for the moving header, "seed", "modality": of (moving, fixed),
which only this project's own methods are told}. The answer is {"matrix", "seconds", "cpu_seconds", "peak_mb",
"details"} or {"error"}. Importing, loading files and a small registration to warm up are not timed; peak memory is that
of the whole process while it registers.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time


def make(name: str, options: dict):
    """The method of that name: load(array, voxel_to_ras) and run(moving, fixed, seed)."""
    from . import peers

    if name in peers.METHODS:
        return peers.METHODS[name]()
    from . import ours

    return ours.make(name, **options)


def load(path, memory: dict):
    """(float32 array, voxel → RAS) of a NIfTI file; the last few .nii.gz are kept, as sweeps ask for them again."""
    import nibabel
    import numpy as np

    if path not in memory:
        image = nibabel.load(path)
        value = np.asarray(image.dataobj, dtype=np.float32), np.array(image.affine, float)
        if not path.endswith(".gz"):
            return value
        while len(memory) > 1:
            memory.pop(next(iter(memory)))
        memory[path] = value
    return memory[path]


def reset_peak() -> bool:
    """Let the process's peak memory count from now on (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return True
    except OSError:
        return False


def peak_mb(method=None) -> float:
    """Peak resident memory in MB: since ``reset_peak`` on Linux, of the process's life elsewhere.

    For a method that runs programs, of the largest of those so far where that is more.
    """
    if getattr(method, "runs_programs", False):
        return max(peak_mb(), _megabytes(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return _megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _megabytes(largest: int) -> float:
    """MB of what getrusage counts in kilobytes, on a Mac in bytes."""
    return largest / (2**20 if sys.platform == "darwin" else 1024)


def cpu_seconds(method) -> float:
    """Processor time so far: this process's and, for a method that runs programs, that of those that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN) if getattr(method, "runs_programs", False) else None
    return time.process_time() + (children.ru_utime + children.ru_stime if children else 0.0)


def warm_up(method) -> None:
    """Register two small blobs, so that lazily loaded parts are there."""
    import numpy as np

    axis = np.linspace(-1, 1, 40)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    blob = (1000 * np.exp(-3 * (x**2 + 1.5 * y**2 + 2 * z**2)) * (1 + 0.3 * np.sin(5 * x + 3 * y))).astype("float32")
    header = np.diag([4.0, 4.0, 4.0, 1.0])
    moved = header.copy()
    moved[:3, 3] = 3.0
    # Some refuse such blobs; the first real case is then their warm-up.
    with contextlib.suppress(Exception):
        method.run(method.load(blob, moved), method.load(blob, header), 0)


def answer(method, request: dict, memory: dict) -> dict:
    """Do one registration."""
    import numpy as np

    array, header = load(request["moving"], memory)
    moving = method.load(array, np.array(request["moved"], float) @ header)
    fixed = method.load(*load(request["fixed"], memory))
    if hasattr(method, "prepare"):
        method.prepare(*request["modality"])
    reset_peak()
    wall, cpu = time.perf_counter(), cpu_seconds(method)
    result = method.run(moving, fixed, request["seed"])
    wall, cpu = time.perf_counter() - wall, cpu_seconds(method) - cpu
    matrix, details = result if isinstance(result, tuple) else (result, {})
    if not np.isfinite(matrix).all():
        raise ValueError("the transform is not finite")
    return {
        "matrix": np.asarray(matrix, float).tolist(),
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_mb": peak_mb(method),
        "details": details,
    }


def main() -> None:
    """Serve requests; what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    method = make(sys.argv[1], json.loads(sys.argv[2]))
    warm_up(method)
    channel.write(json.dumps({"ready": True}) + "\n")
    memory = {}
    for line in sys.stdin:
        try:
            reply = answer(method, json.loads(line), memory)
        except Exception as error:
            reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        channel.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
