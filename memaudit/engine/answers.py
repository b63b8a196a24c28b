"""What logits say of a label: one rule for every figure.

A label is predicted when its logit is larger than every other one. A tie predicts nothing, and neither do logits that
are not finite: such a label is not *lost* either, for nothing was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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


def answered(logits: Tensor, labels: Tensor) -> Tensor:
    """What is kept of logits `(N, classes)` for labels `(N,)`: `(N, 4)` float64, which `Answers` names.

    Logits of a million examples and a thousand classes would take 5 GB.
    """
    gap = margin(logits, labels)
    other = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    given = torch.where(predicted(gap), labels, other)
    return torch.stack([given, gap, confidence(logits, labels), torch.isfinite(logits).all(1)], 1).double()


@dataclass(frozen=True)
class Answers:
    """What a network says of examples and their labels.

    Attributes:
        values: `(N, 4)`, as `answered` gives them.
        classes: how many it knows.
    """

    values: Tensor
    classes: int

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Self:
        """Those that logits `(N, classes)` give to `labels` `(N,)`."""
        return cls(answered(logits, labels), logits.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def given(self) -> Tensor:
        """`(N,)` int64: the class that each example is given; its label only where `predicted` says so."""
        return self.values[:, 0].long()

    @property
    def margins(self) -> Tensor:
        """`(N,)` float64: of the labels."""
        return self.values[:, 1]

    @property
    def confidence(self) -> Tensor:
        """`(N,)` float64: of the labels."""
        return self.values[:, 2]

    @property
    def finite(self) -> Tensor:
        """`(N,)` bool: whether all logits were."""
        return self.values[:, 3] > 0

    def prediction(self, row: int) -> Prediction:
        """As the function of that name, of finite logits."""
        given, gap, sure, _ = self.values[row].tolist()
        return Prediction(prediction=int(given), margin=tidy(gap), confidence=tidy(sure))


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
    return Answers.of(logits[None].cpu(), torch.tensor([label])).prediction(0)
