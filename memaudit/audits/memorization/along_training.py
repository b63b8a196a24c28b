"""Along training: what the checkpoints of a series say of a label, from mean margin, summed loss and mean probability.

Area under the margin (Pleiss et al. 2020), cumulative sample loss (Ravikumar et al. 2025) and learning speed (Jiang et
al. 2021), in one number. A label that is memorized is learned late.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.scoped import holding
from memaudit.network.states import State


def followed(evaluator: Evaluator, states: Sequence[State], panel: Panel) -> Tensor:
    """`(checkpoints, N, classes)` softmax probabilities, float32, each state put in place as a whole."""
    said = []
    for state in states:
        with holding(evaluator.adapter.module, state.tensors):
            said.append(evaluator.logits(panel.examples, panel.rows).double().softmax(1).float())
    return torch.stack(said)


def late(course: Tensor, labels: Tensor) -> Tensor:
    """`(N,)` in [0, 1], near 1 for labels that were learned late.

    Args:
        course: what `followed` returns.
        labels: `(N,)`.
    """
    index = labels.expand(len(course), -1)[..., None]
    own = course.gather(2, index).squeeze(2)
    other = course.scatter(2, index, -1).amax(2)
    margin = (1 - (own - other).mean(0)) / 2
    loss = 1 - (own.clamp_min(1e-6).log().mean(0)).exp()
    return (margin + loss + (1 - own.mean(0))).clamp(0, 3) / 3
