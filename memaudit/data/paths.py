"""Paths from outside: printed relative, kept inside their root, opened only when they are regular files."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from memaudit.data.images import RowError
from memaudit.errors import DataRejected
from memaudit.text import clean


def display(path: Path) -> str:
    """`path` for messages and reports: relative to the working directory, or only its name; never absolute."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    inside = absolute.is_relative_to(here) and absolute != here
    return clean(absolute.relative_to(here).as_posix() if inside else absolute.name)


def inside(root: Path, given: str) -> Path:
    """The regular file that `given`, relative to the resolved folder `root`, names.

    Raises:
        RowError: it is absolute, climbs with `..`, leaves `root` through a link, or is no readable regular file.
    """
    if "\0" in given:
        raise RowError(f"path {clean(given)!r} holds a NUL character")
    if PurePosixPath(given).is_absolute() or PureWindowsPath(given).is_absolute():
        raise RowError(f"path '{clean(given)}' is absolute; write it relative to the manifest's folder")
    if ".." in PurePosixPath(given).parts or ".." in PureWindowsPath(given).parts:
        raise RowError(f"path '{clean(given)}' climbs with '..'; put the images below the manifest's folder")
    return regular(root, root / next((s for s in spellings(given) if os.path.lexists(root / s)), given), given)


def spellings(given: str) -> Iterator[str]:
    """`given`, and what another system may have written for it: backslashes, accents in one character or in two."""
    for path in (given, PureWindowsPath(given).as_posix()):
        yield path
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, path)


def regular(root: Path, path: Path, name: str, *, linked: bool = False, resolved: bool = False) -> Path:
    """`path`, resolved: a readable regular file in the resolved folder `root`; `name` is what messages call it.

    Args:
        linked: it may lead outside through a link, as images do that a cache keeps elsewhere (hub, DVC, git-annex).
        resolved: the folder of `path` is: only the file itself may be a link.

    Raises:
        RowError: it is not.
    """
    try:
        real, mode = path, path.lstat().st_mode if resolved else 0
        if not stat.S_ISREG(mode):
            real = Path(os.path.realpath(path, strict=True))
            mode = real.stat().st_mode
    except FileNotFoundError:
        gone = "is a link to nothing; fetch what it stands for (git annex get, dvc pull)"
        raise RowError(f"'{clean(name)}' {gone if os.path.islink(path) else 'does not exist'}") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a lone surrogate
        raise RowError(f"'{clean(name)}' cannot be reached ({_reason(error)})") from None
    if not linked and not real.is_relative_to(root):
        raise RowError(f"'{clean(name)}' is a symbolic link that leaves the folder; copy the file into it")
    if stat.S_ISDIR(mode):
        raise RowError(f"'{clean(name)}' is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise RowError(f"'{clean(name)}' is not a regular file")
    if not os.access(real, os.R_OK):
        raise RowError(f"'{clean(name)}' cannot be read (permission denied)")
    return real


def open_regular(path: Path) -> BinaryIO:
    """Open `path` for reading without waiting for a FIFO's other end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """The content of `path`, at most `most` bytes of it.

    Raises:
        OSError: as `open_regular`.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        parts, left = [], most
        while left and (part := os.read(descriptor, min(left, found.st_size + 1))):  # a file object took four times it
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_part(path: Path, start: int, size: int) -> bytes:
    """`size` bytes of `path` from `start` on; fewer where it ends.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        file.seek(start)
        return file.read(size)


def open_source(path: Path) -> BinaryIO:
    """`open_regular` for a file that the user named.

    Raises:
        DataRejected: it is missing, unreadable or not a regular file.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise DataRejected(f"{display(path)} does not exist", hint="check the path, and where you run this") from None
    except OSError as error:
        raise DataRejected(f"{display(path)} cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return clean(getattr(error, "strerror", None) or error)
