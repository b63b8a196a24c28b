"""Parts of an estimate: a score per example, and the same score of clean examples, from which p-values follow.

The p-values are conformal (Vovk et al. 2005): a clean example's own score is computed without its label, so that it and
the score of an example in question are exchangeable when that example is clean too. Where clean examples are scored
fold by fold, each is compared with what the same fold's network says of the example in question (Vovk 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scores that differ by less are equal: averages of few votes under float rounding.
EQUAL = 1e-6


@dataclass(frozen=True)
class Part:
    """One kind of evidence that examples are memorized.

    Attributes:
        name: as reports print it.
        scores: `(N,)` in [0, 1], larger: more memorized.
        calibration: `(R,)`, the same score of clean examples, each computed by something that never saw its label.
        by_fold: `(K, N)`, the scores by each fold's network, where they are made by several; `scores` is their mean.
        fold: `(R,)` int64, whose network scored each clean example.
    """

    name: str
    scores: Tensor
    calibration: Tensor
    by_fold: Tensor | None = None
    fold: Tensor | None = None

    def p_values(self) -> Tensor:
        """`(N,)`: the chance that a clean example scores as high."""
        if self.by_fold is None or self.fold is None:
            return conformal(self.scores, self.calibration)
        above = torch.stack(
            [reached(scores, self.calibration[self.fold == k]) for k, scores in enumerate(self.by_fold)]
        )
        return (1 + above.sum(0)).double() / (1 + len(self.calibration))


def conformal(scores: Tensor, calibration: Tensor) -> Tensor:
    """`(N,)` in (0, 1]: (1 + calibration scores at least as large) / (1 + calibration scores)."""
    return (1 + reached(scores, calibration)).double() / (1 + len(calibration))


def reached(scores: Tensor, calibration: Tensor) -> Tensor:
    """`(N,)`: how many calibration scores are at least as large."""
    return len(calibration) - torch.searchsorted(calibration.double().sort().values, scores.double() - EQUAL)
