"""What an audit is: a name, a price, and a run that yields what it found piece by piece.

An audit knows nothing of reports. It yields values for an example, for a layer group or for the report as a whole; who
ran it merges them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from memaudit.audits.context import Context
from memaudit.settings import Profile


@dataclass(frozen=True)
class ForExample:
    """Fields of the finding of flagged example `row`; a later value takes the place of an earlier one."""

    row: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ForLayer:
    """One field of the evidence on layer group number `layer`, in execution order."""

    layer: int
    field: str
    value: Any


@dataclass(frozen=True)
class ForReport:
    """One field of the evidence on the whole audit."""

    field: str
    value: Any


@dataclass(frozen=True)
class Unfinished:
    """What the time limit left undone, in words: `layer rewinding not done`."""

    what: str


Piece = ForExample | ForLayer | ForReport | Unfinished


@dataclass(frozen=True)
class Workload:
    """How large an audit is, for an estimate of its passes.

    Attributes:
        fitted: flagged examples that the model predicts.
        states: checkpoints of the series, the audited model included.
        groups: layer groups.
        units: units that can be cut.
        batch: examples a pass.
    """

    profile: Profile
    flagged: int
    fitted: int
    reference: int
    states: int = 0
    groups: int = 0
    units: int = 0
    batch: int = 64


class Audit(Protocol):
    """One question asked of a model."""

    @property
    def name(self) -> str:
        """What `--audit` calls it."""

    def passes(self, size: Workload) -> float:
        """Examples forwarded, about; a backward pass counts as `loop.BACKWARD` forward passes."""

    def pieces(self, size: Workload) -> int:
        """Into how many parts it can be cut, about, that workers do at the same time."""

    def run(self, context: Context) -> Iterator[Piece]:
        """What it finds, as it finds it. Leaves the model as it was.

        Raises:
            PremiseBroken: something it rests on does not hold for this model; nothing it yielded counts.
        """
