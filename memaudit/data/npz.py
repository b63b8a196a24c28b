"""Read `.npz` and `.npy` without trusting them: directory and headers are checked before any value is read."""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from memaudit.data import decode
from memaudit.data.paths import display, open_source
from memaudit.errors import DataRejected
from memaudit.text import clean

# Deflate reaches 1000:1 on zeros only; images of any use stay below 30:1. Small members may compress as they like.
MAX_RATIO = 100
SMALL = 64 * 2**20
_KINDS = "biufU"
_CHUNK = 2**24
# What zipfile raises on bytes that are no whole archive.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def read_npz(path: Path, allowed: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of `path` by name.

    Args:
        path: a `.npz` file.
        allowed: names an array may have.

    Raises:
        DataRejected: not a plain zip of plain arrays, or too large for memory.
    """
    name = display(path)
    try:
        with open_source(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive, allowed, name)
            return {key: _member(archive, info, f"{name}: {key}") for key, info in members.items()}
    except _BROKEN as error:
        raise DataRejected(
            f"{name} is not a whole .npz file ({clean(error, 120)})", hint="save it with np.savez"
        ) from None


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file; raises as `read_npz` does."""
    name = display(path)
    with open_source(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return _array(file, size, name)


def npz_header(path: Path, names: Collection[str]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of those of `names` that a `.npz` file has; no value is read.

    Raises:
        DataRejected: a header is broken.
        BadZipFile: it is no archive.
    """
    found = {}
    try:
        with open_source(path) as file, zipfile.ZipFile(file) as archive:
            for name in names:
                if f"{name}.npy" in archive.namelist():
                    with archive.open(f"{name}.npy") as member:
                        shape, _, dtype, _ = _header(member, f"{display(path)}: {name}")
                    found[name] = (shape, dtype)
    except _BROKEN as error:
        raise zipfile.BadZipFile(str(error)) from None
    return found


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a `.npy` file."""
    with open_source(path) as file:
        shape, _, dtype, _ = _header(file, display(path))
    return shape, dtype


def _members(archive: zipfile.ZipFile, allowed: Collection[str], name: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's directory, by array name, once it is what `np.savez` writes."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if key not in allowed or not info.filename.endswith(".npy"):
            raise DataRejected(
                f"{name}: unknown member '{clean(info.filename)}'",
                hint=f"it may hold {', '.join(allowed)} and nothing else",
            )
        if key in members:
            raise DataRejected(f"{name}: '{key}' is there twice; two readers could see two data sets")
        # Of the flags zipfile does not read bits 0, 5 and 6.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 0x61:
            raise DataRejected(
                f"{name}: '{key}' is encrypted or compressed in an unusual way", hint="save it with np.savez"
            )
        if info.file_size > SMALL and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise DataRejected(
                f"{name}: '{key}' unpacks {info.compress_size} bytes to {info.file_size}: a zip bomb",
                hint="if it is real data, save it uncompressed with np.savez",
            )
        members[key] = info
    total = sum(info.file_size for info in members.values())
    if total > decode.MEMORY_BUDGET:
        budget = decode.MEMORY_BUDGET / 2**30
        raise DataRejected(f"{name}: {total / 2**30:.1f} GiB of arrays, the limit is {budget:.1f} GiB; split it")
    return members


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    with archive.open(info) as file:
        return _array(file, info.file_size, name)


def _array(file: IO[bytes], size: int, name: str) -> np.ndarray:
    """One array whose file is `size` bytes long, read only when its header accounts for exactly that many."""
    shape, fortran, dtype, header = _header(file, name)
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise DataRejected(
            f"{name}: dtype {clean(dtype, 60)} is not allowed",
            hint="save plain numbers or text: np.save(path, array.astype(str)); no objects, no pickle",
        )
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header + expected != size or expected > decode.MEMORY_BUDGET:
        raise DataRejected(
            f"{name}: the header says {expected} bytes of values ({clean(shape, 60)}), the file has {size - header}"
        )
    content = bytearray(expected)
    view, filled = memoryview(content), 0
    while filled < expected:
        piece = file.read(min(_CHUNK, expected - filled))
        if not piece:
            raise DataRejected(f"{name}: truncated after {filled} of {expected} bytes")
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    try:
        array = np.ndarray(shape, dtype, content, order="F" if fortran else "C")
    except (ValueError, OverflowError):  # no values at all, in more rows than can be counted
        raise DataRejected(f"{name}: shape {clean(shape, 60)} is not one an array can have") from None
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, dtype and the length of what stands before the values.

    Version 1.0 only: the others serve headers over 64 KiB and field names, which no plain array has.
    """
    start = file.read(10)
    if start[:8] != b"\x93NUMPY\x01\x00" or len(start) < 10:
        raise DataRejected(f"{name}: not a .npy array of format version 1.0", hint="save it with np.save or np.savez")
    text = file.read(int.from_bytes(start[8:], "little"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy repairs Python 2 headers with a warning; we do not
            shape, fortran, dtype = npy.read_array_header_1_0(BytesIO(start[8:] + text))
    except Exception as error:  # a literal from outside: ValueError, TypeError, RecursionError, MemoryError, ...
        raise DataRejected(f"{name}: broken .npy header ({clean(error, 120)})", hint="save it with np.save") from None
    return shape, fortran, dtype, len(start) + len(text)
