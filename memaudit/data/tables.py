"""Text tables, read strictly: UTF-8, no NUL, every record with its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from memaudit.data.paths import display, open_source
from memaudit.errors import DataRejected

# Ten million rows of a usual manifest; far more than fits in memory as images.
MAX_BYTES = 512 * 2**20
# Columns that are known in some table.
HEADERS = frozenset({"path", "label", "id", "index", "true_label", "note", "text", "is_label_issue"})


def read_text(path: Path) -> str:
    """The text of `path`; a byte order mark is dropped.

    Raises:
        DataRejected: missing, not a regular file, too large, not UTF-8, or it holds a NUL character.
    """
    with open_source(path) as file:
        content = file.read(MAX_BYTES + 1)
    name = display(path)
    if len(content) > MAX_BYTES:
        raise DataRejected(f"{name} is larger than {MAX_BYTES >> 20} MiB; is it a table?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        found = "it looks like UTF-16" if utf16 else f"byte {error.start} does not fit"
        raise DataRejected(f"{name} is not UTF-8: {found}", hint="save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataRejected(f"{name} line {line}: a NUL character; is it UTF-16, or not text at all?")
    return text


def delimiter_of(path: Path) -> str:
    """What divides the cells of a table with the suffix of `path`."""
    return "\t" if path.suffix.lower() == ".tsv" else ","


def csv_records(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Line (from 1) and cells of each record of `text`; blank lines, and those of empty cells, are skipped.

    A header that `delimiter` does not divide, and another usual one does, says which one the table has. A spreadsheet
    writes semicolons where numbers have decimal commas.

    Raises:
        DataRejected: quotes are broken; what follows cannot be distinguished from what they should have closed.
    """
    first = text.split("\n", 1)[0]
    if delimiter not in first:
        delimiter = next((d for d in ";\t," if d in first and HEADERS & set(_words(first, d))), delimiter)
    spaced = f"{delimiter} " in first and bool(HEADERS & set(_words(first, delimiter)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    line = 1
    try:
        for cells in reader:
            if any(cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote is not closed" if "unexpected end" in str(error) else str(error)
        raise DataRejected(f"{name} line {line}: broken csv: {reason}", hint='write " inside quotes as ""') from None


def _words(line: str, delimiter: str) -> list[str]:
    return [word.strip(' "\r').lower() for word in line.split(delimiter)]


def canonical(header: Sequence[str]) -> list[str]:
    """Known columns by the names they have here, whatever their case and the spaces around them; others as they are."""
    return [h.strip().lower() if h.strip().lower() in HEADERS else h for h in header]


def json_records(text: str) -> Iterator[tuple[int, dict[str, object] | str]]:
    """Line and object of each line of `text`, or in its place what is wrong with it; blank lines are skipped."""
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
            reason = str(error) if isinstance(error, _Refused) else "not a JSON object on one line"
            yield line, reason
            continue
        yield line, record if isinstance(record, dict) else "not a JSON object on one line"


class _Refused(ValueError):
    """Valid JSON to Python, but two readers could see two things in it."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _Refused("a key is there twice")
    return record


def _no_constant(name: str) -> object:
    raise _Refused(f"{name} is not JSON")
