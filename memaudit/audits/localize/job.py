"""What a search holds of one example under way, and what it claims in the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Fill
from memaudit.network.units import UnitSpace


@dataclass(frozen=True)
class Proposal:
    """What the search claims of one example.

    Attributes:
        row: the example.
        cut: unit numbers in the order they were cut.
        erased: whether the label was lost within the budget.
    """

    row: int
    cut: tuple[int, ...]
    erased: bool


@dataclass(eq=False)
class Job:
    """One example under way.

    Attributes:
        cut: what is cut so far.
        margin: of `label` then, in full precision once a unit is cut; not a number before it was measured.
        seen: `margin` by what was cut, in full precision, infinite where it is not finite: what was not measured does
            not count as lost.
    """

    row: int
    label: int
    cut: list[int] = field(default_factory=list)
    margin: float = math.nan
    seen: dict[frozenset[int], float] = field(default_factory=dict)

    def kept(self, cut: Collection[int]) -> bool:
        """Whether the label was seen to be kept with `cut` ablated or with more; of fewer it is not asked again."""
        return any(value > 0 and seen.issuperset(cut) for seen, value in self.seen.items())


def measured(
    evaluator: Evaluator, examples: ExampleSet, cuts: Sequence[tuple[Job, Sequence[int]]], space: UnitSpace, fill: Fill
) -> list[float]:
    """The margin that the label of each job has with this cut; one forward pass for all that were not seen before."""
    new = [(job, cut) for job, cut in cuts if frozenset(cut) not in job.seen]
    if new:
        rows = [job.row for job, _ in new]
        logits = evaluator.logits(examples, rows, [cut for _, cut in new], space, fill)
        record(new, margin(logits, examples.labels[rows]))
    return [job.seen[frozenset(cut)] for job, cut in cuts]


def record(cuts: Sequence[tuple[Job, Sequence[int]]], margins: Tensor) -> None:
    """Note of each job the margin `(cuts,)` that its label has with this cut."""
    for (job, cut), value in zip(cuts, margins.masked_fill(~torch.isfinite(margins), torch.inf).tolist(), strict=True):
        job.seen[frozenset(cut)] = value
