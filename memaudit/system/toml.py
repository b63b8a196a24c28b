"""TOML files people write for memaudit: read whole, as plain data, with errors that name the file and the line."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from memaudit.errors import UsageError
from memaudit.text import clean, closest

MAX_BYTES = 1 << 20


def read(path: Path) -> dict[str, Any]:
    """The tables of `path`.

    Raises:
        UsageError: it is missing, no regular file, too large, not UTF-8 or not TOML (a key given twice is not).
    """
    import tomllib

    name = shown(path)
    try:
        # Not waiting for the other end of a FIFO, which would hang for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise UsageError(f"cannot read {name}: {clean(reason)}", hint="Check the path.") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{name} is not a regular file")
        raw = os.read(descriptor, MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES:,} bytes; that is no file of settings")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8", hint="Save it as UTF-8.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{name} is not valid TOML: {clean(error)}") from None


def nearest(name: str) -> Path | None:
    """The file called `name` in the working directory or the nearest folder above it."""
    here = Path.cwd()
    return next((folder / name for folder in (here, *here.parents) if (folder / name).is_file()), None)


def refuse_unknown(keys: object, known: tuple[str, ...], where: str) -> None:
    """Raise `UsageError` for the first of `keys` that is not `known`, with what was probably meant."""
    for key in keys if isinstance(keys, dict) else ():
        if key not in known:
            near = closest(key, known) or f"; known: {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {clean(key)!r}{near}")


def shown(path: Path) -> str:
    """`path` as messages and reports print it: relative to the working directory, or only its name."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return clean(absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else absolute.name)
