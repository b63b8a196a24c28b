"""Tables with a column a class: in memory, or where they are large in a file without a name, a part at a time.

Probabilities of a million examples and a thousand classes take 5 GB, and a ranking has several such tables.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from memaudit.data.spill import nameless, room
from memaudit.errors import EnvironmentFault

# Bytes of a table that is held in memory; a larger one lies on disk, where half of what is free has room for it.
HELD = 64 * 2**20
# Most rows, and numbers, of a table that are computed with at a time.
ROWS, NUMBERS = 8192, 2**22


Rows = slice | Tensor
"""Consecutive rows, or their numbers `(n,)`."""


class Sliced(Protocol):
    """Numbers `(rows, columns)` of which some consecutive rows are asked for."""

    @property
    def shape(self) -> torch.Size: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Made:
    """A `Sliced` whose rows are made when they are asked for.

    Attributes:
        make: from consecutive rows to their numbers.
    """

    shape: torch.Size
    make: Callable[[slice], Tensor]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        return self.make(rows)


class Wide(Protocol):
    """Numbers `(rows, columns)`, float32, of which rows are asked for and written."""

    @property
    def shape(self) -> torch.Size: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Rows, /) -> Tensor: ...
    def __setitem__(self, rows: Rows, values: Tensor, /) -> None: ...


class OnDisk:
    """A `Wide` in a file that is gone when the process ends; zeros at first."""

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = torch.Size((rows, columns))
        self._file = nameless()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> Tensor:
        starts, values = self._runs(rows)
        for start, part in zip(starts, values, strict=True):
            self._file.seek(start * 4 * self.shape[1])
            self._file.readinto(part.numpy())  # past what was written there are zeros
        return values.flatten(0, 1)

    def __setitem__(self, rows: Rows, values: Tensor) -> None:
        """Write `values` `(n, columns)`.

        Raises:
            EnvironmentFault: the disk is full.
        """
        starts, whole = self._runs(rows)
        whole[:] = values.reshape(whole.shape)
        try:
            for start, part in zip(starts, whole, strict=True):
                self._file.seek(start * 4 * self.shape[1])
                if self._file.write(part.numpy()) < part.nbytes:
                    raise OSError(errno.ENOSPC, "")
        except OSError as error:
            raise EnvironmentFault(
                f"what is measured does not fit on the disk: {os.strerror(error.errno or errno.EIO)}",
                hint="Free some space and run the same command again.",
            ) from error

    def _runs(self, rows: Rows) -> tuple[list[int], Tensor]:
        """Where consecutive rows begin, and zeros for each of them, `(runs, rows of one, columns)`."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return [start], torch.zeros(1, max(0, stop - start), self.shape[1])
        return rows.tolist(), torch.zeros(len(rows), 1, self.shape[1])


def wide(rows: int, columns: int) -> Wide:
    """Zeros `(rows, columns)`: a tensor, or `OnDisk` where that would be large."""
    return OnDisk(rows, columns) if HELD < 4 * rows * columns <= room() else torch.zeros(rows, columns)


def slices(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive rows of a table, so few that what is computed of them takes little memory."""
    step = max(1, min(ROWS, NUMBERS // max(1, columns)))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def add(sums: Wide, rows: Rows, values: Tensor) -> None:
    """Add `values` `(n, columns)` to some rows, each of which is there once."""
    sums[rows] = sums[rows] + values


def divide(sums: Wide, number: float) -> None:
    """Divide all of it."""
    for rows in slices(*sums.shape):
        sums[rows] = sums[rows] / number


def own(numbers: Sliced, labels: Tensor) -> Tensor:
    """`(rows,)`: of each row the number in the column of its label."""
    found = [numbers[rows].gather(1, labels[rows, None]).squeeze(1) for rows in slices(*numbers.shape)]
    return torch.cat(found) if found else torch.zeros(0)
