"""Values that do not fit in memory, in a file without a name that is gone when the process ends, however it does."""

from __future__ import annotations

import os
import shutil
import tempfile
from io import FileIO

import numpy as np

# Bytes of one set's values on disk, and the share of what is free there that they may take.
SPILLED, SHARE = 256 * 2**30, 0.5
# Where large files of a moment belong: /tmp may be memory (file-hierarchy(7)).
LARGE = "/var/tmp"  # noqa: S108


class Spill:
    """Values of one size each, by number. What a disk does not take or give back is made again.

    Args:
        size: bytes of one.

    Attributes:
        used: how many there are.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self._file: FileIO | None = None
        self._room: int | None = None

    def append(self, values: np.ndarray) -> bool:
        """Write another one; False where there is no room for it."""
        if self._room is None:
            self._open()
        if self._file is None or self.used >= (self._room or 0):
            return False
        try:
            written = os.pwrite(self._file.fileno(), np.ascontiguousarray(values).data, self.used * self.size)
        except OSError:
            written = 0
        if written < self.size:
            self._room = self.used  # the disk is full
            return False
        self.used += 1
        return True

    def read(self, number: int, into: np.ndarray) -> bool:
        """Read one into an array; False where it cannot be read."""
        if self._file is None:
            return False
        try:
            return os.preadv(self._file.fileno(), [into.data], number * self.size) == self.size
        except OSError:
            return False

    def _open(self) -> None:
        self._room = 0
        if hasattr(os, "preadv") and (free := room()):
            self._room = min(SPILLED, free) // self.size
            self._file = nameless()


def room() -> int:
    """Bytes that a file of a moment may take; 0 where there is no place for one."""
    try:
        nameless().close()
        return int(SHARE * shutil.disk_usage(_folder()).free)
    except OSError:
        return 0


def nameless() -> FileIO:
    """A new file for large values, without a name; what is written is written at once.

    Raises:
        OSError: there is no place for it.
    """
    return tempfile.TemporaryFile(dir=_folder(), buffering=0)


def _folder() -> str:
    return os.environ.get("TMPDIR") or (LARGE if os.access(LARGE, os.W_OK) else tempfile.gettempdir())
