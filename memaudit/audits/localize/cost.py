"""What a cut costs the reference, from few measured rows of three kinds: expected to change, near to it, and others.

The rate at which rows of one kind change is alike from cut to cut, so it is estimated for all cuts of an audit at once:
a beta-binomial model whose two parameters are averaged over their posterior (hierarchical Bayes; Gelman et al.,
Bayesian Data Analysis, section 5.3). Where cuts differ the model spreads and the intervals widen by themselves.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from memaudit.findings import ReferenceAccuracy, Sampled, interned
from memaudit.intervals import wilson
from memaudit.intervals.rates import Z
from memaudit.numbers import tidy

# Grids of the two parameters, mean (flat prior) and weight in rows (flat in its logarithm), and of the rate itself.
MEANS = np.concatenate([np.geomspace(1e-5, 0.05, 40), np.linspace(0.06, 0.98, 47)])
WEIGHTS = np.geomspace(0.5, 2000.0, 16)
RATES = np.concatenate([[0.0], np.geomspace(1e-6, 0.05, 150), np.linspace(0.052, 1.0, 150)])
NEGLIGIBLE = 1e-5
# Few rows are wrong to begin with, so a sample may hold none; no gain is claimed of what nobody saw nor expects.
UNCHANGED = 20
# A cut that changes more than this share of the rows near to it is no usual one: its others are no usual ones' others.
HEAVY = 0.3

Triple = tuple[float, float, float]
NONE: Triple = (0.0, 0.0, 0.0)


def first_estimate(before: int, panel: int, at_risk: Sampled, near: Sampled, at_random: Sampled) -> ReferenceAccuracy:
    """The accuracy after a cut, estimated from its own rows alone.

    Args:
        before: rows of the panel that the intact model gets right.
        panel: rows of the panel.
        at_risk, near, at_random: what was measured of each of its strata.
    """
    return settle_costs([
        ReferenceAccuracy(
            before=tidy(before / panel), after=0, low=0, high=0, panel=panel,
            examples=at_risk.rows + near.rows + at_random.rows, at_risk=at_risk, near=near, at_random=at_random,
        )
    ])[0]  # fmt: skip


@dataclass(frozen=True)
class _Change:
    """Rows of one stratum that a cut can lose, or that it can win."""

    hits: int
    rows: int
    others: int

    @property
    def kind(self) -> tuple[int, int]:
        """What `shared_rates` counts."""
        return self.hits, self.rows

    def total(self, rates: Mapping[tuple[int, int], Triple]) -> Triple:
        """How many change in all, and the ends of its 95 % interval; only what was not measured is uncertain."""
        rate, low, high = rates[self.kind] if self.others else NONE
        drawn = Z * sqrt(self.others * rate * (1 - rate))
        mean = self.others * rate
        below, above = hypot(mean - self.others * low, drawn), hypot(self.others * high - mean, drawn)
        return self.hits + mean, min(mean, below), min(self.others - mean, above)


def _changes(cost: ReferenceAccuracy) -> tuple[list[_Change], list[_Change]]:
    """What each stratum can lose, and what it can win."""
    strata = (cost.at_risk, cost.near, cost.at_random)
    lost = [_Change(s.lost, s.right, s.of_right - s.right) for s in strata]
    gained = [_Change(s.gained, s.rows - s.right, s.of - s.of_right - s.rows + s.right) for s in strata]
    return lost, gained


def settle_costs(costs: Sequence[ReferenceAccuracy]) -> list[ReferenceAccuracy]:
    """The same measurements with accuracies and intervals that learn from each other; the order does not matter.

    Errors are combined as independent (MOVER, Zou and Donner 2008): of the panel as a sample, and of each stratum's.
    """
    changes = [_changes(cost) for cost in costs]
    heavy = [cost.near.lost + cost.near.gained > HEAVY * cost.near.rows for cost in costs]

    def totals(way: int, stratum: int) -> list[Triple]:
        """How many change in one stratum, by cut; what the nearest rows do tells of the others."""
        own = [change[way][stratum] for change in changes]
        alike = heavy if stratum == 2 else [False] * len(own)
        unchanged = UNCHANGED if way and stratum else 0
        rates = {
            kind: shared_rates([c.kind for c, h in zip(own, alike, strict=True) if c.others and h is kind], unchanged)
            for kind in (False, True)
        }
        return [change.total(rates[kind]) for change, kind in zip(own, alike, strict=True)]

    lost, gained = ([totals(way, stratum) for stratum in range(3)] for way in range(2))
    return [
        _settled(cost, down, up)
        for cost, down, up in zip(costs, zip(*lost, strict=True), zip(*gained, strict=True), strict=True)
    ]


def _settled(cost: ReferenceAccuracy, lost: Sequence[Triple], gained: Sequence[Triple]) -> ReferenceAccuracy:
    n, right = cost.panel, round(cost.before * cost.panel)
    losses = sum(mean for mean, _, _ in lost)
    after = (right - losses + sum(mean for mean, _, _ in gained)) / n
    low, high = wilson(after * n, n)
    low = after - hypot(after - low, *(up / n for _, _, up in lost), *(down / n for _, down, _ in gained))
    high = after + hypot(high - after, *(down / n for _, down, _ in lost), *(up / n for _, _, up in gained))
    settled = cost.model_copy(
        update={
            "after": tidy(after),
            "low": tidy(max(0.0, low)),
            "high": tidy(min(1.0, high)),
            "retained": tidy(min(1.0, max(0.0, 1 - losses / right))) if right else None,
        }
    )
    return interned(settled)


# Fast path; its slow twin: tests/twins.py.
def shared_rates(counts: Sequence[tuple[int, int]], unchanged: int = 0) -> dict[tuple[int, int], Triple]:
    """Mean and 95 % interval of the rate behind each `(hits, rows)`; the rates are draws of one population.

    Args:
        unchanged: what is known beforehand of the mean: as much as so many rows that did not change.
    """
    return _shared(tuple(sorted(Counter(counts).items())), unchanged)


@functools.lru_cache(maxsize=256)
def _shared(kinds: tuple[tuple[tuple[int, int], int], ...], unchanged: int) -> dict[tuple[int, int], Triple]:
    if not kinds:
        return {}
    share, a, b = posterior(kinds, unchanged)
    return {kind: _rate(share, a + kind[0], b + kind[1] - kind[0]) for kind, _ in kinds}


def posterior(
    kinds: Sequence[tuple[tuple[int, int], int]], unchanged: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Which beta distributions `(share, a, b)` the rates behind so many of each `(hits, rows)` may be drawn from."""
    mean, weight = np.meshgrid(MEANS, WEIGHTS, indexing="ij")
    a, b = mean * weight, (1 - mean) * weight
    support = np.log(np.gradient(MEANS))[:, None] + unchanged * np.log1p(-mean)
    for (hits, rows), times in kinds:
        support += times * (betaln(a + hits, b + rows - hits) - betaln(a, b))
    share = np.exp(support - support.max())
    share /= share.sum()
    likely = share > NEGLIGIBLE
    return share[likely] / share[likely].sum(), a[likely], b[likely]


def _rate(share: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> Triple:
    """Mean and 95 % interval of a mixture of beta distributions."""

    @functools.cache
    def below(place: int) -> float:
        return float((share * betainc(a, b, RATES[place])).sum())

    def quantile(level: float) -> float:
        under, over = 0, len(RATES) - 1
        while over - under > 1:
            middle = (under + over) // 2
            under, over = (middle, over) if below(middle) <= level else (under, middle)
        return float(np.interp(level, [below(under), below(over)], RATES[[under, over]]))

    return float((share * a / (a + b)).sum()), quantile(0.025), quantile(0.975)
