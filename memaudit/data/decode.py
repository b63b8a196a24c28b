"""Decode image files: a bounded pool of threads, each with a decoding process of its own."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from memaudit.data.compact import Row
from memaudit.data.examples import content_id
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd, misnamed, sniff
from memaudit.data.images.geometry import check_preprocess
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.workers import shared
from memaudit.data.kept import Kept
from memaudit.data.ondemand import THREADS
from memaudit.data.paths import read_regular
from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean

T = TypeVar("T")
# Values, content id and what is odd about a file; or why it has none.
Outcome = tuple[np.ndarray, str, Odd] | Unreadable | RowError
Progress = Callable[[int, int], None]

# 40 megapixels of 16-bit RGB, uncompressed, and room for metadata.
MAX_BYTES = 256 * 2**20
# What a process is handed at a time, and answers: enough that what a pair of messages costs is little beside it.
PART, CONTENTS, ANSWERS = 32, 2**20, 4 * 2**20
# Parts that may be decoded, for each thread, before the next one is taken: enough that none waits for a slow file.
AHEAD = 3
# The arrays of one file: they stay in memory, and the model needs room beside them.
MEMORY_BUDGET = 8 * 2**30


class Source(Protocol):
    """Where undecoded images come from."""

    def content(self, index: int) -> bytes:
        """That of the row with this `index`; raises `Unreadable` or `RowError`."""
        ...


class Decoder:
    """Decodes images for a network, in processes that it shares with others of its kind.

    Args:
        rows: whose images are asked for, by their place here; their names say what they are called.
        kept: where images are looked for before they are decoded, and kept afterwards.

    Attributes:
        dtype: of the values: uint8, or float32 with a stated bit depth.
        part: files that a process is handed at a time.

    Raises:
        UsageError: no image can have the network's input shape.
    """

    def __init__(self, source: Source, rows: Sequence[Row], preprocess: Preprocess, kept: Kept | None = None) -> None:
        check_preprocess(preprocess)
        if preprocess.input_size[0] not in (1, 3):
            channels = preprocess.input_size[0]
            raise UsageError(f"the network takes {channels} channels, image files have 1 or 3; give arrays (.npz)")
        self.source, self.rows, self.preprocess, self.kept = source, rows, preprocess, kept
        self.dtype = torch.uint8 if preprocess.bit_depth is None else torch.float32
        self.part = max(1, min(PART, ANSWERS // (math.prod(preprocess.input_size) * self.dtype.itemsize)))
        self._workers = shared(preprocess)
        floats = np.uint8 if self.dtype == torch.uint8 else np.float32
        self._images = None if kept is None else kept.of(preprocess, np.dtype(floats))

    def __reduce__(self) -> tuple[object, ...]:
        """Another process that sees the same files decodes them by itself."""
        return Decoder, (self.source, self.rows, self.preprocess, self.kept)

    def outcomes(self, places: Sequence[int]) -> list[Outcome]:
        """Values `(C, H, W)`, content id and oddities of each row's file; or the reason why there are none."""
        found: dict[int, Outcome] = {}
        asked: list[tuple[int, bytes, str]] = []
        for number, place in enumerate(places):
            row = self.rows[place]
            try:
                asked.append((number, self.source.content(row.index), os.path.splitext(row.name)[1]))
            except (Unreadable, RowError) as reason:
                found[number] = reason.with_traceback(None)  # which would hold the frames, and they the contents
            if sum(len(content) for _, content, _ in asked) > CONTENTS:
                found |= self._decoded(asked)
                asked.clear()
        found |= self._decoded(asked)
        return [found[number] for number in range(len(places))]

    def _decoded(self, asked: Sequence[tuple[int, bytes, str]]) -> dict[int, Outcome]:
        found: dict[int, Outcome] = {}
        identities = [content_id(content) for _, content, _ in asked]
        rest = []
        for (number, content, suffix), identity in zip(asked, identities, strict=True):
            kept = None if self._images is None else self._images.get(int(identity, 16))
            if kept is None:
                rest.append((number, content, suffix, identity))
            else:
                found[number] = (kept[0], identity, kept[1] | misnamed(sniff(content), suffix))
        said = self._workers.decode_all([(content, suffix) for _, content, suffix, _ in rest])
        for (number, _, _, identity), one in zip(rest, said, strict=True):
            found[number] = one if isinstance(one, Exception) else (one[0], identity, one[1])
            if self._images is not None and not isinstance(one, Exception):
                self._images.add(int(identity, 16), one[0], one[1] & ~Odd.MISNAMED)
        return found


def content_of(path: Path) -> bytes:
    """What is in a resolved file.

    Raises:
        Unreadable: it cannot be opened, or is not regular.
        RowError: it is too large for an image.
    """
    try:
        content = read_regular(path, MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({clean(error.strerror or error)})") from None
    if len(content) > MAX_BYTES:
        raise RowError(f"larger than {MAX_BYTES >> 20} MiB; no image within 40 megapixels needs that")
    return content


def in_parts(
    work: Callable[[Sequence[int]], Sequence[T]], count: int, part: int, progress: Progress | None
) -> Iterator[T]:
    """What `work` makes of each of `range(count)`, in order; it is asked for `part` of them at a time.

    It runs on a few threads; `progress(done, count)` is called on this one.
    """
    pool = ThreadPoolExecutor(THREADS)
    try:
        rest = (range(start, min(start + part, count)) for start in range(0, count, part))
        ahead: deque[Future[Sequence[T]]] = deque(pool.submit(work, few) for few in islice(rest, AHEAD * THREADS))
        done = 0
        while ahead:
            for one in ahead.popleft().result():
                yield one
                done += 1
                if progress:
                    progress(done, count)
            ahead.extend(pool.submit(work, few) for few in islice(rest, 1))
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
