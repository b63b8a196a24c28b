"""The command line: one file per command, each turning options into one library call."""

from __future__ import annotations

import typer

from memaudit.cli import adapters, check, convert, demo, diff, erase, init, inspect, render, scan, schema
from memaudit.errors import ExitCode

app = typer.Typer(
    name="memaudit",
    help="Find what an image classifier memorized, where it sits, and what taking it out costs.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The environment's names are the options', whatever the command: MEMAUDIT_MAX_UNITS.
CONFIGURED = {"auto_envvar_prefix": "MEMAUDIT"}
app.command("scan", context_settings=CONFIGURED)(scan.scan)
app.command("inspect", context_settings=CONFIGURED)(inspect.inspect)
app.command("check", context_settings=CONFIGURED)(check.check)
app.command("diff")(diff.diff)
app.command("render")(render.render)
app.command("convert")(convert.convert)
app.command("init")(init.init)
app.command("schema")(schema.schema)
app.command("demo")(demo.demo)
app.command("erase")(erase.erase)
app.add_typer(adapters.app, name="adapters")


@app.callback()
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    error_json: str = typer.Option(
        None, "--error-json", metavar="PATH", help="Also say in PATH, as JSON, how the command ended; for any command."
    ),
) -> None:
    """Find what an image classifier memorized, where it sits, and what taking it out costs."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"memaudit {installed('memaudit')}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)
