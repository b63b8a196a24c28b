"""Rows, files and examples in columns: a few dozen bytes each; an object is made when one is asked for.

A million rows as objects took 1 GiB before a single image was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np

from memaudit.findings import Example
from memaudit.text import clean

T = TypeVar("T")
# Rows that columns are made of at a time.
PART = 4096
NONE = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image and what was said of it.

    Attributes:
        name: its path relative to the root, as it came (for look-ups; cleaned when printed), or `array`.
        index: row in its source, from 0; also where its file or values are.
        line: line of the manifest or list that named it, from 1.
        id: the name that a manifest or an array gives the row.
        columns: what else a manifest says of it, by column, printable.
    """

    name: str
    label: int
    index: int
    line: int | None = None
    true_label: int | None = None
    note: str | None = None
    id: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def example(self, identity: str) -> Example:
        """The row as a report shows it."""
        return Example(
            id=identity,
            source=clean(self.name),
            label=self.label,
            index=self.index,
            line=self.line,
            true_label=self.true_label,
            declared_id=clean(self.id) if self.id else None,
            note=clean(self.note) if self.note else None,
            columns=dict(self.columns),
        )


class Compact(Sequence[T]):
    """A sequence whose elements are made when they are asked for; equal to any other with equal elements."""

    def take(self, places: Sequence[int] | np.ndarray) -> Self:
        """The elements at `places`, in that order."""
        raise NotImplementedError

    def at(self, place: int) -> T:
        """The element at `place`, which is not negative."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return tuple(self.at(number) for number in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.at(place % len(self))

    def __iter__(self) -> Iterator[T]:
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(own == theirs for own, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def taken(elements: Sequence[T], places: Sequence[int] | np.ndarray) -> Sequence[T]:
    """The elements at `places`, in that order, as compact as they were."""
    return elements.take(places) if isinstance(elements, Compact) else tuple(elements[int(i)] for i in places)


def labels_of(rows: Sequence[Row]) -> np.ndarray:
    """`(N,)` int64."""
    return (rows.labels if isinstance(rows, Rows) else np.array([row.label for row in rows], np.int32)).astype(np.int64)


def names_of(rows: Sequence[Row]) -> Iterable[str]:
    """Their names, in order."""
    return rows.names if isinstance(rows, Rows) else (row.name for row in rows)


def indices_of(rows: Sequence[Row]) -> list[int]:
    """Where the files or values of `rows` are."""
    return rows.indices.tolist() if isinstance(rows, Rows) else [row.index for row in rows]


class Texts(Compact[str]):
    """Texts, end to end.

    Args:
        texts: may hold the lone surrogates that stand for bytes of a file name that are not UTF-8.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        block, ends = bytearray(), [0]
        for text in texts:
            block += text.encode("utf-8", "surrogatepass")
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, place: int) -> str:
        """As `Compact.at`."""
        return self._block[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")

    def same(self, other: Texts) -> bool:
        """Whether both hold the same texts; none is made for it."""
        return self._block == other._block and np.array_equal(self._ends, other._ends)

    def take(self, places: Sequence[int] | np.ndarray) -> Texts:
        """As `Compact.take`."""
        return Texts(self.at(int(place)) for place in places)


@dataclass(frozen=True, eq=False)
class Files(Compact[Path]):
    """Resolved paths of files.

    Attributes:
        base: the folder that most of them are in.
        paths: below it; absolute where they are elsewhere.
    """

    base: Path
    paths: Texts

    @classmethod
    def of(cls, base: Path, files: Iterable[Path]) -> Files:
        """`files`, all of them resolved, and most of them below the resolved folder `base`."""
        return cls(base, Texts(str(f.relative_to(base) if f.is_relative_to(base) else f) for f in files))

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, place: int) -> Path:
        """As `Compact.at`."""
        return self.base / self.paths.at(place)

    def take(self, places: Sequence[int] | np.ndarray) -> Files:
        """As `Compact.take`."""
        return Files(self.base, self.paths.take(places))


@dataclass(frozen=True, eq=False)
class Rows(Compact[Row]):
    """Rows by column.

    Attributes:
        labels, indices, lines, truths: `(N,)` int32; `NONE` where a row has none.
        more: fields of `Row` that few rows have, by place.
    """

    names: Texts
    labels: np.ndarray
    indices: np.ndarray
    lines: np.ndarray
    truths: np.ndarray
    more: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def named(cls, names: Texts, labels: np.ndarray) -> Rows:
        """Rows of which nothing else is known, numbered from 0."""
        none = np.full(len(labels), NONE, np.int32)
        return cls(names, labels.astype(np.int32), np.arange(len(labels), dtype=np.int32), none, none)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        """The columns of `rows`, which need not be there at once."""
        numbers: list[tuple[int, int, int, int]] = []
        parts, more = [np.empty((0, 4), np.int32)], {}

        def names() -> Iterator[str]:
            for place, row in enumerate(rows):
                numbers.append((row.label, row.index, _number(row.line), _number(row.true_label)))
                further = {name: value for name in _FEW if (value := getattr(row, name))}
                if further:
                    more[place] = further
                if len(numbers) == PART:
                    parts.append(np.array(numbers, np.int32))
                    numbers.clear()
                yield row.name

        texts = Texts(names())
        columns = np.concatenate([*parts, np.array(numbers, np.int32).reshape(-1, 4)]).T.copy()
        return cls(texts, columns[0], columns[1], columns[2], columns[3], more)

    def __len__(self) -> int:
        return len(self.names)

    def at(self, place: int) -> Row:
        """As `Compact.at`."""
        line, truth = int(self.lines[place]), int(self.truths[place])
        return Row(
            self.names.at(place),
            int(self.labels[place]),
            int(self.indices[place]),
            None if line == NONE else line,
            None if truth == NONE else truth,
            **self.more.get(place, {}),
        )

    def take(self, places: Sequence[int] | np.ndarray) -> Rows:
        """As `Compact.take`."""
        chosen = np.asarray(places, np.int64)
        more = {at: self.more[place] for at, place in enumerate(chosen.tolist()) if place in self.more}
        return Rows(
            self.names.take(chosen),
            self.labels[chosen],
            self.indices[chosen],
            self.lines[chosen],
            self.truths[chosen],
            more,
        )


_FEW = ("note", "id", "columns")


def _number(value: int | None) -> int:
    return NONE if value is None else value


@dataclass(frozen=True, eq=False)
class Examples(Compact[Example]):
    """Examples that rows became.

    Attributes:
        places: `(N,)`: each example's row.
        identities: `(N,)` uint64: content ids, as numbers.
        labels: `(N,)` int64.
        changed: fields of `Example` that are not the row's.
    """

    rows: Sequence[Row]
    places: np.ndarray
    identities: np.ndarray
    labels: np.ndarray
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def id(self, place: int) -> str:
        """The content id of the example at `place`."""
        return f"{int(self.identities[place]):016x}"

    def at(self, place: int) -> Example:
        """As `Compact.at`."""
        example = self.rows[int(self.places[place])].example(self.id(place))
        label = int(self.labels[place])
        if not self.changed and label == example.label:
            return example
        return example.model_copy(update={"label": label, **self.changed})

    def take(self, places: Sequence[int] | np.ndarray) -> Examples:
        """As `Compact.take`; the rows are not copied."""
        chosen = np.asarray(places, np.int64)
        return Examples(self.rows, self.places[chosen], self.identities[chosen], self.labels[chosen], self.changed)
