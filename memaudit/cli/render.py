"""`memaudit render`: any format from a report.json, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli import outputs
from memaudit.errors import DataRejected
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.document import Report


def render(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    output: Annotated[list[Path], typer.Option("-o", "--output", help="File; the suffix is the format. Repeatable.")],
    images: Annotated[
        Path | None, typer.Option(help="A page to take the pictures from; by default the one beside REPORT.")
    ] = None,
) -> None:
    """Write a report in other formats: HTML, Markdown, SARIF, JUnit, CSV, Parquet.

    The suffix of each output chooses: .html, .md, .sarif, .xml, .csv, .parquet or .json.
    """
    from memaudit import report as reports

    outputs.check(output)
    loaded = reports.read(report)
    page = any(path.suffix.lower() == ".html" for path in output)
    pictures = _pictures(report, images, loaded) if page else {}
    for path in output:
        typer.echo(reports.write(loaded, path, pictures), err=True)


def _pictures(path: Path, images: Path | None, report: Report) -> Mapping[str, bytes]:
    """The pictures of an earlier page: a report.json holds none.

    Raises:
        DataRejected: the named page cannot be read, or holds no picture of this report's examples.
    """
    from memaudit.report import pictures

    if images is not None:
        found = pictures.on_page(images, report)
        if not found:
            raise DataRejected(
                f"{clean(images)} holds no picture of this report's examples",
                hint="Name the page that the scan wrote, with pictures in it (scan --images thumbs).",
            )
        return found
    found = pictures.beside(path, report)
    if not found:
        typer.echo(
            f"the page has no pictures: {clean(path.with_suffix('.html').name)} beside the report holds none; "
            "keep the scan's page there, or name it with --images PAGE",
            err=True,
        )
    return found
