"""`memaudit render`: any format from a report.json, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memaudit.cli import outputs


def render(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    output: Annotated[list[Path], typer.Option("-o", "--output", help="File; the suffix is the format. Repeatable.")],
) -> None:
    """Write a report in other formats: HTML, Markdown, SARIF, JUnit.

    The suffix of each output chooses: .html, .md, .sarif, .xml or .json.
    """
    from memaudit import report as reports

    outputs.check(output)
    loaded = reports.read(report)
    for path in output:
        typer.echo(reports.write(loaded, path), err=True)
