"""Probes: ridge regressions from each layer's features to the labels, each example asked of those fitted without it.

A linear probe (Alain and Bengio 2016) on what a layer passes on; leave-one-out answers come in closed form from the
hat matrix (Cook and Weisberg 1982), so that no example supports itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Ridge, as a share of the features' mean variance.
RIDGE = 0.1


def probed(
    features: Sequence[Tensor], labels: Tensor, asked: Sequence[Tensor] | None = None, *, classes: int
) -> list[Tensor]:
    """Per layer `(n, classes)`: regression of the one-hot labels, for `asked`, or leave-one-out for the base itself.

    Args:
        features: per layer `(R, F)`.
        labels: `(R,)`.
        asked: per layer `(N, F)`.
    """
    target = F.one_hot(labels, classes).double()
    found = []
    for number, base in enumerate(features):
        x = base.double()
        centre, scale = x.mean(0), x.std(0) + 1e-6 * x.std() + 1e-12
        x, prior = (x - centre) / scale, target.mean(0)
        gram = x.T @ x
        gram.diagonal().add_(RIDGE * len(x))
        factor = torch.linalg.cholesky(gram)
        weights = torch.cholesky_solve(x.T @ (target - prior), factor)
        if asked is not None:
            found.append(((asked[number].double() - centre) / scale) @ weights + prior)
            continue
        hat = (torch.linalg.solve_triangular(factor, x.T, upper=False) ** 2).sum(0) + 1 / len(x)
        residual = target - (x @ weights + prior)
        found.append(target - residual / (1 - hat).clamp_min(1e-3)[:, None])
    return found
