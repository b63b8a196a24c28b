"""Parts of an estimate: a score per example, and the same score of clean examples, from which p-values follow.

The p-values are conformal (Vovk et al. 2005): a clean example's own score is computed without its label, so that it and
the score of an example in question are exchangeable when that example is clean too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scores that differ by less are equal: averages of few votes under float rounding.
EQUAL = 1e-6
# Least probability that a share is taken of.
SLIGHT = 1e-3
# Fewer mistakes do not show how mistakes look.
MISTAKES = 40


@dataclass(frozen=True)
class Calibration:
    """Clean examples that p-values compare with.

    Attributes:
        own: `(R,)`: how little supports their own labels, each computed by something that never saw that label.
        weight: `(R,)` in (0, 1], what each of them counts.
        given: `(R,)`: the same for the labels that the network gives them.
        doubt: `(R,)`: 1 - the network's probability of those.
        mistaken: `(R,)` bool: those are not their own.
    """

    own: Tensor
    weight: Tensor
    given: Tensor
    doubt: Tensor
    mistaken: Tensor

    @property
    def known(self) -> float:
        """How many clean examples the p-values rest on: the sum of their weights."""
        return float(self.weight.sum())

    def p_values(self, unsupported: Tensor, doubt: Tensor) -> Tensor:
        """`(N,)` in (0, 1]: the larger of two p-values of labels that the network gives.

        A label that is not memorized is one of two things, and a list does not say which. It is right, and its example
        may have been trained on: then it is as little supported as clean examples' own labels are. Or the network gives
        it unseen, by mistake perhaps: half-heartedly, and with as large a share of its probability supported as labels
        have that the network gives clean examples. Either shows that it does not, so the smaller of these two counts:
        what the network doubts is subtracted; or the shares are compared, where there are `MISTAKES` to tell, which
        count a third of the clean examples at least.

        Args:
            unsupported: `(N,)`: 1 - the probability of each label without its example.
            doubt: `(N,)`: 1 - the network's own.
        """
        unseen = conformal(unsupported - doubt, self.own, self.weight)
        mistakes = int(self.mistaken.sum())
        if mistakes >= MISTAKES:
            one = max(1.0, (len(self.given) - mistakes) / (2 * mistakes))
            weight = torch.where(self.mistaken, one, 1.0)
            shares = conformal(rests(unsupported, doubt), rests(self.given, self.doubt), weight, one)
            unseen = torch.minimum(unseen, shares)
        return torch.maximum(conformal(unsupported, self.own, self.weight), unseen)


@dataclass(frozen=True)
class Part:
    """One kind of evidence that examples are memorized.

    Attributes:
        name: as reports print it.
        unsupported: `(N,)` in [0, 1]: 1 - the probability of each label without its example.
        doubt: `(N,)`: 1 - the network's own.
        calibration: what p-values compare with.
    """

    name: str
    unsupported: Tensor
    doubt: Tensor
    calibration: Calibration

    @property
    def scores(self) -> Tensor:
        """`(N,)` in [0, 1]: the label's probability less what it is without the example (Feldman and Zhang 2020)."""
        return (self.unsupported - self.doubt).clamp_min(0)

    def p_values(self) -> Tensor:
        """`(N,)`: the chance that a label which is not memorized looks as much as if it were."""
        return self.calibration.p_values(self.unsupported, self.doubt)


def rests(unsupported: Tensor, doubt: Tensor) -> Tensor:
    """`(N,)` at most 1: the share of a label's probability, 1 - `doubt`, that nothing but its example supports."""
    return 1 - (1 - unsupported.double()) / (1 - doubt.double()).clamp_min(SLIGHT)


def conformal(scores: Tensor, calibration: Tensor, weight: Tensor | None = None, one: float = 1.0) -> Tensor:
    """`(N,)` in (0, 1]: (1 + calibration scores at least as large) / (1 + calibration scores), each by its weight.

    Args:
        weight: `(R,)`; None: 1 each.
        one: what the example in question counts (Tibshirani et al. 2019).
    """
    total = len(calibration) if weight is None else float(weight.sum())
    return (one + reached(scores, calibration, weight)).double() / (one + total)


def reached(scores: Tensor, calibration: Tensor, weight: Tensor | None = None) -> Tensor:
    """`(N,)` float64: how many calibration scores are at least as large, each by its weight."""
    order = calibration.argsort()
    counts = torch.ones(len(order), dtype=torch.float64) if weight is None else weight[order].double()
    above = torch.cat([counts.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    return above[torch.searchsorted(calibration[order].double(), scores.double() - EQUAL)]
