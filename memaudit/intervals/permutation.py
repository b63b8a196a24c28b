"""One test of many scores: does any of them tell members from others of the same kind?

Within each kind of example, who is a member is dealt anew many times; the largest statistic of each deal says how large
the largest one gets by chance (Westfall and Young 1993, maxT). So the chance of a false alarm is the level that was
asked for, however many scores are looked at, and whatever their distributions are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Deals; a p-value is at least one in as many and one.
DEALS = 1999
# Values dealt at a time.
TOGETHER = 1 << 22
# The largest scores that the second statistic counts, as a share of all: a leak may show in a few examples only.
TAIL = 0.05
LEVEL = 0.05
# Chance at which members that rank too low for examples like the others are not taken to be like them.
UNLIKE = 0.01
POWER = 0.8


@dataclass(frozen=True)
class Tested:
    """What the deals say.

    Attributes:
        p_value: chance that the largest statistic of all is as large, were nobody a member.
        by_score: the same for each score's own largest statistic, already adjusted for there being several.
        below: chance that some score ranks the members as far below the others, adjusted for all scores as well.
        clear: fewest members that, with a score above all others', one score would have found in 80 % of such audits;
            None: so few examples cannot show it.
    """

    p_value: float
    by_score: Mapping[str, float]
    below: float
    clear: int | None


def permutation_test(
    scores: Mapping[str, NDArray[np.float64]],
    member: NDArray[np.bool_],
    kind: NDArray[np.int64],
    seed: int,
    deals: int = DEALS,
) -> Tested:
    """Test `scores` of `(n,)` each: two statistics a score, its ranks within kinds and its largest values of all.

    Args:
        member: `(n,)`, which examples are in question.
        kind: `(n,)`; only examples of one kind are compared.
    """
    weights = np.stack([w for values in scores.values() for w in _weights(values, kind)], 1)
    centre, spread = _moments(weights, member, kind)
    usable = spread > 0
    spread = np.where(usable, spread, 1.0)

    def standard(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(usable, (sums - centre) / spread, 0.0)

    dealt = _dealt(weights, member, kind, seed, deals)
    deal, members = standard(dealt), standard(weights[member].sum(0)).reshape(-1, 2)
    largest, own = deal.max(1), members.max(1)
    below = float((1 + (deal[:, ::2].min(1) <= members[:, 0].min() + 1e-9).sum()) / (1 + deals))
    by_score = {
        name: float((1 + (largest >= value - 1e-9).sum()) / (1 + deals))
        for name, value in zip(scores, own.tolist(), strict=True)
    }
    bar = float(np.quantile(largest, 1 - LEVEL))
    most = np.array([_top(weights[:, 0], member, kind), weights[:, 1].sum()])

    def power(clear: int) -> float:
        """The share of the deals that the test would find with so many members' first score set above all."""
        share = clear / member.sum()
        planted = dealt.copy()
        planted[:, 0] = planted[:, 0] * (1 - share) + most[0] * share
        planted[:, 1] = np.minimum(planted[:, 1] * (1 - share) + clear, most[1])
        return float((standard(planted).max(1) > bar).mean())

    return Tested(min(by_score.values()), by_score, below, _fewest(power, int(member.sum())))


def _fewest(power: Callable[[int], float], members: int) -> int | None:
    """The smallest number whose `power` is enough; None where not even all are."""
    if power(members) < POWER:
        return None
    low, high = 0, members
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _top(ranks: NDArray[np.float64], member: NDArray[np.bool_], kind: NDArray[np.int64]) -> float:
    """The members' sum, had they the largest ranks of their kinds."""
    kinds = [kind == one for one in np.unique(kind)]
    return float(sum(np.sort(ranks[k])[::-1][: int(member[k].sum())].sum() for k in kinds))


def _weights(values: NDArray[np.float64], kind: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle ranks within kinds, in (0, 1); and whether a value is among the largest of all."""
    from scipy.stats import rankdata

    ranks = np.zeros(len(values))
    for one in np.unique(kind):
        inside = kind == one
        ranks[inside] = rankdata(values[inside]) / (inside.sum() + 1)
    bar = np.sort(values)[::-1][max(0, round(TAIL * len(values)) - 1)]
    return ranks, (values >= bar).astype(np.float64)


def _moments(
    weights: NDArray[np.float64], member: NDArray[np.bool_], kind: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the members' sum over all deals."""
    mean, variance = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for one in np.unique(kind):
        inside = kind == one
        count, members = int(inside.sum()), int(member[inside].sum())
        own = weights[inside]
        mean += members * own.mean(0)
        if count > 1:
            variance += members * (count - members) / (count - 1) * own.var(0)
    return mean, np.sqrt(variance)


def _dealt(
    weights: NDArray[np.float64], member: NDArray[np.bool_], kind: NDArray[np.int64], seed: int, deals: int
) -> NDArray[np.float64]:
    """`(deals, statistics)`: the members' sums, as many members dealt anew in each kind."""
    generator = np.random.default_rng(seed)
    sums = np.zeros((deals, weights.shape[1]))
    for one in np.unique(kind):
        rows = np.flatnonzero(kind == one)
        members = int(member[rows].sum())
        if members in (0, len(rows)):
            sums += weights[rows].sum(0) * (members > 0)
            continue
        block = max(1, TOGETHER // len(rows))
        for start in range(0, deals, block):
            size = min(block, deals - start)
            order = np.argpartition(generator.random((size, len(rows))), members - 1, axis=1)[:, :members]
            chosen = np.zeros((size, len(rows)))
            np.put_along_axis(chosen, order, 1.0, axis=1)
            sums[start : start + size] += chosen @ weights[rows]
    return sums
