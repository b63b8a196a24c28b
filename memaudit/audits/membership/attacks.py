"""Membership tests as functions of logits: each gives a score per example that is higher for what was trained on.

*Out* models never saw the examples that are asked about; they say how hard each one is for who does not know it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memaudit.engine.answers import loss

# How far an out model's probability is moved towards what a model that knows the example would say, and by how much a
# population example's ratio must be exceeded: the published code's defaults for images.
OFFLINE = 0.3
GAMMA = 1.0
# Fewer out models than this share one variance: Carlini et al. 2022, section VI-A.
OWN_VARIANCE = 64


def by_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative cross-entropy `(N,)`: Yeom et al. 2018."""
    return -loss(logits, labels)


def scaled(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds `(..., N)` of the label, float64: log(p / (1 - p)), computed without rounding p to 1.

    Carlini et al. 2022, section IV-B: near normal where probabilities are not.

    Args:
        logits: `(..., N, classes)`; labels: `(N,)`.
    """
    wide = logits.double()
    index = labels.expand(wide.shape[:-1])[..., None]
    own = wide.gather(-1, index).squeeze(-1)
    others = wide.scatter(-1, index, float("-inf"))
    return own - others.logsumexp(-1)


def calibrated(own: Tensor, out: Tensor) -> Tensor:
    """Log-odds `(N,)` less their mean over out models `(M, N)`: Watson et al. 2022, difficulty calibration."""
    return own - out.mean(0)


def lira(own: Tensor, out: Tensor) -> Tensor:
    """How many standard deviations `(N,)` the log-odds lie above those of out models `(M, N)`.

    The offline likelihood ratio test of Carlini et al. 2022, section VI-A: its score is the normal distribution
    function of this number, which is left out because it rounds large ones to 1. Means are each example's own;
    the variance too from `OWN_VARIANCE` models on, else one for all, and 1 where one model shows none.
    """
    difference = own - out.mean(0)
    if len(out) < 2:
        return difference
    variance = out.var(0)
    if len(out) < OWN_VARIANCE:
        variance = variance.mean()
    return difference / variance.clamp_min(1e-12).sqrt()


def rmia(own: Tensor, out: Tensor, population: Tensor, population_out: Tensor, gamma: float = GAMMA) -> Tensor:
    """Share `(N,)` of population examples whose likelihood ratio is exceeded by a factor `gamma`.

    Offline robust membership inference, Zarifzadeh et al. 2024, equation 2 and appendix B.2.2: a ratio is the
    probability by the model over a mean between out models' and what in models would say.

    Args:
        own, out: probabilities of the label by the model `(N,)` and by out models `(M, N)`.
        population, population_out: the same of examples drawn like them, `(Z,)` and `(M, Z)`.
    """
    ratio = own / _mean(out)
    theirs = (population / _mean(population_out)).sort().values
    return torch.searchsorted(theirs, ratio / gamma) / len(theirs)


def _mean(out: Tensor) -> Tensor:
    """The mean of in and out models' probabilities, the former foretold from the latter."""
    return ((1 + OFFLINE) * out.mean(0) + (1 - OFFLINE)) / 2
