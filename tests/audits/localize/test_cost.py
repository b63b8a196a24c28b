"""What a cut costs the reference: rates that share a prior, against plain sums, and intervals that hold the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from memaudit.audits.localize.cost import first_estimate, settle_costs, shared_rates
from memaudit.findings import ReferenceAccuracy, Sampled
from memaudit.intervals import wilson
from memaudit.numbers import tidy

AT_RISK = Sampled(rows=10, right=10, lost=2, of=10, of_right=10)
NEAR = Sampled()
REST = {"of": 490, "of_right": 480}  # of a panel of 500, of which 490 are right


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def slow_mean(counts: Sequence[tuple[int, int]], kind: tuple[int, int]) -> float:
    """The rate of `kind` under the same model, summed over plain grids of other points than the fast one's."""
    means = [1e-5 * 1.02**i for i in range(430)] + [0.05 + 0.005 * i for i in range(187)]
    total = rate = 0.0
    for i, mean in enumerate(means[1:-1], 1):
        width = (means[i + 1] - means[i - 1]) / 2
        for step in range(25):
            weight = 0.5 * 4000 ** (step / 24)
            a, b = mean * weight, (1 - mean) * weight
            support = sum(log_beta(a + k, b + n - k) - log_beta(a, b) for k, n in counts)
            share = width * math.exp(support)
            total += share
            rate += share * (a + kind[0]) / (a + b + kind[1])
    return rate / total


@pytest.mark.parametrize(
    "counts",
    [[(0, 8)], [(3, 8)], [(0, 8)] * 20, [(0, 8)] * 10 + [(1, 8)] * 2, [(0, 8), (5, 8), (1, 6), (0, 7)]],
)
def test_rates_are_those_of_a_plain_sum_over_the_model(counts: list[tuple[int, int]]) -> None:
    for kind, (mean, low, high) in shared_rates(counts).items():
        assert mean == pytest.approx(slow_mean(counts, kind), rel=0.05, abs=2e-4)
        assert 0 <= low <= mean <= high <= 1


def simulate(rates: Sequence[float], seed: int, rows: int = 8, panel: int = 500) -> list[ReferenceAccuracy]:
    """Cuts that lose each right row of the rest with these rates; of ten rows at risk two are lost."""
    rng = np.random.default_rng(seed)
    return [
        first_estimate(
            490, panel, AT_RISK, NEAR, Sampled(rows=rows, right=rows, lost=int(rng.binomial(rows, rate)), **REST)
        )
        for rate in rates
    ]


def truth(rate: float, panel: int = 500) -> float:
    return (490 - 2 - rate * (490 - 10)) / panel


@pytest.mark.parametrize("kind", ["alike", "spread", "two kinds"])
def test_the_intervals_hold_the_truth_and_are_narrower_than_alone(kind: str) -> None:
    rng = np.random.default_rng(0)
    inside, shared, alone, errors = 0, [], [], []
    for seed in range(10):
        rates = {
            "alike": np.full(80, 0.004),
            "spread": rng.beta(0.5, 12, 80),
            "two kinds": np.where(rng.random(80) < 0.1, 0.4, 0.002),
        }[kind]
        single = simulate(list(rates), 100 + seed)
        for rate, one, many in zip(rates, single, settle_costs(single), strict=True):
            inside += many.low <= truth(rate) <= many.high
            shared.append(many.high - many.low)
            alone.append(one.high - one.low)
            errors.append(many.after - truth(rate))
    assert inside >= 0.94 * 800
    assert np.mean(shared) < 0.75 * np.mean(alone)
    assert abs(float(np.mean(errors))) < 0.01


def test_a_cut_that_costs_much_more_than_the_others_stands_out() -> None:
    costs = settle_costs(
        [
            *simulate([0.0] * 100, 0),
            first_estimate(490, 500, AT_RISK, NEAR, Sampled(rows=8, right=8, lost=4, **REST)),
        ]
    )
    assert costs[-1].after < 0.75 < 0.94 < costs[0].after
    assert costs[-1].low < costs[-1].after - 0.1


def test_neither_order_nor_repetition_changes_a_figure() -> None:
    costs = simulate([0.0, 0.1, 0.02, 0.3, 0.0, 0.5], 3)
    settled = settle_costs(costs)
    assert settle_costs(costs[::-1])[::-1] == settled
    assert settle_costs(settled) == settled


def test_a_panel_measured_whole_is_counted_and_learns_nothing() -> None:
    whole = first_estimate(9, 10, Sampled(rows=10, right=9, lost=2, gained=1, of=10, of_right=9), NEAR, NEAR)
    ruinous = simulate([0.9] * 20, 0)
    assert settle_costs([whole, *ruinous])[0] == whole
    assert (whole.before, whole.after, whole.retained) == (0.9, 0.8, tidy(7 / 9))
    assert (whole.low, whole.high) == pytest.approx(wilson(8, 10), abs=1e-5)


def test_nothing_measured_is_nothing_settled() -> None:
    assert settle_costs([]) == []
    assert shared_rates([]) == {}


def test_strata_are_estimated_each_from_its_own_rows() -> None:
    """Rows expected to change and rows that hardly do: three strata of a panel, one draw of each."""
    rng, inside, errors = np.random.default_rng(1), 0, []
    rates, sizes, drawn = (0.85, 0.05, 0.001), (20, 32, 448), (8, 4, 2)
    costs, truths = [], []
    for _ in range(300):
        panel = [rng.random(size) < rng.beta(20 * r, 20 * (1 - r)) for size, r in zip(sizes, rates, strict=True)]
        samples = [
            Sampled(rows=n, right=n, lost=int(rows[:n].sum()), of=len(rows), of_right=len(rows))
            for rows, n in zip(panel, drawn, strict=True)
        ]
        costs.append(first_estimate(500, 500, *samples))
        truths.append(1 - sum(int(rows.sum()) for rows in panel) / 500)
    for cost, true in zip(settle_costs(costs), truths, strict=True):
        inside += cost.low <= true <= cost.high
        errors.append(cost.after - true)
    assert inside >= 285
    assert abs(float(np.mean(errors))) < 0.002
    assert np.std(errors) < 0.012
