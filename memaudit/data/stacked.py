"""Rows that are `.npy` files of their own: a volume, a signal or a spectrogram each, all of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from memaudit.data.compact import Rows, names_of
from memaudit.data.decode import Progress
from memaudit.data.examples import ExampleSet
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.listing import FileListing
from memaudit.data.members import Arrays, rows_of
from memaudit.data.npz import npy_header, read_npy
from memaudit.data.rejections import Rejections
from memaudit.data.tables import csv_records, delimiter_of, json_records, read_text
from memaudit.data.tensors import TensorListing, as_tensor
from memaudit.errors import DataRejected

SUFFIX = ".npy"


@dataclass(frozen=True)
class StackedListing(FileListing):
    """Rows whose values are `.npy` files: `files[row.index]`, each the array of one example."""

    @classmethod
    def of(cls, listing: FileListing) -> FileListing:
        """`listing`, as this kind where its files are arrays.

        Raises:
            DataRejected: some are arrays and some are images.
        """
        arrays = sum(name.lower().endswith(SUFFIX) for name in names_of(listing.rows))
        if not arrays:
            return listing
        if arrays < len(listing.rows):
            raise DataRejected(
                f"{listing.source}: {arrays} .npy files among {len(listing.rows)}",
                hint="a set holds images or arrays, not both",
            )
        own = {f.name: getattr(listing, f.name) for f in fields(listing)}
        return cls(**{**own, "root": None})  # no image loader numbers them

    def load(self, preprocess: Preprocess, limit: int | None = None, progress: Progress | None = None) -> ExampleSet:
        """Read and stack the files; all must have the first one's shape and type."""
        rows = self.chosen(limit)
        rejections, arrays = Rejections(self.source), list[np.ndarray]()
        for row in rows:
            array = read_npy(self.files[row.index])
            if arrays and (array.shape != arrays[0].shape or array.dtype != arrays[0].dtype):
                found, first = f"{array.dtype} {array.shape}", f"{arrays[0].dtype} {arrays[0].shape}"
                rejections.add(row.name, f"{found}, the first file is {first}")
            arrays.append(array)
            if progress:
                progress(len(arrays), len(rows))
        rejections.check(len(rows), hint="bring all examples to one shape and type, as the network takes them")
        placed = Rows.of(replace(row, index=place) for place, row in enumerate(rows))
        x = np.stack(arrays)
        layout = "NHWC" if x.dtype in (np.uint8, np.uint16) else "NCHW"
        stacked = TensorListing(
            self.source, placed, self.class_names, as_tensor(x, self.source), layout, unit_range=True
        )
        read = stacked.load(preprocess)
        numbered = tuple(e.model_copy(update={"index": rows[e.index].index}) for e in read.examples)
        return replace(read, examples=numbered, omitted=len(self.rows) - len(rows))


def described_files(path: Path) -> Arrays | None:
    """What the examples of a folder or manifest of `.npy` files are, by the first of them; None where it has none."""
    first = next(_files(path), None)
    if first is None or not first.is_file():
        return None
    shape, dtype = npy_header(first)
    return rows_of((0, *shape), dtype)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        folders: Sequence[Path] = sorted(f for f in path.iterdir() if f.is_dir())
        yield from (file for folder in folders for file in sorted(folder.glob(f"*{SUFFIX}")))
    elif path.suffix.lower() == ".jsonl":
        for _, record in json_records(read_text(path)):
            if isinstance(record, dict) and str(record.get("path")).lower().endswith(SUFFIX):
                yield path.parent / str(record["path"])
    elif path.suffix.lower() in (".csv", ".tsv"):
        delimiter = delimiter_of(path)
        for _, cells in csv_records(read_text(path), delimiter, path.name):
            yield from (path.parent / cell for cell in cells if cell.lower().endswith(SUFFIX))
