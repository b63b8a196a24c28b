"""The page as text: its policy, its size, what it says and what it leaves out."""

from __future__ import annotations

import base64
import hashlib
import html as stdlib_html
import re

import pytest

from memaudit import report
from memaudit.findings import Groups
from memaudit.report import html, pages
from memaudit.report.document import Report
from tests import report_samples as samples

PNG = b"\x89PNG\r\n\x1a\n"


def page_of(sample: Report) -> str:
    return report.render(sample, ".html")


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else() -> None:
    page = page_of(samples.small())
    policy = stdlib_html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    style, script = (
        base64.b64encode(hashlib.sha256(re.findall(pattern, page, re.DOTALL)[0].encode()).digest()).decode()
        for pattern in ("<style>(.*?)</style>", "<script>(.*?)</script>")
    )
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_pictures_are_allowed_only_where_there_are_some() -> None:
    sample = samples.small()
    page = report.render(sample, ".html", {sample.findings[0].example.id: PNG})
    assert "; img-src data:" in stdlib_html.unescape(page)
    assert "img-src" not in page_of(sample)


def test_a_picture_of_any_size_is_shown_whole() -> None:
    sample = samples.small()
    picture = PNG + bytes(9000)
    page = report.render(sample, ".html", {sample.findings[0].example.id: picture})
    assert f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"' in page


def test_templates_trust_no_value() -> None:
    for name in pages.templates().list_templates(["jinja"]):
        source, _, _ = pages.templates().loader.get_source(pages.templates(), name)  # type: ignore[union-attr]
        assert not re.search(r"\|\s*safe|autoescape|style=", source)


def test_the_page_names_no_address_outside_itself() -> None:
    page = page_of(samples.small())
    assert not re.search(r"https?://|//[a-z]+\.", page)
    assert not re.search(r"<(link|iframe|object|embed|base)\b|@import|url\(", page)


@pytest.mark.parametrize(("findings", "limit"), [(8, 87_000), (200, 300_000), (2000, 2_000_000)])
def test_the_page_stays_small(findings: int, limit: int) -> None:
    assert len(page_of(samples.large(findings)).encode()) < limit


def test_a_page_with_everything_on_it_stays_small_too() -> None:
    assert len(page_of(samples.whole(200)).encode()) < 300_000


def test_pictures_stay_within_the_pages_budget() -> None:
    sample = samples.large(1000)
    page = report.render(sample, ".html", {f.example.id: PNG + bytes(3000) for f in sample.findings})
    shown = page.count("<img ") - 3  # the worst three are there large as well
    assert 100 < shown < 900
    assert 1_900_000 < len(page.encode()) < 2_000_000
    assert f"{1000 - shown} pictures left out to keep the page small" in page


def test_every_finding_and_listed_unit_has_its_anchor_and_every_link_a_target() -> None:
    page = page_of(samples.large(300))
    anchors = re.findall(r' id="([^"]*)"', page)
    links = [stdlib_html.unescape(link) for link in re.findall(r'href="#([^"]*)"', page)]
    assert len(anchors) == len(set(anchors))
    assert {link for link in links if "=" not in link} <= set(anchors)
    assert {f"ex-{finding.id}" for finding in samples.large(300).findings} <= set(anchors)
    assert sum(anchor.startswith("unit-") for anchor in anchors) == html.MAX_NEURONS


def test_hostile_ids_make_distinct_anchors_that_their_links_reach() -> None:
    page = page_of(samples.hostile())
    anchors = re.findall(r' id="([^"]*)"', page)
    assert len(anchors) == len(set(anchors))
    assert all(re.fullmatch("[A-Za-z0-9_.~-]+", anchor) for anchor in anchors)
    assert set(re.findall(r'href="#([^"=]*)"', page)) <= set(anchors)


def test_the_page_says_suppressed_and_not_deleted() -> None:
    text = re.sub(r"<(script|style).*?</\1>", "", page_of(samples.small()), flags=re.DOTALL)
    assert "An ablation suppresses a label; it does not delete what was learned" in text
    assert len(re.findall("delete", text)) == 1


def test_what_was_not_run_is_said() -> None:
    assert (
        "Not run: gradient accounting; layer rewinding; layer retraining; accuracy on held-out test data."
        in page_of(samples.small())
    )


def test_sections_without_data_are_left_out() -> None:
    page = page_of(samples.small(groups=Groups(), neurons=[]))
    for gone in ('id="curve"', 'id="units"', 'href="#units"', "The same search on"):
        assert gone not in page
        assert gone in page_of(samples.small())


def test_layers_are_drawn_only_where_something_was_cut() -> None:
    assert "Where the cuts fall" in page_of(samples.small())
    assert "No unit was cut." in page_of(samples.incomplete())


def test_an_audit_without_findings_is_a_page_too() -> None:
    summary = samples.small().summary.model_copy(update={"flagged": 0, "fitted": 0, "memorized": 0, "outcomes": {}})
    page = page_of(samples.small(findings=[], neurons=[], groups=Groups(), summary=summary))
    assert page.count("No flagged example was audited.") == 2


def test_the_same_report_makes_the_same_page() -> None:
    assert page_of(samples.large(200)) == page_of(samples.large(200))


def test_settings_read_as_a_person_writes_them() -> None:
    page = page_of(samples.small())
    assert re.search(r"audit</th><td>localize <small", page)
    assert re.search(r"exit-zero</th><td>no <small", page)
    assert re.search(r"Not set: time-limit\.", page)


def test_a_notebook_shows_the_page() -> None:
    assert samples.small()._repr_html_() == report.embed(samples.small())
