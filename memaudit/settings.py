"""What a user may set about an audit, and where it tells how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from memaudit.findings import ConfigValue, ReportWarning
from memaudit.gate import Policy


@dataclass(frozen=True)
class Profile:
    """How much is measured. `passes` below count forward passes per finding.

    Attributes:
        search_rows: reference examples the search's risk is predicted on.
        panel_rows: other reference examples that costs are measured on.
        at_risk, at_random: how many of the panel are measured per finding.
        draws: random-unit draws per finding.
        others: other flagged examples per finding.
        clean: matched clean examples put through the same search, in all.
    """

    search_rows: int = 512
    panel_rows: int = 512
    at_risk: int = 32
    at_random: int = 32
    draws: int = 10
    others: int = 8
    clean: int = 64


PROFILES: Mapping[str, Profile] = {
    "fast": Profile(search_rows=256, panel_rows=256, at_risk=8, at_random=8, others=4, clean=16),
    "standard": Profile(),
    "deep": Profile(search_rows=2048, panel_rows=2048, at_risk=1024, at_random=1024, draws=50, others=64, clean=256),
}


@dataclass(frozen=True)
class Settings:
    """What shapes the numbers; all of it is in the report."""

    max_units: int = 10
    unit: str = "auto"
    layers: str | None = None
    ablation: str = "zero"
    profile: str = "standard"
    device: str = "auto"
    batch_size: int | None = None
    seed: int = 0
    limit: int | None = None
    time_limit: float | None = None
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class Provenance:
    """What a report says of where it came from and the audit itself does not need."""

    command: str = "memaudit.audit(...)"
    model_path: str = ""
    model_sha256: str = ""
    weights: str = "raw"
    stripped_prefix: str = ""
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    class_order: str = "given"
    warnings: tuple[ReportWarning, ...] = ()


class Progress(Protocol):
    """Where an audit tells how far it is."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage of `total` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps of the stage are done."""


class Silent:
    """No progress shown."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, steps: int = 1) -> None: ...
