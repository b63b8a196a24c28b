"""SIGINT and SIGTERM: the first lets the batch that is being measured finish, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SHOW_CURSOR = b"\x1b[?25h"


class Terminated(BaseException):
    """SIGTERM, raised where the work is, so that locks and temporary files are cleared away."""


class _State:
    """Which signal came first, and how many bodies of `finishing` are running."""

    first: int | None = None
    inside: int = 0


_state = _State()


def install() -> None:
    """Take SIGINT and SIGTERM from now on; for the command line, never for the library."""
    _state.first, _state.inside = None, 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _received)


@contextmanager
def finishing() -> Iterator[None]:
    """A body that a first signal does not cut short; it takes effect right after. Signals reach the main thread alone.

    Raises:
        KeyboardInterrupt, Terminated: a signal came while the body ran.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.inside += 1
    try:
        yield
    finally:
        _state.inside -= 1
    if _state.first is not None and not _state.inside:
        raise _exception(_state.first)


def _received(number: int, frame: FrameType | None) -> None:
    if _state.first is not None:
        if sys.stderr.isatty():
            os.write(2, SHOW_CURSOR)  # a progress bar hid it
        os._exit(128 + number)
    _state.first = number
    if not _state.inside:
        raise _exception(number)
    if number == signal.SIGINT:
        os.write(2, b"\nmemaudit: finishing this batch; interrupt again to leave at once\n")


def _exception(number: int) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
