"""`memaudit schema`: the JSON Schema of what memaudit writes and of what it reads."""

from __future__ import annotations

from typing import Annotated

import typer

from memaudit.cli.values import choice


def schema(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="report, ranking, config or findings.")] = "report",
) -> None:
    """Print the JSON Schema of report.json, ranking.json or memaudit.toml, or the columns of findings.csv."""
    import json

    choice(what, ("report", "ranking", "config", "findings"), "schema")
    if what == "config":
        from memaudit.cli import config

        found = config.schema()
    elif what == "ranking":
        from memaudit.report.ranked import Ranking

        found = Ranking.model_json_schema()
    elif what == "findings":
        from memaudit.report import columns

        found = columns.schema()
    else:
        from memaudit.report.document import Report

        found = Report.model_json_schema()
    typer.echo(json.dumps(found, indent=2, sort_keys=True))
