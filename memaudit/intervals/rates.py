"""Intervals for rates: every share in a report carries one."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, lgamma, log

# Two-sided 95 %.
Z = 1.959963984540054
# Values the bootstrap draws at a time.
TOGETHER = 1 << 18


def wilson(hits: float, count: int) -> tuple[float, float]:
    """Wilson score interval of a rate, 95 %; `(0, 1)` for no observation. Wilson 1927."""
    if count <= 0:
        return 0.0, 1.0
    rate = hits / count
    centre = (rate + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (rate * (1 - rate) / count + Z**2 / (4 * count**2)) ** 0.5
    return 0.0 if hits <= 0 else max(0.0, centre - half), 1.0 if hits >= count else min(1.0, centre + half)


def clopper_pearson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate; `(0, 1)` for no observation. Clopper and Pearson 1934.

    It holds the true rate at least as often as `level` says, however small the rate.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if hits <= 0 else float(betaincinv(hits, count - hits + 1, tail))
    high = 1.0 if hits >= count else float(betaincinv(hits + 1, count - hits, 1 - tail))
    return low, high


def correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """Pearson's correlation of pairs and its 95 % interval by Fisher's z; None of fewer than four, or of constants."""
    import numpy as np

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    found = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if abs(found) > 1 - 1e-12:
        return found, found, found
    centre, half = np.arctanh(found), Z / np.sqrt(len(a) - 3)
    return found, float(np.tanh(centre - half)), float(np.tanh(centre + half))


def mcnemar(wins: int, losses: int) -> float:
    """One-sided exact p-value that so many more wins than losses are chance. McNemar 1947."""
    total = wins + losses
    whole = lgamma(total + 1) - total * log(2)
    return min(1.0, fsum(exp(whole - lgamma(k + 1) - lgamma(total - k + 1)) for k in range(wins, total + 1)))


# Fast path; its slow twin: tests/twins.py.
def bootstrap(values: Sequence[float], seed: int, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, 95 %; the same seed gives the same interval."""
    import numpy as np

    if not values:
        return 0.0, 1.0
    array, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    block = max(1, TOGETHER // len(array))
    means = np.concatenate(
        [
            array[generator.integers(0, len(array), (min(block, draws - start), len(array)))].mean(1)
            for start in range(0, draws, block)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_runs(runs: Sequence[Sequence[float]], seed: int, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over runs (seeds) and examples, both drawn again, 95 %.

    Args:
        runs: one value per example and run, the examples in the same order in every run.
    """
    import numpy as np

    array = np.asarray(runs, dtype=np.float64)
    if not array.size:
        return 0.0, 1.0
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        picked = array[generator.integers(0, len(array), len(array))].mean(0)
        means[draw] = picked[generator.integers(0, len(picked), len(picked))].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
