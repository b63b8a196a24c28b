"""Decode many images into one tensor: a bounded pool of threads, each with a decoding process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from memaudit.data.examples import content_id
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd
from memaudit.data.images.geometry import check_preprocess
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.workers import Workers
from memaudit.data.paths import open_regular
from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean

T = TypeVar("T")
Progress = Callable[[int, int], None]

# 40 megapixels of 16-bit RGB, uncompressed, and room for metadata.
MAX_BYTES = 256 * 2**20
# Each thread may hold one 40-megapixel image and its file, so this also bounds memory.
MAX_THREADS = 8
# Images submitted at a time: what an interrupt waits for.
WINDOW = 64
# The pixels of one set stay in memory, and the model needs room beside them.
MEMORY_BUDGET = 8 * 2**30


def decode_all(
    files: Sequence[Path],
    preprocess: Preprocess,
    source: str,
    progress: Progress | None = None,
    suffixes: Sequence[str] | None = None,
) -> tuple[Tensor, list[str | Unreadable | RowError], list[Odd]]:
    """Decode `files` in order.

    Args:
        suffixes: what the files' names end in, where they are links to files that are called otherwise.

    Returns:
        uint8 `(N, C, H, W)` (float32 with a stated bit depth); for each file, its content id or why it has none (its
        row is then undefined); and what is odd about each.

    Raises:
        DataRejected: the tensor would exceed the memory budget.
        UsageError: no image can have the network's input shape.
    """
    check_preprocess(preprocess)
    channels, height, width = preprocess.input_size
    if channels not in (1, 3):
        raise UsageError(f"the network takes {channels} channels, image files have 1 or 3; give arrays (.npz)")
    dtype = torch.uint8 if preprocess.bit_depth is None else torch.float32
    check_memory(len(files), channels * height * width * dtype.itemsize, source)
    pixels = torch.empty((len(files), channels, height, width), dtype=dtype)
    rows, odd = pixels.numpy(), [Odd(0)] * len(files)

    with Workers(preprocess) as workers:

        def decode_one(index: int) -> str | Unreadable | RowError:
            try:
                content = _read(files[index])
                suffix = files[index].suffix if suffixes is None else suffixes[index]
                rows[index], odd[index] = workers.decode(content, suffix)
            except (Unreadable, RowError) as reason:
                return reason
            return content_id(content)

        return pixels, in_threads(decode_one, len(files), progress), odd


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({clean(error.strerror or error)})") from None
    if len(content) > MAX_BYTES:
        raise RowError(f"larger than {MAX_BYTES >> 20} MiB; no image within 40 megapixels needs that")
    return content


def in_threads(work: Callable[[int], T], count: int, progress: Progress | None) -> list[T]:
    """`work(0) ... work(count - 1)`, in order, on a few threads; `progress(done, count)` is called on this one."""
    results: list[T] = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, count, WINDOW):
            for result in pool.map(work, range(start, min(start + WINDOW, count))):
                results.append(result)
                if progress:
                    progress(len(results), count)
    return results


def check_memory(count: int, bytes_per_image: int, source: str) -> None:
    """Refuse a set whose pixels would not fit in the memory budget.

    Raises:
        DataRejected: `count * bytes_per_image` exceeds it.
    """
    if count * bytes_per_image > MEMORY_BUDGET:
        size, budget = count * bytes_per_image / 2**30, MEMORY_BUDGET / 2**30
        raise DataRejected(
            f"{source}: {count} images need {size:.1f} GiB at the network's input size, the limit is {budget:.1f} GiB",
            hint=f"list at most {MEMORY_BUDGET // bytes_per_image} of its rows in a file, and name the set with --data",
        )
