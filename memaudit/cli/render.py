"""`memaudit render`: any format from a report.json, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memaudit.errors import UsageError


def render(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    output: Annotated[list[Path], typer.Option("-o", "--output", help="Where to; the suffix is the format. Repeatable.")],
) -> None:
    """Write a report in other formats: .html, .md, .sarif, .xml (JUnit), .json."""
    from memaudit import report as reports

    if not output:
        raise UsageError("nothing to write", hint="Name at least one output: -o report.html")
    for path in output:
        reports.renderer(path.suffix)
    loaded = reports.read(report)
    for path in output:
        typer.echo(reports.write(loaded, path), err=True)
