"""All rows of a ranking as a table that spreadsheets and notebooks read: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memaudit.errors import UsageError

Cell = str | int | float | None
# What a spreadsheet takes for the start of a formula: blanks and quotes before it or not, full-width forms, and a tab
# or a new line. An apostrophe before it makes it text.
FORMULA = re.compile("[\t\r\n]|[\\s'\"]*[=+@\uff1d\uff0b\uff0d\uff20-]")
# Lines that make one piece of text.
PIECE = 1000


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        rows: may be made when they are asked for, again and again.
        listed: places of those that are worth a list of their own.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    listed: Sequence[int] = ()


def parts(table: Table) -> Iterator[str]:
    """The table as CSV, piece by piece."""
    piece = io.StringIO(newline="")
    writer = csv.writer(piece, lineterminator="\n")
    writer.writerow([_safe(name) for name in table.columns])
    for number, row in enumerate(table.rows, 1):
        writer.writerow([_safe(cell) for cell in row])
        if number % PIECE == 0:
            yield piece.getvalue()
            piece.seek(0)
            piece.truncate()
    yield piece.getvalue()


def check_parquet() -> None:
    """Refuse now rather than after a long run.

    Raises:
        UsageError: pyarrow is not installed.
    """
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise UsageError("Parquet needs pyarrow, which is not installed", hint="pip install 'memaudit[parquet]'")


def write_parquet(table: Table, path: Path) -> Path:
    """The table as a Parquet file, replaced whole.

    Raises:
        UsageError: pyarrow is not installed, or the path cannot be written.
    """
    check_parquet()
    import pyarrow
    from pyarrow import parquet

    from memaudit.system.files import replace_with

    pieces = []
    for start in range(0, max(1, len(table.rows)), PIECE):
        rows = table.rows[start : start + PIECE]
        pieces.append(pyarrow.table({name: [row[n] for row in rows] for n, name in enumerate(table.columns)}))
    arrow = pyarrow.concat_tables(pieces, promote_options="permissive")  # a piece may have none of a column's values

    def write(file: BinaryIO) -> None:
        parquet.write_table(arrow, file)

    return replace_with(path, write)


def _safe(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell
