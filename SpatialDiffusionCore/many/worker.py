"""What another process does with an item of work, and the child process of executor.Processes: it reads (function,
item) pairs and writes (value, error) pairs.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from typing import Any, Callable

from ..errors import InputError


class WorkerError(RuntimeError):
    """What was raised in another process, where it can't be sent as it is."""


def answered(function: Callable, item: Any) -> tuple[Any, Exception | None]:
    """(value, None) or (None, an InputError or a WorkerError) of ``function(item)``, computed by one thread."""
    import torch

    torch.set_num_threads(1)
    try:
        return function(item), None
    except InputError as error:
        return None, error
    except Exception as error:
        # With the place where it failed, which is lost when an error is pickled.
        return None, WorkerError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def serve() -> None:
    """Work until the parent closes the pipe."""
    # Ctrl+C reaches all processes; the parent ends its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed on the way must not get among the answers
    while True:
        try:
            function, item = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(answered(function, item), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
