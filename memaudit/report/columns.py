"""The findings as a table for pandas, R or a spreadsheet: `.csv` and `.parquet`, one row a finding."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from memaudit.errors import UsageError
from memaudit.findings import Finding
from memaudit.report import words
from memaudit.report.table import FORMULA
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.document import Report

Kind = Literal["string", "integer", "number", "boolean"]
Value = str | int | float | bool | None

# Excel reads UTF-8 as such only after this mark; pandas and R drop it.
MARK = "\ufeff"
# Rows of a row group, and of a piece of text.
TOGETHER = 4096
MAX_TEXT = 4_000


@dataclass(frozen=True)
class Column:
    """One column: what it is called, holds and means, and how a finding gives it."""

    name: str
    kind: Kind
    description: str
    value: Callable[[Report, Finding], Any]


def _label(report: Report, index: int | None) -> str | None:
    return None if index is None else words.label(report, index)


def _units(finding: Finding) -> str | None:
    return " ".join(map(str, finding.units)) or None


def _nearest(report: Report, finding: Finding) -> str | None:
    return "; ".join(f"{words.named(n)}: {words.label(report, n.label)}" for n in finding.nearest) or None


def _of(part: str, field: str) -> Callable[[Report, Finding], Any]:
    """The `field` of an optional `part` of a finding: `controls.random`."""

    def value(_: Report, finding: Finding) -> Any:
        found: Any = finding
        for name in part.split("."):
            found = getattr(found, name) if found is not None else None
        return None if found is None else getattr(found, field)

    return value


COLUMNS: tuple[Column, ...] = (
    Column("finding_id", "string", "hash of the example's content and label: what waivers name", lambda _, f: f.id),
    Column("example_id", "string", "hash of the example's content", lambda _, f: f.example.id),
    Column("declared_id", "string", "the id your manifest or array gave it", lambda _, f: f.example.declared_id),
    Column("source", "string", "path below the data set's root, or 'array'", lambda _, f: f.example.source),
    Column("note", "string", "the note of your manifest", lambda _, f: f.example.note),
    Column("row", "integer", "row in its source, from 0", lambda _, f: f.example.index),
    Column("line", "integer", "line of the manifest that flagged it", lambda _, f: f.example.line),
    Column("label", "integer", "the label it was trained with", lambda _, f: f.example.label),
    Column("label_name", "string", "its name", lambda r, f: _label(r, f.example.label)),
    Column("true_label", "integer", "the true label, where you gave one", lambda _, f: f.example.true_label),
    Column("true_label_name", "string", "its name", lambda r, f: _label(r, f.example.true_label)),
    Column("outcome", "string", "localized, entangled, diffuse, not_fitted or not_searched", lambda _, f: f.outcome),
    Column("fitted", "boolean", "the model predicts the label", lambda _, f: f.fitted),
    Column("memorized", "boolean", "called memorized, by its p-value and those of the list", lambda _, f: f.memorized),
    Column("estimate", "number", "how far the label rests on this example alone, 0 to 1", _of("estimate", "score")),
    Column("p_value", "number", "chance that a clean example scores as high", _of("estimate", "p_value")),
    Column("q_value", "number", "false discovery rate at which it is still called", _of("estimate", "q_value")),
    Column("accepted", "string", "waived, or known from the baseline", lambda r, f: None),
    Column("atypicality", "number", "1 - share of supporting neighbours", _of("atypicality", "score")),
    Column(
        "atypicality_share", "number", "share of the reference at least as unsupported", _of("atypicality", "p_value")
    ),
    Column("prediction", "integer", "what the model predicts", lambda _, f: f.before.prediction),
    Column("prediction_name", "string", "its name", lambda r, f: _label(r, f.before.prediction)),
    Column("margin", "number", "logit of the label minus the largest other", lambda _, f: f.before.margin),
    Column("confidence", "number", "probability of the label", lambda _, f: f.before.confidence),
    Column("cut_prediction", "integer", "what it predicts with the units cut", _of("after", "prediction")),
    Column(
        "cut_prediction_name", "string", "its name", lambda r, f: _label(r, f.after.prediction if f.after else None)
    ),
    Column("cut_margin", "number", "the margin with the units cut", _of("after", "margin")),
    Column("cut_confidence", "number", "probability of the label with the units cut", _of("after", "confidence")),
    Column("unit_count", "integer", "units cut; 0 where none was found", lambda _, f: len(f.units)),
    Column("units", "string", "which, as layer:index, in the order they were cut", lambda _, f: _units(f)),
    Column("reference_before", "number", "accuracy on the cost panel, intact", _of("reference_accuracy", "before")),
    Column("reference_after", "number", "the same with the units cut", _of("reference_accuracy", "after")),
    Column("reference_low", "number", "lower end of its 95 % interval", _of("reference_accuracy", "low")),
    Column("reference_high", "number", "upper end of it", _of("reference_accuracy", "high")),
    Column("reference_kept", "number", "share of the right answers kept", _of("reference_accuracy", "retained")),
    Column("random_draws", "integer", "draws of as many random units", _of("controls.random", "draws")),
    Column("random_erased", "integer", "of these, how many lose the label", _of("controls.random", "erased")),
    Column("copies", "integer", "altered copies that were fitted", _of("controls.augmented", "copies")),
    Column("copies_erased", "integer", "of these, how many lose the label", _of("controls.augmented", "erased")),
    Column("others", "integer", "other fitted flagged examples tried", _of("controls.flagged_others", "examples")),
    Column("others_lost", "integer", "of these, how many lose their label", _of("controls.flagged_others", "lost")),
    Column("learned", "string", "checkpoint from which on it is always predicted", _of("learning", "learned")),
    Column("lateness", "number", "1 - mean confidence along the checkpoints", _of("learning", "score")),
    Column("held", "string", "memorized, learned or not_fitted by models without it", _of("counterfactual", "held")),
    Column("without_models", "integer", "models that were trained without it", _of("counterfactual", "models")),
    Column("without_right", "integer", "of these, how many give the label", _of("counterfactual", "right")),
    Column("without_answer", "integer", "the class they give", _of("counterfactual", "answer")),
    Column(
        "without_margin", "number", "the label's margin by them, on average", _of("counterfactual", "margin_without")
    ),
    Column(
        "without_support",
        "number",
        "the same, averaged over moved, mirrored and zoomed views: lowest for wrong labels",
        _of("counterfactual", "support_without"),
    ),
    Column(
        "difference", "number", "probability of the label with it less without", _of("counterfactual", "difference")
    ),
    Column("difference_low", "number", "lower end of its 95 % interval over models", _of("counterfactual", "low")),
    Column("difference_high", "number", "upper end of it", _of("counterfactual", "high")),
    Column("cut_as_without", "boolean", "cutting the units gives that class, too", _of("counterfactual", "ablated")),
    Column("nearest", "string", "the three nearest clean examples and their labels", _nearest),
)
"""Every column, in order."""


def columns_of(report: Report) -> tuple[Column, ...]:
    """Every column of `report`: ours, then those of the user's manifest by their own names, where ours are others."""
    ours = {column.name for column in COLUMNS}
    names = dict.fromkeys(name for finding in report.findings for name in finding.example.columns)
    return (*COLUMNS, *(_own(name, f"manifest_{name}" if name in ours else name) for name in names))


def _own(name: str, called: str) -> Column:
    return Column(clean(called), "string", "of your manifest", lambda _, finding: finding.example.columns.get(name))


def schema() -> dict[str, Any]:
    """The columns as a Frictionless Table Schema."""
    return {"fields": [{"name": c.name, "type": c.kind, "description": c.description} for c in COLUMNS]}


def csv_parts(report: Report) -> Iterator[str]:
    """Comma-separated text in pieces; what a spreadsheet would take for a formula begins with an apostrophe."""
    yield MARK
    columns = columns_of(report)
    yield _lines([[_cell(column.name) for column in columns]])
    for start in range(0, len(report.findings), TOGETHER):
        yield _lines([[_cell(value) for value in row] for row in _rows(report, columns, start, start + TOGETHER)])


def parquet(report: Report) -> bytes:
    """The same as an Apache Parquet file, with types and the descriptions as the fields' metadata.

    Raises:
        UsageError: pyarrow is not installed.
    """
    arrow, writer = needs_arrow()
    types = {
        "string": arrow.string(), "integer": arrow.int64(), "number": arrow.float64(), "boolean": arrow.bool_()
    }  # fmt: skip
    columns = columns_of(report)
    fields = [arrow.field(c.name, types[c.kind], metadata={"description": c.description}) for c in columns]
    rows = list(_rows(report, columns))
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays = [arrow.array(list(cells), types[c.kind]) for c, cells in zip(columns, values, strict=True)]
    sink = io.BytesIO()
    writer.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(fields)), sink)
    return sink.getvalue()


def needs_arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet as writer
    except ImportError:
        raise UsageError(
            "a .parquet file needs pyarrow, which is not installed",
            hint="pip install pyarrow, or write a .csv: it has the same columns.",
        ) from None
    return pyarrow, writer


def _rows(report: Report, columns: Sequence[Column], start: int = 0, stop: int | None = None) -> Iterator[list[Value]]:
    settled = words.accepted(report)  # once: it is of the whole report
    for finding in report.findings[start:stop]:
        yield [
            settled.get(finding.id) if column.name == "accepted" else _printable(column.value(report, finding))
            for column in columns
        ]


def _printable(value: Any) -> Value:
    return clean(value, MAX_TEXT) if isinstance(value, str) else value


def _cell(value: Value) -> str:
    """Numbers with all their digits, nothing for what was not measured, and no text that a spreadsheet would run."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    return f"'{value}" if FORMULA.match(value) else value


def _lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
