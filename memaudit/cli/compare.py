"""`memaudit compare`: what models that never saw the flagged examples say of them; no units are looked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from memaudit.cli import options as opt
from memaudit.cli.config import Config
from memaudit.cli.grouped import grouped
from memaudit.cli.scan import scanned
from memaudit.cli.values import choice
from memaudit.errors import UsageError


@dataclass(frozen=True)
class Compared:
    """The models without, and how much is measured beside them."""

    without: opt.Without = field(default_factory=list)
    profile: Annotated[str, typer.Option(help="How much our own estimate measures: fast, standard, deep.")] = "fast"
    limit: Annotated[int | None, typer.Option(min=1, help="Compare only the first N; the report is incomplete.")] = None

    def __post_init__(self) -> None:
        from memaudit.settings import PROFILES

        choice(self.profile, tuple(PROFILES), "--profile")


@grouped
def compare(
    context: typer.Context,
    model: opt.Model,
    places: opt.Places,
    network: opt.Network,
    compared: Compared,
    compute: opt.Compute,
    destination: opt.Destination,
    limits: opt.Limits,
    run: opt.RunOptions,
    config: Config = None,
) -> int:
    """Say of each flagged example whether models trained without it give its label too.

    Writes report.json and report.html as scan does, without localization.
    """
    if not compared.without:
        raise UsageError("no model to compare with", hint="--without MODEL2, trained without the flagged examples")
    audit = opt.AuditOptions(without=compared.without, profile=compared.profile, limit=compared.limit)
    return scanned(context, model, places, network, audit, compute, destination, limits, run, ask_only=True)
