"""A Hugging Face `datasets.Dataset` of images that `save_to_disk` wrote: Arrow files, and a note of which.

Nothing is unpacked: where each image lies in its file is noted, and it is read from there when it is asked for.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memaudit.data.cells import Cells, bytes_of, check_size, image_of, names_noted, pyarrow_for
from memaudit.data.classes import Classes
from memaudit.data.compact import Rows
from memaudit.data.paths import display, open_source
from memaudit.data.rejections import Rejections
from memaudit.data.shards import ShardListing
from memaudit.errors import DataRejected
from memaudit.text import clean

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
# Bytes of a note, and where an image that is none begins.
SMALL, NOWHERE = 2**24, -1
_HINT = "load it with datasets' load_from_disk and save it again"


@dataclass(frozen=True)
class SavedListing(ShardListing):
    """Rows whose images are parts of Arrow files; `where` has a size of `NOWHERE` for a cell without one."""

    def content(self, index: int) -> bytes:
        """As `ImageListing.content`."""
        size = int(self.where[index, 2])
        check_size(size)
        return image_of(None if size == NOWHERE else super().content(index))


def is_saved(path: Path) -> bool:
    """Whether `path` is a folder that `save_to_disk` wrote, of one dataset or of several splits."""
    return ((path / STATE).is_file() and (path / INFO).is_file()) or (path / SPLITS).is_file()


def names_of_saved(path: Path) -> tuple[str, ...]:
    """What its labels are called, by label; empty where nothing says.

    Raises:
        DataRejected, EnvironmentFault: as `list_saved`.
    """
    file = _files(path)[0]
    with _Mapped(file, path) as mapped:
        return names_noted(mapped.schema, display(path))


def list_saved(path: Path, classes: Classes) -> SavedListing:
    """Every row of a saved dataset, in its order.

    Raises:
        DataRejected: it is no whole dataset, has no images or labels, or a label is no class.
        EnvironmentFault: pyarrow is not installed.
    """
    name, files = display(path), _files(path)
    rejections, where = Rejections(name), [np.empty((0, 3), np.int64)]
    with _Mapped(files[0], path) as first:
        cells = Cells.of(first.schema, name, classes.count)

    def batches() -> Iterator[Any]:
        for number, file in enumerate(files):
            with _Mapped(file, path) as mapped:
                if Cells.of(mapped.schema, display(file), classes.count) != cells:
                    raise DataRejected(f"{display(file)} has other columns than {display(files[0])}", hint=_HINT)
                for batch in mapped.batches():
                    where.append(mapped.places(bytes_of(batch.column(cells.image), cells), number))
                    yield batch

    listed = Rows.of(cells.rows(batches(), classes, rejections))
    places = np.concatenate(where)
    rejections.check(len(places))
    if not listed:
        raise DataRejected(f"{name} has no rows; nothing to audit", hint=_HINT)
    return SavedListing(cells.called(name), listed, classes.names or cells.names, files, places)


class _Mapped:
    """An Arrow file of record batches, mapped into memory: little of it is read. A context manager."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.name = display(path)
        self.arrow = pyarrow_for(folder)
        with open_source(path) as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (ValueError, OSError):
                raise self._broken("is empty or cannot be mapped") from None
        self._whole = self.arrow.py_buffer(self._map)
        try:
            self._reader = self.arrow.ipc.open_stream(self.arrow.BufferReader(self._whole))
            self.schema = self._reader.schema
        except (self.arrow.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from None

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def batches(self) -> Iterator[Any]:
        """Its record batches, checked."""
        try:
            for batch in self._reader:
                batch.validate(full=True)
                yield batch
        except (self.arrow.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from None

    def places(self, cells: Any, number: int) -> np.ndarray:
        """`(n, 3)` int64: `number`, where in the file each cell of an array of bytes begins, and how many it has.

        Raises:
            DataRejected: they do not lie in the file as they are.
        """
        _, offsets, values = cells.buffers()
        wide = np.int64 if str(cells.type) == "large_binary" else np.int32
        ends = np.frombuffer(offsets, wide)[cells.offset : cells.offset + len(cells) + 1].astype(np.int64)
        start = 0 if values is None else values.address - self._whole.address
        sizes = np.diff(ends)
        if not 0 <= start <= start + int(ends.max(initial=0)) <= self._whole.size:
            raise DataRejected(f"{self.name} is compressed", hint=_HINT)
        sizes[np.asarray(cells.is_null())] = NOWHERE
        return np.stack([np.full(len(cells), number), start + ends[:-1], sizes], 1)

    def _broken(self, error: object) -> DataRejected:
        return DataRejected(f"{self.name} is no whole Arrow file ({clean(error, 120)})", hint="download it again")


def _files(path: Path) -> tuple[Path, ...]:
    """The Arrow files of a saved dataset, in order."""
    name = display(path)
    if (path / SPLITS).is_file():
        splits = _note(path / SPLITS).get("splits")
        shown = ", ".join(clean(s) for s in splits) if isinstance(splits, list) else "?"
        raise DataRejected(f"{name} holds several splits: {shown}", hint="name the folder of one of them")
    state = _note(path / STATE)
    listed = state.get("_data_files")
    names = [file.get("filename") for file in listed if isinstance(file, dict)] if isinstance(listed, list) else []
    if not names or not all(isinstance(n, str) and n == os.path.basename(n) and n not in ("", "..") for n in names):
        raise DataRejected(f"{name}: its {STATE} names no files of its own folder", hint=_HINT)
    if state.get("_indices_data_files"):
        raise DataRejected(f"{name} is a selection of other rows than its files have", hint=_HINT)
    return tuple(Path(os.path.realpath(path)) / str(one) for one in names)


def _note(path: Path) -> dict[str, Any]:
    with open_source(path) as file:
        content = file.read(SMALL + 1)
    try:
        found = json.loads(content) if len(content) <= SMALL else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataRejected(f"{display(path)} is no JSON of a saved dataset", hint=_HINT)
    return found
