"""The machine as it is: how many threads pay, processes that are forked, a terminal that knows few letters."""

from __future__ import annotations

import codecs
import os
import sys

#: What is written for letters that an encoding lacks (cp1252 on Windows, ASCII under LANG=C).
_PLAIN = {"→": "->", "×": "x", "°": " deg", "µ": "u", "…": "...", "–": "-", "−": "-", "“": '"', "”": '"'}

_forks_watched = False


def wait_passively() -> None:
    """Let threads that wait for others sleep: spinning, on a busy machine, keeps the others from their work.

    Must be called before torch is imported; does not override what the environment says.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def threads() -> int | None:
    """How many threads to work with: the processors that this process may use and that others leave idle, at least 1.

    None where the environment says it (OMP_NUM_THREADS). On a busy machine every step of many threads waits for the one
    that gets no processor, which makes two threads slower than one.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return None
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(allowed, _quota() or allowed)
    try:
        busy = os.getloadavg()[0]
    except (AttributeError, OSError):
        return allowed
    return max(1, min(allowed, int((os.cpu_count() or 1) - busy + 0.5)))


def _quota() -> int | None:
    """Processors that a container may use, None where it says nothing."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, int(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def survive_forks() -> None:
    """Let processes that are forked off this one work with one thread.

    A fork copies none of the threads that torch keeps ready, and work that is handed to them never ends.
    """
    global _forks_watched
    if _forks_watched or not hasattr(os, "register_at_fork"):
        return
    _forks_watched = True
    os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def print_anything() -> None:
    """Let standard output and error take every letter; for those that the encoding lacks, something plain is written.

    Into a pipe or a file that is not in UTF-8 only plain letters go: who reads it may not know the encoding (that of
    Windows' pipes is cp1252).
    """
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "reconfigure"):
            continue
        universal = (stream.encoding or "").lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
        stream.reconfigure(encoding=stream.encoding if universal or stream.isatty() else "ascii", errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(
        _PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in wrong
    ), error.end
