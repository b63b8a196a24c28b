"""What a source lists: its rows, before any pixel is read, and how those that are image files are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Self

import numpy as np
import torch
from torch import Tensor

from memaudit.data.decode import Decoder, Progress, in_threads
from memaudit.data.examples import ExampleSet, distinct
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import counted
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.numbering import numbered
from memaudit.data.ondemand import OnDemand, Store
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected
from memaudit.findings import Example
from memaudit.text import clean


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


@dataclass(frozen=True)
class Listing:
    """The rows of one source.

    Attributes:
        source: printable name of what the user named.
        class_names: by label; empty where none are declared.
        paired: labels are two a question, of which an example may have several.
    """

    source: str
    rows: tuple[Row, ...]
    class_names: tuple[str, ...]
    paired: bool = field(default=False, kw_only=True)

    def load(self, preprocess: Preprocess, limit: int | None = None, progress: Progress | None = None) -> ExampleSet:
        """The rows' images, or `limit` of them spread evenly.

        Raises:
            DataRejected: an image cannot be used at all, or arrays do not fit in memory.
        """
        raise NotImplementedError

    def pick(self, rows: Sequence[Row], source: str) -> Self:
        """The same images under another name, `rows` of them only."""
        return replace(self, rows=tuple(rows), source=source)

    def sampled(self, size: int) -> Self:
        """At most `size` rows, each label's in proportion and drawn by chance, in the order they had.

        The same rows are drawn each time, from the same rows. Shares are rounded by largest remainder, and no label is
        left out where there is room for all.
        """
        if len(self.rows) <= size:
            return self
        labelled: dict[int, list[int]] = {}
        for place, row in enumerate(self.rows):
            labelled.setdefault(row.label, []).append(place)
        generator = np.random.default_rng(len(self.rows))
        shares = {label: size * len(places) / len(self.rows) for label, places in labelled.items()}
        taken = {label: max(int(share), int(len(shares) <= size)) for label, share in shares.items()}
        by_remainder = sorted(shares, key=lambda label: (taken[label] - shares[label], label))
        while sum(taken.values()) < size:
            taken[by_remainder.pop(0)] += 1
        while sum(taken.values()) > size:  # small labels were rounded up: the largest give way
            taken[max(taken, key=lambda label: (taken[label], label))] -= 1
        drawn = [generator.choice(labelled[label], taken[label], replace=False) for label in sorted(labelled)]
        return replace(self, rows=tuple(self.rows[place] for place in sorted(np.concatenate(drawn).tolist())))

    def chosen(self, limit: int | None) -> list[Row]:
        """At most `limit` rows, evenly spaced so that sorted classes all stay represented."""
        count = len(self.rows)
        if limit is None or limit >= count:
            return list(self.rows)
        return [self.rows[i * count // limit] for i in range(limit)]


@dataclass(frozen=True)
class FileListing(Listing):
    """Rows whose images are files: `files[row.index]`, resolved and regular when they were listed.

    Attributes:
        row_order: the loader whose numbers the rows have; None: memaudit's own.
        root: the image folder they were found in, whose loaders number its rows; None: a manifest's own rows.
    """

    files: tuple[Path, ...]
    row_order: str | None = None
    root: Path | None = None

    def numbered_by(self, order: str) -> FileListing:
        """The files that the loader `order` lists, with its numbers."""
        places = numbered([row.name for row in self.rows], order)
        rows = tuple(replace(self.rows[place], index=index) for index, place in enumerate(places))
        files = tuple(self.files[self.rows[place].index] for place in places)
        return replace(self, rows=rows, files=files, row_order=order)

    def load(self, preprocess: Preprocess, limit: int | None = None, progress: Progress | None = None) -> ExampleSet:
        """Decode each file once, for who it is; what cannot be decoded is listed in `unreadable`.

        Values that do not fit in memory are decoded again when they are asked for.
        """
        rows = self.chosen(limit)
        files, suffixes = [self.files[r.index] for r in rows], [PurePath(r.name).suffix for r in rows]
        decoder = Decoder(files, preprocess, suffixes)
        identities: dict[int, str] = {}

        def again(place: int) -> np.ndarray:
            outcome = decoder.outcome(place)
            if isinstance(outcome, Exception) or outcome[1] != identities[place]:
                why = f" ({outcome})" if isinstance(outcome, Exception) else ""
                raise DataRejected(f"{self.source}: {_where(rows[place])} changed while it was audited{why}")
            return outcome[0]

        store = Store(again, len(rows), preprocess.input_size, decoder.dtype)
        rejections, unreadable, odd = Rejections(self.source, "images"), [], []
        examples, read = [], []
        with ExitStack() as until:
            until.callback(decoder.close)
            for place, outcome in enumerate(in_threads(decoder.outcome, len(rows), progress)):
                if isinstance(outcome, RowError):
                    rejections.add(_where(rows[place]), outcome)
                elif isinstance(outcome, Unreadable):
                    unreadable.append(f"{_where(rows[place])}: {outcome}")
                else:
                    values, identities[place], oddity = outcome
                    store.keep(place, values)
                    examples.append(rows[place].example(identities[place]))
                    read.append(place)
                    odd.append(oddity)
            rejections.check(len(rows), hint="scale the images down, or take them out of the set")
            keep, duplicates = distinct(examples, self.paired)
            pixels = _values(store, read, keep)
            if isinstance(pixels, OnDemand):
                until.pop_all()  # its values are decoded as long as somebody may ask for them
        return ExampleSet(
            tuple(examples[i] for i in keep),
            pixels,
            self.source,
            self.class_names,
            unreadable=tuple(unreadable),
            duplicates=duplicates,
            omitted=len(self.rows) - len(rows),
            row_order=self.row_order,
            seen=counted(odd, linked=self._linked(files)),
        )

    def _linked(self, files: Sequence[Path]) -> int:
        """How many of `files` lie elsewhere and are links in the folder."""
        if self.root is None:
            return 0
        home = Path(os.path.realpath(self.root))
        return sum(not file.is_relative_to(home) for file in files)


def _where(row: Row) -> str:
    return clean(row.name) if row.line is None else f"line {row.line}: {clean(row.name)}"


def _values(store: Store, read: Sequence[int], keep: Sequence[int]) -> Tensor | OnDemand:
    """The values of those of the places `read` that are to `keep`: the store's own tensor, where it holds them all."""
    if store.used < len(read):
        return OnDemand(store, torch.tensor([read[i] for i in keep]))
    for target, slot in enumerate(keep):  # in place: the tensor may be half of the memory
        if target != slot:
            store.kept[target] = store.kept[slot]
    return store.kept[: len(keep)]
