"""An edited copy of the checkpoint: what was asked for, the methods, and the proof on the written file.

A method is one file of this package and one row of `METHODS`. No torch is loaded until one runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from memaudit.errors import UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.erase.request import Request
    from memaudit.findings import Erasure, Finding


# The first characters of an id that may stand for it.
SHORTEST = 6


@dataclass(frozen=True)
class Choice:
    """What a user chose about an edit.

    Attributes:
        findings: of the audit.
        named: those that were named, by id or source; empty: nobody named any.
        max_test_drop: share of accuracy that an edit may cost.
        clean_steps: steps of training on clean examples that may follow it.
        target: share of the flagged labels at which *auto* is content.
        critical: layer groups that the audit calls critical for the flagged labels.
        wrong: the flagged labels are known to be wrong, and clean steps may learn that.
    """

    findings: Sequence[Finding] = ()
    named: Sequence[str] = ()
    max_test_drop: float = 0.01
    clean_steps: int = 150
    target: float = 0.05
    critical: Sequence[str] = ()
    wrong: bool = False

    def chosen(self) -> list[Finding]:
        """The findings whose id begins with, or whose example is called, each that was named; else all localized.

        Raises:
            UsageError: one names no finding, or several; or nothing is left to silence.
        """
        erased = [f for f in self.findings if f.after and f.units and f.after.prediction != f.example.label]
        if not self.named:
            chosen = [f for f in erased if f.outcome == "localized"]
            if not chosen:
                raise UsageError(
                    "the report has no localized finding", hint="Name findings with --examples, by their ids."
                )
            return chosen
        chosen = []
        for name in self.named:
            exact = [f for f in self.findings if name in (f.id, f.example.id, f.example.source, f.example.declared_id)]
            near = [f for f in self.findings if f.id.startswith(name) or f.example.id.startswith(name)]
            found = exact or (near if len(name) >= SHORTEST else [])
            if len(found) != 1:
                what = "no finding" if not found else f"{len(found)} findings"
                raise UsageError(f"--examples {clean(name)!r} names {what} of the report", hint="Give a finding's id.")
            if found[0] not in erased:
                raise UsageError(
                    f"finding {clean(name)!r} has no units that suppress its label: {found[0].outcome}",
                    hint="Silence localized findings; for a whole group use --method curvature.",
                )
            chosen += found
        return list({f.id: f for f in chosen}.values())


@dataclass(frozen=True)
class Method:
    """One way to take labels out; by default one for groups.

    Attributes:
        hint: what `--help` says of it.
        singles: it edits single findings; others edit the flagged set as a whole.
        budget: share of accuracy that it may cost where nobody says.
        trains: it is made of clean steps, and cannot do without; steps: they may follow it.
        used: what the examples are that it was made or chosen with.
        cheaper: what to do where it costs too much.
        target: `module:function`, called with a `Request` and a `Choice`.
    """

    name: str
    hint: str
    target: str
    singles: bool = False
    trains: bool = False
    steps: bool = False
    budget: float = 0.01
    used: str = "flagged label, used for choosing"
    cheaper: str = "Allow less with --max-test-drop."

    @property
    def learns(self) -> bool:
        """Clean steps are, or may be, part of it."""
        return self.trains or self.steps

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
            hint="for groups, cuts what few examples support",
            steps=True,
            target="memaudit.erase.components:run",
        ),
        Method(
            "head",
            hint="for groups, rebuilds the classifier and trains nothing",
            target="memaudit.erase.head:run",
        ),
        Method(
            "curvature-head",
            hint="for groups, both of these without training",
            target="memaudit.erase.components:run_with_head",
        ),
        Method(
            "finetune",
            hint="for groups, trains the whole network on the reference and edits nothing",
            trains=True,
            target="memaudit.erase.steps:run",
        ),
        Method(
            "relearn",
            hint="for groups, puts layers back to random weights and trains them on the reference",
            trains=True,
            target="memaudit.erase.relearn:run",
        ),
        Method(
            "auto",
            hint="for groups, the cheapest of these that meets --target",
            steps=True,
            target="memaudit.erase.auto:run",
        ),
    )
}
