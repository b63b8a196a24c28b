"""Files are replaced whole or not at all, and all of them or none."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from memaudit.errors import EnvironmentFault, MemauditError, UsageError
from memaudit.system.failpoints import failpoint
from memaudit.text import clean

# Refusals that the caller's choice of path explains; every other OSError is the machine's.
_CALLERS_CHOICE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


def check_target(path: Path) -> None:
    """Refuse an output path that must not, or cannot, be replaced; cheap enough to call before a long run.

    Permission bits are read as well as asked, so that a file marked read-only is safe from root too.

    Raises:
        UsageError: if `path` is a link, a folder, a device or read-only, or lies in such a folder.
    """
    try:
        _check(path)
    except OSError as error:
        raise _explain(path, error) from None


def _check(path: Path) -> None:
    name = clean(path)
    if path.is_symlink():
        raise UsageError(f"output {name} is a symbolic link", hint="Name the file it points to.")
    if path.is_dir():
        raise UsageError(f"output {name} is a folder", hint="Name a file in it.")
    if path.exists() and not path.is_file():
        raise UsageError(f"output {name} is not a regular file")
    if path.exists() and not _writable(path):
        raise UsageError(f"output {name} is read-only", hint="Make it writable, or name another file.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"cannot write {name}: {clean(folder.name)} is a file, not a folder")
    if not _writable(folder):
        raise UsageError(f"cannot write {name}: the folder is read-only", hint="Name a file in another folder.")


def replace(path: Path, text: str) -> Path:
    """`replace_all` for one file."""
    return replace_all([(path, [text])])[0]


def replace_with(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a new file, and put that at `path` once it is complete.

    Raises:
        UsageError, EnvironmentFault: as `replace_all`.
    """
    try:
        os.replace(_stage(path, write, []), path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explain(path, error) from error
    return path


def replace_all(files: Sequence[tuple[Path, Iterable[str | bytes]]]) -> list[Path]:
    """Put each content at its path: all written beside them and synced, then renamed over them, the first last.

    Args:
        files: each path with the pieces of its content, text as UTF-8, which are asked for as they are written.

    Raises:
        UsageError: if a place refuses new files.
        EnvironmentFault: if the disk is full or fails. Older files stay as they were, and nothing is left beside them.
    """
    staged: list[tuple[Path, Path]] = []
    at = Path()
    try:
        failpoint("publish.start")
        for at, content in files:
            staged.append((_stage(at, _pieces(content), staged), at))
        failpoint("publish.staged")
        for partial, at in reversed(staged):
            os.replace(partial, at)
            failpoint("publish.renamed")
        for folder in {path.parent for _, path in staged}:
            _sync_folder(folder)
        failpoint("publish.done")
    except OSError as error:
        raise _explain(at, error) from error
    finally:
        for partial, _ in staged:
            partial.unlink(missing_ok=True)
    return [path for _, path in staged]


def _stage(path: Path, write: Callable[[BinaryIO], object], others: Sequence[tuple[Path, Path]]) -> Path:
    """Write a new file beside `path`; those that a killed process left there are removed."""
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {partial for partial, _ in others}
    for stale in path.parent.glob(f".{glob.escape(path.name[:100])}.{'?' * 12}.tmp"):
        if stale not in known:
            stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{os.urandom(6).hex()}.tmp")
    try:
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():  # whoever narrowed the old file's permissions meant the new one too
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and bool(path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def _pieces(content: Iterable[str | bytes]) -> Callable[[BinaryIO], object]:
    def write(file: BinaryIO) -> None:
        for number, piece in enumerate(content):
            file.write(piece.encode("utf-8") if isinstance(piece, str) else piece)
            if not number:
                file.flush()
                failpoint("publish.half")

    return write


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; systems that cannot open a folder do without."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(path: Path, error: OSError) -> MemauditError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"cannot write {clean(path)}: {reason}"
    if error.errno in _CALLERS_CHOICE:
        return UsageError(message, hint="Name a file in a folder that can be written to.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(message, hint="Free some space and run the same command again.")
    return EnvironmentFault(message)
