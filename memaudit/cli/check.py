"""`memaudit check`: the gate, from a report alone. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli import options as opt
from memaudit.cli import outputs
from memaudit.cli.config import Config
from memaudit.cli.grouped import grouped
from memaudit.cli.values import choice
from memaudit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from memaudit.report.document import Report

# What a command that checked several reports ends with: the first of these that any of them gave.
WORST = (ExitCode.INCOMPLETE, ExitCode.POLICY, ExitCode.OK)


@grouped
def check(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT", help="report.json, one or several.")],
    limits: opt.Limits,
    model: Annotated[
        Path | None, typer.Option(help="The checkpoint, its Git-LFS pointer or .dvc file: the report must be of it.")
    ] = None,
    config: Config = None,
    output: opt.Output = [],  # noqa: B006 - typer copies it
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table, json, markdown or github.")] = "table",
) -> int:
    """Apply policy, baseline and waivers to a report, without torch.

    Rules that nobody names are those the report was made with. Ends with 0 (met) or 1 (not met).
    """
    from memaudit import report as readers
    from memaudit.gate import policy as gate

    choice(format_, opt.FORMATS, "--format")
    if len(reports) > 1 and (model is not None or output):
        raise UsageError("--model and --output are about one report", hint="Check the reports one by one.")
    outputs.check(output)
    accepted = limits.accepted()
    codes = set()
    for number, path in enumerate(reports):
        found = readers.read(path)
        proof = "" if model is None else _prove(model, found)
        policy = limits.policy(gate.Policy.of(found.gate))
        judged = gate.apply(found, policy, accepted)
        written = [readers.write(judged, target) for target in output]
        if number:
            typer.echo("")
        outputs.show(judged, written, format_, brief=True)
        if proof:
            typer.echo(f"the report is of this checkpoint ({proof})", err=True)
        if found.gate.baseline and limits.baseline is None:
            typer.echo(f"the scan was judged with the baseline {found.gate.baseline}: --baseline applies it", err=True)
        codes.add(outputs.exit_code(judged, limits.exit_zero))
    return int(next(code for code in WORST if code in codes))


def _prove(model: Path, report: Report) -> str:
    from memaudit.checkpoints.proof import prove

    return prove(model, report.model, report.erasure.sha256 if report.erasure else "")
