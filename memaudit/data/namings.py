"""What a list of rows says (`.txt .csv .npy`): one naming for each row that it selects, and what else it says of it.

Indices, file names or ids, one a line or under a column's name; a boolean mask; cleanlab's outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from memaudit.data.classes import Classes
from memaudit.data.compact import Row
from memaudit.data.images import RowError
from memaudit.data.manifest import PANDAS_INDEX, PATH_NAMES
from memaudit.data.npz import read_npy
from memaudit.data.rejections import Rejections
from memaudit.data.tables import canonical, csv_records, delimiter_of, read_text
from memaudit.errors import DataRejected
from memaudit.text import clean

INDEX = re.compile(r"[0-9]{1,9}")
# How numpy.savetxt writes the integer it was given, by default.
_SAVETXT = re.compile(r"([0-9]\.[0-9]{18}e[+]0[0-8])|(0\.0{18}e[+]00)")
# And pandas a column of integers that once had a gap.
_WHOLE = re.compile(r"([0-9]{1,9})\.0+")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
# What columns that name a row are called, and what they hold.
_KEYS = {
    "id": "id",
    **dict.fromkeys(("index", "idx", "row"), "index"),
    **dict.fromkeys(("path", *PATH_NAMES), "path"),
}
_EXTRAS = ("true_label", "note", "label")


@dataclass(frozen=True)
class Naming:
    """What one line (or element) of a list names, as text, and what else it says of that row.

    Attributes:
        also: what further columns name, by their key: it must be the same row.
        label: the label that the list says it has.
    """

    where: str
    text: str
    line: int | None = None
    key: str = "any"
    extras: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None


def namings(path: Path, name: str, rows: Sequence[Row], classes: Classes, rejections: Rejections) -> Sequence[Naming]:
    """What each line of the file `path` names, in its order: one naming a line.

    Args:
        name: what messages call the file.
        rows: those of the set that it names; `rejections` takes the lines that name none of them.

    Raises:
        DataRejected: the file cannot be read as any list of examples.
    """
    if path.suffix.lower() == ".npy":
        return _from_array(path, name, len(rows))
    text = read_text(path)
    if path.suffix.lower() == ".txt":
        lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1)]
        return _from_lines([(i, line) for i, line in lines if line], name, len(rows))
    records = list(csv_records(text, delimiter_of(path), name))
    header = canonical(records[0][1]) if records else []
    if "is_label_issue" in header:
        return _from_cleanlab(header, records[1:], name, rows, classes, rejections)
    if header[:1] and header[0] in PANDAS_INDEX and len(header) > 1:  # a table's own numbers, which count nothing here
        header, records = header[1:], [(line, cells[1:]) for line, cells in records]
        records = records[1:] if header == ["0"] else records  # as it calls a column without a name
    elif header == ["0"] and len(records) > 1 and not _is_mask([c[0] for _, c in records], len(rows)):
        raise DataRejected(
            f"{name} begins with 0: row 0, or what pandas calls a column without a name",
            hint="call the column index; or, if it is row 0, save the list as .txt",
        )
    keys = [column for column in header if column in _KEYS]
    if not keys and all(len(cells) == 1 for _, cells in records):
        return _from_lines([(line, cells[0].strip()) for line, cells in records], name, len(rows))
    meanings = [_KEYS[column] for column in keys]
    known = len(set(header)) == len(header) and len(set(meanings)) == len(meanings)
    if not keys or not known or not set(header) <= {*keys, *_EXTRAS}:
        raise DataRejected(
            f"{name} line 1: columns {clean(', '.join(header))} say neither rows nor examples",
            hint="rows: index, path or id, optionally label, true_label, note; or cleanlab's is_label_issue; or "
            "path,label",
        )
    entries = []
    for line, values in records[1:]:
        if len(values) != len(header):
            rejections.add(f"line {line}", f"{len(values)} cells, the header has {len(header)}")
            continue
        cells = dict(zip(header, values, strict=True))
        named = {_KEYS[column]: _whole(cells[column], _KEYS[column]) for column in keys if cells[column]}
        key = next((k for k in ("path", "id", "index") if k in named), meanings[0])
        also = {k: v for k, v in named.items() if k != key}
        entries.append(Naming(f"line {line}", named.get(key, ""), line, key, cells, also, cells.get("label")))
    return entries


def _from_array(path: Path, name: str, count: int) -> list[Naming]:
    array = read_npy(path)
    if array.ndim == 2 and 1 in array.shape:  # np.argwhere, and np.where saved whole
        array = array.reshape(-1)
    if array.ndim != 1:
        raise DataRejected(f"{name} has shape {array.shape}; a list of rows has one dimension")
    if array.dtype.kind == "f" and bool(np.isfinite(array).all()) and bool((array == array.round()).all()):
        array = array.astype(np.int64)  # as np.loadtxt reads integers
    whole = array.dtype.kind in "iu" and len(array) == count > 2 and bool(np.isin(array, (0, 1)).all())
    if array.dtype.kind == "b" or whole:
        return _from_mask([(i, bool(flag)) for i, flag in enumerate(array)], name, count, lines=False)
    if array.dtype.kind not in "iuU":
        raise DataRejected(f"{name} is {array.dtype}; give integers, text or booleans")
    key = "any" if array.dtype.kind == "U" else "index"
    return [Naming(f"element {i}", str(value), key=key) for i, value in enumerate(array.tolist())]


def _from_lines(lines: Sequence[tuple[int, str]], name: str, count: int) -> list[Naming]:
    """One entry, or one value of a mask, per line."""
    values = [(line, str(int(float(text))) if _SAVETXT.fullmatch(text) else _whole(text)) for line, text in lines]
    if _is_mask([text for _, text in values], count):
        return _from_mask([(line, _FLAGS[text.lower()]) for line, text in values], name, count)
    return [Naming(f"line {line}", text, line) for line, text in values]


def _whole(text: str, key: str = "index") -> str:
    """An index without the decimals of a column that once had a gap; anything else as it is."""
    found = _WHOLE.fullmatch(text) if key == "index" else None
    return found[1] if found else text


def _is_mask(values: Sequence[str], count: int) -> bool:
    """Whether these are truth values; zeros and ones only where there is one for each row."""
    words = {text.lower() for text in values}
    return bool(words and words <= {"true", "false"}) or (words <= {"0", "1"} and len(values) == count > 2)


def _from_mask(flags: Sequence[tuple[int, bool]], name: str, count: int, lines: bool = True) -> list[Naming]:
    if len(flags) != count:
        raise DataRejected(f"{name}: a mask of {len(flags)} values for {count} rows; it is of another data set")
    return [
        Naming(f"line {at}" if lines else f"element {at}", str(row), at if lines else None, "index")
        for row, (at, flag) in enumerate(flags)
        if flag
    ]


def _from_cleanlab(
    header: Sequence[str],
    records: Sequence[tuple[int, list[str]]],
    name: str,
    rows: Sequence[Row],
    classes: Classes,
    rejections: Rejections,
) -> list[Naming]:
    """`CleanLearning.find_label_issues` or `Datalab.get_issues`, saved with or without the index, whole or filtered."""
    named = next((column for column in header if _KEYS.get(column) == "path"), None)
    indexed = header[0] in (*PANDAS_INDEX, "index")
    if not indexed and named is None and len(records) != len(rows):
        raise DataRejected(
            f"{name} has {len(records)} lines for {len(rows)} rows and no index column",
            hint="save it with its index: issues.to_csv(path)",
        )
    entries = []
    for position, (line, values) in enumerate(records):
        where = f"line {line}"
        cells = dict(zip(header, values, strict=False))
        flag = _FLAGS.get(cells.get("is_label_issue", "").lower())
        if flag is None or len(values) != len(header):
            rejections.add(where, "no true or false in is_label_issue" if flag is None else f"{len(values)} cells")
            continue
        given = cells.get("given_label", "")
        index = _whole(values[0]) if indexed else str(position)
        row = rows[int(index)] if named is None and INDEX.fullmatch(index) and int(index) < len(rows) else None
        if row is not None and disagrees(given, row, classes):
            rejections.add(where, other_label(given, row))
        elif flag:
            text, key = (index, "index") if named is None else (cells[named], "path")
            also = {"index": cells["index"]} if named is not None and cells.get("index") else {}
            entries.append(Naming(where, text, line, key, {"note": _cleanlab_note(cells)}, also, given))
    return entries


def disagrees(given: str, row: Row, classes: Classes) -> bool:
    """Whether the list saw another label than the data has; unknown names cannot be compared."""
    meanings = set()
    for meaning in (classes.label, classes.named):
        try:
            meanings.add(meaning(given))
        except RowError:
            continue
    return bool(meanings) and row.label not in meanings


def other_label(given: str, row: Row) -> str:
    """Why a line that gives `row` the label `given` is refused."""
    where = clean(row.name) if row.name != "array" else "it"
    return f"label '{clean(given)}', but row {row.index} ({where}) has label {row.label}: other rows, or class order"


def _cleanlab_note(cells: Mapping[str, str]) -> str:
    score = cells.get("label_score") or cells.get("label_quality")
    said = [f"label score {score}" if score else "", f"suggests '{p}'" if (p := cells.get("predicted_label")) else ""]
    return "cleanlab: " + (", ".join(s for s in said if s) or "label issue")
