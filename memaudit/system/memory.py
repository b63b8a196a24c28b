"""Memory: whether an error says that it ran out, what becomes of freed memory, and the way to a GPU's.

Freed memory is kept between batches, and given back to the system between stages and now and then in a long one; only
glibc offers that.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# From malloc.h: freed bytes at the end of the heap that are kept, and the size from which a block is mapped for itself.
# The graph of one batch of a small ResNet takes 200 MiB: with 64 kept, one search in three took 5 % longer.
M_TRIM_THRESHOLD, KEPT = -1, 2**30
M_MMAP_THRESHOLD, MAPPED = -3, 32 * 2**20
# What both are when a process starts (mallopt(3)).
START = 128 * 2**10


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch says with `error` that memory ran out, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in ("not enough memory", "can't allocate"))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, of the same shape, on `device`, without a wait of the host for what a GPU still has to do.

    A copy from memory that is not page-locked begins only once the GPU has nothing left to do.
    """
    if device.type != "cuda" or tensor.is_cuda or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def keeping_freed() -> Iterator[None]:
    """Let the C library keep what one batch frees for the next one while the body runs, then be as it starts.

    Else it returns the graph of every backward pass to the system and fetches it again page by page, which took a
    tenth of a search on the CPU. What a process had set by itself cannot be read back; glibc's own start values are
    put in place, and they adapt no more.
    """
    _tell("mallopt", M_MMAP_THRESHOLD, MAPPED)
    _tell("mallopt", M_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        _tell("mallopt", M_MMAP_THRESHOLD, START)
        _tell("mallopt", M_TRIM_THRESHOLD, START)
        give_back()


def most_held() -> int:
    """Bytes of memory that this process has held at the most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def available() -> int:
    """Bytes of memory that this machine can give; 4 GiB where it does not say."""
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo") as told:
        return next(1024 * int(line.split()[1]) for line in told if line.startswith("MemAvailable"))
    return 4 << 30


def give_back() -> None:
    """Let the C library return what it keeps of freed blocks.

    Small ones that live on keep the freed ones apart: without this a long audit takes ever more, though it holds no
    more. With each block mapped for itself a network on the CPU took 45 % longer.
    """
    _tell("malloc_trim", 0)


def _tell(function: str, *values: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), function)(*values)
