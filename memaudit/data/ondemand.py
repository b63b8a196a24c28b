"""Values that are made when rows are asked for: of a set of any size a bounded part is in memory, more on disk."""

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

from memaudit.data.spill import Spill

# Bytes of one set's values that stay in memory; those of other rows lie on disk, as far as there is room for them.
KEPT = 256 * 2**20
# Each thread may hold one 40-megapixel image and its file, so this also bounds memory.
THREADS = min(8, os.cpu_count() or 1)
# Rows that a thread makes at a time.
PART = 32


# Fast path; its slow twin: tests/twins.py.
class Store:
    """Makes values on a few threads; keeps the first that fit into `KEPT`, and others on disk.

    A pass over a set asks for all rows in turn: whatever is evicted for a newer row would be the next to be missed.

    Args:
        make: the values `shape` of each of some places; called on several threads at once.
        count: how many places there are.
        shape, dtype: of one place's values.

    Attributes:
        kept: `(room, *shape)`, of which the first `used` hold values.
        disk: values of further places.
    """

    def __init__(
        self,
        make: Callable[[Sequence[int]], Sequence[np.ndarray]],
        count: int,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.make, self.shape, self.dtype = make, tuple(shape), dtype
        size = math.prod(shape) * dtype.itemsize
        self.kept = torch.empty((min(count, KEPT // size), *shape), dtype=dtype)
        self.used = 0
        self.disk = Spill(size)
        self._slots = torch.full((count,), -1)
        self._coming: dict[int, tuple[Future[Sequence[np.ndarray]], int]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = RLock()  # copies of a network ask at the same time

    def __reduce__(self) -> tuple[object, ...]:
        """Another process is sent how values are made, none of them."""
        return Store, (self.make, len(self._slots), self.shape, self.dtype)

    def keep(self, place: int, values: np.ndarray) -> None:
        """Hold on to the values of `place`, if there is room."""
        if self._slots[place] >= 0:
            return
        if self.used < len(self.kept):
            self.kept[self.used] = torch.from_numpy(np.require(values, requirements=["C", "W"]))
            self._slots[place] = self.used
            self.used += 1
        elif self.disk.append(values):
            self._slots[place] = len(self.kept) + self.disk.used - 1

    def slots(self, places: np.ndarray) -> Tensor | None:
        """Where in `kept` the values of `places` are; None where some are not."""
        found = self._slots[torch.from_numpy(places)]
        return found if bool(((found >= 0) & (found < len(self.kept))).all()) else None

    def rows(self, places: Tensor) -> Tensor:
        """The values `(n, *shape)` of `places` `(n,)`, repeats allowed; an error of `make` comes through."""
        with self._lock:
            return self._rows(places)

    def _rows(self, places: Tensor) -> Tensor:
        slots = self._slots[places]
        found, held = torch.empty((len(places), *self.shape), dtype=self.dtype), slots >= 0
        near = held & (slots < len(self.kept))
        found[near] = self.kept[slots[near]]
        for row in (held & ~near).nonzero().flatten().tolist():
            if not self.disk.read(int(slots[row]) - len(self.kept), found[row].numpy()):
                self._slots[places[row]] = -1
                held[row] = False
        missing = [(row, int(places[row])) for row in (~held).nonzero().flatten().tolist()]
        self._ask({place for _, place in missing})
        try:
            for row, place in missing:
                part, number = self._coming[place]
                values = part.result()[number]
                found[row] = torch.from_numpy(np.require(values, requirements=["C", "W"]))
                self.keep(place, values)
        finally:
            for _, place in missing:
                self._coming.pop(place, None)
        return found

    def ahead(self, places: Tensor) -> None:
        """Begin to make the values of `places`, which will be asked for next; others that are waiting are dropped."""
        with self._lock:
            wanted = set(places[self._slots[places] < 0].tolist())
            needed = {part for place, (part, _) in self._coming.items() if place in wanted}
            for place in self._coming.keys() - wanted:
                part, _ = self._coming.pop(place)
                if part not in needed:
                    part.cancel()
            self._ask(wanted)

    def _ask(self, wanted: set[int]) -> None:
        """Begin to make what is not coming yet, in parts."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, "memaudit-values")
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        missing = sorted(wanted - self._coming.keys())
        step = max(1, min(PART, -(-len(missing) // THREADS)))
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            future = self._pool.submit(self.make, part)
            self._coming |= {place: (future, number) for number, place in enumerate(part)}


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
