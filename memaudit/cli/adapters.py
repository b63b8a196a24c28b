"""`memaudit adapters`: what is installed, and whether it keeps its promises."""

from __future__ import annotations

from typing import Annotated

import typer

from memaudit.cli.values import size

app = typer.Typer(help="List installed adapters, or test one.", invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def default(context: typer.Context) -> None:
    """List installed adapters, or test one."""
    if context.invoked_subcommand is None:
        list_adapters()


@app.command("list")
def list_adapters() -> None:
    """Show name, package, version and any fault of each adapter."""
    from memaudit.adapters.registry import installed

    found = [(a.name, a.package, a.version, a.error or a.target) for a in installed()]
    rows = [("NAME", "PACKAGE", "VERSION", "TARGET"), *found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=True)) + "  " + row[3])


@app.command("test")
def conformance(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An installed adapter's name, or my_model.py:build.")],
    input_size: Annotated[
        str, typer.Option(help="Of your own module: C,H,W, or '(C,T)' for what is no image.")
    ] = "3,224,224",
) -> None:
    """Run the conformance kit on an adapter's own example, or on the module that your own file builds."""
    from memaudit.testing import check_built, check_installed

    for line in check_built(name, size(input_size)) if ".py:" in name else check_installed(name):
        typer.echo(f"ok: {line}")
