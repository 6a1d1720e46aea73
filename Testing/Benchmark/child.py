"""The child process in which a method works, seen from outside (worker.py is its inside)."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import threading
from functools import lru_cache
from pathlib import Path

from . import cases

#: The top of the repository.
ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Eight hexadecimal digits that change with the core's code."""
    files = sorted((ROOT / "SpatialDiffusionCore").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


class Worker:
    """A child process with one method; it is started anew after a crash or a timeout."""

    def __init__(self, method: str, python: str, threads: int, timeout: float, options: dict, log=None):
        self.command = [python, "-m", f"{__package__}.worker", method, json.dumps(options)]
        names = (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "NUMEXPR_NUM_THREADS",
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
        )
        paths = [str(ROOT / "Testing"), str(ROOT), str(ROOT / "Training"), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            **{name: str(threads) for name in names},
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        self.timeout, self.log, self.process = timeout, log, None

    def _start(self):
        with open(self.log or os.devnull, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                text=True,
            )
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
        request = {
            "moving": str(case.moving),
            "fixed": str(case.fixed),
            "moved": case.moved.tolist(),
            "seed": case.seed,
            "modality": case.modality,
        }
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
