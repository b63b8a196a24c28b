"""Values that are made when rows are asked for: of a set of any size a bounded part is in memory."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import RLock

import numpy as np
import torch
from torch import Tensor

# Bytes of one set's values that stay in memory; the other rows are made again each time.
KEPT = 4 * 2**30
# Each thread may hold one 40-megapixel image and its file, so this also bounds memory.
THREADS = min(8, os.cpu_count() or 1)


# Fast path; its slow twin: tests/twins.py.
class Store:
    """Makes values on a few threads, and keeps the first that fit into `KEPT`.

    A pass over a set asks for all rows in turn: whatever is evicted for a newer row would be the next to be missed.

    Args:
        make: the values `shape` of one place; called on several threads at once.
        count: how many places there are.
        shape, dtype: of one place's values.

    Attributes:
        kept: `(room, *shape)`, of which the first `used` hold values.
    """

    def __init__(self, make: Callable[[int], np.ndarray], count: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.make, self.shape, self.dtype = make, tuple(shape), dtype
        self.kept = torch.empty((min(count, KEPT // (math.prod(shape) * dtype.itemsize)), *shape), dtype=dtype)
        self.used = 0
        self._slots = torch.full((count,), -1)
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = RLock()  # copies of a network ask at the same time

    def __reduce__(self) -> tuple[object, ...]:
        """Another process is sent how values are made, none of them."""
        return Store, (self.make, len(self._slots), self.shape, self.dtype)

    def keep(self, place: int, values: np.ndarray) -> None:
        """Hold on to the values of `place`, if there is room."""
        if self.used < len(self.kept) and self._slots[place] < 0:
            self.kept[self.used] = torch.from_numpy(np.require(values, requirements=["C", "W"]))
            self._slots[place] = self.used
            self.used += 1

    def rows(self, places: Tensor) -> Tensor:
        """The values `(n, *shape)` of `places` `(n,)`, repeats allowed; an error of `make` comes through."""
        with self._lock:
            return self._rows(places)

    def _rows(self, places: Tensor) -> Tensor:
        slots = self._slots[places]
        found, held = torch.empty((len(places), *self.shape), dtype=self.dtype), slots >= 0
        found[held] = self.kept[slots[held]]
        missing = [(row, int(places[row])) for row in (~held).nonzero().flatten().tolist()]
        coming = {place: self._asked(place) for place in {place for _, place in missing}}
        for row, place in missing:
            values = coming[place].result()
            found[row] = torch.from_numpy(np.require(values, requirements=["C", "W"]))
            self.keep(place, values)
            self._coming.pop(place, None)
        return found

    def ahead(self, places: Tensor) -> None:
        """Begin to make the values of `places`, which will be asked for next; others that are waiting are dropped."""
        with self._lock:
            wanted = set(places[self._slots[places] < 0].tolist())
            for place in self._coming.keys() - wanted:
                self._coming.pop(place).cancel()
            for place in wanted:
                self._coming[place] = self._asked(place)

    def _asked(self, place: int) -> Future[np.ndarray]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, "memaudit-values")
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._coming.get(place) or self._pool.submit(self.make, place)


class OnDemand:
    """Some places of a `Store`, read as the tensor `(N, ...)` of their values would be.

    Args:
        places: `(N,)` int64.
    """

    def __init__(self, store: Store, places: Tensor) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        places = self.places[rows]
        return self.store.rows(places) if places.dim() else self.store.rows(places[None])[0]

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        return torch.Size((len(self), *self.store.shape))

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        return self.store.dtype

    def dim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    def pick(self, rows: Tensor) -> OnDemand:
        """`rows` `(n,)` of these, none of them read."""
        return OnDemand(self.store, self.places[rows])

    def ahead(self, rows: Tensor) -> None:
        """Begin to make `rows` `(n,)`, which will be asked for next."""
        self.store.ahead(self.places[rows])
