"""Rates, ROC and the test of several scores, against scipy, scikit-learn, plain counts and simulated audits."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from memaudit.intervals import clopper_pearson, correlation, wilson
from memaudit.intervals.permutation import permutation_test
from memaudit.intervals.separation import advantage, at_level, auc, detectable, epsilon, roc


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 20), (1, 5000)])
def test_clopper_pearson_is_the_exact_test_inverted(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, count) == pytest.approx((expected.low, expected.high))


def test_no_observation_says_nothing() -> None:
    assert clopper_pearson(0, 0) == wilson(0, 0) == (0.0, 1.0)


def test_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    b = a + rng.normal(size=40)
    expected = stats.pearsonr(a, b)
    assert correlation(a, b) == pytest.approx((expected.statistic, *expected.confidence_interval(0.95)))
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_roc_and_auc_are_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.integers(0, 9, 60) / 2.0, rng.integers(0, 7, 90) / 2.0
    labels, scores = np.repeat([1, 0], [60, 90]), np.concatenate([members, others])
    alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(roc(members, others), (alarms, hits))
    assert auc(members, others)[0] == pytest.approx(roc_auc_score(labels, scores))
    assert advantage(members, others)[0] == pytest.approx((hits - alarms).max())


def test_intervals_stay_open_where_nothing_overlaps() -> None:
    value, low, high = auc(np.arange(10.0) + 20, np.arange(15.0))
    assert (value, high) == (1.0, pytest.approx(1.0, abs=1e-6))
    assert 0.6 < low < 0.95


def test_the_rule_lets_through_no_more_than_it_may() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(1, 1, 300), rng.normal(0, 1, 400)
    for level in (0.001, 0.01, 0.05):
        rule = at_level(members, others, level)
        assert rule.alarms == (others > rule.threshold).sum() <= level * 400
        assert rule.hits == (members > rule.threshold).sum()
        assert (rule.low, rule.high) == clopper_pearson(rule.hits, 300)
        assert rule.resolved == (level >= 1 / 400)
    assert at_level(members, others, 0.001).threshold == others.max()


def test_coverage_over_simulated_audits() -> None:
    """95 % intervals hold the truth in 95 % +- 1.5 of audits, or more where they are exact (never less)."""
    rng, audits = np.random.default_rng(3), 4000
    shift, m, n = 1.0, 80, 120
    truth = stats.norm.cdf(shift / np.sqrt(2))
    held = {"auc": 0, "alarms": 0, "hits": 0}
    for _ in range(audits):
        members, others = rng.normal(shift, 1, m), rng.normal(0, 1, n)
        _, low, high = auc(members, others)
        held["auc"] += low <= truth <= high
        rule = at_level(members, others, 0.05)
        held["alarms"] += stats.norm.sf(rule.threshold) <= rule.alarms_high
        held["hits"] += rule.low <= stats.norm.sf(rule.threshold - shift) <= rule.high
    share = {name: count / audits for name, count in held.items()}
    assert share["auc"] == pytest.approx(0.95, abs=0.015)
    assert share["alarms"] == pytest.approx(0.975, abs=0.015), "the bound is exact: Beta(k, n - k + 1)"
    assert 0.94 <= share["hits"] <= 0.985, "Clopper-Pearson holds at least 95 %"


def test_epsilon_is_a_lower_bound() -> None:
    """Randomized response with a known epsilon: the bound is below it, and not far below with many examples."""
    rng, true = np.random.default_rng(4), 2.0
    keep = np.exp(true) / (1 + np.exp(true))
    too_high = 0
    for _ in range(200):
        members, others = (rng.random(4000) < keep) * 1.0, (rng.random(4000) < 1 - keep) * 1.0
        members += rng.random(4000) / 2
        others += rng.random(4000) / 2
        found = epsilon([at_level(members, others, level) for level in (0.01, 0.05, 0.12)])
        too_high += found > true
    assert too_high / 200 <= 0.05
    assert 1.5 < found <= true
    rule = at_level(np.ones(50), np.zeros(50), 0.05)
    assert epsilon([rule]) == pytest.approx(
        log((clopper_pearson(50, 50, 0.95)[0] - 1e-5) / clopper_pearson(0, 50, 0.95)[1])
    )


def test_what_can_be_detected_is_detected() -> None:
    rate = detectable(100, 0.05)
    assert rate is not None
    needed = next(k for k in range(101) if clopper_pearson(k, 100)[0] > 0.05)
    assert stats.binom.sf(needed - 1, 100, rate) == pytest.approx(0.8, abs=1e-6)
    assert detectable(1, 0.05) is None, "one example shows nothing"


def _audit(rng: np.random.Generator, clear: int = 0, m: int = 60, n: int = 150) -> tuple:
    """Two dependent scores of examples of three kinds that differ in difficulty; `clear` members stand out in one."""
    kind, member = rng.integers(0, 3, m + n), np.arange(m + n) < m
    first = rng.normal(size=m + n) + 3 * kind
    first[rng.choice(m, clear, replace=False)] = 99
    return {"first": first, "second": first + rng.exponential(size=m + n)}, member, kind.astype(np.int64)


def test_false_alarms_are_nominal_over_200_simulated_audits() -> None:
    rng = np.random.default_rng(5)
    alarms = sum(permutation_test(*_audit(rng), seed=i, deals=199).p_value <= 0.05 for i in range(200))
    low, high = stats.binom.ppf([0.005, 0.995], 200, 0.05)
    assert low <= alarms <= high
    below = sum(permutation_test(*_audit(rng), seed=i, deals=199).below <= 0.05 for i in range(200))
    assert low <= below <= high


def test_kinds_that_are_harder_are_no_evidence_and_without_them_they_would_be() -> None:
    rng = np.random.default_rng(6)
    kind = np.repeat([0, 1], [100, 100]).astype(np.int64)
    member = np.concatenate([rng.random(100) < 0.8, rng.random(100) < 0.2])
    scores = {"score": rng.normal(size=200) - 2.0 * kind}
    assert permutation_test(scores, member, kind, seed=0).p_value > 0.05
    assert permutation_test(scores, member, np.zeros(200, dtype=np.int64), seed=0).p_value < 0.01


def test_what_the_power_promises_is_found() -> None:
    rng = np.random.default_rng(7)
    clear = permutation_test(*_audit(rng), seed=0, deals=399).clear
    assert clear is not None
    found = sum(permutation_test(*_audit(rng, clear), seed=i, deals=199).p_value <= 0.05 for i in range(60))
    assert found / 60 >= 0.62
    few = sum(permutation_test(*_audit(rng, max(1, clear // 4)), seed=i, deals=199).p_value <= 0.05 for i in range(60))
    assert few < found
    assert (
        permutation_test({"score": np.arange(4.0)}, np.arange(4) < 1, np.zeros(4, dtype=np.int64), seed=0).clear is None
    )


def test_deals_are_all_deals_of_a_small_audit() -> None:
    """The p-value of a rank sum, against scipy's exact test."""
    rng = np.random.default_rng(8)
    values = rng.normal(size=16)
    values[:6] += 0.9
    member = np.arange(16) < 6
    exact = stats.mannwhitneyu(values[:6], values[6:], alternative="greater", method="exact").pvalue
    found = permutation_test({"score": values}, member, np.zeros(16, dtype=np.int64), seed=0, deals=20_000).p_value
    assert exact <= found + 0.004, "two statistics are looked at, so it cannot be smaller"
    assert found <= 2 * exact + 0.004
    below = permutation_test({"score": -values}, member, np.zeros(16, dtype=np.int64), seed=0, deals=20_000).below
    assert below == pytest.approx(exact, abs=0.004), "ranks alone are looked at from below"
