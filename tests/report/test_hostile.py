"""Outside strings never leave their place: not in a terminal, a CI log, Markdown, XML, JSON or a page."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from memaudit import report
from memaudit.report import columns, console, github, markdown
from memaudit.report.document import Report
from tests import report_samples as samples

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def _views() -> dict[str, str]:
    sample = samples.hostile()
    views = {suffix: report.render(sample, suffix) for suffix in report.SUFFIXES if suffix != ".parquet"}
    views[".csv"] = views[".csv"].removeprefix(columns.MARK)
    return views | {"console": console.render(sample, width=60), "github": github.render(sample)}


VIEWS = _views()


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_holds_a_character_that_steers_its_reader(view: str) -> None:
    assert not [c for c in VIEWS[view] if c != "\n" and not c.isprintable()]


@pytest.mark.parametrize("view", ["console", ".md", "github"])
def test_no_outside_string_becomes_a_workflow_command(view: str) -> None:
    own = r"\s*::(error|warning|notice) (title|file)=" if view == "github" else r"(?!)"
    for line in VIEWS[view].splitlines():
        assert not line.lstrip().startswith("::") or re.match(own, line)
        assert "##[" not in line


def test_a_workflow_command_is_one_line_with_its_own_properties_only() -> None:
    lines = VIEWS["github"].splitlines()
    assert all(re.fullmatch(r"::(error|warning|notice) ((file|line|title)=[^:,]*,?)+::.*", line) for line in lines)


def test_rich_reads_no_markup_and_no_emoji_codes() -> None:
    assert "[bold red]x[/]:skull:" in VIEWS["console"]
    assert "img[/].png" in VIEWS["console"]
    assert "☠" not in VIEWS["console"]


def test_a_hostile_name_is_escaped_in_colour_too() -> None:
    text = console.render(samples.hostile(), color=True)
    assert not re.search("[\x07\x9b\u202e]", text)
    assert all(re.fullmatch(r"\[[0-9;]*m.*", rest, re.DOTALL) for rest in text.split("\x1b")[1:])


def test_console_output_can_always_be_encoded() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console.show(samples.hostile(), file=stream)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("plain", "`plain`"),
        ("", "–"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("a|b", "`a\\|b`"),
        ("a\\|b", "`a\\\\\\|b`"),
        ("<b>", "`<b>`"),
        ("a\nb", "`a\\x0ab`"),
    ],
)
def test_markdown_code_spans_close_only_where_they_should(text: str, span: str) -> None:
    assert markdown.code(text) == span


def test_markdown_tables_keep_their_columns() -> None:
    table = [line for line in VIEWS[".md"].splitlines() if line.startswith("|")]
    cells = [re.sub(r"\\\\|\\\|", "", line).count("|") for line in table]
    assert sorted(set(cells)) == [3, 4, 5, 7, 9]


def test_no_tag_stands_outside_a_code_span_in_markdown() -> None:
    assert "<" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", VIEWS[".md"])


def test_junit_is_well_formed_and_keeps_the_names() -> None:
    cases = ElementTree.fromstring(VIEWS[".xml"]).iter("testcase")
    names = [case.get("name") for case in cases if case.get("classname") == "memaudit.example"]
    assert names[0] == "<script>alert(1)</script> [<script>alert(1)</script>]"
    assert len(names) == len(samples.HOSTILE)


def test_sarif_uris_hold_no_character_that_needs_escaping() -> None:
    run = json.loads(VIEWS[".sarif"])["runs"][0]
    uris = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]]
    assert all(re.fullmatch(r"[A-Za-z0-9%/._~-]+", uri) for uri in uris)


class _Tags(HTMLParser):
    """Every start tag with its attributes, and the text of every script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def _harmless() -> Report:
    """Every section of the page, without a strange string."""
    whole = samples.over_time()
    return samples.large(50).model_copy(update={"series": whole.series, "layers": whole.layers})


def test_a_hostile_page_has_the_elements_and_attributes_of_a_harmless_one() -> None:
    harmless, hostile = _Tags(report.render(_harmless(), ".html")), _Tags(VIEWS[".html"])
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in harmless.tags}
    known = {(tag, name) for tag, attributes in harmless.tags for name in attributes}
    assert {(tag, name) for tag, attributes in hostile.tags for name in attributes} <= known
    assert not [name for _, name in known if name.startswith("on") or name == "style"]


def test_every_link_on_a_page_stays_on_the_page() -> None:
    for tag, attributes in _Tags(VIEWS[".html"]).tags:
        assert tag != "a" or (attributes["href"] or "").startswith("#")


def test_the_page_carries_the_report_unchanged_and_opens_no_tag_in_it() -> None:
    data = _Tags(VIEWS[".html"]).scripts[0]
    assert not re.search("[<>&\u2028\u2029]", data)
    small = _Tags(report.render(samples.small(), ".html")).scripts[0]
    assert json.loads(small) == json.loads(report.render(samples.small(), ".json"))


def test_thumbnails_that_are_no_png_are_left_out() -> None:
    sample = samples.small()
    first, second = (finding.example.id for finding in sample.findings[:2])
    page = report.render(sample, ".html", {first: PNG, second: b"<svg onload=alert(1)>"})
    assert page.count("<img ") == 2  # in its row, and large among the worst
    assert "1 picture left out" in page


def test_a_template_in_a_name_is_not_run() -> None:
    assert '<pre id="command">{{ 7 * 7 }}</pre>' in report.render(samples.small(command="{{ 7 * 7 }}"), ".html")


def test_the_frame_of_a_notebook_holds_the_page_in_one_attribute() -> None:
    parsed = _Tags(report.embed(samples.hostile()))
    assert [tag for tag, _ in parsed.tags] == ["iframe"]
    assert parsed.tags[0][1]["srcdoc"] == VIEWS[".html"]
    assert "allow-same-origin" not in (parsed.tags[0][1]["sandbox"] or "")
