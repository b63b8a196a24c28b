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


@dataclass(frozen=True)
class Part:
    """One kind of evidence that examples are memorized.

    Attributes:
        name: as reports print it.
        scores: `(N,)` in [0, 1], larger: more memorized.
        calibration: `(R,)`, the same score of clean examples, each computed by something that never saw its label.
        weight: `(R,)` in (0, 1], what each of them counts; None: 1 each.
    """

    name: str
    scores: Tensor
    calibration: Tensor
    weight: Tensor | None = None

    @property
    def known(self) -> float:
        """How many clean examples the p-values rest on: the sum of their weights."""
        return float(len(self.calibration) if self.weight is None else self.weight.sum())

    def p_values(self) -> Tensor:
        """`(N,)`: the chance that a clean example scores as high."""
        return conformal(self.scores, self.calibration, self.weight)


def conformal(scores: Tensor, calibration: Tensor, weight: Tensor | None = None) -> Tensor:
    """`(N,)` in (0, 1]: (1 + calibration scores at least as large) / (1 + calibration scores), each by its weight."""
    total = len(calibration) if weight is None else float(weight.sum())
    return (1 + reached(scores, calibration, weight)).double() / (1 + total)


def reached(scores: Tensor, calibration: Tensor, weight: Tensor | None = None) -> Tensor:
    """`(N,)` float64: how many calibration scores are at least as large, each by its weight."""
    order = calibration.argsort()
    counts = torch.ones(len(order), dtype=torch.float64) if weight is None else weight[order].double()
    above = torch.cat([counts.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    return above[torch.searchsorted(calibration[order].double(), scores.double() - EQUAL)]
