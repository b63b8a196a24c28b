"""Values that do not fit in memory, in a file without a name that is gone when the process ends, however it does."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import BinaryIO

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
        self._file: BinaryIO | None = None
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
        if not hasattr(os, "preadv"):
            return
        folder = os.environ.get("TMPDIR") or (LARGE if os.access(LARGE, os.W_OK) else tempfile.gettempdir())
        try:
            self._room = int(min(SPILLED, SHARE * shutil.disk_usage(folder).free)) // self.size
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError:
            self._room = 0
