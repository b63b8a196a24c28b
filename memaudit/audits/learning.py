"""Learning order: when along the checkpoints each label came to be predicted, and for good.

Examples that the network fits late, while everything like them is long fitted, are fitted one by one; the confidence
in the label averaged over training is the "learning speed" of Jiang et al. 2021 and a second view of atypicality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import confidence, margin, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.network.scoped import holding
from memaudit.network.states import State


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
    def learned(self) -> list[int | None]:
        """Per example the checkpoint from which on the label is always predicted; None if the last one misses it."""
        forgotten = (~self.right).to(torch.int64)
        last_miss = (forgotten * torch.arange(1, len(forgotten) + 1)[:, None]).amax(0)
        return [int(n) if n < len(forgotten) else None for n in last_miss.tolist()]


def follow(evaluator: Evaluator, states: Sequence[State], examples: ExampleSet, rows: Sequence[int]) -> Course:
    """The course of `rows` through `states`, each put in place as a whole."""
    labels = examples.labels[list(rows)]
    confidences, right = [], []
    for state in states:
        with holding(evaluator.adapter.module, state.tensors):
            logits = evaluator.logits(examples, rows)
        confidences.append(confidence(logits, labels).float())
        right.append(predicted(margin(logits, labels)))
    return Course(torch.stack(confidences), torch.stack(right))


def p_values(lateness: Tensor, reference: Tensor) -> Tensor:
    """`(N,)` share of the reference that is learned at least as late."""
    return (reference[None, :] >= lateness[:, None] - 1e-6).float().mean(1)
