"""Lists of rows of a data set (`.txt .csv .npy`): indices, file names or ids, a boolean mask, cleanlab's outputs.

Indices and masks count the rows of a loader. Of an image folder there are two loaders that count differently: where
nobody says which one it was, both are tried, and the user is asked as soon as they give other files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Generic, TypeVar

from memaudit.data.classes import Classes
from memaudit.data.images import RowError
from memaudit.data.listing import FileListing, Listing, Row
from memaudit.data.manifest import PANDAS_INDEX
from memaudit.data.npz import read_npy
from memaudit.data.numbering import ORDERS, undecided
from memaudit.data.paths import display
from memaudit.data.rejections import Rejections
from memaudit.data.tables import csv_records, read_text
from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean

SUFFIXES = frozenset({".txt", ".csv", ".npy"})

_INDEX = re.compile(r"[0-9]{1,9}")
# How numpy.savetxt writes the integer it was given, by default.
_SAVETXT = re.compile(r"([0-9]\.[0-9]{18}e[+]0[0-8])|(0\.0{18}e[+]00)")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
# What columns that name a row are called, and what they hold.
_KEYS = {
    "index": "index",
    "id": "id",
    **dict.fromkeys(("path", "file", "filename", "file_name", "filepath", "image", "image_path"), "path"),
}
_EXTRAS = ("true_label", "note", "label")

L = TypeVar("L", bound=Listing)


@dataclass(frozen=True)
class _Entry:
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


@dataclass(frozen=True)
class _Picked(Generic[L]):
    """The rows that a list selects, and whether any of them was named by a number."""

    listing: L
    by_index: bool


def select(path: Path, listing: L, classes: Classes) -> L:
    """The rows of `listing` that the list `path` names, in the list's order.

    Raises:
        DataRejected: an entry names no row, several, or one that is already named; or nothing is selected.
        UsageError: the list counts an image folder's rows, and torchvision and timm count them differently.
    """
    if isinstance(listing, FileListing) and listing.root is not None and listing.row_order is None:
        return _settled(path, listing, classes)  # type: ignore[return-value]  # a FileListing is what it was given
    return _pick(path, listing, classes).listing


def _settled(path: Path, listing: FileListing, classes: Classes) -> FileListing:
    """Rows of an image folder: by names, or by numbers where all loaders agree or one alone can have written them."""
    own = _tried(path, listing, classes)
    if isinstance(own, _Picked) and not own.by_index:
        return own.listing
    tried = {order: _tried(path, listing.numbered_by(order), classes) for order in ORDERS}
    possible = {order: found.listing for order, found in tried.items() if isinstance(found, _Picked)}
    if not possible:
        raise next(error for error in (own, *tried.values()) if isinstance(error, DataRejected))
    first, *others = possible.values()
    for number, row in enumerate(first.rows):
        for other in others:
            if other.rows[number].name != row.name:
                raise _ask(display(path), row, other.rows[number])
    return replace(first, row_order="either") if others else first


def _ask(name: str, torchvision: Row, timm: Row) -> UsageError:
    return UsageError(
        f"{name} counts rows, and loaders count them differently: {torchvision.index} is "
        f"{clean(torchvision.name)} to torchvision's ImageFolder and {clean(timm.name)} to timm's reader",
        hint="say whose numbers these are: --row-order torchvision or --row-order timm; or list the files' names",
    )


def _tried(path: Path, listing: FileListing, classes: Classes) -> _Picked[FileListing] | DataRejected:
    try:
        return _pick(path, listing, classes)
    except DataRejected as error:
        return error


def _pick(path: Path, listing: L, classes: Classes) -> _Picked[L]:
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
            if entry.label and _disagrees(entry.label, row, classes):
                raise RowError(_other_label(entry.label, row))
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
    return _Picked(listing.pick(rows, name), finder.by_index)


class _Finder:
    """Finds the row that an entry names: by index, by id, or by its path or an unmistakable end of it.

    Attributes:
        by_index: whether a row was found by its number so far.
    """

    def __init__(self, listing: Listing) -> None:
        self.rows = listing.rows
        self.by_index = False
        files = listing if isinstance(listing, FileListing) else None
        self.files = files.files if files else ()
        self.root = Path(os.path.abspath(files.root)) if files and files.root else None
        self.undecided = undecided([r.name for r in self.rows], files.row_order or "") if files else frozenset()
        self.ids = {row.id: row for row in self.rows if row.id is not None}
        self.names = {row.name: row for row in self.rows} if self.files else {}
        self.bases: dict[str, list[Row]] = {}
        for row in self.rows if self.files else ():
            self.bases.setdefault(_composed(PurePath(row.name).name), []).append(row)

    def find(self, entry: _Entry) -> Row:
        """The one row that `entry` names; raises `RowError` for none or several, or where its columns disagree."""
        row = self._one(entry.key, entry.text)
        for key, text in entry.also.items():
            other = self._one(key, text)
            if other.index != row.index:
                raise RowError(
                    f"'{clean(entry.text)}' is row {row.index} ({clean(row.name)}), but its {key} '{clean(text)}' is "
                    f"row {other.index} ({clean(other.name)})"
                )
        return row

    def _one(self, key: str, text: str) -> Row:
        found = dict[int, Row]()
        if key in ("any", "index") and _INDEX.fullmatch(text) and int(text) < len(self.rows):
            found[int(text)] = self.rows[int(text)]
            self.by_index = True
        if key in ("any", "id") and text in self.ids:
            found[self.ids[text].index] = self.ids[text]
        if key in ("any", "path"):
            found.update((row.index, row) for row in self._by_path(text))
        if not found:
            raise RowError(f"'{clean(text)}' is no index from 0 to {len(self.rows) - 1}, id or file of the data")
        if len(found) > 1:
            which = ", ".join(f"row {row.index} ({clean(row.name)})" for row in list(found.values())[:3])
            raise RowError(f"'{clean(text)}' could be {which}; use a .csv whose column is called index, path or id")
        row = next(iter(found.values()))
        if key in ("any", "index") and text.isdecimal() and row.name in self.undecided:
            raise RowError(
                f"'{clean(text)}' is {clean(row.name)} or another name that sorts alike, in an order that timm leaves "
                "to the file system; name the file instead"
            )
        return row

    def _by_path(self, text: str) -> Sequence[Row]:
        for path in (PurePath(text), PurePath(PureWindowsPath(text).as_posix())):
            if str(path) in self.names:
                return (self.names[str(path)],)
            parts = _parts(path)
            found = [row for row in self.bases.get(parts[-1] if parts else "", ()) if self._is(row, parts)]
            if found:
                return found
        return ()

    def _is(self, row: Row, parts: tuple[str, ...]) -> bool:
        """Whether a path, as another machine may have written it, ends as this row's does, its root's name included."""
        own = [_parts(self.files[row.index])]
        if self.root is not None:
            own.append(_parts(self.root / row.name))
            named = (_composed(self.root.name), *_parts(PurePath(row.name)))
            if parts[-len(named) :] == named and ".." not in parts:
                return True
        return any(whole[-len(parts) :] == parts for whole in own)


def _parts(path: PurePath) -> tuple[str, ...]:
    return tuple(_composed(part) for part in path.parts)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


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
    if header[:1] and header[0] in PANDAS_INDEX and len(header) > 1:  # a table's own numbers, which count nothing here
        header, records = header[1:], [(line, cells[1:]) for line, cells in records]
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
        named = {_KEYS[column]: cells[column] for column in keys if cells[column]}
        key = next((k for k in ("path", "id", "index") if k in named), meanings[0])
        also = {k: v for k, v in named.items() if k != key}
        entries.append(_Entry(f"line {line}", named.get(key, ""), line, key, cells, also, cells.get("label")))
    return entries


def _from_array(path: Path, name: str, count: int) -> list[_Entry]:
    array = read_npy(path)
    if array.ndim == 2 and 1 in array.shape:  # np.argwhere, and np.where saved whole
        array = array.reshape(-1)
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
        index = values[0] if indexed else str(position)
        row = rows[int(index)] if named is None and _INDEX.fullmatch(index) and int(index) < len(rows) else None
        if row is not None and _disagrees(given, row, classes):
            rejections.add(where, _other_label(given, row))
        elif flag:
            text, key = (index, "index") if named is None else (cells[named], "path")
            also = {"index": cells["index"]} if named is not None and cells.get("index") else {}
            entries.append(_Entry(where, text, line, key, {"note": _cleanlab_note(cells)}, also, given))
    return entries


def _disagrees(given: str, row: Row, classes: Classes) -> bool:
    """Whether the list saw another label than the data has; unknown names cannot be compared."""
    meanings = set()
    for meaning in (classes.label, classes.named):
        try:
            meanings.add(meaning(given))
        except RowError:
            continue
    return bool(meanings) and row.label not in meanings


def _other_label(given: str, row: Row) -> str:
    where = clean(row.name) if row.name != "array" else "it"
    return f"label '{clean(given)}', but row {row.index} ({where}) has label {row.label}: other rows, or class order"


def _cleanlab_note(cells: Mapping[str, str]) -> str:
    score = cells.get("label_score") or cells.get("label_quality")
    said = [f"label score {score}" if score else "", f"suggests '{p}'" if (p := cells.get("predicted_label")) else ""]
    return "cleanlab: " + (", ".join(s for s in said if s) or "label issue")
