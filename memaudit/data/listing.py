"""What a source lists: its rows, before any pixel is read, and how those that are image files are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from memaudit.data.compact import Examples, Files, Row, Rows, indices_of, labels_of, taken
from memaudit.data.decode import Decoder, Outcome, Progress, content_of, in_parts
from memaudit.data.examples import ExampleSet, distinct
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import counted
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.kept import Kept
from memaudit.data.numbering import numbered
from memaudit.data.ondemand import OnDemand, Store
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected
from memaudit.text import clean


@dataclass(frozen=True)
class Listing:
    """The rows of one source.

    Attributes:
        source: printable name of what the user named.
        class_names: by label; empty where none are declared.
        paired: labels are two a question, of which an example may have several.
    """

    source: str
    rows: Sequence[Row]
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
        return replace(self, rows=Rows.of(rows), source=source)

    def sampled(self, size: int) -> Self:
        """At most `size` rows, each label's in proportion and drawn by chance, in the order they had.

        The same rows are drawn each time, from the same rows. Shares are rounded by largest remainder, and no label is
        left out where there is room for all.
        """
        if len(self.rows) <= size:
            return self
        drawn = stratified(labels_of(self.rows), size, np.random.default_rng(len(self.rows)))
        return replace(self, rows=taken(self.rows, drawn))

    def chosen(self, limit: int | None) -> Sequence[Row]:
        """At most `limit` rows, evenly spaced so that sorted classes all stay represented."""
        count = len(self.rows)
        if limit is None or limit >= count:
            return self.rows
        return taken(self.rows, [i * count // limit for i in range(limit)])


def stratified(labels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """At most `size` places in `labels` `(N,)`, each label's in proportion and drawn by chance, in order."""
    if len(labels) <= size:
        return np.arange(len(labels))
    labelled = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}
    shares = {label: size * len(places) / len(labels) for label, places in labelled.items()}
    counts = {label: max(int(share), int(len(shares) <= size)) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (counts[label] - shares[label], label))
    while sum(counts.values()) < size:
        counts[by_remainder.pop(0)] += 1
    while sum(counts.values()) > size:  # small labels were rounded up: the largest give way
        counts[max(counts, key=lambda label: (counts[label], label))] -= 1
    drawn = [generator.choice(labelled[label], counts[label], replace=False) for label in sorted(labelled)]
    return np.sort(np.concatenate(drawn))


@dataclass(frozen=True)
class ImageListing(Listing):
    """Rows whose images are files, or parts of files.

    Attributes:
        row_order: the loader whose numbers the rows have; None: memaudit's own.
        kept: where decoded images are kept for later commands; None: nowhere.
    """

    row_order: str | None = field(default=None, kw_only=True)
    kept: Kept | None = field(default=None, kw_only=True)

    def content(self, index: int) -> bytes:
        """The undecoded image of the row with that `index`; called on several threads at once.

        Raises:
            Unreadable, RowError: it cannot be had.
        """
        raise NotImplementedError

    def linked(self, rows: Sequence[Row]) -> int:
        """How many of the files of `rows` lie elsewhere and are links."""
        return 0

    def load(self, preprocess: Preprocess, limit: int | None = None, progress: Progress | None = None) -> ExampleSet:
        """Decode each file once, for who it is; what cannot be decoded is listed in `unreadable`.

        Values that do not fit in memory are kept on disk, or decoded again when they are asked for.
        """
        rows = self.chosen(limit)
        decoder = Decoder(self, rows, preprocess, self.kept)
        identities = np.zeros(len(rows), np.uint64)

        def again(places: Sequence[int]) -> list[np.ndarray]:
            return [
                self._unchanged(rows[at], found, identities[at])
                for at, found in zip(places, decoder.outcomes(places), strict=True)
            ]

        store = Store(again, len(rows), preprocess.input_size, decoder.dtype)
        rejections, unreadable = Rejections(self.source, "images"), []
        odd = np.zeros(len(rows), np.uint8)
        read = np.zeros(len(rows), np.bool_)
        for place, outcome in enumerate(in_parts(decoder.outcomes, len(rows), decoder.part, progress)):
            if isinstance(outcome, RowError):
                rejections.add(_where(rows[place]), outcome)
            elif isinstance(outcome, Unreadable):
                unreadable.append(f"{_where(rows[place])}: {outcome}")
            else:
                values, identity, odd[place] = outcome
                store.keep(place, values)
                identities[place], read[place] = int(identity, 16), True
        rejections.check(len(rows), hint="scale the images down, or take them out of the set")
        places = np.flatnonzero(read)
        examples = Examples(rows, places, identities[places], labels_of(rows)[places])
        keep, duplicates = distinct(examples, self.paired)
        return ExampleSet(
            examples if len(keep) == len(examples) else examples.take(keep),
            _values(store, places[keep]),
            self.source,
            self.class_names,
            unreadable=tuple(unreadable),
            duplicates=duplicates,
            omitted=len(self.rows) - len(rows),
            row_order=self.row_order,
            seen=counted(odd[read], linked=self.linked(rows)),
        )

    def _unchanged(self, row: Row, outcome: Outcome, identity: np.uint64) -> np.ndarray:
        """The values of `outcome`, where the file is the one that was listed."""
        if isinstance(outcome, Exception) or int(outcome[1], 16) != identity:
            why = f" ({outcome})" if isinstance(outcome, Exception) else ""
            raise DataRejected(f"{self.source}: {_where(row)} changed while it was audited{why}")
        return outcome[0]


@dataclass(frozen=True)
class FileListing(ImageListing):
    """Rows whose images are files: `files[row.index]`, resolved and regular when they were listed.

    Attributes:
        root: the image folder they were found in, whose loaders number its rows; None: a manifest's own rows.
    """

    files: Sequence[Path]
    root: Path | None = None

    def numbered_by(self, order: str) -> FileListing:
        """The files that the loader `order` lists, with its numbers."""
        places = numbered([row.name for row in self.rows], order)
        rows = Rows.of(replace(self.rows[place], index=index) for index, place in enumerate(places))
        files = taken(self.files, [self.rows[place].index for place in places])
        return replace(self, rows=rows, files=files, row_order=order)

    def content(self, index: int) -> bytes:
        """As `ImageListing.content`."""
        return content_of(self.files[index])

    def linked(self, rows: Sequence[Row]) -> int:
        """As `ImageListing.linked`."""
        if self.root is None or not isinstance(self.files, Files):
            return 0
        paths = self.files.paths
        return sum(os.path.isabs(paths[index]) for index in indices_of(rows))


def _where(row: Row) -> str:
    return clean(row.name) if row.line is None else f"line {row.line}: {clean(row.name)}"


def _values(store: Store, keep: np.ndarray) -> Tensor | OnDemand:
    """The values of the places `keep`: the store's own tensor, where it holds them all in memory."""
    slots = store.slots(keep)
    if slots is None:
        return OnDemand(store, torch.from_numpy(keep))
    for target, slot in enumerate(slots.tolist()):  # in place: the tensor may be half of the memory
        if target != slot:
            store.kept[target] = store.kept[slot]
    return store.kept[: len(keep)]
