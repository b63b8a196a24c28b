"""Lists of rows of a data set (`.txt .csv .npy`): indices, file names or ids, a boolean mask, cleanlab's outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TypeVar

from memaudit.data.classes import Classes
from memaudit.data.images import RowError
from memaudit.data.listing import FileListing, Listing, Row
from memaudit.data.npz import read_npy
from memaudit.data.paths import display
from memaudit.data.rejections import Rejections
from memaudit.data.tables import csv_records, read_text
from memaudit.errors import DataRejected
from memaudit.text import clean

SUFFIXES = frozenset({".txt", ".csv", ".npy"})

_INDEX = re.compile(r"[0-9]{1,9}")
# How numpy.savetxt writes the integer it was given, by default.
_SAVETXT = re.compile(r"([0-9]\.[0-9]{18}e[+]0[0-8])|(0\.0{18}e[+]00)")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
_KEYS = ("index", "path", "id")
_EXTRAS = ("true_label", "note")
# What pandas calls an index it wrote as the first column.
_PANDAS_INDEX = ("", "index", "Unnamed: 0")

L = TypeVar("L", bound=Listing)


@dataclass(frozen=True)
class _Entry:
    """What one line (or element) of a list names, as text, and what else it says of that row."""

    where: str
    text: str
    line: int | None = None
    key: str = "any"
    extras: Mapping[str, str] = field(default_factory=dict)


def select(path: Path, listing: L, classes: Classes) -> L:
    """The rows of `listing` that the list `path` names, in the list's order.

    Raises:
        DataRejected: an entry names no row, several, or one that is already named; or nothing is selected.
    """
    name = display(path)
    rejections = Rejections(name, "entries")
    finder = _Finder(listing)
    entries = _entries(path, name, listing.rows, classes, rejections)
    rows: list[Row] = []
    seen: dict[int, str] = {}
    for entry in entries:
        try:
            row = finder.find(entry)
            if row.index in seen:
                raise RowError(
                    f"row {row.index} is already named by {seen[row.index]}; a mask has one value for each of the "
                    f"{len(listing.rows)} rows"
                )
            seen[row.index] = entry.where
            true_label, note = entry.extras.get("true_label"), entry.extras.get("note")
            rows.append(
                replace(
                    row,
                    line=entry.line,
                    true_label=classes.label(true_label) if true_label else row.true_label,
                    note=note or row.note,
                )
            )
        except RowError as reason:
            rejections.add(entry.where, reason)
    rejections.check(len(entries) or len(rejections.reasons), hint="indices count the rows of --data from 0")
    if not rows:
        raise DataRejected(f"{name} selects none of the {len(listing.rows)} rows of {listing.source}; nothing to audit")
    return listing.pick(rows, name)


class _Finder:
    """Finds the row that an entry names: by index, by id, or by its path or an unmistakable end of it."""

    def __init__(self, listing: Listing) -> None:
        self.rows = listing.rows
        self.files = listing.files if isinstance(listing, FileListing) else ()
        self.ids = {row.id: row for row in self.rows if row.id is not None}
        self.names = {row.name: row for row in self.rows} if self.files else {}
        self.bases: dict[str, list[Row]] = {}
        for row in self.rows if self.files else ():
            self.bases.setdefault(PurePath(row.name).name, []).append(row)

    def find(self, entry: _Entry) -> Row:
        """The one row that `entry` names; raises `RowError` for none or several."""
        text, found = entry.text, dict[int, Row]()
        if entry.key in ("any", "index") and _INDEX.fullmatch(text) and int(text) < len(self.rows):
            found[int(text)] = self.rows[int(text)]
        if entry.key in ("any", "id") and text in self.ids:
            found[self.ids[text].index] = self.ids[text]
        if entry.key in ("any", "path"):
            found.update((row.index, row) for row in self._by_path(text))
        if len(found) == 1:
            return next(iter(found.values()))
        if not found:
            raise RowError(f"'{clean(text)}' is no index from 0 to {len(self.rows) - 1}, id or file of the data")
        which = ", ".join(f"row {row.index} ({clean(row.name)})" for row in list(found.values())[:3])
        raise RowError(f"'{clean(text)}' could be {which}; use a .csv whose column is called index, path or id")

    def _by_path(self, text: str) -> Sequence[Row]:
        path = PurePath(text)
        if str(path) in self.names:
            return (self.names[str(path)],)
        size = len(path.parts)
        return [row for row in self.bases.get(path.name, ()) if self.files[row.index].parts[-size:] == path.parts]


def _entries(path: Path, name: str, rows: Sequence[Row], classes: Classes, rejections: Rejections) -> Sequence[_Entry]:
    if path.suffix.lower() == ".npy":
        return _from_array(path, name, len(rows))
    text = read_text(path)
    if path.suffix.lower() == ".txt":
        lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1)]
        return _from_lines([(i, line) for i, line in lines if line], name, len(rows))
    records = list(csv_records(text, ",", name))
    header = records[0][1] if records else []
    if "is_label_issue" in header:
        return _from_cleanlab(header, records[1:], name, rows, classes, rejections)
    keys = [column for column in header if column in _KEYS]
    if not keys and all(len(cells) == 1 for _, cells in records):
        return _from_lines([(line, cells[0].strip()) for line, cells in records], name, len(rows))
    if len(keys) != 1 or len(set(header)) != len(header) or not set(header) <= {*keys, *_EXTRAS}:
        raise DataRejected(
            f"{name} line 1: columns {clean(', '.join(header))} say neither rows nor examples",
            hint="rows: index, path or id, optionally true_label, note; or cleanlab's is_label_issue; or path,label",
        )
    entries = []
    for line, values in records[1:]:
        if len(values) != len(header):
            rejections.add(f"line {line}", f"{len(values)} cells, the header has {len(header)}")
            continue
        cells = dict(zip(header, values, strict=True))
        entries.append(_Entry(f"line {line}", cells[keys[0]], line, keys[0], cells))
    return entries


def _from_array(path: Path, name: str, count: int) -> list[_Entry]:
    array = read_npy(path)
    if array.ndim != 1:
        raise DataRejected(f"{name} has shape {array.shape}; a list of rows has one dimension")
    if array.dtype.kind == "b":
        return _from_mask([(i, bool(flag)) for i, flag in enumerate(array)], name, count, lines=False)
    if array.dtype.kind not in "iuU":
        raise DataRejected(f"{name} is {array.dtype}; give integers, text or booleans")
    key = "any" if array.dtype.kind == "U" else "index"
    return [_Entry(f"element {i}", str(value), key=key) for i, value in enumerate(array.tolist())]


def _from_lines(lines: Sequence[tuple[int, str]], name: str, count: int) -> list[_Entry]:
    """One entry, or one value of a mask, per line. Zeros and ones are a mask only when there is one for each row."""
    values = [(line, str(int(float(text))) if _SAVETXT.fullmatch(text) else text) for line, text in lines]
    words = {text.lower() for _, text in values}
    if (words and words <= {"true", "false"}) or (words <= {"0", "1"} and len(values) == count > 2):
        return _from_mask([(line, _FLAGS[text.lower()]) for line, text in values], name, count)
    return [_Entry(f"line {line}", text, line) for line, text in values]


def _from_mask(flags: Sequence[tuple[int, bool]], name: str, count: int, lines: bool = True) -> list[_Entry]:
    if len(flags) != count:
        raise DataRejected(f"{name}: a mask of {len(flags)} values for {count} rows; it is of another data set")
    return [
        _Entry(f"line {at}" if lines else f"element {at}", str(row), at if lines else None, "index")
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
) -> list[_Entry]:
    """`CleanLearning.find_label_issues` or `Datalab.get_issues`, saved with or without the index, whole or filtered."""
    indexed = header[0] in _PANDAS_INDEX
    if not indexed and len(records) != len(rows):
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
        index = values[0] if indexed else str(position)
        if _INDEX.fullmatch(index) and int(index) < len(rows) and _disagrees(cells, rows[int(index)], classes):
            given, own = clean(cells["given_label"]), rows[int(index)].label
            rejections.add(where, f"given_label '{given}', but row {index} has label {own}: other rows, or class order")
        elif flag:
            entries.append(_Entry(where, index, line, "index", {"note": _cleanlab_note(cells)}))
    return entries


def _disagrees(cells: Mapping[str, str], row: Row, classes: Classes) -> bool:
    """Whether cleanlab saw another label than the data has; unknown names cannot be compared."""
    meanings = set()
    for meaning in (classes.label, classes.named):
        try:
            meanings.add(meaning(cells.get("given_label", "")))
        except RowError:
            continue
    return bool(meanings) and row.label not in meanings


def _cleanlab_note(cells: Mapping[str, str]) -> str:
    score = cells.get("label_score") or cells.get("label_quality")
    said = [f"label score {score}" if score else "", f"suggests '{p}'" if (p := cells.get("predicted_label")) else ""]
    return "cleanlab: " + (", ".join(s for s in said if s) or "label issue")
