"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Let the C library return what it keeps of freed blocks; where it cannot (only glibc can), nothing happens.

    Blocks below 32 MiB are kept for the next one of their size, and small ones that live on keep them apart: without
    this a long audit takes ever more, though it holds no more. With each block mapped for itself a network on the CPU
    took 45 % longer.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
