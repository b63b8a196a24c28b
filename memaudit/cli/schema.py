"""`memaudit schema`: the JSON Schema of what memaudit writes and of what it reads."""

from __future__ import annotations

from typing import Annotated

import typer

from memaudit.cli.values import choice


def schema(what: Annotated[str, typer.Argument(metavar="WHAT", help="report or config.")] = "report") -> None:
    """Print the JSON Schema of report.json, or of memaudit.toml."""
    import json

    choice(what, ("report", "config"), "schema")
    if what == "config":
        from memaudit.cli import config

        found = config.schema()
    else:
        from memaudit.report.document import Report

        found = Report.model_json_schema()
    typer.echo(json.dumps(found, indent=2, sort_keys=True))
