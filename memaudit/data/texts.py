"""A table of texts (`.csv .tsv .jsonl`: `text,label[,id,true_label,note,...]`), encoded by the network's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from memaudit.data.classes import Classes
from memaudit.data.columns import further, refuse_misspelt
from memaudit.data.compact import Row, Rows
from memaudit.data.decode import Progress
from memaudit.data.examples import ExampleSet, content_id, distinct
from memaudit.data.images import RowError
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.listing import Listing
from memaudit.data.paths import display
from memaudit.data.rejections import Rejections
from memaudit.data.tables import csv_records, delimiter_of, json_records, read_text
from memaudit.errors import DataRejected
from memaudit.text import clean, closest

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
REQUIRED = ("text", "label")
COLUMNS = (*REQUIRED, "id", "true_label", "note")
SHOWN = 80  # characters of a text that stand for it in reports
MAX_TEXT = 1 << 20

# Texts to `(N, 2, T)` int64: token ids, and which of them count.
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TextListing(Listing):
    """Rows whose values are texts: `texts[row.index]`."""

    texts: tuple[str, ...]
    encode: Encode

    def load(self, preprocess: Preprocess, limit: int | None = None, progress: Progress | None = None) -> ExampleSet:
        """Encode the texts. An example's identity is its text, whatever the tokenizer makes of it."""
        rows = self.chosen(limit)
        examples = tuple(
            row.example(content_id(self.texts[row.index].encode("utf-8", "surrogatepass"))) for row in rows
        )
        keep, duplicates = distinct(examples)
        return ExampleSet(
            tuple(examples[i] for i in keep),
            self.encode([self.texts[rows[i].index] for i in keep]),
            self.source,
            self.class_names,
            duplicates=duplicates,
            omitted=len(self.rows) - len(rows),
        )


def list_texts(path: Path, classes: Classes, encode: Encode) -> TextListing:
    """Every row of the table `path`.

    Raises:
        DataRejected: the table is broken, a row cannot be audited (all are listed, by line), or there is no row.
    """
    name, json = display(path), path.suffix.lower() == ".jsonl"
    rejections, rows, texts, ids, total = Rejections(name), list[Row](), list[str](), dict[str, int](), 0
    for line, cells in _records(path, name):
        total += 1
        try:
            row, text = _row(cells, line, len(rows), classes, json)
            if row.id is not None and ids.setdefault(row.id, line) != line:
                raise RowError(f"id '{clean(row.id)}' is already the id of line {ids[row.id]}")
        except RowError as reason:
            rejections.add(f"line {line}", reason)
            continue
        rows.append(row)
        texts.append(text)
    rejections.check(total)
    if not rows:
        raise DataRejected(f"{name} has no rows; nothing to audit", hint="one line per example: text,label")
    return TextListing(name, Rows.of(rows), classes.names, tuple(texts), encode)


def _records(path: Path, name: str) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    """Line and cells of each row; a string says what is wrong with it."""
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        for line, record in json_records(text):
            yield line, record if isinstance(record, dict | str) else "not an object"
        return
    records = csv_records(text, delimiter_of(path), name)
    _, header = next(records, (1, []))
    if not set(REQUIRED) <= set(header):
        unknown = next((h for h in header if h not in COLUMNS), None)
        near = closest(unknown, COLUMNS) if unknown is not None else ""
        raise DataRejected(
            f"{name}: its first line is {clean(','.join(header), 100)!r}, not text,label[,...]{near}",
            hint="a text classifier's examples are a table with the columns text and label",
        )
    refuse_misspelt(header, COLUMNS, name, f"the first line is {','.join(COLUMNS)} and columns of your own")
    for line, cells in records:
        yield line, dict(zip(header, cells, strict=True)) if len(cells) == len(header) else f"{len(cells)} cells"


def _row(cells: Mapping[str, object] | str, line: int, index: int, classes: Classes, json: bool) -> tuple[Row, str]:
    if isinstance(cells, str):
        raise RowError(cells)
    text = cells.get("text")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise RowError("no text" if not isinstance(text, str) or not text.strip() else "its text is too long")
    by_text = classes.name_or_label if json else classes.label

    def label(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise RowError(f"the label is {clean(value)!r}")
        return classes.index(value) if isinstance(value, int) else by_text(value)

    truth, note, declared = cells.get("true_label"), cells.get("note"), cells.get("id")
    shown = " ".join(text.split())
    return Row(
        name=shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…",
        label=label(cells.get("label", "")),
        index=index,
        line=line,
        true_label=None if truth in (None, "") else label(truth),
        note=str(note) if note else None,
        id=str(declared) if declared else None,
        columns=further(cells, COLUMNS),
    ), text
