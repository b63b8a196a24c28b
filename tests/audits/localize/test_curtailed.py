"""Draws that stop where they have decided: against drawing on, and what their intervals and verdicts are worth."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memaudit.audits.localize.curtailed import DOUBT, FIRST, exceeding, rounds, undecided, with_intervals
from memaudit.findings import RandomControl
from memaudit.intervals import wilson

PLANNED, MOST = 10, 1.0


def test_rounds_are_the_planned_draws_one_after_another() -> None:
    for planned in (1, 2, 3, 4, 10, 50):
        parts = rounds(planned)
        assert [n for part in parts for n in part] == list(range(planned))
        assert len(parts[0]) == min(FIRST, planned)


def test_the_chance_is_that_of_drawing_on_in_a_plain_simulation() -> None:
    """Rates drawn from the posterior's beta distributions, and the planned number of draws made with each."""
    counts = [(0, 3)] * 40 + [(1, 3)] * 3 + [(3, 3)]
    kinds = tuple(sorted(Counter(counts).items()))
    rng = np.random.default_rng(0)
    # The same model, on a coarse grid of its two parameters, by plain products of the chances of what was seen.
    means, weights = np.geomspace(1e-3, 0.9, 60), np.geomspace(0.5, 2000, 12)
    support, rates = [], []
    for mean in means:
        width = mean * (means[1] / means[0] - 1)
        for weight in weights:
            drawn = rng.beta(mean * weight, (1 - mean) * weight, 2000)
            chances = {k: float(np.mean(drawn ** k[0] * (1 - drawn) ** (k[1] - k[0]))) for k in set(counts)}
            support.append(np.log(width) + sum(t * np.log(max(chances[k], 1e-300)) for k, t in kinds))
            rates.append(drawn)
    share = np.exp(np.array(support) - max(support))
    for kind in ((0, 3), (1, 3)):
        more = total = 0.0
        for part, drawn in zip(share, rates, strict=True):
            seen = drawn ** kind[0] * (1 - drawn) ** (kind[1] - kind[0])
            later = rng.binomial(PLANNED - kind[1], drawn)
            more += part * float(np.sum(seen * (kind[0] + later > MOST)))
            total += part * float(np.sum(seen))
        assert exceeding(kinds, kind, PLANNED, MOST) == pytest.approx(more / total, rel=0.15, abs=0.002)
    assert exceeding(kinds, (3, 3), PLANNED, MOST) == pytest.approx(1.0)
    assert exceeding(kinds, (0, 10), PLANNED, MOST) == 0.0


@pytest.mark.parametrize("kind", ["never", "alike", "spread", "two kinds"])
def test_verdicts_are_those_of_all_draws_and_intervals_hold_the_rate_and_are_no_wider(kind: str) -> None:
    rng = np.random.default_rng(5)
    same, inside, drawn, total = 0, 0, 0, 0
    wide: list[float] = []
    for _ in range(20):
        rates = {
            "never": np.full(100, 0.0005),
            "alike": np.full(100, 0.02),
            "spread": rng.beta(0.3, 8, 100),
            "two kinds": np.where(rng.random(100) < 0.06, 0.5, 0.003),
        }[kind]
        every = rng.random((100, PLANNED)) < rates[:, None]
        seen = np.full(100, FIRST)
        for part in rounds(PLANNED)[1:]:
            controls = [RandomControl(draws=n, erased=e[:n].sum()) for e, n in zip(every, seen, strict=True)]
            doubt = np.array(undecided(controls, PLANNED, MOST)) & (seen == part.start)
            seen[doubt] = part.stop
        counts = [(int(e[:n].sum()), int(n)) for e, n in zip(every, seen, strict=True)]
        for rate, one, own in zip(rates, with_intervals(counts), every, strict=True):
            assert one.low is not None
            assert one.high is not None
            same += (one.erased > MOST) == (own.sum() > MOST)
            inside += one.low <= rate <= one.high
            wide.append(one.high - one.low)
        drawn, total = drawn + int(seen.sum()), total + every.size
    assert same >= (1 - DOUBT) * 2000
    assert inside >= 0.94 * 2000
    assert np.mean(wide) < wilson(0, PLANNED)[1]  # the narrowest that ten draws of one finding alone can give
    assert drawn < 0.75 * total


def test_a_few_findings_are_drawn_to_the_end() -> None:
    """Where little is known of the population, three draws decide nothing."""
    assert undecided([RandomControl(draws=3, erased=0)] * 2, PLANNED, MOST) == [True, True]
    assert undecided([], PLANNED, MOST) == []
