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
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json or verification.json.")],
    output: Annotated[list[Path], typer.Option("-o", "--output", help="File; the suffix is the format. Repeatable.")],
    images: Annotated[
        Path | None, typer.Option(help="A page to take the pictures from; by default the one beside REPORT.")
    ] = None,
) -> None:
    """Write a report in other formats: HTML, Markdown, SARIF, JUnit, CSV, Parquet, officer's page, model card.

    The suffix of each output chooses: .html, .md, .sarif, .xml, .csv, .parquet or .json; a name that begins with
    officer (.html, .md) or model-card (.md) chooses those. A verification.json becomes neither .sarif nor .xml.
    """
    from memaudit import report as reports
    from memaudit.report import reading
    from memaudit.report.verification import reading as verifications
    from memaudit.report.verification import writing

    data = reading.load(report)
    if data.get("kind") == "verification":
        for path in writing.write_all(verifications.parsed(data, report), output):
            typer.echo(path, err=True)
        return
    if "source_sha256" in data:
        raise DataRejected(
            f"{clean(report)} is the record of an edit, not a report",
            hint="Render the report that erase wrote beside it, NAME.report.json: it holds the edit.",
        )
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
