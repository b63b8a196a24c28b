"""The sample reports kept with the project: made by this schema, without a place of the machine that made them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memaudit import report
from memaudit.report.json import render

SAMPLES = sorted((Path(__file__).parents[2] / "reports").glob("sample-*/report.json"))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def test_there_is_the_demos() -> None:
    assert "sample-digits" in [path.parent.name for path in SAMPLES]


@pytest.mark.parametrize("path", SAMPLES, ids=[p.parent.name for p in SAMPLES])
def test_a_sample_is_a_complete_report_of_this_schema(path: Path) -> None:
    found = report.read(path)
    assert found.status == "complete"
    assert render(found) == path.read_text("utf-8")
    page = path.with_suffix(".html").read_text("utf-8")
    assert found.model.sha256 in page
    assert page.startswith("<!doctype html>")


@pytest.mark.parametrize("path", SAMPLES, ids=[p.parent.name for p in SAMPLES])
def test_a_sample_names_no_place_on_a_machine(path: Path) -> None:
    found = report.read(path).model_dump(mode="json")
    absolute = re.compile(r"(^|[\s=:'\"])(/[A-Za-z]|[A-Za-z]:\\|~/)")
    assert [text for text in texts(found) if absolute.search(text)] == []
