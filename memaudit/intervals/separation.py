"""How far one group's scores lie above another's: the ROC curve and what is read from it, each with its interval.

*Members* are the examples in question, *others* are known not to be members. Higher scores speak for membership.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from memaudit.intervals.rates import Z, clopper_pearson

Scores = NDArray[np.float64]

# False-positive rates that a rule is judged at: Carlini et al. 2022, section III.
LEVELS = (0.001, 0.01, 0.05)
# The share that differential privacy may break its promise on.
DELTA = 1e-5


@dataclass(frozen=True)
class Operating:
    """The rule "a member, where the score is above `threshold`", set on the others at a false-positive rate.

    Attributes:
        level: the false-positive rate that was asked for.
        hits, alarms: members and others above the threshold, of `members` and `others`.
        low, high: exact 95 % interval of the true-positive rate.
        alarms_high: 97.5 % upper bound of the false-positive rate. Exact, although the others set the threshold: the
            rate above their k-th largest score has the distribution Beta(k, others - k + 1).
    """

    level: float
    threshold: float
    hits: int
    members: int
    alarms: int
    others: int
    low: float
    high: float
    alarms_high: float

    @property
    def rate(self) -> float:
        """The true-positive rate."""
        return self.hits / self.members

    @property
    def resolved(self) -> bool:
        """Whether there are enough others to set a threshold at this rate."""
        return self.others * self.level >= 1


def roc(members: Scores, others: Scores) -> tuple[Scores, Scores]:
    """False- and true-positive rates of every threshold, from `(0, 0)` to `(1, 1)`."""
    scores = np.concatenate([members, others])
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    member = (order < len(members)).astype(np.float64)
    hits, total = np.cumsum(member)[ends], ends + 1.0
    zero = np.zeros(1)
    return np.concatenate([zero, (total - hits) / len(others)]), np.concatenate([zero, hits / len(members)])


def auc(members: Scores, others: Scores) -> tuple[float, float, float]:
    """The chance that a member's score is above an other's, ties half; with its 95 % interval.

    Interval: Newcombe 2006, Statistics in Medicine 25, method 5 (Hanley and McNeil's variance as a function of the
    true value), which stays honest at 0 and 1.
    """
    below = np.searchsorted(np.sort(others), members, "left").sum()
    upto = np.searchsorted(np.sort(others), members, "right").sum()
    value = float((below + upto) / 2 / (len(members) * len(others)))
    m, n = len(members), len(others)
    star = (m + n) / 2 - 1

    def far(theta: float) -> float:
        spread = theta * (1 - theta) * (1 + star * (1 - theta) / (2 - theta) + star * theta / (1 + theta)) / (m * n)
        return (value - theta) ** 2 - Z**2 * spread

    return value, _root(far, 0.0, value), _root(far, 1.0, value)


def _root(far: Callable[[float], float], outside: float, inside: float) -> float:
    """Where `far` changes its sign between a value outside of the interval and one inside."""
    for _ in range(60):
        middle = (outside + inside) / 2
        if far(middle) > 0:
            outside = middle
        else:
            inside = middle
    return (outside + inside) / 2


def at_level(members: Scores, others: Scores, level: float) -> Operating:
    """The rule whose threshold lets through at most `level` of the others."""
    ordered = np.sort(others)[::-1]
    threshold = float(ordered[min(int(level * len(others) + 1e-9), len(others) - 1)])
    hits, alarms = int((members > threshold).sum()), int((others > threshold).sum())
    low, high = clopper_pearson(hits, len(members))
    alarms_high = clopper_pearson(alarms, len(others))[1]
    return Operating(level, threshold, hits, len(members), alarms, len(others), low, high, alarms_high)


@cache  # every test and slice of an audit asks the same
def detectable(members: int, level: float, power: float = 0.8) -> float | None:
    """The smallest true-positive rate that `members` would show to be above `level`, with a chance of `power`.

    Shown is what the interval says. None where so few examples could show nothing.
    """
    from scipy.stats import binom

    needed = bisect_left(range(members + 1), True, key=lambda hits: clopper_pearson(hits, members)[0] > level)
    if needed > members:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if binom.sf(needed - 1, members, middle) >= power else (middle, high)
    return high


def advantage(members: Scores, others: Scores) -> tuple[float, float, float]:
    """The largest true- less false-positive rate (Yeom et al. 2018), with a 95 % interval that holds over thresholds.

    Its band is the two-sample one of Dvoretzky, Kiefer and Wolfowitz with Massart's constant: wide, and never too
    narrow for having looked at all thresholds.
    """
    alarms, hits = roc(members, others)
    value = float((hits - alarms).max())
    half = sqrt(log(2 / 0.05) / 2 * (1 / len(members) + 1 / len(others)))
    return value, max(0.0, value - half), min(1.0, value + half)


def epsilon(rules: Sequence[Operating], delta: float = DELTA) -> float:
    """A lower bound of the epsilon of differential privacy that these rules refute, with 95 % confidence; at least 0.

    From TPR <= e^epsilon FPR + delta (Kairouz et al. 2015), with exact bounds of both rates, each at the share of 5 %
    that the number of rules leaves (Bonferroni), so that the best rule may be taken.
    """
    tail = 1 - 0.05 / len(rules)
    bounds = [0.0]
    for rule in rules:
        hit = clopper_pearson(rule.hits, rule.members, tail)[0] - delta
        alarm = clopper_pearson(rule.alarms, rule.others, tail)[1]
        if hit > alarm:
            bounds.append(log(hit / alarm))
    return max(bounds)
