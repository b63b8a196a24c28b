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

from memaudit.data.wide import Made, Sliced, own, slices

# Candidate temperatures: answers may be four times as sure, or as unsure, as they should be.
TEMPERATURES = torch.logspace(-2, 2, 41, base=2.0, dtype=torch.float64)
# Half the 95 % quantile of chi-squared with one degree of freedom: where a profile likelihood ends an interval.
DROP = 1.920729
STEPS = 40
# Examples that are computed with at a time, and temperatures that are tried in one reading of a table.
PART, TOGETHER = 8192, 5
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
        own: `(N,)` of the given ones, float64.
        wrong: share of labels that were replaced, with its 95 % profile likelihood interval.
    """

    support: Sliced
    own: Tensor
    wrong: float
    low: float
    high: float

    def replaced(self, share: float | None = None) -> Tensor:
        """`(N,)`: the probability that each label was replaced, with `share` of all in place of the fitted one."""
        return _posterior(self.own, self.wrong if share is None else share, self.support.shape[1])

    def p_values(self) -> Tensor:
        """`(N,)` in (0, 1]: the chance that a clean label has as little support as the given one."""
        count, classes = self.support.shape
        step = -(-count * classes // CALIBRATION)
        some = [self.support[part][-part.start % step :: step].double() for part in slices(count, classes)]
        values = torch.cat(some).flatten()  # copies: views would hold all of their parts
        asked = sum(map(len, some))
        del some
        values.numpy().sort()  # in place, and without the order, which nobody asks for
        weight = torch.zeros(len(values) + 1, dtype=torch.float64)
        torch.cumsum(values, 0, out=weight[1:])
        below = weight[torch.searchsorted(values, self.own * (1 + 1e-6), right=True)]
        return ((1 + below) / (1 + asked)).clamp(max=1)


def fit_noise(answers: Sliced, labels: Tensor) -> Noise:
    """The mixture that fits `labels` `(N,)` best.

    Args:
        answers: `(N, classes)` log-probabilities up to a constant a row, each from others than the example itself.
    """
    classes = answers.shape[1]
    candidates = _candidates(answers, labels)
    given = _own(answers, labels, candidates)

    def best(share: float) -> float:
        return float(_likelihood(given, torch.tensor(share), classes).max())

    shares = _shares(given, classes)
    scores = _likelihood(given, shares, classes)
    chosen = int(scores.argmax())
    wrong, floor = float(shares[chosen]), float(scores[chosen]) - DROP
    low = _edge(best, floor, wrong, 0.0)
    high = _edge(best, floor, wrong, 1 - 1e-9)
    temperature = float(candidates[chosen])
    support = Made(answers.shape, lambda rows: (answers[rows].double() / temperature).softmax(1).float())
    return Noise(support, own(support, labels).double(), wrong, low, high)


def _candidates(answers: Sliced, labels: Tensor) -> Tensor:
    """The temperatures that can fit best: all, or of many examples those about the best one."""
    if len(labels) <= HELD:
        return TEMPERATURES
    classes, fits = answers.shape[1], []
    for some in torch.split(TEMPERATURES, TOGETHER):
        for given in torch.split(_own(answers, labels, some), 1):
            fits.append(float(_likelihood(given, _shares(given, classes), classes)))
    best = max(range(len(fits)), key=fits.__getitem__)
    return TEMPERATURES[max(0, best - BESIDE) : best + BESIDE + 1]


def _own(answers: Sliced, labels: Tensor, temperatures: Tensor) -> Tensor:
    """`(temperatures, N)` probability of each label at each temperature, float64, in one reading of the answers."""
    found = torch.empty(len(temperatures), len(labels), dtype=torch.float64)
    for rows in slices(*answers.shape):
        wide = answers[rows].double()
        for number, temperature in enumerate(temperatures.tolist()):
            found[number, rows] = (wide / temperature).softmax(1).gather(1, labels[rows, None]).squeeze(1)
    return found


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
