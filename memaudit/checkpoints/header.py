"""The strict pass over a safetensors header: everything is checked before a tensor is made. Loads no torch."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from memaudit.checkpoints.source import Source
from memaudit.errors import ModelRejected
from memaudit.text import clean

# The widest timm model has 5,000 tensors and a 600 kB header; ten times that is generous, a hundred times an attack.
MAX_HEADER = 16 << 20
MAX_TENSORS = 100_000
MAX_NAME = 512
MAX_DIMS = 8

_BY_SIZE: Mapping[int, tuple[str, ...]] = {
    8: ("F64", "I64", "U64", "C64"),
    4: ("F32", "I32", "U32"),
    2: ("F16", "BF16", "I16", "U16"),
    1: ("I8", "U8", "BOOL"),
}
ITEM_SIZE = {dtype: size for size, dtypes in _BY_SIZE.items() for dtype in dtypes}  # bytes
QUANTISED = ("F8_", "F4", "F6_")


@dataclass(frozen=True)
class Entry:
    """One tensor as the header declares it; `begin` and `end` are bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """Entries in file order, which cover the data without gap or overlap.

    Attributes:
        start: where the data starts, bytes from the start of the file.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    start: int


def read_header(source: Source) -> Header:
    """The checked header of a safetensors file.

    Raises:
        ModelRejected: any deviation from the format, or a limit passed; the message names what and where.
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if length > source.size - 8:
        raise _broken(source, f"its header claims {length:,} bytes, the file has {source.size:,}")
    if length > MAX_HEADER:
        raise _broken(source, f"its header claims {length:,} bytes, the limit is {MAX_HEADER:,}")
    try:
        raw = json.loads(source.read(8, length).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _broken(source, f"its header is not valid: {clean(error)}") from error
    if not isinstance(raw, dict):
        raise _broken(source, "its header is not an object")
    metadata = _metadata(raw.pop("__metadata__", {}), source)
    if not raw:
        raise ModelRejected(f"{source.name} holds no tensors", hint="save the model's weights again")
    if len(raw) > MAX_TENSORS:
        raise _broken(source, f"it holds {len(raw):,} tensors, the limit is {MAX_TENSORS:,}")
    entries = tuple(sorted((_entry(n, e, source) for n, e in raw.items()), key=lambda e: (e.begin, e.end)))
    _check_cover(entries, source.size - 8 - length, source)
    return Header(entries, metadata, 8 + length)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict, unless it repeats a key: parsers disagree about which of the two counts."""
    table: dict[str, object] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {clean(key)!r} appears twice")
        table[key] = value
    return table


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _metadata(raw: object, source: Source) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
        raise _broken(source, "its __metadata__ is not a table of strings")
    return raw


def _entry(name: str, raw: object, source: Source) -> Entry:
    """One tensor's checked declaration; that its bytes and its shape agree is part of it.

    Raises:
        ModelRejected: any field missing, left over, of another kind, or out of range.
    """
    check_name(name, source.name)
    where = f"tensor {clean(name)!r}"
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise _broken(source, f"{where} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if isinstance(dtype, str) and dtype.startswith(QUANTISED):
        raise ModelRejected(
            f"{source.name}: {where} has the quantised type {clean(dtype)}",
            hint="audit the unquantised checkpoint it was made from",
        )
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise _broken(source, f"{where} has the unknown type {clean(dtype)!r}")
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        raise _broken(source, f"{where} has the shape {clean(shape)}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise _broken(source, f"{where} has the offsets {clean(offsets)}")
    begin, end = offsets
    if end - begin != prod(shape) * ITEM_SIZE[dtype]:
        raise _broken(source, f"{where} of shape {clean(shape)} and type {dtype} has {end - begin:,} bytes")
    return Entry(name, dtype, tuple(shape), begin, end)


def check_name(name: str, where: str) -> None:
    """Nothing; refuses a tensor name that would spoil a report.

    Raises:
        ModelRejected: it is empty, too long, or not printable.
    """
    if not name or len(name) > MAX_NAME or any(unicodedata.category(c)[0] == "C" for c in name):
        raise ModelRejected(
            f"{where}: the tensor name {clean(name)!r} is empty, longer than {MAX_NAME} or not printable",
            hint="names are module paths such as layer1.0.conv1.weight; do not trust this file",
        )


def _sizes(raw: object) -> bool:
    """Whether `raw` is a list of whole numbers a file position can have (a bool is no number here)."""
    return isinstance(raw, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in raw)


def _check_cover(entries: tuple[Entry, ...], available: int, source: Source) -> None:
    """Raise unless the entries, in file order, cover exactly `available` bytes: what none owns could be anything."""
    position = 0
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps the one before it" if entry.begin < position else "leaves a hole before it"
            raise _broken(source, f"tensor {clean(entry.name)!r} {fault}")
        position = entry.end
    if position > available:
        raise _broken(source, f"its tensors need {position:,} bytes, {available:,} are there: the file is cut short")
    if position < available:
        raise _broken(source, f"{available - position:,} bytes follow the last tensor")


def _broken(source: Source, why: str) -> ModelRejected:
    """The error for a file that breaks the format."""
    return ModelRejected(f"{source.name} is not a sound safetensors file: {why}", hint="fetch or save it again")
