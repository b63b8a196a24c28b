"""Pictures: the worst first within the budget, and kept when a page is drawn again."""

from __future__ import annotations

from pathlib import Path

import pytest

from memaudit import report
from memaudit.errors import DataRejected
from memaudit.report import pictures
from tests import report_samples as samples


def shown(count: int = 30) -> dict[str, bytes]:
    findings = samples.whole(count).findings
    near = {n.id for f in findings for n in f.nearest}
    return dict.fromkeys([*(f.example.id for f in findings), *near], samples.PICTURE)


def test_a_page_gives_back_the_pictures_it_shows(tmp_path: Path) -> None:
    sample = samples.whole(30)
    page = report.write(sample, tmp_path / "report.html", shown())
    kept = pictures.beside(tmp_path / "report.json", sample)
    assert {f.example.id for f in sample.findings} <= set(kept)
    assert report.render(sample, ".html", kept) == page.read_text("utf-8")


def test_the_nearest_clean_examples_are_pictured_beside_the_open_ones() -> None:
    sample = samples.whole(30)
    page = report.render(sample, ".html", shown())
    assert page.count('alt="clean example ') == 3 * (pictures.OPEN + pictures.LARGE)


def test_another_reports_page_gives_nothing(tmp_path: Path) -> None:
    page = report.write(samples.whole(30), tmp_path / "report.html", shown())
    assert pictures.on_page(page, samples.small()) == {}


@pytest.mark.parametrize(
    "text", ["", "<img data-id='x'>", '<img data-id="0123456789abcdef" src="data:image/png;base64,A"']
)
def test_a_page_that_is_none_of_ours_gives_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.html").write_text(text)
    assert pictures.on_page(tmp_path / "x.html", samples.whole(30)) == {}


def test_a_missing_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="cannot read"):
        pictures.on_page(tmp_path / "none.html", samples.small())


def test_what_has_no_room_is_left_out_from_the_end() -> None:
    sample = samples.whole(30)
    found = pictures.data_urls(sample, shown(), 6_000)
    assert 0 < len(found) < 30
    first = pictures.worst_first(sample)[0]
    assert first.example.id in found
