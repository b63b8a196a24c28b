"""An estimate, weighed: neighbours, views, relearning and the series of every flagged example, joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.atypicality import Neighbours
from memaudit.audits.context import Context
from memaudit.audits.memorization.along_training import followed, late
from memaudit.audits.memorization.clean import Clean, PartScores, clean_examples, everybody
from memaudit.audits.memorization.crossfitted import crossfitted
from memaudit.audits.memorization.joint import join, weights_of
from memaudit.audits.memorization.parts import Part
from memaudit.audits.memorization.power import planted
from memaudit.audits.memorization.views import against, seen
from memaudit.engine.answers import confidence
from memaudit.engine.evaluator import Panel
from memaudit.engine.views import VIEWS, View


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
    clean = clean_examples(context, found)
    views, viewed = _views(context, clean)
    mirror = VIEWS[0] in views
    asked_for = (
        _neighbours(found, clean),
        viewed,
        crossfitted(context, clean, mirror),
        _along_training(context, clean),
    )
    scores = [one for one in asked_for if one is not None]
    doubt = 1 - confidence(context.flagged_logits, context.flagged.labels)
    parts = tuple(one.part(clean, doubt) for one in scores)
    weights = weights_of(parts, [one.other[clean.known] for one in scores])
    joint = join(parts, weights)
    trial = planted(context, clean, views, mirror)
    if not trial:
        return Weighed(parts, joint, torch.zeros(0))
    doubts = _doubts(joint, context.fitted, len(trial["neighbours"]))
    trials = [one.trial(clean, trial[one.name], doubts) for one in scores if one.name in trial]
    told = torch.tensor([one.name in trial for one in scores])
    found_again = join(trials, weights[told] / weights[told].sum().clamp_min(1e-9))
    return Weighed(parts, joint, found_again.p_values())


def _doubts(joint: Part, fitted: Sequence[int], count: int) -> Tensor:
    """`(count,)`: how the network doubts those of the list that least supports: planted labels are taken as given so.

    A network that was stopped early gives what it learned by heart half-heartedly, and planted labels are learned well.
    """
    if not fitted:
        return torch.zeros(count)
    rows = torch.tensor(fitted)[joint.unsupported[fitted].argsort(descending=True, stable=True)[:count]]
    return joint.doubt[rows[torch.arange(count) % len(rows)]]


def _neighbours(found: Neighbours, clean: Clean) -> PartScores:
    count = len(clean.rows)
    return PartScores("neighbours", found.flagged.score, found.own[:count], found.given[:count], found.other[:count])


def _along_training(context: Context, clean: Clean) -> PartScores | None:
    if not any(not state.final for state in context.states):
        return None
    flagged = everybody(context)
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("along training", len(context.states) * (len(flagged) + len(reference))):
        courses = [followed(context.evaluator, context.states, panel) for panel in (flagged, reference)]
    own, other = late(courses[1], clean.learned), late(courses[1], clean.others)
    return PartScores("along training", late(courses[0], context.flagged.labels), own, own, other)


def _views(context: Context, clean: Clean) -> tuple[list[View], PartScores | None]:
    flagged = everybody(context)
    reference = Panel(context.reference, clean.rows.tolist())
    with context.stage("views", len(VIEWS) * (len(flagged) + len(reference)), intact=True):
        views, said = seen(context.evaluator, [flagged, reference], clean.learned, clean.known)
    if not said:
        return [], None
    own, other = against(said[1], clean.learned), against(said[1], clean.others)
    return views, PartScores("views", against(said[0], context.flagged.labels), own, own, other)
