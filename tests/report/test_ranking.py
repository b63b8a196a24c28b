"""A ranking's views: names from outside do no harm, the page stays small, and every file can be read back."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from pyarrow import parquet

from memaudit.findings import ConfigValue, DataSource, Example, ModelInfo, Prediction, ToolInfo
from memaudit.findings.ranking import ClassPair, ClassRow, CutOff, Ranked, Shares, Similar, Standing, Twins
from memaudit.report import ranking as views
from memaudit.report.ranked import Ranking
from memaudit.report.ranking import console, html, text
from memaudit.report.table import Table, parts, write_parquet

EVIL = ("<script>alert(1)</script>", "=HYPERLINK(1)", "x\n::error::y", "\x1b[31m", "\u202egpj", "img[/].png", "|`a`|")


def example(number: int, source: str) -> Example:
    return Example(id=f"{number:016x}", source=source, label=number % 2, index=number, true_label=0)


def sample(count: int = 30, status: str = "complete") -> Ranking:
    """A ranking whose every outside string is hostile."""
    names = [EVIL[n % len(EVIL)] for n in range(count)]
    examples = [example(n, name) for n, name in enumerate(names)]
    ranked = [
        Ranked(
            rank=n + 1,
            id=f"{n:016x}",
            example=one,
            standing=list(Standing)[n % 4],
            before=Prediction(prediction=1, margin=2.0, confidence=0.9),
            estimate=0.5,
            p_value=0.01,
            wrong=0.4,
            suggested_label=1 - one.label,
            support=0.7,
            parts={"neighbours": 0.5},
            nearest=[Similar(example=other, similarity=0.5) for other in examples[:3]],
        )
        for n, one in enumerate(examples)
    ]
    return Ranking(
        status="incomplete" if status == "incomplete" else "complete",
        tool=ToolInfo(version="1"),
        command=EVIL[0],
        config={"x": ConfigValue(value=EVIL[0], origin="flag")},
        environment={},
        volatile={},
        effort=30.0,
        model=ModelInfo(
            path=EVIL[0], sha256="", architecture=EVIL[2], adapter="a", num_classes=2, parameters=1, dtype="float32"
        ),
        data=DataSource(source=EVIL[2], count=count, sha256=""),
        class_names=[EVIL[0], EVIL[2]],
        class_order="given",
        parts={"neighbours": "what the nearest say"},
        shares=Shares(
            examples=count, fitted=1, unseen=0.9, memorized=0.1, memorized_low=0, memorized_high=0.2, wrong=0.1,
            wrong_low=0.05, wrong_high=0.15, standings=dict.fromkeys(Standing, 1),
        ),
        ranked=ranked,
        cut_offs=[CutOff(top=10, estimate=0.5, wrong=0.4, low=0.2, high=0.6)],
        classes=[ClassRow(label=0, examples=count, memorized=1, estimate=0.1, wrong=0.1)],
        pairs=[ClassPair(given=0, suggested=1, examples=1, memorized=1, wrong=0.5)],
        twins=[Twins(first=examples[0], second=examples[1], distance=0.0)],
        twins_in_all=1,
        warnings=[],
    )  # fmt: skip


def quiet(said: str) -> bool:
    return "\x1b" not in said and "\u202e" not in said


@pytest.mark.parametrize("format_", ["json", "markdown", "github"])
def test_no_outside_string_acts_on_a_terminal_or_a_runner(format_: str) -> None:
    said = views.render(sample(), format_)
    assert quiet(said)
    assert not any(line.startswith("::error") for line in said.splitlines())
    assert said.endswith("\n")


def test_the_console_prints_what_is_harmless() -> None:
    said = console.render(sample(), [Path("x.html")])
    assert quiet(said)
    assert "::error::" not in said


def test_the_page_escapes_everything_and_runs_nothing() -> None:
    page = html.render(sample())
    assert quiet(page)
    assert "<script" not in page
    assert "script-src 'none'" in page.replace("&#39;", "'")
    assert " style=" not in page
    assert " onerror" not in page


def test_the_page_stays_small_with_any_number_of_pictures() -> None:
    ranking = sample(400)
    picture = b"\x89PNG\r\n\x1a\n" + os.urandom(9000)
    page = html.render(ranking, {one.example.id: picture for one in ranking.ranked})
    assert 1_500_000 < len(page.encode()) <= 2_000_000
    assert "left out to keep the page small" in page


def test_a_cell_is_never_a_formula() -> None:
    table = Table(("source", "index"), [("=1+1", 0), ("+x", 1), ("-x", 2), ("@x", 3), ("\tx", 4), ("fine", -5)])
    rows = list(csv.reader(io.StringIO("".join(parts(table)))))
    assert [row[0] for row in rows[1:]] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "fine"]
    assert rows[-1][1] == "-5"


def test_a_table_is_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memaudit.report.table.PIECE", 2)
    rows = [(None, 0, "a"), (None, 1, "b"), (3, 0.5, None)]
    write_parquet(Table(("late", "number", "text"), rows), tmp_path / "a.parquet")
    found = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert found == {"late": [None, None, 3], "number": [0, 1, 0.5], "text": ["a", "b", None]}


def test_the_list_for_a_scan_is_what_is_listed_or_the_first() -> None:
    columns = ("index", "true_label", "standing", "estimate", "suggested_label")
    rows = [(n, None, ("memorized", "learned")[n % 2], 0.5, 1) for n in range(6)]
    assert [row[0] for row in text.flagged(Table(columns, rows, [0, 2, 4]), None).rows] == [0, 2, 4]
    assert [row[0] for row in text.flagged(Table(columns, rows, [0, 2, 4]), 2).rows] == [0, 1]


def test_a_document_reads_back_as_it_was(tmp_path: Path) -> None:
    path = sample().save(tmp_path / "ranking.json")
    assert Ranking.model_validate_json(path.read_text("utf-8")) == sample()


def test_an_incomplete_one_never_replaces_a_complete_one(tmp_path: Path) -> None:
    table = Table(("index", "true_label", "standing", "estimate", "suggested_label"), [])
    target = tmp_path / "ranking.json"
    views.write_all(sample(), table, [target], {}, None)
    written = views.write_all(sample(status="incomplete"), table, [target], {}, None)
    assert [path.name for path in written] == ["ranking.incomplete.json"]
    assert Ranking.model_validate_json(target.read_text("utf-8")).status == "complete"
    views.write_all(sample(), table, [target], {}, None)
    assert not written[0].exists()
