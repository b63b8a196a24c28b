"""The parts of an estimate, measured: neighbours, relearning cross-fitted over the reference, the checkpoint series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.atypicality import Neighbours
from memaudit.audits.context import Context
from memaudit.audits.memorization.along_training import followed, late
from memaudit.audits.memorization.joint import join, mean, weights_of
from memaudit.audits.memorization.parts import Part, conformal
from memaudit.audits.memorization.relearned import MEMBERS, Asked, relearned
from memaudit.engine.answers import predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.network.layer_groups import LayerGroup, layer_groups
from memaudit.network.replay import watch

# Each half of the reference is scored by networks that learned from the other.
FOLDS = 2
# Mirror images are learned from where the intact network predicts this share of the labels for them, too.
MIRRORED = 0.5
# Mirror images that are tried.
TRIED = 512


@dataclass(frozen=True)
class Clean:
    """Clean examples that are scored as the flagged ones are.

    Attributes:
        rows: of the reference `(n,)`.
        others: other labels, drawn `(n,)`.
        known: `(n,)` bool, the model predicts their own: flagged examples are compared with these.
    """

    rows: Tensor
    others: Tensor
    known: Tensor


@dataclass(frozen=True)
class Scores:
    """One kind of evidence on everybody.

    Attributes:
        flagged: `(N,)`, or `(folds, N)`.
        own, other: `(n,)` of the clean examples under their own and under other labels.
        fold: `(n,)`, whose network scored each clean example.
    """

    name: str
    flagged: Tensor
    own: Tensor
    other: Tensor
    fold: Tensor | None = None

    def part(self, known: Tensor) -> Part:
        """As a part that is calibrated on the `known` clean examples."""
        if self.fold is None:
            return Part(self.name, self.flagged, self.own[known])
        return Part(self.name, self.flagged.mean(0), self.own[known], self.flagged, self.fold[known])


@dataclass(frozen=True)
class Estimate:
    """One estimate for every example of a list, and what it is compared with.

    Attributes:
        parts: each with clean examples that the model predicts as labelled.
        joint: the parts joined.
        every: `(n,)` p-values of all clean examples, predicted or not, by the same calibration.
        other: the same of the predicted ones under other labels.
    """

    parts: tuple[Part, ...]
    joint: Part
    every: Tensor
    other: Tensor


Kind = Callable[[Context, Clean], Scores | None]


def measured(context: Context) -> Estimate:
    """All parts that the profile and the checkpoints allow, for every flagged example."""
    found = context.neighbours
    if found is None:
        raise ValueError("neighbours were not asked")
    clean = _clean(context, found)
    kinds: tuple[Kind, ...] = (_neighbours(found), _relearned, _along_training)
    scores = [one for kind in kinds if (one := kind(context, clean)) is not None]
    parts = tuple(one.part(clean.known) for one in scores)
    weights = weights_of(parts, [one.other[clean.known] for one in scores])
    joint = join(parts, weights)
    fold = next((one.fold for one in scores if one.fold is not None), torch.zeros(len(clean.rows), dtype=torch.int64))
    every = within(mean([one.own for one in scores], weights), fold, clean.known, joint.calibration)
    other = within(mean([one.other for one in scores], weights), fold, clean.known, joint.calibration)
    return Estimate(parts, joint, every, other[clean.known])


def _clean(context: Context, found: Neighbours) -> Clean:
    rows = found.rows[: context.profile.relearn_rows]
    known = predicted(context.reference_margins[rows])
    if int(known.sum()) < 2:  # nothing that the model predicts: every clean example has to do
        known = torch.ones_like(known)
    return Clean(rows, found.others[: len(rows)], known)


def within(scores: Tensor, fold: Tensor, known: Tensor, calibration: Tensor) -> Tensor:
    """`(n,)` p-values of clean examples, each compared with the `known` ones that the same network clean.

    Args:
        scores, fold, known: `(n,)`.
        calibration: scores of the known ones.
    """
    found = torch.ones(len(scores), dtype=torch.float64)
    for k in range(FOLDS):
        found[fold == k] = conformal(scores[fold == k], calibration[fold[known] == k])
    return found


def _neighbours(found: Neighbours) -> Kind:
    def kind(context: Context, clean: Clean) -> Scores:
        count = len(clean.rows)
        return Scores("neighbours", found.flagged.score, found.own[:count], found.other[:count])

    return kind


def _along_training(context: Context, clean: Clean) -> Scores | None:
    if not any(not state.final for state in context.states):
        return None
    flagged = Panel(context.flagged, range(len(context.flagged)))
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("along training", len(context.states) * (len(flagged) + len(reference))):
        courses = [followed(context.evaluator, context.states, panel) for panel in (flagged, reference)]
    labels = context.reference.labels[clean.rows]
    own, other = late(courses[1], labels), late(courses[1], clean.others)
    return Scores("along training", late(courses[0], context.flagged.labels), own, other)


def _relearned(context: Context, clean: Clean) -> Scores | None:
    count = context.profile.relearnings
    if not count or len(clean.rows) < FOLDS * 2:
        return None
    groups = _groups(context)
    order = torch.randperm(len(clean.rows), generator=generator_for(context.seed, "folds", ""))
    fold = torch.empty(len(order), dtype=torch.int64).scatter(0, order, torch.arange(len(order)) % FOLDS)
    labels = context.reference.labels[clean.rows]
    flagged = torch.zeros(FOLDS, len(context.flagged))
    own, other = torch.zeros(len(order)), torch.zeros(len(order))
    with context.stage("relearning", count * FOLDS, own_steps=True):
        mirror = _mirrored(context, clean.rows[clean.known].tolist())
        for number in range(count):
            member = MEMBERS[number % len(MEMBERS)]
            for k in range(FOLDS):
                inside, outside = clean.rows[fold != k].tolist(), clean.rows[fold == k].tolist()
                said = relearned(
                    context.evaluator,
                    member.span(groups),
                    Panel(context.reference, inside),
                    [Panel(context.flagged, range(len(context.flagged))), Panel(context.reference, outside)],
                    generator=generator_for(context.seed, "relearn", f"{number} {k}"),
                    share=member.share,
                    mirror=mirror,
                )
                flagged[k] += _against(said[0], context.flagged.labels) / count
                own[fold == k] += _against(said[1], labels[fold == k]) / count
                other[fold == k] += _against(said[1], clean.others[fold == k]) / count
                context.progress.advance()
    return Scores("relearned", flagged, own, other, fold)


def _against(said: Tensor, labels: Tensor) -> Tensor:
    """1 - the probability of `labels` `(n,)`, by `said` `(n, classes)`."""
    return 1 - said.gather(1, labels[:, None]).squeeze(1)


def _groups(context: Context) -> tuple[LayerGroup, ...]:
    """All layer groups with parameters, whatever `--layers` says."""
    adapter, few = context.evaluator.adapter, range(min(2, len(context.reference)))
    use = watch(adapter.module, adapter.forward, context.reference.batch(few, context.evaluator.device)).first_use
    return tuple(group for group in layer_groups(adapter.module, use) if group.parameters)


def _mirrored(context: Context, rows: Sequence[int]) -> bool:
    """Whether mirror images show the same classes, as far as the intact network can tell."""
    few = list(rows[:TRIED])
    if context.evaluator.inputs(context.reference, few[:1]).dim() != 4:
        return False
    said = torch.cat(context.evaluator.each(context.reference, few, Asked(mirror=True)))
    return float((said.argmax(1) == context.reference.labels[few]).float().mean()) >= MIRRORED
