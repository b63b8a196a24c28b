"""Tar shards as WebDataset writes them: members `key.jpg` and `key.cls` (or `key.json`) that follow each other.

Nothing is unpacked: where each image lies in its shard is noted, and it is read from there when it is asked for.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from memaudit.data.classes import Classes
from memaudit.data.compact import Row, Rows
from memaudit.data.decode import MAX_BYTES
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import SUFFIXES as IMAGES
from memaudit.data.listing import ImageListing
from memaudit.data.numbering import natural_key
from memaudit.data.paths import display, open_source, read_part
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected
from memaudit.text import clean

SUFFIX = ".tar"
# Headers of a name, and labels: more is no such thing.
SMALL = 2**20
# A key and what comes after the first dot of the last part (webdataset, tariterators.base_plus_ext).
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_HINT = "write it with webdataset's TarWriter, or tar --format=ustar: key.jpg and key.cls (a number) after each other"


@dataclass(frozen=True)
class ShardListing(ImageListing):
    """Rows whose images are members of tar files.

    Attributes:
        shards: the files.
        where: `(N, 3)` int64: by row, the shard, the first byte there, and how many.
    """

    shards: tuple[Path, ...]
    where: np.ndarray

    def content(self, index: int) -> bytes:
        """As `ImageListing.content`."""
        shard, start, size = self.where[index].tolist()
        try:
            found = read_part(self.shards[shard], start, size)
        except OSError as error:
            raise Unreadable(f"cannot be opened ({clean(error.strerror or error)})") from None
        if len(found) < size:
            raise Unreadable("the shard is shorter than it was")
        return found


@dataclass
class _Sample:
    """Members of one key."""

    key: str
    image: tuple[str, int, int] | None = None
    labels: dict[str, bytes] = field(default_factory=dict)


def shards_of(path: Path, ending: str = SUFFIX) -> tuple[Path, ...]:
    """The files with this ending that `path` is or, if it is a folder of no images, holds; naturally sorted."""
    if path.suffix.lower() == ending and path.is_file():
        return (path,)
    if not path.is_dir():
        return ()
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in IMAGES or os.path.isdir(entry.path):
                return ()  # class folders, or images without a label
            found += [entry.name] if suffix == ending else []
    return tuple(path / name for name in sorted(found, key=natural_key))


def list_shards(path: Path, shards: tuple[Path, ...], classes: Classes) -> ShardListing:
    """Every sample of `shards`, in their order.

    Raises:
        DataRejected: a shard is broken, a member is not what it should be, or a sample has no image or no label.
    """
    rejections = Rejections(display(path), "samples")
    where: list[tuple[int, int, int]] = []
    total = 0

    def rows() -> Iterator[Row]:
        nonlocal total
        for number, shard in enumerate(shards):
            within = f"{shard.name}/" if path.is_dir() else ""
            with open_source(shard) as file:
                for sample in _samples(file, display(shard)):
                    total += 1
                    try:
                        label = _label(sample, classes)
                        if sample.image is None:
                            raise RowError("no image")
                    except RowError as reason:
                        rejections.add(clean(within + sample.key), reason)
                        continue
                    extension, start, size = sample.image
                    where.append((number, start, size))
                    yield Row(f"{within}{sample.key}.{extension}", label, len(where) - 1)

    listed = Rows.of(rows())
    rejections.check(total, hint=_HINT)
    if not listed:
        raise DataRejected(f"{display(path)} holds no sample", hint=_HINT)
    places = np.array(where, np.int64).reshape(-1, 3)
    return ShardListing(display(path), listed, classes.names, tuple(Path(os.path.realpath(s)) for s in shards), places)


class _Bounded(io.BufferedIOBase):
    """A file of which `tarfile` reads headers: a header that claims gigabytes is refused before they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= SMALL:
            raise tarfile.ReadError("a header that claims to be large")
        return self.file.read(size)

    def seek(self, place: int, whence: int = 0, /) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


def _samples(file: BinaryIO, name: str) -> Iterator[_Sample]:
    """Members of one key after another.

    Raises:
        DataRejected: it is no whole tar file, or holds what is no plain file.
    """
    length, sample = os.fstat(file.fileno()).st_size, None
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep each of a million
                found = _part(member, name, length)
                if found is None:
                    continue
                key, extension = found
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                _add(sample, extension, member, file, name)
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DataRejected(f"{name} is no whole tar file ({clean(error, 120)})", hint=_HINT) from None
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise DataRejected(f"{name} is cut short: it has no end", hint="download it again")
    if sample is not None:
        yield sample


def _part(member: tarfile.TarInfo, name: str, length: int) -> tuple[str, str] | None:
    """Key and extension of a member; None of a folder, and of what webdataset skips."""
    said = f"{name}: member '{clean(member.name)}'"
    if member.size < 0:  # tarfile goes back and finds it again, for ever
        raise DataRejected(f"{said} has a negative size", hint=_HINT)
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise DataRejected(f"{said} leads outside", hint=_HINT)
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise DataRejected(f"{said} is no plain file (type {member.type!r})", hint=_HINT)
    if member.size > MAX_BYTES:
        raise DataRejected(f"{said} is larger than {MAX_BYTES >> 20} MiB")
    if member.offset_data + member.size > length:
        raise DataRejected(f"{name} is cut short in '{clean(member.name)}'", hint="download it again")
    found = _MEMBER.fullmatch(member.name)
    return None if found is None else (found[1], found[2].lower())


def _add(sample: _Sample, extension: str, member: tarfile.TarInfo, file: BinaryIO, name: str) -> None:
    if f".{extension.rpartition('.')[2]}" in IMAGES:
        if sample.image is not None:
            raise DataRejected(f"{name}: sample '{clean(sample.key)}' has two images", hint=_HINT)
        sample.image = extension, member.offset_data, member.size
    elif extension in ("cls", "json"):
        if extension in sample.labels or member.size > SMALL:
            raise DataRejected(
                f"{name}: sample '{clean(sample.key)}': a second .{extension}, or a large one", hint=_HINT
            )
        place = file.tell()
        file.seek(member.offset_data)
        sample.labels[extension] = file.read(member.size)
        file.seek(place)


def _label(sample: _Sample, classes: Classes) -> int:
    """The label of `.cls`, else `label` in `.json`; both must agree where both are there."""
    said = []
    if "cls" in sample.labels:
        said.append(classes.label(_text(sample.labels["cls"]).strip()))
    if "json" in sample.labels:
        try:
            value = json.loads(_text(sample.labels["json"]))
        except (ValueError, RecursionError):
            raise RowError("its .json is none") from None
        given = value.get("label") if isinstance(value, dict) else None
        if isinstance(given, int) and not isinstance(given, bool):
            said.append(classes.index(given))
        elif isinstance(given, str):
            said.append(classes.name_or_label(given))
    if not said:
        raise RowError("no label: neither a .cls nor a 'label' in a .json")
    if len(set(said)) > 1:
        raise RowError(f"its .cls says {said[0]}, its .json {said[1]}")
    return said[0]


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RowError("its label is no text") from None
