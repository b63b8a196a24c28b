"""An edited copy of the checkpoint: what was asked for, the methods, and the proof on the written file.

A method is one file of this package and one row of `METHODS`. No torch is loaded until one runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from memaudit.erase.request import Request
    from memaudit.findings import Erasure, Finding


@dataclass(frozen=True)
class Choice:
    """What a user chose about an edit.

    Attributes:
        findings: of the audit.
        named: those that were named, by id or source; empty: nobody named any.
        max_test_drop: share of accuracy that an edit may cost.
        clean_steps: steps of training on clean examples that may follow it.
    """

    findings: Sequence[Finding] = ()
    named: Sequence[str] = ()
    max_test_drop: float = 0.01
    clean_steps: int = 150


@dataclass(frozen=True)
class Method:
    """One way to take labels out.

    Attributes:
        hint: what `--help` says of it.
        singles: it edits single findings; others edit the flagged set as a whole.
        budget: share of accuracy that it may cost where nobody says.
        used: what the examples are that it was made or chosen with.
        cheaper: what to do where it costs too much.
        target: `module:function`, called with a `Request` and a `Choice`.
    """

    name: str
    hint: str
    singles: bool
    budget: float
    used: str
    cheaper: str
    target: str

    def run(self, request: Request, choice: Choice) -> Erasure:
        """Write the edited copy that `request` names, and measure it.

        Raises:
            MemauditError: the model cannot be edited, or no edit keeps within the budget.
        """
        module, _, function = self.target.partition(":")
        return cast("Erasure", getattr(import_module(module), function)(request, choice))


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "units",
            hint="silence what was found",
            singles=True,
            budget=0.05,
            used="flagged label, edit made for",
            cheaper="Silence fewer with --examples, or suppress the group with --method curvature.",
            target="memaudit.erase.units:run",
        ),
        Method(
            "curvature",
            hint="for groups",
            singles=False,
            budget=0.01,
            used="flagged label, used for choosing",
            cheaper="Allow less with --max-test-drop.",
            target="memaudit.erase.group:run",
        ),
    )
}
