"""`memaudit schema`: the JSON Schema of what memaudit writes."""

from __future__ import annotations

from typing import Annotated

import typer

from memaudit.cli.options import choice


def schema(what: Annotated[str, typer.Argument(metavar="WHAT", help="report")] = "report") -> None:
    """Print the JSON Schema of report.json."""
    import json

    from memaudit.findings import Report

    choice(what, ("report",), "schema")
    typer.echo(json.dumps(Report.model_json_schema(), indent=2, sort_keys=True))
