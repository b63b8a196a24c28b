"""The command line: one file per command, each turning options into one library call."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from memaudit.errors import ExitCode

# The environment's names are the options', whatever the command: MEMAUDIT_MAX_UNITS.
_CONFIGURED = {"auto_envvar_prefix": "MEMAUDIT"}
# In the order of the help; `memaudit.cli.NAME` holds the function NAME, or `app` where it has commands of its own.
COMMANDS: dict[str, dict[str, Any]] = {
    "scan": {"context_settings": _CONFIGURED},
    "inspect": {"context_settings": _CONFIGURED},
    "discover": {"context_settings": _CONFIGURED},
    "compare": {"context_settings": _CONFIGURED},
    "verify": {"context_settings": _CONFIGURED},
    "check": {"context_settings": _CONFIGURED},
    "diff": {},
    "render": {},
    "convert": {},
    "init": {},
    "schema": {},
    "demo": {},
    "erase": {},
    "adapters": {},
}


def program(word: str = "") -> typer.Typer:
    """The command line; with one of `COMMANDS` as the first word, that command alone, for it starts sooner."""
    app = typer.Typer(
        name="memaudit",
        help="Find what an image classifier memorized, where it sits, and what taking it out costs.",
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for name in [word] if word in COMMANDS else COMMANDS:
        module = import_module(f"memaudit.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, **COMMANDS[name])(getattr(module, name))
    return app


def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    error_json: str = typer.Option(
        None, "--error-json", metavar="PATH", help="Also say in PATH, as JSON, how the command ended; for any command."
    ),
) -> None:
    """Find what an image classifier memorized, where it sits, and what taking it out costs."""
    if version:
        from memaudit.version import __version__

        typer.echo(f"memaudit {__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)
