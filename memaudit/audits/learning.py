"""Learning order: when along the checkpoints each label came to be predicted and stayed so.

Examples that the network fits late, while everything like them is long fitted, are fitted one by one; the confidence
in the label averaged over training is the "learning speed" of Jiang et al. 2021 and a second view of atypicality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from memaudit.audits.base import ForExample, ForReport, Piece, Workload
from memaudit.audits.context import Context
from memaudit.audits.panels import mean_or_none
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import confidence, margin, predicted
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.findings import Learning, SeriesPoint
from memaudit.network.scoped import holding, unchanged
from memaudit.network.states import State
from memaudit.numbers import tidy


@dataclass(frozen=True)
class Course:
    """What each checkpoint says of some examples.

    Attributes:
        confidence: `(checkpoints, N)` softmax probability of the label.
        right: `(checkpoints, N)` bool, the label is predicted.
    """

    confidence: Tensor
    right: Tensor

    @property
    def lateness(self) -> Tensor:
        """`(N,)` in [0, 1]: 1 minus the label's confidence averaged over the checkpoints."""
        return (1 - self.confidence.mean(0)).clamp(0, 1)

    @property
    def lateness_of_fitted(self) -> Tensor:
        """`(n,)` lateness of the examples that the last checkpoint predicts, of all where it predicts none.

        What was never learned counts as latest: beside it every fitted example would look early.
        """
        fitted = self.right[-1]
        return self.lateness[fitted] if bool(fitted.any()) else self.lateness

    @cached_property
    def learned(self) -> list[int | None]:
        """Per example the checkpoint from which on the label is always predicted; None if the last one misses it."""
        forgotten = (~self.right).to(torch.int64)
        last_miss = (forgotten * torch.arange(1, len(forgotten) + 1)[:, None]).amax(0)
        return [int(n) if n < len(forgotten) else None for n in last_miss.tolist()]


@dataclass(frozen=True)
class Following(Work[Any]):
    """The confidence `(n,)` in each label of `panel`, and which are predicted, at each checkpoint.

    Its numbers are those of `states`.
    """

    states: Sequence[State]
    panel: Panel
    alone: ClassVar[bool] = True

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """As `Work`."""
        examples = self.panel.examples
        labels = examples.labels[list(self.panel.rows)]
        for place in rows:
            with holding(evaluator.adapter.module, self.states[place].tensors):
                logits = evaluator.logits(examples, self.panel.rows)
            yield place, [confidence(logits, labels).float(), predicted(margin(logits, labels))]


def follow(evaluator: Evaluator, states: Sequence[State], examples: ExampleSet, rows: Sequence[int]) -> Course:
    """The course of `rows` through `states`, each put in place as a whole."""
    work = Following(states, Panel(examples, rows))
    found = dict(evaluator.engine.each(evaluator, work, range(len(states))))
    confidences, right = zip(*(found[place] for place in range(len(states))), strict=True)
    return Course(torch.stack(confidences), torch.stack(right))


def p_values(lateness: Tensor, reference: Tensor) -> Tensor:
    """`(N,)` share of the reference that is learned at least as late."""
    return (reference[None, :] >= lateness[:, None] - 1e-6).float().mean(1)


class LearningOrder:
    """When each flagged label was learned, beside reference examples; runs wherever an audit over time does."""

    name = "learning order"

    def passes(self, size: Workload) -> float:
        """Every flagged example and both reference panels at every checkpoint."""
        rows = size.flagged + min(size.fitted, size.profile.flagged_rows)
        return float(size.states * (rows + min(size.reference, size.profile.reference_rows)))

    def pieces(self, size: Workload) -> int:
        """One a checkpoint."""
        return size.states

    def run(self, context: Context) -> Iterator[Piece]:
        """`learning` of every flagged example, the `series`, and the `lateness` `(n,)` of fitted reference examples."""
        evaluator, states, panels = context.evaluator, context.states, context.panels
        everything = list(range(len(context.flagged)))
        sample = sorted({*panels.reference.rows, *panels.matched.rows})
        steps = len(states) * (len(everything) + len(sample))
        with context.stage("learning order", steps), unchanged(evaluator.adapter.module, "the learning order"):
            course = follow(evaluator, states, context.flagged, everything)
            reference = follow(evaluator, states, context.reference, sample)
        shares = p_values(course.lateness, reference.lateness_of_fitted)
        for row in everything:
            yield ForExample(row, {"learning": _learning(course, row, float(shares[row]), states)})
        place = {row: n for n, row in enumerate(sample)}
        matched = [place[r] for r in panels.matched.rows]
        yield ForReport("series", [_point(n, state, course, reference, matched) for n, state in enumerate(states)])
        yield ForReport("lateness", reference.lateness_of_fitted)


def _learning(course: Course, row: int, p_value: float, states: Sequence[State]) -> Learning:
    learned = course.learned[row]
    return Learning(
        score=tidy(float(course.lateness[row])),
        p_value=tidy(p_value),
        learned=None if learned is None else states[learned].label,
        confidence=[tidy(c) for c in course.confidence[:, row].tolist()],
    )


def _point(n: int, state: State, course: Course, reference: Course, matched: Sequence[int]) -> SeriesPoint:
    return SeriesPoint(
        checkpoint=state.label,
        file=state.file,
        epoch=state.epoch,
        step=state.step,
        sha256=state.sha256,
        final=state.final,
        flagged=mean_or_none(course.right[n]),
        reference=mean_or_none(reference.right[n]),
        matched=mean_or_none(reference.right[n][matched]),
        flagged_examples=course.right.shape[1],
        reference_examples=reference.right.shape[1],
        matched_examples=len(matched),
        flagged_confidence=mean_or_none(course.confidence[n]),
        reference_confidence=mean_or_none(reference.confidence[n]),
        matched_confidence=mean_or_none(reference.confidence[n][matched]),
    )
