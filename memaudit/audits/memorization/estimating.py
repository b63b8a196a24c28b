"""The parts of an estimate, measured: neighbours, views, relearning cross-fitted over the reference, the series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memaudit.audits.atypicality import Neighbours
from memaudit.audits.context import Context
from memaudit.audits.memorization.along_training import followed, late
from memaudit.audits.memorization.joint import join, mean, weights_of
from memaudit.audits.memorization.parts import Part, conformal
from memaudit.audits.memorization.relearned import MEMBERS, relearned
from memaudit.audits.memorization.views import VIEWS, asked, mirrored, seen
from memaudit.data import ExampleSet
from memaudit.engine.answers import predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.layer_groups import LayerGroup

# What a clean example that the network mispredicts counts in the calibration. Had it been trained on, the network would
# predict it, and most such examples would look less memorized than they do. With validation images as the reference,
# 0.15 to 0.25 called as many true labels as clean training images did.
HARD = 0.2
# Each half of the reference is scored by networks that learned from the other.
FOLDS = 2


@dataclass(frozen=True)
class Clean:
    """Clean examples that are scored as the flagged ones are.

    Attributes:
        rows: of the reference `(n,)`.
        labels: their own `(n,)`.
        learned: the labels that the network gives them `(n,)`.
        others: other labels, drawn `(n,)`.
        weight: `(n,)`, what each counts: 1 where the network predicts its label, else `HARD`.
    """

    rows: Tensor
    labels: Tensor
    learned: Tensor
    others: Tensor
    weight: Tensor

    @property
    def known(self) -> Tensor:
        """`(n,)` bool: the network predicts its label."""
        return self.labels == self.learned


@dataclass(frozen=True)
class PartScores:
    """One kind of evidence on everybody.

    Attributes:
        flagged: `(N,)`.
        own, other: `(n,)` of the clean examples under their own and under other labels.
    """

    name: str
    flagged: Tensor
    own: Tensor
    other: Tensor

    def part(self, clean: Clean, doubt: Tensor) -> Part:
        """As a part that is calibrated on the clean examples.

        Memorization is the probability of the label, less what it is without the example (Feldman and Zhang 2020). So
        what the network itself doubts is subtracted: a label that it gives by mistake, without having seen it, is given
        half-heartedly. Clean examples are scored as if the network were sure of them.

        Args:
            doubt: `(N,)` 1 - the network's probability of each flagged label.
        """
        return Part(self.name, (self.flagged - doubt).clamp_min(0), self.own, clean.weight)


@dataclass(frozen=True)
class Weighed:
    """One estimate for every example of a list, and what it is compared with.

    Attributes:
        parts: each with the clean examples' scores.
        joint: the parts joined.
        other: p-values of the clean examples that the model predicts, under other labels.
    """

    parts: tuple[Part, ...]
    joint: Part
    other: Tensor


Kind = Callable[[Context, Clean], PartScores | None]


def weigh(context: Context) -> Weighed:
    """All parts that the profile and the checkpoints allow, for every flagged example.

    Raises:
        ValueError: the context holds no neighbours, on which every other part is calibrated.
    """
    found = context.neighbours
    if found is None:
        raise ValueError("neighbours were not asked")
    clean = _clean(context, found)
    kinds: tuple[Kind, ...] = (_neighbours(found), _views, _relearned, _along_training)
    scores = [one for kind in kinds if (one := kind(context, clean)) is not None]
    doubt = _doubt(context)
    parts = tuple(one.part(clean, doubt) for one in scores)
    others = [one.other[clean.known] for one in scores]
    weights = weights_of(parts, others)
    joint = join(parts, weights)
    return Weighed(parts, joint, conformal(mean(others, weights), joint.calibration, joint.weight))


def _clean(context: Context, found: Neighbours) -> Clean:
    rows = found.rows[: context.profile.relearn_rows]
    labels = context.reference.labels[rows]
    known = predicted(context.reference_margins[rows])
    if int(known.sum()) < 2:  # nothing that the model predicts: every clean example has to do
        known = torch.ones_like(known)
    with context.stage("reference", len(rows), intact=True):
        said = asked(context.evaluator, Panel(context.reference, rows.tolist()))
    learned = torch.where(known, labels, said.argmax(1))
    return Clean(rows, labels, learned, found.others[: len(rows)], torch.where(learned == labels, 1.0, HARD))


def _doubt(context: Context) -> Tensor:
    """`(N,)`: 1 - the network's probability of each flagged label."""
    with context.stage("reference", len(context.flagged), intact=True):
        said = asked(context.evaluator, Panel(context.flagged, range(len(context.flagged))))
    return _against(said, context.flagged.labels)


def _everybody(context: Context) -> Panel:
    """The flagged examples, without memorizing units of their own, as the reference runs: they would give the label."""
    return Panel(context.flagged.unnumbered(), range(len(context.flagged)))


def _neighbours(found: Neighbours) -> Kind:
    def kind(context: Context, clean: Clean) -> PartScores:
        count = len(clean.rows)
        return PartScores("neighbours", found.flagged.score, found.own[:count], found.other[:count])

    return kind


def _along_training(context: Context, clean: Clean) -> PartScores | None:
    if not any(not state.final for state in context.states):
        return None
    flagged = _everybody(context)
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("along training", len(context.states) * (len(flagged) + len(reference))):
        courses = [followed(context.evaluator, context.states, panel) for panel in (flagged, reference)]
    own, other = late(courses[1], clean.learned), late(courses[1], clean.others)
    return PartScores("along training", late(courses[0], context.flagged.labels), own, other)


def _views(context: Context, clean: Clean) -> PartScores | None:
    flagged = _everybody(context)
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("views", len(VIEWS) * (len(flagged) + len(reference)), intact=True):
        said = seen(context.evaluator, [flagged, reference], clean.learned, clean.known)
    if said is None:
        return None
    own, other = _against(said[1], clean.learned), _against(said[1], clean.others)
    return PartScores("views", _against(said[0], context.flagged.labels), own, other)


def _relearned(context: Context, clean: Clean) -> PartScores | None:
    count = context.profile.relearnings
    if not count or len(clean.rows) < FOLDS * 2:
        return None
    evaluator, groups, everybody = context.evaluator, context.all_groups, _everybody(context)
    scores = [torch.zeros(len(everybody)), torch.zeros(len(clean.rows)), torch.zeros(len(clean.rows))]
    with context.stage("relearning", count * FOLDS, own_steps=True):
        mirror = mirrored(evaluator, Panel(context.reference, clean.rows[clean.known].tolist()))
        spans = [MEMBERS[number % len(MEMBERS)].span(groups) for number in range(count)]
        work = Relearning(spans, everybody.examples, context.reference, clean, context.seed, mirror)
        found: dict[int, list[Tensor]] = {}
        for place, said in evaluator.engine.each(evaluator, work, range(count * FOLDS)):
            found[place] = said
            context.progress.advance()
    for place in sorted(found):
        inside, asked_here = work.split(place)
        for total, rows, part in zip(scores, (asked_here, ~inside, ~inside), found[place], strict=True):
            total[rows] += part / count
    return PartScores("relearned", *scores)


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
        fold = _folds(len(self.clean.rows), self.seed, f"{member}")
        return fold != k, _folds(len(self.flagged), self.seed, f"{member} flagged") == k

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, list[Tensor]]]:
        """As `Work`: 1 - probability of flagged labels, and of the clean ones' own and other labels."""
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
            own, other = (_against(said[1], labels[~inside]) for labels in (clean.labels, clean.others))
            yield place, [_against(said[0], self.flagged.labels[panel.rows]), own, other]


def _folds(rows: int, seed: int, name: str) -> Tensor:
    """`(rows,)`: which fold each example belongs to, drawn anew for each member.

    A flagged example is asked of one fold's network as a clean one is, so that the two are exchangeable. Asked of both
    it would be scored with less noise than what it is compared with, and half as many clean examples as the level says
    would be called.
    """
    order = torch.randperm(rows, generator=generator_for(seed, "folds", name))
    return torch.empty(rows, dtype=torch.int64).scatter(0, order, torch.arange(rows) % FOLDS)


def _against(said: Tensor, labels: Tensor) -> Tensor:
    """1 - the probability of `labels` `(n,)`, by `said` `(n, classes)`."""
    return 1 - said.gather(1, labels[:, None]).squeeze(1)
