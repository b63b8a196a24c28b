"""Parquet files of undecoded images: one, or a folder of them. A row group is read when one of its images is wanted."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from memaudit.data.cells import Cells, bytes_of, holds_images, image_of, names_noted, pyarrow_for
from memaudit.data.classes import Classes
from memaudit.data.compact import PART, Rows
from memaudit.data.images import Unreadable
from memaudit.data.listing import ImageListing
from memaudit.data.paths import display, open_source
from memaudit.data.rejections import Rejections
from memaudit.data.shards import shards_of
from memaudit.errors import DataRejected
from memaudit.text import clean

SUFFIX = ".parquet"
# Bytes that the images of a row group may take, and how many groups are kept: threads are at neighbouring ones.
LARGEST, KEPT = 2**30, 2
# How files are called that a set was split into.
_SPLIT = re.compile(r"(.+?)-(\d{5})-of-(\d{5})\.parquet", re.IGNORECASE)


@dataclass(frozen=True)
class Groups:
    """The row groups of some files, of which the last that were read are kept.

    Attributes:
        starts: by group, its first row; `group`: its file and its number there.
    """

    files: tuple[Path, ...]
    cells: Cells
    starts: Sequence[int]
    group: Sequence[tuple[int, int]]
    _kept: OrderedDict[int, Any] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return Groups, (self.files, self.cells, self.starts, self.group)

    def cell(self, row: int) -> bytes | None:
        """The bytes of an image; None where there are none.

        Raises:
            Unreadable: its row group cannot be read.
        """
        number = bisect_right(self.starts, row) - 1
        with self._lock:
            if number not in self._kept:
                self._kept[number] = self._read(number)
            self._kept.move_to_end(number)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            found: bytes | None = self._kept[number][row - self.starts[number]].as_py()
        return found

    def _read(self, number: int) -> Any:
        file, group = self.group[number]
        column = f"{self.cells.image}.bytes" if self.cells.nested else self.cells.image
        try:
            with _opened(self.files[file]) as table:
                return bytes_of(table.read_row_group(group, [column]).column(0).combine_chunks(), self.cells)
        except (DataRejected, IndexError) as error:
            raise Unreadable(f"its file cannot be read ({clean(error)})") from None


@dataclass(frozen=True)
class ParquetListing(ImageListing):
    """Rows whose images are cells of parquet files."""

    groups: Groups

    def content(self, index: int) -> bytes:
        """As `ImageListing.content`."""
        return image_of(self.groups.cell(index))


def tables_of(path: Path) -> tuple[Path, ...]:
    """The files that `path` is or holds, if they hold undecoded images; else none.

    Raises:
        DataRejected: they are of several splits, some are missing, or one is broken.
        EnvironmentFault: pyarrow is not installed.
    """
    files = shards_of(path, SUFFIX)
    if not files or (path.is_file() and not _has_images(path)):
        return ()
    if path.is_dir():
        _check_whole(path, files)
    return files


def names_of_tables(files: tuple[Path, ...]) -> tuple[str, ...]:
    """What their labels are called, by label; empty where nothing says."""
    with _opened(files[0]) as table:
        return names_noted(table.schema_arrow, display(files[0]))


def list_tables(path: Path, files: tuple[Path, ...], classes: Classes) -> ParquetListing:
    """Every row of `files`, in their order.

    Raises:
        DataRejected: one is broken, has no images or labels, or other columns than the first; or a label is no class.
    """
    name, counts, group = display(path), [0], list[tuple[int, int]]()
    rejections = Rejections(name)
    with _opened(files[0]) as table:
        cells = Cells.of(table.schema_arrow, display(files[0]), classes.count)
    wanted = [cells.label, *cells.further, *([f"{cells.image}.path"] if cells.path else [])]

    def batches() -> Iterator[Any]:
        for number, file in enumerate(files):
            with _opened(file) as table:
                if Cells.of(table.schema_arrow, display(file), classes.count) != cells:
                    raise DataRejected(f"{display(file)} has other columns than {display(files[0])}")
                for place in range(table.num_row_groups):
                    counts.append(_rows_of(table.metadata.row_group(place), cells, display(file)))
                    group.append((number, place))
                yield from table.iter_batches(PART, columns=wanted)

    listed = Rows.of(cells.rows(batches(), classes, rejections))
    starts = list(accumulate(counts))
    rejections.check(starts[-1])
    if not listed or len(listed) != starts[-1]:
        raise DataRejected(f"{name} has {len(listed)} rows and says {starts[-1]}", hint="write it anew")
    groups = Groups(tuple(file.resolve() for file in files), cells, starts[:-1], group)
    return ParquetListing(cells.called(name), listed, classes.names or cells.names, groups)


def _rows_of(group: Any, cells: Cells, name: str) -> int:
    """How many rows a group has, where its images are few enough to be held."""
    columns = [group.column(place) for place in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == cells.image)
    if size > LARGEST:
        raise DataRejected(
            f"{name}: the images of {group.num_rows} rows lie in one row group of {size / 2**30:.1f} GiB",
            hint="write it with a row_group_size of 1000 or less",
        )
    return int(group.num_rows)


def _has_images(path: Path) -> bool:
    with _opened(path) as table:
        return holds_images(table.schema_arrow, display(path))


def _check_whole(path: Path, files: Sequence[Path]) -> None:
    """Raise where files are of several splits, or some of one are missing."""
    named = [found for file in files if (found := _SPLIT.fullmatch(file.name))]
    splits = {found[1]: int(found[3]) for found in named}
    if len(splits) > 1:
        raise DataRejected(
            f"{display(path)} holds several splits: {', '.join(clean(s) for s in sorted(splits))}",
            hint="put the files of one split into a folder of their own",
        )
    if splits and len(named) != (count := next(iter(splits.values()))):
        raise DataRejected(f"{display(path)} holds {len(named)} of {count} files", hint="download it again")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The parquet file `path`, open while the body runs; its errors become ours."""
    arrow = pyarrow_for(path)
    from pyarrow import parquet

    with open_source(path) as file:
        try:
            with parquet.ParquetFile(file) as table:
                yield table
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DataRejected(
                f"{display(path)} is not a whole .parquet file ({clean(error, 120)})", hint="write it anew"
            ) from None
