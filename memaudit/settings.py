"""What a user may set about an audit, and where it tells how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from memaudit.errors import UsageError
from memaudit.findings import AUDITS as AUDITS
from memaudit.findings import OVER_TIME as OVER_TIME
from memaudit.findings import ConfigValue, Inputs, ReportWarning
from memaudit.gate.policy import Policy
from memaudit.text import closest


@dataclass(frozen=True)
class Profile:
    """How much is measured. `passes` below count forward passes per finding.

    Attributes:
        search_rows: reference examples the search's risk is predicted on.
        look_ahead: candidates that the search ablates for each unit it chooses; none: it goes by gradients.
        look_first: candidates that are ablated before a finding's first units are chosen, where it goes by gradients.
        panel_rows: other reference examples that costs are measured on.
        at_risk, near, at_random: rows of the panel measured per finding, of those that its cut is expected to change,
            of those nearest to that, and of the others; more where `sampled` of each would not be reached in all.
        copies: augmented copies per finding.
        draws: random-unit draws per finding, where fewer do not decide.
        others: other flagged examples per finding.
        neurons: units whose own reference cost is measured, the most shared first.
        clean: matched clean examples put through the same search, in all.
        seeds: other seeds whose searches are compared with this one.
        checkpoints: of a series that the audits over time use, evenly spread, first and last included.
        flagged_rows, reference_rows: most examples the audits over time run at each checkpoint.
        retrain_rows, retrain_epochs, retrain_seeds: reference examples a layer is trained on, and how often.
        relearnings: ways in which the network is put back and relearned, to ask for the labels.
        relearn_rows: reference examples that are relearned from, at most, half of them at a time.
    """

    search_rows: int = 1024
    look_ahead: int = 0
    look_first: int = 6
    panel_rows: int = 512
    at_risk: int = 6
    near: int = 4
    at_random: int = 1
    sampled: int = 512
    copies: int = 2
    draws: int = 10
    others: int = 1
    neurons: int = 48
    clean: int = 64
    seeds: int = 0
    checkpoints: int = 9
    flagged_rows: int = 256
    reference_rows: int = 1000
    retrain_rows: int = 1000
    retrain_epochs: int = 8
    retrain_seeds: int = 2
    relearnings: int = 3
    relearn_rows: int = 2000


PROFILES: Mapping[str, Profile] = {
    "fast": Profile(
        search_rows=256, look_first=0, panel_rows=256, at_risk=4, near=2, sampled=256, neurons=16, clean=16,
        checkpoints=7, flagged_rows=128, reference_rows=512, retrain_rows=1000, retrain_epochs=5, retrain_seeds=1,
        relearnings=0,
    ),
    "standard": Profile(),
    "deep": Profile(
        search_rows=2048, look_ahead=256, look_first=0, panel_rows=2048, at_risk=2048, near=2048, at_random=2048,
        copies=4, draws=50, others=64, neurons=1000, clean=256, seeds=2,
        checkpoints=32, flagged_rows=2048, reference_rows=4096, retrain_rows=4096, retrain_epochs=24, retrain_seeds=5,
        relearnings=9, relearn_rows=8000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Relearning:
    """How much `discover` measures of each profile.

    Attributes:
        depths: everything from each of these shares of the depth on is learned again.
        folds: parts of the data; each is asked of what was taught without it.
        rows: most examples that a fold's layers are taught with.
        views: whether moved, mirrored and zoomed copies of each image are asked, too.
    """

    depths: tuple[float, ...] = (0.34, 0.15)
    folds: int = 2
    rows: int = 8192
    views: bool = True


RELEARNING: Mapping[str, Relearning] = {
    "fast": Relearning(depths=(0.34,), rows=2048, views=False),
    "standard": Relearning(),
    "deep": Relearning(depths=(0.34, 0.15, 0.5), folds=4, rows=16384),
}

DTYPES = ("float32", "bfloat16")
ABLATIONS = ("zero", "mean")


@dataclass(frozen=True)
class Settings:
    """What shapes the numbers; all of it is in the report.

    Attributes:
        dtype: precision of the search's gradients; everything that is reported is measured in float32 all the same.
        threads: cores of the processor, each of which runs a copy of the network; None: all.
        audits: of `AUDITS`; None: localize, and the learning order where there are earlier checkpoints.
        group_depth: parts of a layer group's path; None: as fine as one table holds.
    """

    max_units: int = 10
    unit: str = "auto"
    layers: str | None = None
    ablation: str = "zero"
    profile: str = "standard"
    device: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    dtype: str = "float32"
    seed: int = 0
    limit: int | None = None
    time_limit: float | None = None
    audits: tuple[str, ...] | None = None
    group_depth: int | None = None
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        """Refuse what no audit can run with.

        Raises:
            UsageError: an unknown profile, ablation, dtype or audit, or a number below 1.
        """
        for name, value, known in (
            ("profile", self.profile, tuple(PROFILES)),
            ("ablation", self.ablation, ABLATIONS),
            ("dtype", self.dtype, DTYPES),
            *(("audit", audit, tuple(AUDITS)) for audit in self.audits or ()),
        ):
            if value not in known:
                raise UsageError(
                    f"no {name} {value!r}{closest(value, known)}", hint=f"Choose among: {', '.join(known)}"
                )
        for name in ("max_units", "batch_size", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Provenance:
    """What a report says of where it came from and the audit itself does not need."""

    command: str = "memaudit.audit(...)"
    inputs: Inputs = field(default_factory=dict)
    model_path: str = ""
    model_sha256: str = ""
    model_md5: str = ""
    weights: str = "raw"
    stripped_prefix: str = ""
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    class_order: str = "given"
    by: str = ""
    warnings: tuple[ReportWarning, ...] = ()


class Progress(Protocol):
    """Where an audit tells how far it is."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage of `total` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps of the stage are done."""


class Silent:
    """No progress shown."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Nothing is shown."""

    def advance(self, steps: int = 1) -> None:
        """Nothing is shown."""
