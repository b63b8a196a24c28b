"""Relearning, cross-fitted over the reference: each half of it is scored by networks that learned from the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memaudit.audits.context import Context
from memaudit.audits.memorization.clean import Clean, PartScores, everybody
from memaudit.audits.memorization.relearned import MEMBERS, relearned
from memaudit.audits.memorization.views import against
from memaudit.data import ExampleSet
from memaudit.engine.draws import generator_for
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.layer_groups import LayerGroup

FOLDS = 2


def crossfitted(context: Context, clean: Clean, mirror: bool) -> PartScores | None:
    """The part, averaged over the members; None where the profile relearns nothing, or few examples are clean."""
    count = context.profile.relearnings
    if not count or len(clean.rows) < FOLDS * 2:
        return None
    evaluator, groups, asked = context.evaluator, context.all_groups, everybody(context)
    scores = [torch.zeros(len(asked)), *(torch.zeros(len(clean.rows)) for _ in range(3))]
    once = torch.zeros(len(clean.rows)), torch.zeros(len(clean.rows))
    with context.stage("relearning", count * FOLDS, own_steps=True):
        spans = [MEMBERS[number % len(MEMBERS)].span(groups) for number in range(count)]
        work = Relearning(spans, asked.examples, context.reference, clean, context.seed, mirror)
        found: dict[int, list[Tensor]] = {}
        for place, said in evaluator.engine.each(evaluator, work, range(count * FOLDS)):
            found[place] = said
            context.progress.advance()
    for place in sorted(found):
        inside, asked_here = work.split(place)
        for total, rows, part in zip(scores, (asked_here, ~inside, ~inside, ~inside), found[place], strict=True):
            total[rows] += part / count
        if place < FOLDS:
            once[0][~inside], once[1][~inside] = found[place][1:3]
    flagged, own, given, other = scores
    return PartScores("relearned", flagged, own, given, other, once)


@dataclass(frozen=True)
class Relearning(Work[list[Tensor]]):
    """Each member's layers learned from one fold of the clean examples; the others are asked, and some flagged ones.

    Its numbers are `FOLDS * member + fold`.

    Attributes:
        spans: what each member puts back.
    """

    spans: Sequence[LayerGroup]
    flagged: ExampleSet
    reference: ExampleSet
    clean: Clean
    seed: int
    mirror: bool
    alone: ClassVar[bool] = True

    def split(self, place: int) -> tuple[Tensor, Tensor]:
        """`(n,)` bool, which clean examples are learned, and `(N,)` bool, which flagged ones are asked."""
        member, k = divmod(place, FOLDS)
        fold = folds_of(len(self.clean.rows), self.seed, f"{member}")
        return fold != k, folds_of(len(self.flagged), self.seed, f"{member} flagged") == k

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, list[Tensor]]]:
        """As `Work`: 1 - probability of flagged labels, and of the clean ones' own, given and other labels."""
        clean = self.clean
        for place in rows:
            member, k = divmod(place, FOLDS)
            inside, flagged = self.split(place)
            panel = Panel(self.flagged, flagged.nonzero().flatten().tolist())
            said = relearned(
                evaluator,
                self.spans[member],
                Panel(self.reference, clean.rows[inside].tolist()),
                [panel, Panel(self.reference, clean.rows[~inside].tolist())],
                generator=generator_for(self.seed, "relearn", f"{member} {k}"),
                share=MEMBERS[member % len(MEMBERS)].share,
                mirror=self.mirror,
            )
            scored = [against(said[1], labels[~inside]) for labels in (clean.labels, clean.learned, clean.others)]
            yield place, [against(said[0], self.flagged.labels[panel.rows]), *scored]


def folds_of(rows: int, seed: int, name: str) -> Tensor:
    """`(rows,)`: which fold each example belongs to, drawn anew for each member.

    A flagged example is asked of one fold's network as a clean one is, so that the two are exchangeable. Asked of both
    it would be scored with less noise than what it is compared with, and half as many clean examples as the level says
    would be called.
    """
    order = torch.randperm(rows, generator=generator_for(seed, "folds", name))
    return torch.empty(rows, dtype=torch.int64).scatter(0, order, torch.arange(rows) % FOLDS)
