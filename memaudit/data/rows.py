"""Lists of rows of a data set (`.txt .csv .npy`): indices, file names or ids, a boolean mask, cleanlab's outputs.

Indices and masks count the rows of a loader. Two loaders count those of an image folder differently: where
nobody says which one it was, both are tried, and the user is asked as soon as they give other files.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath, PureWindowsPath
from typing import Generic, TypeVar

from memaudit.data.classes import Classes
from memaudit.data.compact import Row, names_of
from memaudit.data.images import RowError
from memaudit.data.listing import FileListing, ImageListing, Listing
from memaudit.data.namings import INDEX, Naming, disagrees, namings, other_label
from memaudit.data.numbering import ORDERS, undecided
from memaudit.data.paths import display
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean

SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".npy"})

L = TypeVar("L", bound=Listing)


@dataclass(frozen=True)
class _Picked(Generic[L]):
    """The rows that a list selects, and whether any of them was named by a number."""

    listing: L
    by_index: bool


def listed_rows(path: Path, listing: L, classes: Classes) -> L:
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
    entries = namings(path, name, listing.rows, classes, rejections)
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
            if entry.label and disagrees(entry.label, row, classes):
                raise RowError(other_label(entry.label, row))
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
    rejections.check(
        len(entries) or len(rejections.reasons), hint="one a line; indices count the rows of --data from 0"
    )
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
        self.named = isinstance(listing, ImageListing)
        self.root = Path(os.path.abspath(files.root)) if files and files.root else None
        timm = files is not None and files.row_order == "timm"
        self.undecided = undecided(list(names_of(self.rows)), "timm") if timm else frozenset()
        self.ids = {row.id: row for row in self.rows if row.id is not None}

    @cached_property
    def names(self) -> dict[str, int]:
        """Places of the rows by their names, where these are of files; made once a name is asked for."""
        return {name: place for place, name in enumerate(names_of(self.rows))} if self.named else {}

    @cached_property
    def bases(self) -> dict[str, list[int]]:
        """Places of the rows by the last part of their names."""
        found: dict[str, list[int]] = {}
        for place, name in enumerate(names_of(self.rows) if self.named else ()):
            found.setdefault(_composed(PurePath(name).name), []).append(place)
        return found

    def find(self, entry: Naming) -> Row:
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
        if key in ("any", "index") and INDEX.fullmatch(text) and int(text) < len(self.rows):
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
                return (self.rows[self.names[str(path)]],)
            parts = _parts(path)
            alike = (self.rows[place] for place in self.bases.get(parts[-1] if parts else "", ()))
            found = [row for row in alike if self._is(row, parts)]
            if found:
                return found
        return ()

    def _is(self, row: Row, parts: tuple[str, ...]) -> bool:
        """Whether a path, as another machine may have written it, ends as this row's does, its root's name included."""
        own = [_parts(self.files[row.index] if self.files else PurePath(row.name))]
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
