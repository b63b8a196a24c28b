"""Which examples of a list are called memorized, and how many are beyond chance.

Many examples are one question. A clean list has p-values below 5 % too: one in twenty. So nothing is called unless the
list as a whole says more than a clean list of its length would, at the 5 % level; then examples are called one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, fsum, lgamma

import torch
from torch import Tensor

# A single example is called at no larger p-value: one clean example in twenty reaches it.
LEVEL = 0.05
# Share of those called that may be clean (the level Efron 2008 uses where a person looks at what is called).
FALSE_DISCOVERIES = 0.2
# In a list that is memorized nearly whole a larger p-value serves, as long as hardly any of those called is clean.
MOST, FEW_FALSE = 0.1, 0.05
# Memorized examples have few p-values above this, so those above it tell how many are clean (Storey 2002).
CLEAN_ABOVE = 0.5
# How often a list of clean examples has any called.
FALSE_LISTS = 0.05


@dataclass(frozen=True)
class Calls:
    """What a list's p-values say together.

    Attributes:
        q_values: `(N,)`, the false discovery rate at which each example would still be called.
        called: `(N,)` bool.
        reached: p-values at or below `LEVEL`.
        expected: as many of a clean list would be, on average.
        beyond: how many of `reached` are beyond chance; `low` and `high` are its 95 % interval.
        chance: p-value that the whole list is clean.
    """

    q_values: Tensor
    called: Tensor
    reached: int
    expected: float
    beyond: float
    low: int
    high: int
    chance: float


def call(p_values: Tensor, calibration: int) -> Calls:
    """Judge a list.

    Args:
        p_values: `(N,)`, conformal.
        calibration: clean examples that they were made with.
    """
    count = len(p_values)
    if not count:
        return Calls(p_values, torch.zeros(0, dtype=torch.bool), 0, 0.0, 0.0, 0, 0, 1.0)
    reached = int((p_values <= LEVEL).sum())
    false = false_rate(calibration)
    excess = max(0.0, reached - false * count) / (1 - false)
    low = next((m for m in range(reached + 1) if tail(reached - m, count - m, calibration) > FALSE_LISTS / 2), reached)
    simes = float(adjusted(p_values).min())
    # Two questions are asked of a list, so each has half the level: is one example too extreme, are too many low?
    chance = simes if count == 1 else min(1.0, 2 * min(simes, tail(reached, count, calibration)))
    q_values = adjusted(p_values) * min(1.0, (1 + int((p_values > CLEAN_ABOVE).sum())) / ((1 - CLEAN_ABOVE) * count))
    usual = (p_values <= LEVEL) & (q_values <= FALSE_DISCOVERIES)
    sure = (p_values <= MOST) & (q_values <= FEW_FALSE)
    # A list that surely holds some has some called, even where no single example is beyond doubt.
    likeliest = p_values.argsort(stable=True).argsort(stable=True) < low
    called = (usual | sure | likeliest) & (chance <= FALSE_LISTS)
    return Calls(q_values, called, reached, false * count, min(excess, reached), low, reached, chance)


def false_rate(calibration: int) -> float:
    """How often a clean example's conformal p-value is at most `LEVEL`."""
    return int(LEVEL * (calibration + 1) + 1e-9) / (calibration + 1)


@lru_cache(maxsize=100_000)
def tail(hits: int, count: int, calibration: int) -> float:
    """The chance that of `count` clean examples at least `hits` have a p-value at most `LEVEL`.

    They are judged by the same calibration examples, so their number is beta-binomial (Marques F. 2025).
    """
    if hits <= 0:
        return 1.0
    below = int(LEVEL * (calibration + 1) + 1e-9)
    a, b = below, calibration + 1 - below
    if a == 0 or hits > count:
        return 0.0
    start = lgamma(a + b) - lgamma(a) - lgamma(b) + lgamma(count + 1) - lgamma(count + a + b)
    terms = (
        exp(start + lgamma(k + a) + lgamma(count - k + b) - lgamma(k + 1) - lgamma(count - k + 1))
        for k in range(hits, count + 1)
    )
    return min(1.0, fsum(terms))


def adjusted(p_values: Tensor) -> Tensor:
    """`(N,)`: the false discovery rate at which each example is still called. Benjamini and Hochberg 1995."""
    count = len(p_values)
    order = p_values.argsort(stable=True)
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    stepped = (p_values.double()[order] * count / ranks).flip(0).cummin(0).values.flip(0).clamp(max=1)
    return torch.empty(count, dtype=torch.float64).scatter(0, order, stepped)
