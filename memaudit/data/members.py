"""The arrays of a file by name, `.npz`, `.safetensors` or `.parquet`: what `x`, `y` and their companions are."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memaudit.data import decode
from memaudit.data.cells import NO_LABEL, pyarrow_for
from memaudit.data.npz import npy_header, npz_header, read_npz
from memaudit.data.paths import display, open_source
from memaudit.errors import DataRejected
from memaudit.text import clean

NAMES = ("x", "y", "id", "true_label", "mask")
SUFFIXES = frozenset({".npz", ".safetensors", ".parquet"})
# Channels that the last axis of images in bytes may have; the first, where the last cannot be one.
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Arrays:
    """What the headers of arrays of examples say.

    Attributes:
        shape: of one example, as the network takes it (channels first).
        whole: whether values are whole numbers that no rule for images scales: token ids, or counts.
        masked: whether a mask goes with them: `shape` is then `(2, T)`.
    """

    shape: tuple[int, ...]
    whole: bool = False
    masked: bool = False


def read_members(path: Path) -> dict[str, np.ndarray]:
    """Every array of `path`.

    Raises:
        DataRejected: the file is not what it should be, holds other names, or does not fit in memory.
        EnvironmentFault: a `.parquet` file, and the package that reads it is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, NAMES)
    return _safetensors(path) if suffix == ".safetensors" else _parquet(path)


def described(path: Path) -> Arrays | None:
    """What the examples of `path` are, if it is a file of arrays with an `x`; few bytes are read."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (*SUFFIXES, ".npy"):
        return None
    if suffix == ".npy":
        shape, dtype = npy_header(path)
        return rows_of((0, *shape), dtype)
    if suffix == ".npz":
        try:
            headers = npz_header(path, ("x", "mask"))
        except zipfile.BadZipFile:
            return None  # reading it says what is wrong
    elif suffix == ".safetensors":
        headers = {name: (array.shape, array.dtype) for name, array in _safetensors(path).items()}
    else:
        headers = {name: (array.shape, array.dtype) for name, array in _parquet(path).items()}
    found = rows_of(*headers["x"], masked="mask" in headers) if "x" in headers else None
    return None if found is None or 4 * math.prod(found.shape) > decode.MEMORY_BUDGET else found  # reading it says why


def rows_of(shape: tuple[int, ...], dtype: np.dtype[Any], masked: bool = False) -> Arrays:
    """What the rows of an array `(N, ...)` are. Whole numbers of one or two bytes are images where they can be."""
    row = tuple(int(d) for d in shape[1:])
    if dtype.kind == "u" and dtype.itemsize <= 2 and not masked:
        if len(row) == 2:
            return Arrays((1, *row))
        if len(row) == 3:
            last = row[2] in CHANNELS or row[0] not in CHANNELS
            return Arrays((row[2], row[0], row[1]) if last else row)
    return Arrays((2, *row) if masked else row, dtype.kind in "iu", masked)


def with_mask(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """`x`, together with `mask` as `(N, 2, T)` where there is one.

    Raises:
        DataRejected: they do not go together.
    """
    x, mask = arrays["x"], arrays.get("mask")
    if mask is None:
        return x
    if x.dtype.kind not in "iu" or x.ndim != 2 or mask.shape != x.shape or not np.isin(mask, (0, 1)).all():
        raise DataRejected(
            f"{name}: mask {mask.shape} does not go with x {x.dtype} {x.shape}",
            hint="x holds token ids (N, T), mask a 1 for each that counts and a 0 for padding",
        )
    return np.stack([x.astype(np.int64), mask.astype(np.int64)], 1)


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = display(path)
    try:
        tensors = load(_content(path))
    except (SafetensorError, ValueError, OverflowError) as error:
        raise DataRejected(
            f"{name} is not a whole .safetensors file ({clean(error, 120)})", hint="save it with safetensors' save_file"
        ) from None
    unknown = next((key for key in tensors if key not in NAMES), None)
    if unknown is not None:
        raise DataRejected(
            f"{name}: unknown tensor '{clean(unknown)}'", hint=f"it may hold {', '.join(NAMES)} and nothing else"
        )
    wide = {key: t.float() if t.dtype == torch.bfloat16 else t for key, t in tensors.items()}
    return {key: tensor.numpy() for key, tensor in wide.items()}


def _content(path: Path) -> bytes:
    with open_source(path) as file:
        content = file.read(decode.MEMORY_BUDGET + 1)
    if len(content) > decode.MEMORY_BUDGET:
        raise DataRejected(f"{display(path)} is larger than {decode.MEMORY_BUDGET / 2**30:.1f} GiB; split it")
    return content


def _parquet(path: Path) -> dict[str, np.ndarray]:
    """A table: `label` (or `y`), optionally `id` and `true_label`; all other columns, in order, are `x`."""
    pyarrow, name = pyarrow_for(path), display(path)
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(_content(path)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataRejected(f"{name} is not a whole .parquet file ({clean(error, 120)})", hint="write it anew") from None
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if len(columns) != len(table.column_names):
        raise DataRejected(f"{name}: two columns have one name")
    label = next((c for c in ("label", "y") if c in columns), None)
    if label is None:
        raise DataRejected(f"{name}: no column 'label'", hint=NO_LABEL)
    found = {"y": columns.pop(label), **{c: columns.pop(c) for c in ("id", "true_label") if c in columns}}
    features = [_numbers(columns[c], f"{name}: column '{clean(c)}'") for c in columns]
    if not features:
        raise DataRejected(f"{name}: no column beside the labels", hint="one column a feature, in the network's order")
    x = features[0] if len(features) == 1 and features[0].ndim > 1 else np.stack(features, 1)
    more = {key: np.asarray(column.to_pylist()) for key, column in found.items()}
    return {"x": x, **more}


def _numbers(column: Any, where: str) -> np.ndarray:
    """One column as `(N,)`, or `(N, T)` where its cells are lists of one length."""
    if column.null_count:
        raise DataRejected(f"{where} has {column.null_count} missing values", hint="fill them in as the training did")
    try:
        values = np.asarray(column.to_pylist())
    except ValueError:
        values = np.asarray(())
    if values.dtype.kind not in "biuf" or len(values) != len(column):
        raise DataRejected(f"{where} holds no plain numbers", hint="leave it out, or encode it as the training did")
    if values.ndim > 1 and values.dtype.kind in "iu":
        return values  # token ids
    return values if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else values.astype(np.float32)
