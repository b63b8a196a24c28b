"""The parts of an estimate, measured: neighbours, views, relearning cross-fitted over the reference, the series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memaudit.audits.atypicality import Neighbours
from memaudit.audits.context import Context
from memaudit.audits.memorization.along_training import followed, late
from memaudit.audits.memorization.joint import join, weights_of
from memaudit.audits.memorization.parts import Calibration, Part
from memaudit.audits.memorization.power import BESIDE, PLANTED, Planting, against
from memaudit.audits.memorization.relearned import MEMBERS, relearned
from memaudit.audits.memorization.views import VIEWS, View, seen
from memaudit.data import ExampleSet
from memaudit.engine.answers import confidence, predicted
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
        doubt: `(n,)`: 1 - the network's probability of those.
        others: other labels, drawn `(n,)`.
        weight: `(n,)`, what each counts: 1 where the network predicts its label, else `HARD`.
    """

    rows: Tensor
    labels: Tensor
    learned: Tensor
    doubt: Tensor
    others: Tensor
    weight: Tensor

    @property
    def known(self) -> Tensor:
        """`(n,)` bool: the network predicts its label."""
        return self.labels == self.learned

    def calibration(self, own: Tensor, given: Tensor) -> Calibration:
        """What p-values compare with, from the scores `(n,)` of their own and of the given labels."""
        return Calibration(own, self.weight, given, self.doubt, ~self.known)


@dataclass(frozen=True)
class PartScores:
    """One kind of evidence on everybody: 1 - the probability of labels by what never saw them.

    Attributes:
        flagged: `(N,)`.
        own, given, other: `(n,)` of the clean examples' own labels, of those the network gives them, and of others.
        once: `own` and `given` as the first relearning alone has them, where more are averaged.
    """

    name: str
    flagged: Tensor
    own: Tensor
    given: Tensor
    other: Tensor
    once: tuple[Tensor, Tensor] | None = None

    def part(self, clean: Clean, doubt: Tensor) -> Part:
        """As a part that is calibrated on the clean examples.

        Args:
            doubt: `(N,)` 1 - the network's probability of each flagged label.
        """
        return Part(self.name, self.flagged, doubt, clean.calibration(self.own, self.given))

    def trial(self, clean: Clean, planted: Tensor, doubt: Tensor) -> Part:
        """The same of labels that were planted; `planted` and `doubt` `(K,)`."""
        own, given = self.once or (self.own, self.given)
        return Part(self.name, planted, doubt, clean.calibration(own, given))


@dataclass(frozen=True)
class Weighed:
    """One estimate for every example of a list, and what it is compared with.

    Attributes:
        parts: each with the clean examples' scores.
        joint: the parts joined.
        planted: p-values of clean examples under wrong labels that a copy of the network learned.
    """

    parts: tuple[Part, ...]
    joint: Part
    planted: Tensor


def weigh(context: Context) -> Weighed:
    """All parts that the profile and the checkpoints allow, for every flagged example.

    Raises:
        ValueError: the context holds no neighbours, on which every other part is calibrated.
    """
    found = context.neighbours
    if found is None:
        raise ValueError("neighbours were not asked")
    clean = _clean(context, found)
    views, viewed = _views(context, clean)
    mirror = VIEWS[0] in views
    asked_for = (_neighbours(found, clean), viewed, _relearned(context, clean, mirror), _along_training(context, clean))
    scores = [one for one in asked_for if one is not None]
    doubt = 1 - confidence(context.flagged_logits, context.flagged.labels)
    parts = tuple(one.part(clean, doubt) for one in scores)
    weights = weights_of(parts, [one.other[clean.known] for one in scores])
    joint = join(parts, weights)
    planted = _planted(context, clean, views, mirror)
    if not planted:
        return Weighed(parts, joint, torch.zeros(0))
    doubts = _doubts(joint, context.fitted, len(planted["neighbours"]))
    trials = [one.trial(clean, planted[one.name], doubts) for one in scores if one.name in planted]
    told = torch.tensor([one.name in planted for one in scores])
    trial = join(trials, weights[told] / weights[told].sum().clamp_min(1e-9))
    return Weighed(parts, joint, trial.p_values())


def _doubts(joint: Part, fitted: Sequence[int], count: int) -> Tensor:
    """`(count,)`: how the network doubts those of the list that least supports: planted labels are taken as given so.

    A network that was stopped early gives what it learned by heart half-heartedly, and planted labels are learned well.
    """
    if not fitted:
        return torch.zeros(count)
    rows = torch.tensor(fitted)[joint.unsupported[fitted].argsort(descending=True, stable=True)[:count]]
    return joint.doubt[rows[torch.arange(count) % len(rows)]]


def _planted(context: Context, clean: Clean, views: Sequence[View], mirror: bool) -> dict[str, Tensor]:
    """By part, what it says of planted labels; relearned once, where the profile relearns at all.

    Empty where there are too few clean examples to plant any.
    """
    known = clean.known.nonzero().flatten()
    known = known[torch.randperm(len(known), generator=generator_for(context.seed, "planting", ""))]
    count = min(PLANTED, len(known) // (1 + BESIDE))
    if not count:
        return {}
    chosen = known[:count]
    rest = torch.ones(len(clean.rows), dtype=torch.bool)
    rest[chosen] = False
    taught = clean.rows[rest & (_folds(len(clean.rows), context.seed, "0") == 0)]
    work = Planting(
        reference=context.reference,
        space=context.space,
        groups=context.all_groups,
        rows=clean.rows[chosen].tolist(),
        labels=clean.others[chosen],
        beside=clean.rows[known[count : count * (1 + BESIDE)]].tolist(),
        views=views,
        member=MEMBERS[0] if context.profile.relearnings and len(clean.rows) >= FOLDS * 2 else None,
        taught=taught.tolist(),
        mirror=mirror,
        seed=context.seed,
    )
    with context.stage("planting", 1, own_steps=True):
        ((_, found),) = context.evaluator.engine.each(context.evaluator, work, range(1))
        context.progress.advance()
    return found


def _clean(context: Context, found: Neighbours) -> Clean:
    rows = found.rows[: context.profile.relearn_rows]
    labels = context.reference.labels[rows]
    known = predicted(context.reference_margins[rows])
    if int(known.sum()) < 2:  # nothing that the model predicts: every clean example has to do
        known = torch.ones_like(known)
    logits = context.reference_logits[rows]
    learned = torch.where(known, labels, logits.argmax(1))
    weight = torch.where(learned == labels, 1.0, HARD)
    return Clean(rows, labels, learned, 1 - confidence(logits, learned), found.others[: len(rows)], weight)


def _everybody(context: Context) -> Panel:
    """The flagged examples, without memorizing units of their own, as the reference runs: they would give the label."""
    return Panel(context.flagged.unnumbered(), range(len(context.flagged)))


def _neighbours(found: Neighbours, clean: Clean) -> PartScores:
    count = len(clean.rows)
    return PartScores("neighbours", found.flagged.score, found.own[:count], found.given[:count], found.other[:count])


def _along_training(context: Context, clean: Clean) -> PartScores | None:
    if not any(not state.final for state in context.states):
        return None
    flagged = _everybody(context)
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("along training", len(context.states) * (len(flagged) + len(reference))):
        courses = [followed(context.evaluator, context.states, panel) for panel in (flagged, reference)]
    own, other = late(courses[1], clean.learned), late(courses[1], clean.others)
    return PartScores("along training", late(courses[0], context.flagged.labels), own, own, other)


def _views(context: Context, clean: Clean) -> tuple[list[View], PartScores | None]:
    flagged = _everybody(context)
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("views", len(VIEWS) * (len(flagged) + len(reference)), intact=True):
        views, said = seen(context.evaluator, [flagged, reference], clean.learned, clean.known)
    if not said:
        return [], None
    own, other = against(said[1], clean.learned), against(said[1], clean.others)
    return views, PartScores("views", against(said[0], context.flagged.labels), own, own, other)


def _relearned(context: Context, clean: Clean, mirror: bool) -> PartScores | None:
    count = context.profile.relearnings
    if not count or len(clean.rows) < FOLDS * 2:
        return None
    evaluator, groups, everybody = context.evaluator, context.all_groups, _everybody(context)
    scores = [torch.zeros(len(everybody)), *(torch.zeros(len(clean.rows)) for _ in range(3))]
    once = torch.zeros(len(clean.rows)), torch.zeros(len(clean.rows))
    with context.stage("relearning", count * FOLDS, own_steps=True):
        spans = [MEMBERS[number % len(MEMBERS)].span(groups) for number in range(count)]
        work = Relearning(spans, everybody.examples, context.reference, clean, context.seed, mirror)
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
        fold = _folds(len(self.clean.rows), self.seed, f"{member}")
        return fold != k, _folds(len(self.flagged), self.seed, f"{member} flagged") == k

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


def _folds(rows: int, seed: int, name: str) -> Tensor:
    """`(rows,)`: which fold each example belongs to, drawn anew for each member.

    A flagged example is asked of one fold's network as a clean one is, so that the two are exchangeable. Asked of both
    it would be scored with less noise than what it is compared with, and half as many clean examples as the level says
    would be called.
    """
    order = torch.randperm(rows, generator=generator_for(seed, "folds", name))
    return torch.empty(rows, dtype=torch.int64).scatter(0, order, torch.arange(rows) % FOLDS)
