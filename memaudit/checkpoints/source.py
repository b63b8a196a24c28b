"""One open file: what is hashed, checked and parsed is one descriptor, and it may not change meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memaudit.checkpoints.digests import sha256
from memaudit.errors import ModelRejected
from memaudit.text import clean

CHUNK = 1 << 22  # bytes per read: large enough to be fast, small beside any model


class Source:
    """A regular file opened for reading. Positions are explicit; nothing here moves the descriptor's offset.

    Attributes:
        path: as the caller named it.
        name: its last component, fit for a message.
        size: bytes, when it was opened.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.name = clean(path.name)
        self.descriptor = descriptor
        self._before = os.fstat(descriptor)
        self.size = self._before.st_size

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer only at the end of the file."""
        parts = []
        while length > 0:
            part = os.pread(self.descriptor, min(length, CHUNK), start)
            if not part:
                break
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(parts)

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to `end`, in order, a few MB at a time.

        Raises:
            ModelRejected: the file ends before `end`: it was cut while being read.
        """
        end = self.size if end is None else end
        while start < end:
            part = os.pread(self.descriptor, min(CHUNK, end - start), start)
            if not part:
                raise self.changed()
            start += len(part)
            yield part

    def sha256(self) -> str:
        """Hex digest of the whole file."""
        return sha256(self.chunks())

    def check_unchanged(self) -> None:
        """Raise unless the file still is the one that was opened, of the same size and time of change."""
        try:
            named = os.stat(self.path)
        except OSError as error:
            raise self.changed() from error
        for now in (os.fstat(self.descriptor), named):
            if _identity(now) != _identity(self._before):
                raise self.changed()

    def changed(self) -> ModelRejected:
        """The error for a file that did not hold still."""
        return ModelRejected(
            f"{self.name} changed while it was being read", hint="wait until whatever writes it is done, then run again"
        )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """`path` as a `Source`, closed on the way out; on a clean way out it must not have changed.

    Raises:
        ModelRejected: no such file, not readable, not a regular file (a FIFO would hang for ever), or it changed.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise ModelRejected(
            f"cannot open {clean(path)}: {reason}", hint="name a checkpoint file or a directory that holds one"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModelRejected(
                f"{clean(path)} is not a regular file", hint="copy the checkpoint to an ordinary file first"
            )
        source = Source(path, descriptor)
        yield source
        source.check_unchanged()
    finally:
        os.close(descriptor)
