"""`memaudit demo`: from nothing to a report in a minute or two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.errors import ExitCode, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.demo.training import TrainingScores


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For data, model and report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="For data split, training and audit.")] = 0,
    tied_dropout: Annotated[
        bool, typer.Option("--tied-dropout", help="Train with example-tied dropout, then drop what was memorized.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> int:
    """Train a small network that memorizes, and scan it.

    scikit-learn's digits, 5 % of the training labels changed to a wrong class.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "facts.json").exists())):
        raise UsageError(f"{clean(folder)} exists and is no demo directory", hint="Choose another: memaudit demo DIR")
    from memaudit.__main__ import run
    from memaudit.cli.progress import Stages

    folder.mkdir(parents=True, exist_ok=True)
    with Stages(quiet) as progress:
        progress.stage("load PyTorch")
        from memaudit.demo import training

        progress.stage("train", training.EPOCHS)
        made = training.make(folder, seed, progress.advance, tied=tied_dropout)
    typer.echo(
        f"{made.changed} of {made.trained} training labels changed; the network fits {made.fitted:.1%} of them; "
        f"test accuracy {made.test_accuracy:.1%}",
        err=True,
    )
    arguments = [*made.scan, "--out", str(folder / "report"), "--seed", str(seed), *(["-q"] if quiet else [])]
    code = run(arguments)
    if code not in (ExitCode.OK, ExitCode.POLICY):
        return code
    typer.echo("")
    if code == ExitCode.POLICY:
        typer.echo("In CI the gate would fail here: this model was trained to memorize, and no policy allows that.")
    if tied_dropout:
        with Stages(quiet) as progress:
            progress.stage("compare", training.EPOCHS)
            scores = training.with_and_without_dropout(folder, seed, progress.advance)
        typer.echo("Dropped, and compared with the same network trained without example-tied dropout:\n")
        for line in _table(scores):
            typer.echo(line)
        typer.echo(f"\nwrote {folder / 'dropped.safetensors'}: the plain network with its memorizing units at zero")
    typer.echo("\nThe same labels found without being told which, among all that it was trained on:\n")
    out = folder / "report" / "discovery"
    code = run([*made.discover, "--out", str(out), "--seed", str(seed), *(["-q"] if quiet else [])])
    if code != ExitCode.OK:
        return code
    typer.echo(f"\nOpen {folder / 'report' / 'report.html'}\nand  {out / 'ranking.html'}")
    return int(ExitCode.OK)


def _table(scores: dict[str, TrainingScores]) -> list[str]:
    """Who predicts the changed labels and the true ones of the same digits, and the test accuracy."""
    head = f"{'':<22}{'changed label':>14}{'true label':>12}{'test':>8}"
    return [head, *(f"{name:<22}{s.changed:>14.1%}{s.true:>12.1%}{s.test:>8.1%}" for name, s in scores.items())]
