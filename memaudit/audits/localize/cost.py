"""What a cut costs the reference, from few measured rows: those most likely to change, and a sample of the others.

The rate at which sampled rows change is small and alike from cut to cut, so it is estimated for all cuts of an audit
together: a beta-binomial model whose two parameters are averaged over their posterior (hierarchical Bayes; Gelman et
al., Bayesian Data Analysis, section 5.3). Where cuts differ the model spreads and the intervals widen by themselves.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from math import hypot

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from memaudit.findings import ReferenceAccuracy, Sampled, interned
from memaudit.intervals import wilson
from memaudit.numbers import tidy

# Grids of the two parameters, mean (flat prior) and weight in rows (flat in its logarithm), and of the rate itself.
MEANS = np.concatenate([np.geomspace(1e-5, 0.05, 40), np.linspace(0.06, 0.98, 47)])
WEIGHTS = np.geomspace(0.5, 2000.0, 16)
RATES = np.concatenate([[0.0], np.geomspace(1e-6, 0.05, 150), np.linspace(0.052, 1.0, 150)])
NEGLIGIBLE = 1e-5
# Few rows are wrong to begin with, so a sample may hold none; no gain is claimed of what nobody saw.
UNCHANGED = 20

Triple = tuple[float, float, float]
NONE: Triple = (0.0, 0.0, 0.0)


def first_estimate(before: int, panel: int, at_risk: Sampled, at_random: Sampled) -> ReferenceAccuracy:
    """The accuracy after a cut, estimated from its own rows alone.

    Args:
        before: rows of the panel that the intact model gets right.
        panel: rows of the panel.
        at_risk: the rows nearest to changing, measured one and all.
        at_random: of the others, those drawn.
    """
    return settle_costs([
        ReferenceAccuracy(
            before=tidy(before / panel), after=0, low=0, high=0, panel=panel, examples=at_risk.rows + at_random.rows,
            at_risk=at_risk, at_random=at_random,
        )
    ])[0]  # fmt: skip


def settle_costs(costs: Sequence[ReferenceAccuracy]) -> list[ReferenceAccuracy]:
    """The same measurements with accuracies and intervals that learn from each other; the order does not matter.

    Errors are combined as independent (MOVER, Zou and Donner 2008): of the panel as a sample, and of the sampled rows.
    """
    lost = shared_rates([_lost(c) for c in costs if _rest(c)])
    gained = shared_rates([_gained(c) for c in costs if _rest(c)], UNCHANGED)
    return [_settled(c, lost[_lost(c)], gained[_gained(c)]) if _rest(c) else _settled(c, NONE, NONE) for c in costs]


def _rest(cost: ReferenceAccuracy) -> int:
    """Rows of the panel that the sample stands for."""
    return cost.panel - cost.at_risk.rows


def _lost(cost: ReferenceAccuracy) -> tuple[int, int]:
    return cost.at_random.lost, cost.at_random.right


def _gained(cost: ReferenceAccuracy) -> tuple[int, int]:
    return cost.at_random.gained, cost.at_random.rows - cost.at_random.right


def _settled(cost: ReferenceAccuracy, lost: Triple, gained: Triple) -> ReferenceAccuracy:
    n, right = cost.panel, round(cost.before * cost.panel)
    rest_right = right - cost.at_risk.right
    rest_wrong = _rest(cost) - rest_right
    losses, least_lost, most_lost = (rate * rest_right for rate in lost)
    gains, least_gained, most_gained = (rate * rest_wrong for rate in gained)
    after = (right - cost.at_risk.lost - losses + cost.at_risk.gained + gains) / n
    low, high = wilson(after * n, n)
    low = after - hypot(after - low, (most_lost - losses) / n, (gains - least_gained) / n)
    high = after + hypot(high - after, (losses - least_lost) / n, (most_gained - gains) / n)
    losses += cost.at_risk.lost
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
