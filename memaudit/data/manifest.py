"""A manifest: a table (`.csv .tsv .jsonl`) with `path,label[,id,true_label,note,...]`, paths relative to its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from memaudit.data.classes import Classes, printable
from memaudit.data.columns import further, refuse_misspelt
from memaudit.data.compact import Files, Row, Rows, Texts
from memaudit.data.images import RowError
from memaudit.data.listing import FileListing
from memaudit.data.paths import display, inside, spellings
from memaudit.data.rejections import Rejections
from memaudit.data.tables import canonical, csv_records, delimiter_of, json_records, read_text
from memaudit.errors import DataRejected
from memaudit.text import clean

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
_REQUIRED = ("path", "label")
_COLUMNS = (*_REQUIRED, "id", "true_label", "note")
# What pandas calls an index it wrote as the first column.
PANDAS_INDEX = ("", "Unnamed: 0")
# What other tools call the two columns; taken where one alone can be meant.
PATH_NAMES = ("file", "filename", "file_name", "filepath", "image", "image_path")
_ALIASES = {"path": PATH_NAMES, "label": ("class", "class_name", "target")}


def list_manifest(path: Path, classes: Classes) -> FileListing:
    """Every row of the manifest `path`.

    Raises:
        DataRejected: the table is broken, a row cannot be audited (all are listed, by line), or there is no row.
    """
    name = display(path)
    root = Path(os.path.realpath(path)).parent
    rejections, files, ids = Rejections(name), list[str](), dict[str, int]()
    total = 0
    text = read_text(path)
    json = path.suffix.lower() == ".jsonl"
    records = json_records(text) if json else _csv_rows(text, path, name)
    by_text = classes.name_or_label if json else classes.label

    def listed() -> Iterator[Row]:
        nonlocal total
        for line, cells in records:
            total += 1
            try:
                if isinstance(cells, str):
                    raise RowError(cells)
                row = _row(cells, line, len(files), lambda value: _label(value, classes, by_text))
                if row.id is not None and ids.setdefault(row.id, line) != line:
                    raise RowError(f"id '{clean(row.id)}' is already the id of line {ids[row.id]}")
                files.append(os.path.relpath(inside(root, row.name), root))
                yield row
            except RowError as reason:
                rejections.add(f"line {line}", reason)

    rows = Rows.of(listed())
    rejections.check(total)
    if not rows:
        raise DataRejected(f"{name} has no rows; nothing to audit", hint="one line per image: path,label")
    return FileListing(name, rows, classes.names, Files(root, Texts(files)))


def names_in(path: Path) -> tuple[str, ...]:
    """The class names that the manifest `path` of files uses, in no order; none where a label is no name."""
    text, name = read_text(path), display(path)
    json = path.suffix.lower() == ".jsonl"
    header = [] if json else _called(canonical(next(csv_records(text, delimiter_of(path), name), (1, []))[1]))
    if not json and not set(_REQUIRED) <= set(header):
        return ()
    found: dict[str, None] = {}
    for _, cells in json_records(text) if json else _csv_rows(text, path, name):
        label = cells.get("label") if isinstance(cells, dict) and "path" in cells else None
        if not isinstance(label, str) or label.isdigit() or not label or ":" in label:
            return ()
        found[printable(label)] = None
    return tuple(found)


def is_manifest(path: Path) -> bool:
    """Whether the table `path` has both required columns, no index into a data set, and a first file beside it."""
    records = csv_records(read_text(path), delimiter_of(path), display(path))
    header = canonical(next(records, (1, []))[1])
    if not set(_REQUIRED) <= set(header) or "index" in header:
        return False
    first = dict(zip(header, next(records, (1, []))[1], strict=False)).get("path")
    return first is None or any(os.path.lexists(path.parent / spelled) for spelled in spellings(first))


def _row(cells: Mapping[str, object], line: int, index: int, label: Callable[[object], int]) -> Row:
    missing = next((k for k in _REQUIRED if cells.get(k) is None), None)
    if missing is not None:
        raise RowError(f"no {missing}")
    path, true_label = _text(cells, "path"), cells.get("true_label")
    if not path:
        raise RowError("the path is empty")
    return Row(
        name=path,
        label=label(cells["label"]),
        index=index,
        line=line,
        true_label=None if true_label in (None, "") else label(true_label),
        note=_text(cells, "note") or None,
        id=_text(cells, "id") or None,
        columns=further(cells, _COLUMNS),
    )


def _label(value: object, classes: Classes, by_text: Callable[[str], int]) -> int:
    """The label that a cell or a JSON value means; text goes through `by_text`."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RowError(f"label {clean(value)} is neither an index nor a class name")
    return classes.index(value) if isinstance(value, int) else by_text(value)


def _text(cells: Mapping[str, object], key: str) -> str:
    value = cells.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"{key} {clean(value)} is not text")
    return str(value)


def _csv_rows(text: str, path: Path, name: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Rows below the header, as cells by column, or in their place what is wrong with them."""
    records = csv_records(text, delimiter_of(path), name)
    _, header = next(records, (1, []))
    if not header:
        return
    header = _called(canonical(header))
    skipped = header[0] in PANDAS_INDEX and len(header) > 1  # the number pandas gives each line of a table
    check_header(header[skipped:], name)
    for line, cells in records:
        if len(cells) != len(header):
            yield line, f"{len(cells)} cells, the header has {len(header)}"
        else:
            yield line, dict(zip(header[skipped:], cells[skipped:], strict=True))


def _called(header: list[str]) -> list[str]:
    """`header` with the required columns by their names here."""
    for name, others in _ALIASES.items():
        meant = [column for column in header if column.lower() in others]
        if name not in header and len(meant) == 1:
            header = [name if column == meant[0] else column for column in header]
    return header


def check_header(header: list[str], name: str) -> None:
    """Refuse a header that is not `path,label` and further columns, the user's own among them.

    Raises:
        DataRejected: a column is missing, misspelt or there twice.
    """
    hint = f"the first line is {','.join(_REQUIRED)}, optionally {', '.join(_COLUMNS[2:])}; a list of rows needs --data"
    refuse_misspelt(header, _COLUMNS, f"{name} line 1", hint)
    if "path" not in header and "label" in header and len(header) > 2:
        hint = "save a table of numbers as .parquet (pandas: to_parquet); a manifest of files has the column path"
    for column in _REQUIRED:
        if column not in header:
            raise DataRejected(f"{name} line 1: no column '{column}'", hint=hint)
