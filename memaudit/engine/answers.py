"""What logits say of a label: one rule for every figure.

A label is predicted when its logit is larger than every other one. A tie predicts nothing, and neither do logits that
are not finite: such a label is not *lost* either, for nothing was measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memaudit.findings import Prediction, Share
from memaudit.intervals import wilson
from memaudit.numbers import tidy


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit margin `(N,)` of `labels` `(N,)`: their logit minus the largest other one of `(N, classes)`."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own - others.max(1).values


def predicted(margins: Tensor) -> Tensor:
    """Whether the labels of these `margins` `(...)` are predicted, bool `(...)`."""
    return (margins > 0) & torch.isfinite(margins)


def lost(margins: Tensor) -> Tensor:
    """Whether the labels of these `margins` `(...)` are measured and not predicted, bool `(...)`."""
    return (margins <= 0) & torch.isfinite(margins)


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax probability `(N,)` of `labels`, float64; 0 where the logits are not finite."""
    wide = logits.double().nan_to_num(nan=-torch.inf)
    return wide.softmax(1).nan_to_num().gather(1, labels[:, None]).squeeze(1)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy `(N,)` of `labels`, float64."""
    return torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")


def share(hits: int, count: int) -> Share:
    """So many of so many, with the Wilson interval; no rate where there is nothing to count."""
    low, high = wilson(hits, count)
    if not count:
        return Share(hits=hits, rate=None, low=None, high=None)
    return Share(hits=hits, rate=tidy(hits / count), low=tidy(low), high=tidy(high))


def prediction(logits: Tensor, label: int) -> Prediction:
    """What finite logits `(classes,)` say of one example with the flagged label `label`.

    The predicted class is `label` only where `predicted` says so: on a tie it is the first of the other classes.
    """
    own = torch.tensor([label])
    gap = margin(logits[None], own)
    best = logits if bool(predicted(gap)) else logits.scatter(0, own.to(logits.device), -torch.inf)
    return Prediction(
        prediction=int(best.argmax()), margin=tidy(float(gap)), confidence=tidy(float(confidence(logits[None], own)))
    )
