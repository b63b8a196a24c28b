"""What a report is written as: a renderer for each suffix, imported on first use with what it needs (jinja2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import UsageError
from memaudit.report.names import format_of
from memaudit.system import files
from memaudit.text import clean, closest

if TYPE_CHECKING:
    from memaudit.report.document import Report

Thumbnails = Mapping[str, bytes]
"""PNG bytes by example id."""


def write(report: Report, path: str | Path, thumbnails: Thumbnails | None = None) -> Path:
    """`write_all` for one file."""
    return write_all(report, [Path(path)], thumbnails)[0]


def write_all(report: Report, paths: Sequence[Path], thumbnails: Thumbnails | None = None) -> list[Path]:
    """Render `report` in the formats that the suffixes name and replace all files, or none; the first one last.

    Args:
        report: what to write.
        paths: the files; missing folders above them are made.
        thumbnails: shown by the HTML page, ignored by every other format.

    Raises:
        UsageError: for a suffix no renderer knows, or a path that is a link, a folder or read-only.
        EnvironmentFault: if the disk is full or fails; older files stay as they were.
    """
    for path in paths:
        files.check_target(path)
    return files.replace_all([(path, renderer(format_of(path))(report, thumbnails or {})) for path in paths])


def render(report: Report, suffix: str, thumbnails: Thumbnails | None = None) -> str:
    """The text of `report` in the format of `suffix` (`.json`, `.html`, `.md`, `.sarif`, `.xml`, `.csv`).

    Raises:
        UsageError: for any other suffix.
    """
    return "".join(piece for piece in renderer(suffix)(report, thumbnails or {}) if isinstance(piece, str))


def renderer(suffix: str) -> Renderer:
    """What gives the content of a format in pieces; a wrong `-o` is refused before a long run.

    Raises:
        UsageError: if there is none, or a library that it needs is missing.
    """
    if suffix.lower() == ".parquet":
        from memaudit.report import columns

        columns.needs_arrow()
    found = _RENDERERS.get(suffix.lower()) or _NAMED.get(suffix)
    if found is None:
        known = ", ".join(_RENDERERS)
        near = closest(suffix.lower(), _RENDERERS)
        raise UsageError(f"no report format {clean(suffix)!r}{near}", hint=f"Choose the format by suffix: {known}")
    return found


Renderer = Callable[["Report", Thumbnails], Iterable[str | bytes]]


def _json(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report import json

    return json.parts(report)


def _html(report: Report, thumbnails: Thumbnails) -> Iterable[str]:
    from memaudit.report import html

    return html.parts(report, thumbnails)


def _markdown(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report import markdown

    return [markdown.render(report)]


def _sarif(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report import sarif

    return [sarif.render(report)]


def _junit(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report import junit

    return [junit.render(report)]


def _csv(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report import columns

    return columns.csv_parts(report)


def _parquet(report: Report, _: Thumbnails) -> Iterable[bytes]:
    from memaudit.report import columns

    return [columns.parquet(report)]


_RENDERERS: dict[str, Renderer] = {
    ".json": _json,
    ".html": _html,
    ".md": _markdown,
    ".sarif": _sarif,
    ".xml": _junit,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _officer_html(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report.officer import scanned, views

    return [views.html(scanned.of_report(report))]


def _officer_markdown(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report.officer import scanned, views

    return [views.markdown(scanned.of_report(report))]


def _card(report: Report, _: Thumbnails) -> Iterable[str]:
    from memaudit.report import card

    return [card.of_report(report)]


_NAMED: dict[str, Renderer] = {
    "officer.html": _officer_html,
    "officer.md": _officer_markdown,
    "model-card.md": _card,
}
SUFFIXES = tuple(_RENDERERS)
