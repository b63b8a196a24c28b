"""The work on one flagged example, apart from all others: search its units, measure what was found once more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from pydantic import TypeAdapter

from memaudit.audits.localize.controls import Judge
from memaudit.audits.localize.curtailed import rounds, with_intervals
from memaudit.audits.localize.job import Proposal
from memaudit.audits.localize.search import Search
from memaudit.audits.localize.together import Ask, Measurement
from memaudit.data import ExampleSet, finding_id
from memaudit.engine.answers import prediction
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import Controls, Outcome, Prediction, RandomControl, ReferenceAccuracy, UnitRef, interned
from memaudit.settings import Profile
from memaudit.system.memory import give_back

# Reference accuracy may fall by this much before a suppressed example counts as entangled.
REFERENCE_BUDGET = 0.05
# Random units may suppress this share of the draws before a suppressed example counts as entangled.
RANDOM_BUDGET = 0.1


@dataclass(frozen=True)
class Localized:
    """What became of one fitted example, as a finding will say it; see `findings.Finding` for the fields."""

    id: str
    outcome: Outcome
    after: Prediction | None
    units: list[UnitRef]
    reference_accuracy: ReferenceAccuracy
    controls: Controls
    fitted: bool = True

    @property
    def values(self) -> Mapping[str, object]:
        """The fields of the finding."""
        names = ("outcome", "after", "units", "reference_accuracy", "controls")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Localizing(Work[Localized]):
    """Search and verification of flagged rows.

    Attributes:
        fitted: all rows whose label the intact model predicts: what a cut does to others is measured on them.
        deadline: seconds since the epoch; nothing more is verified after it.
    """

    search: Search
    judge: Judge
    flagged: ExampleSet
    fitted: Sequence[int]
    profile: Profile
    deadline: float = float("inf")

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, Localized]]:
        """As `Work`: what became of each row."""
        proposals = self.search.run(evaluator, self.flagged, rows)
        while wave := list(islice(proposals, max(1, evaluator.batch_size // 2))):
            if time.time() > self.deadline:
                return
            with evaluator.counting("verify"):
                landed = self._verified(wave)
            yield from landed
            give_back()

    def plain(self, found: Localized) -> Any:
        """As `Work.plain`."""
        return _records().dump_python(found, mode="json")

    def found(self, plain: Any) -> Localized:
        """As `Work.found`."""
        return _records().validate_python(plain)

    def _verified(self, wave: Sequence[Proposal]) -> list[tuple[int, Localized]]:
        """Proposals measured with fresh ablations, by row: the cut, its controls, what became of the example."""
        copied = self.judge.copied(self.flagged, [proposal.row for proposal in wave])
        copies = [None] * len(wave) if copied is None else [(copied[0], rows) for rows in copied[1]]
        found = self.judge.together([self._judged(one, own) for one, own in zip(wave, copies, strict=True)])
        return [(proposal.row, one) for proposal, one in zip(wave, found, strict=True)]

    def _judged(self, proposal: Proposal, copies: tuple[ExampleSet, range] | None) -> Measurement[Localized]:
        """Measure one proposal, put its controls beside it, and say what became of it.

        What takes a varying number of steps comes last, so that those of many findings run side by side until then.
        """
        judge, flagged, profile = self.judge, self.flagged, self.profile
        row, cut = proposal.row, proposal.cut
        example, key = flagged.examples[row], key_of(flagged, row)
        logits = (yield Ask(flagged, [row], [cut]))[0]
        after = prediction(logits, example.label) if bool(torch.isfinite(logits).all()) else None
        first = rounds(profile.draws)[0]
        erasing = yield from judge.random_units(flagged, row, cut, first, key)
        (random,) = with_intervals([(erasing, len(first))])
        controls = Controls(
            random=random,
            flagged_others=(yield from judge.flagged_others(flagged, row, cut, self.fitted, profile.others, key)),
            augmented=None if copies is None else (yield from judge.augmented(*copies, cut)),
        )
        cost = yield from judge.reference_accuracy(cut, key)
        erased = after is not None and after.prediction != example.label
        return Localized(
            id=finding_id(example.id, example.label),
            outcome=judged_by(cost, random, profile.draws) if erased else Outcome.DIFFUSE,
            after=after,
            units=[judge.space.unit(number) for number in cut],
            reference_accuracy=cost,
            controls=interned(controls),
        )


@cache
def _records() -> TypeAdapter[Localized]:
    return TypeAdapter(Localized)


def key_of(flagged: ExampleSet, row: int) -> str:
    """What an example's random draws depend on, beside the seed and their purpose."""
    return f"{flagged.examples[row].id}:{flagged.examples[row].label}"


def judged_by(cost: ReferenceAccuracy, random: RandomControl, planned: int) -> Outcome:
    """The outcome of a suppressed label: localized if the reference survives and random units do not do the same."""
    survives = cost.after >= cost.before - REFERENCE_BUDGET
    special = random.erased <= RANDOM_BUDGET * planned
    return Outcome.LOCALIZED if survives and special else Outcome.ENTANGLED
