"""findings.csv and .parquet: one row a finding, typed, documented, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from memaudit import report
from memaudit.errors import UsageError
from memaudit.report import columns
from memaudit.report.document import Report
from tests import report_samples as samples

FORMULAS = ("=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", " =1", "\t=1", "＝1+1", "'=1", '"=1')


def rows_of(sample: Report) -> list[dict[str, str]]:
    text = report.render(sample, ".csv")
    assert text.startswith(columns.MARK)
    return list(csv.DictReader(io.StringIO(text.removeprefix(columns.MARK))))


def with_example(**changes: object) -> Report:
    """The small report, its first example changed."""
    first, *others = samples.small().findings
    return samples.small(
        findings=[first.model_copy(update={"example": first.example.model_copy(update=changes)}), *others]
    )


def test_one_row_a_finding_with_every_column() -> None:
    rows = rows_of(samples.small())
    assert [row["finding_id"] for row in rows] == [f.id for f in samples.small().findings]
    assert list(rows[0]) == [column.name for column in columns.COLUMNS]
    assert len(set(rows[0])) == len(columns.COLUMNS)


def test_numbers_are_whole_and_what_was_not_measured_is_empty() -> None:
    first, *_, last = rows_of(samples.small())
    assert (float(first["confidence"]), first["fitted"], first["units"]) == (
        samples.small().findings[0].before.confidence, "true", "layer3.0.bn2:17 layer4.0.bn1:200"
    )  # fmt: skip
    assert (last["cut_prediction"], last["random_draws"], last["unit_count"]) == ("", "", "0")


def test_the_users_own_id_source_and_note_are_columns() -> None:
    first = rows_of(with_example(declared_id="p-17", source="scans/17.png", note="opted out"))[0]
    assert (first["declared_id"], first["source"], first["note"]) == ("p-17", "scans/17.png", "opted out")


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("field", ["declared_id", "source", "note"])
def test_no_cell_begins_a_formula(formula: str, field: str) -> None:
    assert rows_of(with_example(**{field: formula}))[0][field].startswith(("'", "\\x09"))


def test_a_class_name_begins_no_formula_either() -> None:
    data = samples.small().data.model_copy(update={"class_names": ["=1"] * 10})
    first = rows_of(samples.small(data=data))[0]
    assert (first["label_name"], first["cut_prediction_name"], first["margin"]) == ("'=1", "'=1", "6.25")


def test_hostile_names_stay_in_their_cells() -> None:
    rows = rows_of(samples.hostile())
    assert len(rows) == len(samples.HOSTILE)
    assert all(None not in row and None not in row.values() for row in rows)


@pytest.mark.parametrize("formula", FORMULAS)
def test_columns_of_the_users_own_begin_no_formula_and_take_no_name_of_ours(formula: str) -> None:
    first = rows_of(with_example(columns={"site": formula, "outcome": "mine", f"{formula} ": "x"}))[0]
    assert first["site"].startswith(("'", "\\x09"))
    assert (first["manifest_outcome"], first["outcome"]) == ("mine", "localized")
    assert not any(columns.FORMULA.match(name) and not name.startswith("'") for name in first)


def test_waived_and_known_findings_say_so() -> None:
    assert [row["accepted"] for row in rows_of(samples.settled())] == ["waived", "", "known", ""]


def test_parquet_holds_the_same_with_types_and_descriptions(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = report.write(samples.small(), tmp_path / "findings.parquet")
    table = parquet.read_table(path)
    text = rows_of(samples.small())
    assert table.column("finding_id").to_pylist() == [row["finding_id"] for row in text]
    assert [str(v or "") for v in table.column("cut_prediction").to_pylist()] == [row["cut_prediction"] for row in text]
    assert str(table.schema.field("memorized").type) == "bool"
    assert table.schema.field("p_value").metadata[b"description"] == b"chance that a clean example scores as high"


def test_parquet_without_its_library_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow"):
        report.renderer(".parquet")


def test_an_audit_without_findings_is_a_table_too() -> None:
    assert rows_of(samples.small(findings=[])) == []


def test_every_column_is_documented() -> None:
    fields = columns.schema()["fields"]
    assert all(field["description"] for field in fields)
    assert [field["name"] for field in fields] == [column.name for column in columns.COLUMNS]
