"""Decode many images into one tensor, with a bounded pool of threads (Pillow decodes without the interpreter lock)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from memaudit.data.geometry import check_preprocess, fit
from memaudit.data.images import Unreadable, load
from memaudit.data.preprocess import Preprocess
from memaudit.data.rejections import RowError
from memaudit.errors import DataRejected, UsageError

T = TypeVar("T")
Progress = Callable[[int, int], None]

# Each thread may hold one 40-megapixel image and its file, so this also bounds memory.
MAX_THREADS = 8
# Images submitted at a time: what an interrupt waits for.
WINDOW = 64
# The pixels of one set stay in memory, and the model needs room beside them.
MEMORY_BUDGET = 8 * 2**30


def decode_all(
    files: Sequence[Path], preprocess: Preprocess, source: str, progress: Progress | None = None
) -> tuple[Tensor, list[str | Unreadable | RowError]]:
    """Decode `files` in order.

    Returns:
        uint8 `(N, C, H, W)` and, for each file, its content id or why it has none (its row is then undefined).

    Raises:
        DataRejected: the tensor would exceed the memory budget.
        UsageError: no image can have the network's input shape.
    """
    check_preprocess(preprocess)
    channels, height, width = preprocess.input_size
    if channels not in (1, 3):
        raise UsageError(f"the network takes {channels} channels, image files have 1 or 3; give arrays (.npz)")
    check_memory(len(files), channels * height * width, source)
    pixels = torch.empty((len(files), channels, height, width), dtype=torch.uint8)
    rows = pixels.numpy()

    def decode_one(index: int) -> str | Unreadable | RowError:
        try:
            identity, image = load(files[index], channels)
            rows[index] = as_array(fit(image, preprocess))
        except (Unreadable, RowError) as reason:
            return reason
        return identity

    return pixels, in_threads(decode_one, len(files), progress)


def in_threads(work: Callable[[int], T], count: int, progress: Progress | None) -> list[T]:
    """`work(0) ... work(count - 1)`, in order, on a few threads; `progress(done, count)` is called on this one."""
    results: list[T] = []
    with _strict_pillow(), ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, count, WINDOW):
            for result in pool.map(work, range(start, min(start + WINDOW, count))):
                results.append(result)
                if progress:
                    progress(len(results), count)
    return results


def as_array(image: Image.Image) -> np.ndarray:
    """`image` as uint8 `(C, H, W)`."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def check_memory(count: int, bytes_per_image: int, source: str) -> None:
    """Refuse a set whose pixels would not fit in the memory budget.

    Raises:
        DataRejected: `count * bytes_per_image` exceeds it.
    """
    if count * bytes_per_image > MEMORY_BUDGET:
        size, budget = count * bytes_per_image / 2**30, MEMORY_BUDGET / 2**30
        raise DataRejected(
            f"{source}: {count} images need {size:.1f} GiB at the network's input size, the limit is {budget:.1f} GiB",
            hint=f"name a smaller set, or take at most {MEMORY_BUDGET // bytes_per_image} of it with --limit",
        )


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Truncated files are errors whatever the host program set, and Pillow's own remarks stay off stderr."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
