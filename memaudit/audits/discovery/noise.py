"""How many labels are wrong, and which: a mixture of labels that fit what others say, and labels that do not.

Each example has class probabilities from everything but itself. The given labels are modelled as drawn from those
probabilities at some temperature (Guo et al. 2017), or, for an unknown share of the examples, replaced by another class
at random (symmetric label noise, Angluin and Laird 1988). Both numbers are fitted to the labels by maximum likelihood.
No clean example is needed: what a clean label would score follows from the probabilities themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Candidate temperatures: answers may be four times as sure, or as unsure, as they should be.
TEMPERATURES = torch.logspace(-2, 2, 41, base=2.0, dtype=torch.float64)
# Half the 95 % quantile of chi-squared with one degree of freedom: where a profile likelihood ends an interval.
DROP = 1.920729
STEPS = 40
# Examples that are computed with at a time.
PART = 8192
# From more examples than the first number, each label's probability is held at the temperature that fits best and at so
# many on either side of it: they say it to a percent or two, and its neighbours are seven apart.
HELD, BESIDE = 20_000, 2
# Pairs of example and class that clean scores are taken from.
CALIBRATION = 2_000_000


@dataclass(frozen=True)
class Noise:
    """The fitted mixture.

    Attributes:
        support: `(N, classes)` calibrated probability of each label, float32.
        wrong: share of labels that were replaced, with its 95 % profile likelihood interval.
    """

    support: Tensor
    wrong: float
    low: float
    high: float

    def replaced(self, labels: Tensor, share: float | None = None) -> Tensor:
        """`(N,)`: the probability that each label was replaced, with `share` of all in place of the fitted one."""
        own = self.support.gather(1, labels[:, None]).squeeze(1).double()
        return _posterior(own, self.wrong if share is None else share, self.support.shape[1])

    def p_values(self, labels: Tensor) -> Tensor:
        """`(N,)` in (0, 1]: the chance that a clean label has as little support as the given one."""
        count, classes = self.support.shape
        rows = self.support[:: -(-count * classes // CALIBRATION)].double()
        values = rows.flatten().sort().values
        weight = torch.cat([torch.zeros(1, dtype=torch.float64), values.cumsum(0)])
        own = self.support.gather(1, labels[:, None]).squeeze(1).double()
        below = weight[torch.searchsorted(values, own * (1 + 1e-6), right=True)]
        return ((1 + below) / (1 + len(rows))).clamp(max=1)


def fit_noise(answers: Tensor, labels: Tensor) -> Noise:
    """The mixture that fits `labels` `(N,)` best.

    Args:
        answers: `(N, classes)` log-probabilities up to a constant a row, each from others than the example itself.
    """
    classes = answers.shape[1]
    candidates = _candidates(answers, labels)
    own = torch.empty(len(candidates), len(labels), dtype=torch.float64)  # a list of them and a stack took it twice
    for number, temperature in enumerate(candidates.tolist()):
        own[number] = _own(answers, labels, temperature)

    def best(share: float) -> float:
        return float(_likelihood(own, torch.tensor(share), classes).max())

    shares = _shares(own, classes)
    scores = _likelihood(own, shares, classes)
    chosen = int(scores.argmax())
    wrong, floor = float(shares[chosen]), float(scores[chosen]) - DROP
    low = _edge(best, floor, wrong, 0.0)
    high = _edge(best, floor, wrong, 1 - 1e-9)
    return Noise(_softened(answers, float(candidates[chosen])), wrong, low, high)


def _candidates(answers: Tensor, labels: Tensor) -> Tensor:
    """The temperatures that can fit best: all, or of many examples those about the best one, each tried by itself."""
    if len(labels) <= HELD:
        return TEMPERATURES
    classes, fits = answers.shape[1], []
    for temperature in TEMPERATURES.tolist():
        own = _own(answers, labels, temperature)[None]
        fits.append(float(_likelihood(own, _shares(own, classes), classes)))
    best = max(range(len(fits)), key=fits.__getitem__)
    return TEMPERATURES[max(0, best - BESIDE) : best + BESIDE + 1]


def _softened(answers: Tensor, temperature: float) -> Tensor:
    """`(N, classes)` float32: the probabilities at a temperature, in parts."""
    return torch.cat([(part.double() / temperature).softmax(1).float() for part in torch.split(answers, PART)])


def _own(answers: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """`(N,)` probability of each label at a temperature, in parts."""
    parts = zip(torch.split(answers, PART), torch.split(labels, PART), strict=True)
    return torch.cat([(a.double() / temperature).softmax(1).gather(1, y[:, None]).squeeze(1) for a, y in parts])


def _posterior(own: Tensor, share: Tensor | float, classes: int) -> Tensor:
    other = share * (1 - own) / max(1, classes - 1)
    return other / ((1 - share) * own + other).clamp_min(1e-300)


def _likelihood(own: Tensor, share: Tensor, classes: int) -> Tensor:
    """`(temperatures,)` log-likelihood at `share`, one or one per temperature."""
    wide = share.double().reshape(-1, 1)
    parts = (
        ((1 - wide) * p + wide * (1 - p) / max(1, classes - 1)).clamp_min(1e-300).log().sum(1) for p in _parts(own)
    )
    return torch.stack(list(parts)).sum(0)


def _shares(own: Tensor, classes: int) -> Tensor:
    """The best share at each temperature, by bisection of the derivative: the likelihood is concave in it."""
    low, high = torch.zeros(len(own), 1, dtype=torch.float64), torch.ones(len(own), 1, dtype=torch.float64)
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = torch.stack([_slope(p, middle, classes) for p in _parts(own)]).sum(0)
        low, high = torch.where(slope > 0, middle, low), torch.where(slope > 0, high, middle)
    return low.squeeze(1)


def _slope(own: Tensor, share: Tensor, classes: int) -> Tensor:
    other = (1 - own) / max(1, classes - 1)
    return ((other - own) / ((1 - share) * own + share * other).clamp_min(1e-300)).sum(1, keepdim=True)


def _parts(own: Tensor) -> Sequence[Tensor]:
    """`own` `(temperatures, N)` in parts of the examples: a sum over all at once took as much again several times."""
    return torch.split(own, PART, dim=1)


def _edge(best: Callable[[float], float], floor: float, inside: float, outside: float) -> float:
    """Between a share inside the interval and one at the end of its range: where the likelihood falls to `floor`."""
    if best(outside) >= floor:
        return outside
    for _ in range(STEPS // 2):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if best(middle) >= floor else (inside, middle)
    return inside
