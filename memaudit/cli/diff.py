"""`memaudit diff`: what changed between two audits, by example identity. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memaudit.cli.values import choice
from memaudit.errors import ExitCode


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The earlier report.json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The later report.json.")],
    format_: Annotated[str, typer.Option("-f", "--format", help="table, json or markdown.")] = "table",
) -> int:
    """Show which memorized examples are new, gone or unchanged.

    Examples are the same when content and label are: retraining, renaming and reordering change nothing. Ends with 0
    whatever changed (the gate is check with a baseline), with 4 where one of the audits is incomplete.
    """
    from memaudit import report as readers
    from memaudit.report import comparison
    from memaudit.report.compare import compare

    choice(format_, ("table", "json", "markdown"), "--format")
    found = compare(readers.read(old), readers.read(new))
    render = {"table": comparison.text, "json": comparison.data, "markdown": comparison.markdown}[format_]
    typer.echo(render(found), nl=False)
    return int(ExitCode.OK if found.complete else ExitCode.INCOMPLETE)
