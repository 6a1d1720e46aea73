"""Work spread over processes: the same interface for this process, local processes and a Dask scheduler.

An executor's ``run(function, items)`` yields an ``Outcome`` for each item as it is done, in any order. The function
is one that can be imported by name (not a lambda), the items and results are picklable. What fails is told in the
Outcome and stops nobody else. Closing the generator ends the work.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Union

from ..errors import InputError
from .worker import answered


class WorkerLost(RuntimeError):
    """The process that worked on an item ended by itself: it was killed, or ran out of memory."""


@dataclass(frozen=True)
class Outcome:
    """What became of item ``index``: its value, or the error that it ended with."""

    index: int
    value: Any = None
    error: Exception | None = None


Outcomes = Generator[Outcome, None, None]


class Here:
    """One item after the other in this process."""

    def run(self, function: Callable, items: Iterable) -> Outcomes:
        for index, item in enumerate(items):
            try:
                value = function(item)
            except Exception as error:
                yield Outcome(index, error=error)
            else:
                yield Outcome(index, value)


class Processes:
    """``jobs`` processes of one thread each. A process that dies loses its item only; another one takes its place."""

    def __init__(self, jobs: int):
        self.jobs = int(jobs)

    def run(self, function: Callable, items: Iterable) -> Outcomes:
        todo: Iterator = iter(enumerate(items))
        done: queue.Queue = queue.Queue()
        lock, workers = threading.Lock(), [_Worker() for _ in range(self.jobs)]

        def serve(worker: _Worker) -> None:
            try:
                while True:
                    with lock:
                        index, item = next(todo, (None, None))
                    if index is None:
                        return
                    done.put(worker.ask(index, function, item))
            except Exception as error:  # the items themselves could not be made
                done.put(error)
            finally:
                worker.close()
                done.put(None)

        threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            running = self.jobs
            while running:
                outcome = done.get()
                if outcome is None:
                    running -= 1
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    yield outcome
        finally:
            with lock:
                todo = iter(())
            for worker in workers:
                worker.stop()


class _Worker:
    """A child process (worker.py), started when it is first asked, and again after it has died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.stopped = False

    def _start(self) -> subprocess.Popen:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
        environment.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
        # Not a fork: a forked child inherits the locks of PyTorch's threads and hangs.
        return subprocess.Popen(
            [sys.executable, "-c", "from SpatialDiffusionCore.many.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def ask(self, index: int, function: Callable, item: Any) -> Outcome:
        if self.process is None:
            self.process = self._start()
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((function, item), process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            value, error = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            code = process.wait()
            self.process = None
            return Outcome(index, error=WorkerLost(f"Its process {_ended(code)}; run the same command again."))
        return Outcome(index, value, error)

    def close(self) -> None:
        """End it once it is idle."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it whatever it does."""
        process = self.process
        if process is not None and process.poll() is None:
            process.kill()


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"was ended by signal {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


class Dask:
    """A Dask scheduler, by its address; its workers need this package and see the same files. Retries are its own."""

    def __init__(self, address: str):
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                "Work by Dask needs the package distributed; install it with: pip install distributed."
            ) from None
        try:
            self.client = Client(address, timeout="5s")
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(
                f"The scheduler {address} cannot be reached ({type(error).__name__}); check it and that it runs."
            ) from error

    def run(self, function: Callable, items: Iterable) -> Outcomes:
        from distributed import as_completed

        futures = {
            self.client.submit(answered, function, item, pure=False, retries=2): index
            for index, item in enumerate(items)
        }
        try:
            for future in as_completed(futures):
                try:
                    value, error = future.result()
                except Exception as lost:  # its workers died, each time that it was tried
                    value, error = None, WorkerLost(f"Dask gave it up ({type(lost).__name__}: {lost}).")
                yield Outcome(futures[future], value, error)
        finally:
            self.client.cancel(list(futures))


Executor = Union[Here, Processes, Dask]


def executor(jobs: None | int | str) -> Executor:
    """What ``--jobs`` names: None is this process, a number as many processes, an address a Dask scheduler.

    Raises InputError where it is none of these, or the scheduler can't be reached.
    """
    if jobs is None:
        return Here()
    text = str(jobs).strip()
    if text.lstrip("+-").isdigit():
        if int(text) < 1:
            raise InputError(f"The number of processes must be at least 1, got {text}.")
        return Processes(int(text))
    if "://" in text or ":" in text:
        return Dask(text)
    raise InputError(f"{text!r} is neither a number of processes nor the address of a scheduler (tcp://HOST:PORT).")


def in_order(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same outcomes in the order of their items."""
    waiting, following = {}, 0
    for outcome in outcomes:
        waiting[outcome.index] = outcome
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def values(outcomes: Iterable[Outcome]) -> list[Any]:
    """The values in the order of their items; the first error is raised."""
    found = []
    for outcome in in_order(outcomes):
        if outcome.error is not None:
            raise outcome.error
        found.append(outcome.value)
    return found
