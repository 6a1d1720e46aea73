"""Long computations tell that they go on, so that a window can live while they run.

Between two steps of a registration seconds may pass. The loops inside call :func:`beat`; who steps the registration may
listen, and may end it by raising an exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[], None] | None) -> Iterator[None]:
    """While this lasts, every beat calls ``listener``; None: nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def beat() -> None:
    """Called from inside long loops, a few times a second where possible."""
    listener = _listener.get()
    if listener is not None:
        listener()
