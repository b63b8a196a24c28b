"""Decoded images that a folder keeps for later commands, by their content and by what they were prepared with.

Two files for each way of preparing images are only ever appended to: `KEY.pixels` holds the values of one image after
another, `KEY.rows` whose they are and their checksum. What a killed process left half written is cut off. One process
writes; others that come meanwhile read what was there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from filelock import FileLock, Timeout

from memaudit.data.images import decoding, geometry, preprocess, worker
from memaudit.data.images.decoding import Odd
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import EnvironmentFault
from memaudit.text import clean

# The content id, what is odd about the file, and the checksum of its values.
ROW = np.dtype([("identity", "<u8"), ("odd", "u1"), ("crc", "<u4")])
# Share of what is free on the disk that the folder may take where nobody says.
SHARE = 0.5


@dataclass(frozen=True)
class Kept:
    """A folder for decoded images.

    Attributes:
        most: bytes that it may take; None: half of what is free there.
    """

    folder: Path
    most: int | None = None

    def of(self, way: Preprocess, dtype: np.dtype[np.generic]) -> Images:
        """Those that are prepared `way`.

        Raises:
            EnvironmentFault: the folder cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = sum(path.stat().st_size for path in self.folder.glob("*.pixels"))
            most = int(SHARE * (taken + shutil.disk_usage(self.folder).free)) if self.most is None else self.most
            path = self.folder.absolute() / _key(way, dtype)
            if path not in _open:
                _open[path] = Images(path, way.input_size, dtype, most - taken)
            return _open[path]
        except OSError as error:
            raise EnvironmentFault(
                f"{clean(self.folder)} cannot keep images ({clean(error.strerror or error)})",
                hint="name another folder with --image-cache, or leave it out",
            ) from None


# Of this process: what is open, by its path.
_open: dict[Path, Images] = {}


class Images:
    """Images that were prepared one way.

    Args:
        path: of their files, without what comes after the dot.
        shape, dtype: of each one's values.
        room: bytes that may be added.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[np.generic], room: int) -> None:
        self.shape, self.dtype, self.room = tuple(shape), dtype, room
        self.size = int(np.prod(self.shape)) * self.dtype.itemsize
        self._lock, self._held = Lock(), FileLock(f"{path}.lock")
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            self.room = 0  # another process writes
        flags = os.O_RDWR | os.O_CREAT
        self._pixels, self._rows = (os.open(f"{path}.{end}", flags, 0o600) for end in ("pixels", "rows"))
        self.count = min(os.fstat(self._pixels).st_size // self.size, os.fstat(self._rows).st_size // ROW.itemsize)
        known = np.frombuffer(os.pread(self._rows, self.count * ROW.itemsize, 0), ROW)
        self._order = np.argsort(known["identity"], kind="stable")
        self._known, self._added = known[self._order], dict[int, tuple[int, int, int]]()
        if self._held.is_locked:
            os.ftruncate(self._pixels, self.count * self.size)
            os.ftruncate(self._rows, self.count * ROW.itemsize)

    def get(self, identity: int) -> tuple[np.ndarray, Odd] | None:
        """The values of the image with that content and what is odd about its file; None where they are not kept."""
        found = self._added.get(identity)
        if found is None:
            at = int(np.searchsorted(self._known["identity"], np.uint64(identity), "right")) - 1
            if at < 0 or int(self._known["identity"][at]) != identity:  # the last one: those before may be damaged
                return None
            found = int(self._order[at]), int(self._known["odd"][at]), int(self._known["crc"][at])
        place, odd, crc = found
        values = np.empty(self.shape, self.dtype)
        read = os.preadv(self._pixels, [values.data], place * self.size)
        return (values, Odd(odd)) if read == self.size and zlib.crc32(values.data) == crc else None

    def add(self, identity: int, values: np.ndarray, odd: Odd) -> None:
        """Keep an image, as long as there is room."""
        own = np.ascontiguousarray(values, self.dtype)
        with self._lock:
            if self.room < self.size:
                return
            place, crc = self.count, zlib.crc32(own.data)
            try:
                whole = os.pwrite(self._pixels, own.data, place * self.size) == self.size
                row = np.array([(identity, int(odd), crc)], ROW).tobytes()
                whole = whole and os.pwrite(self._rows, row, place * ROW.itemsize) == ROW.itemsize
            except OSError:
                whole = False
            if not whole:  # the disk is full
                self.room = 0
                return
            self.room -= self.size
            self.count += 1
            self._added[identity] = place, int(odd), crc


def _key(way: Preprocess, dtype: np.dtype[np.generic]) -> str:
    """What values depend on beside the file: how they are asked for, our code, and Pillow."""
    import PIL

    digest = hashlib.sha256(worker.geometry(way) + json.dumps([dtype.str, PIL.__version__]).encode())
    for module in (decoding, geometry, preprocess, worker):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]
