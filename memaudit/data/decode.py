"""Decode image files: a bounded pool of threads, each with a decoding process of its own."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from memaudit.data.examples import content_id
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd
from memaudit.data.images.geometry import check_preprocess
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.workers import Workers
from memaudit.data.ondemand import THREADS
from memaudit.data.paths import open_regular
from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean

T = TypeVar("T")
Progress = Callable[[int, int], None]

# 40 megapixels of 16-bit RGB, uncompressed, and room for metadata.
MAX_BYTES = 256 * 2**20
# Images that may be decoded before the next one is taken: enough that no thread waits for a slow file.
WINDOW = 64
# The arrays of one file: they stay in memory, and the model needs room beside them.
MEMORY_BUDGET = 8 * 2**30


class Decoder:
    """Decodes files for a network, in processes that end with it or by `close`.

    Args:
        files: resolved and regular.
        suffixes: what the files' names end in, where they are links to files that are called otherwise.

    Attributes:
        dtype: of the values: uint8, or float32 with a stated bit depth.

    Raises:
        UsageError: no image can have the network's input shape.
    """

    def __init__(self, files: Sequence[Path], preprocess: Preprocess, suffixes: Sequence[str]) -> None:
        check_preprocess(preprocess)
        if preprocess.input_size[0] not in (1, 3):
            channels = preprocess.input_size[0]
            raise UsageError(f"the network takes {channels} channels, image files have 1 or 3; give arrays (.npz)")
        self.files, self.suffixes, self.preprocess = files, suffixes, preprocess
        self.dtype = torch.uint8 if preprocess.bit_depth is None else torch.float32
        self._workers = Workers(preprocess)
        self.close = weakref.finalize(self, self._workers.close)  # ends the processes; once is enough

    def __reduce__(self) -> tuple[object, ...]:
        """Another process that sees the same files decodes them by itself."""
        return Decoder, (self.files, self.preprocess, self.suffixes)

    def decode(self, index: int) -> tuple[np.ndarray, str, Odd]:
        """Values `(C, H, W)` of file `index`, its content id, and what is odd about it.

        Raises:
            Unreadable, RowError: it has none.
        """
        content = _read(self.files[index])
        values, odd = self._workers.decode(content, self.suffixes[index])
        return values, content_id(content), odd

    def outcome(self, index: int) -> tuple[np.ndarray, str, Odd] | Unreadable | RowError:
        """As `decode`, but the reason why there is none is returned."""
        try:
            return self.decode(index)
        except (Unreadable, RowError) as reason:
            return reason.with_traceback(None)  # which would hold the thread's frames, and they what it returned


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({clean(error.strerror or error)})") from None
    if len(content) > MAX_BYTES:
        raise RowError(f"larger than {MAX_BYTES >> 20} MiB; no image within 40 megapixels needs that")
    return content


def in_threads(work: Callable[[int], T], count: int, progress: Progress | None) -> Iterator[T]:
    """`work(0) ... work(count - 1)`, in order, on a few threads; `progress(done, count)` is called on this one."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        rest = iter(range(count))
        ahead: deque[Future[T]] = deque(pool.submit(work, index) for index in islice(rest, WINDOW))
        for done in range(1, count + 1):
            yield ahead.popleft().result()
            ahead.extend(pool.submit(work, index) for index in islice(rest, 1))
            if progress:
                progress(done, count)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for the images that are being decoded


def check_memory(count: int, bytes_per_image: int, source: str, *, dataset: bool = False) -> None:
    """Refuse arrays whose copy in the network's type would not fit in the memory budget.

    Args:
        dataset: they are of a dataset in memory, not of a file.

    Raises:
        DataRejected: `count * bytes_per_image` exceeds it.
    """
    if count * bytes_per_image > MEMORY_BUDGET:
        size, budget, most = count * bytes_per_image / 2**30, MEMORY_BUDGET / 2**30, MEMORY_BUDGET // bytes_per_image
        raise DataRejected(
            f"{source}: {count} examples need {size:.1f} GiB as the network takes them, the limit is {budget:.1f} GiB",
            hint=f"give a torch.utils.data.Subset of at most {most} of them"
            if dataset
            else f"list at most {most} of its rows in a file, and name the set with --data",
        )
