"""The flagged set as a group: shared units, trade-off, overlap, matched clean examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from memaudit.audits.localize import flagged_set as groups
from memaudit.audits.localize.controls import Judge
from memaudit.audits.localize.job import Proposal
from memaudit.audits.localize.population import measure_population
from memaudit.audits.localize.search import Search
from memaudit.engine.answers import margin
from memaudit.findings import Example, Finding, Outcome, Prediction, UnitRef
from tests import reference as slow
from tests.conftest import Trained

PANEL = list(range(0, 300, 3))


@pytest.fixture(scope="module")
def judge(trained: Trained) -> Judge:
    evaluator = trained.evaluator()
    population = measure_population(evaluator, trained.space, trained.reference, PANEL)
    live = torch.ones(trained.space.total, dtype=torch.bool)
    return Judge(evaluator, trained.space, trained.reference, PANEL, population, live, 1000, 1000, 1000, 0)


def refs(trained: Trained, numbers: list[int]) -> list[UnitRef]:
    return [UnitRef(layer=u.layer, index=u.index, kind=u.kind) for u in map(trained.space.unit, numbers)]


def finding(trained: Trained, name: str, numbers: list[int], outcome: Outcome = Outcome.LOCALIZED) -> Finding:
    return Finding(
        id=name,
        example=Example(id=name, source="x", label=0, index=0),
        outcome=outcome,
        fitted=outcome is not Outcome.NOT_FITTED,
        memorized=True,
        atypicality=None,
        before=Prediction(prediction=0, margin=1, confidence=1),
        units=refs(trained, numbers),
    )


@pytest.fixture(scope="module")
def findings(trained: Trained) -> list[Finding]:
    return [
        finding(trained, "c", [60, 20]),
        finding(trained, "a", [20, 3], Outcome.ENTANGLED),
        finding(trained, "b", [60]),
        finding(trained, "d", [5, 20, 60], Outcome.DIFFUSE),
        finding(trained, "e", [], Outcome.NOT_FITTED),
    ]


def test_units_of_erased_findings_the_most_shared_first(
    trained: Trained, judge: Judge, findings: list[Finding]
) -> None:
    ticks: list[int] = []
    found = groups.neurons(findings, judge, 10, ticks.append)
    numbers = [trained.space.number(n.layer, n.index, n.kind) for n in found]
    assert numbers == [20, 60, 3]  # two findings, two, one; ties in execution order
    assert [n.erases for n in found] == [["a", "c"], ["b", "c"], ["a"]]
    assert sum(ticks) == 3
    for neuron, number in zip(found, numbers, strict=True):
        after = slow.accuracy(trained.module, trained.space, trained.reference, PANEL, [number])
        assert neuron.reference_accuracy_after == pytest.approx(after, abs=1e-5)


def test_what_a_unit_costs_is_no_guess_where_few_rows_of_a_cut_are_measured(trained: Trained, judge: Judge) -> None:
    few = replace(judge, at_risk=4, near=2, at_random=1)
    chosen = [finding(trained, f"{n:02d}", [n]) for n in range(0, 80, 7)]
    found = groups.neurons(chosen, few, len(chosen), lambda _: None)
    for neuron in found:
        number = trained.space.number(neuron.layer, neuron.index, neuron.kind)
        after = slow.accuracy(trained.module, trained.space, trained.reference, PANEL, [number])
        assert neuron.reference_accuracy_after == pytest.approx(after, abs=0.01), neuron
        assert neuron.low is not None
        assert neuron.high is not None
        assert neuron.low <= after <= neuron.high


def test_only_so_many_units_are_measured(judge: Judge, findings: list[Finding]) -> None:
    found = groups.neurons(findings, judge, 2, lambda _: None)
    assert [n.reference_accuracy_after is None for n in found] == [False, False, True]


def test_the_curve_cuts_the_most_shared_units_together(trained: Trained, judge: Judge) -> None:
    shared = groups.neurons(
        [finding(trained, "a", list(range(16, 37))), finding(trained, "b", [36, 34])], judge, 10, lambda _: None
    )
    order = [34, 36, *range(16, 34), 35]
    rows = list(range(0, 50, 2))
    curve = groups.trade_off(shared, judge, trained.flagged, rows)
    assert [p.units for p in curve] == [0, 1, 4, 16, 21]  # and it ends with all of them
    for point in curve:
        cut = order[: point.units]
        copy = slow.cut_copy(trained.module, trained.space, cut)
        fitted = [
            float(slow.margin_of(slow.logits_of(copy, trained.flagged, r), trained.flagged.examples[r].label)) > 0
            for r in rows
        ]
        assert point.flagged_fitted == pytest.approx(sum(fitted) / len(rows), abs=1e-5)
        accuracy = slow.accuracy(trained.module, trained.space, trained.reference, PANEL, cut)
        assert point.reference_accuracy == pytest.approx(accuracy, abs=1e-5)
    assert len({(p.flagged_fitted, p.reference_accuracy) for p in curve}) > 3


@dataclass(frozen=True)
class Scripted:
    """A search that proposes what it was told."""

    cuts: dict[int, tuple[int, ...]]

    def run(self, evaluator: object, examples: object, rows: list[int]) -> Iterator[Proposal]:
        for row in reversed(rows):
            yield Proposal(row, self.cuts[row], erased=True)


def test_stability_is_the_mean_overlap_with_other_seeds(trained: Trained, judge: Judge) -> None:
    own = {3: [1, 2], 5: [7]}
    searches = {1: Scripted({3: (2, 1), 5: (8,)}), 2: Scripted({3: (2, 9, 10), 5: (7, 8)})}
    found = groups.stability(searches, judge, trained.flagged, own, lambda _: None)  # type: ignore[arg-type]
    means = [(1 + 1 / 4) / 2, (0 + 1 / 2) / 2]
    assert (found.seeds, found.examples) == ([1, 2], 2)
    assert found.jaccard == pytest.approx(sum(means) / 2)
    assert (found.low, found.high) == pytest.approx((min(means), max(means)))


def test_without_units_there_is_no_curve(trained: Trained, judge: Judge) -> None:
    assert groups.trade_off([], judge, trained.flagged, [0]) == []


def test_overlap_is_the_mean_jaccard_index_of_pairs(trained: Trained) -> None:
    sets = [refs(trained, n) for n in ([1, 2], [2, 3], [4], [2, 1])]
    # pairs: 1/3, 0, 1, 0, 1/3, 0
    assert groups.overlap(sets) == pytest.approx((1 / 3 + 1 + 1 / 3) / 6, abs=1e-6)
    assert groups.overlap(sets[:1]) is None
    assert groups.overlap([]) is None


def test_clean_examples_go_through_the_same_search(trained: Trained, judge: Judge) -> None:
    evaluator = judge.evaluator
    population = measure_population(evaluator, trained.space, trained.reference, range(1, 300, 3))
    search = Search(trained.space, judge.live, population, max_units=3)
    margins = margin(evaluator.logits(trained.flagged), trained.flagged.labels)
    reference_margins = margin(evaluator.logits(trained.reference), trained.reference.labels)
    rows = (margins > 0).nonzero().flatten().tolist()[:20]
    findings = [
        finding(trained, "a", [1]),
        finding(trained, "b", [1, 2]),
        finding(trained, "c", [9] * 3, Outcome.DIFFUSE),
    ]
    ticks: list[int] = []
    found = groups.matched_controls(
        findings, search, judge, trained.flagged, rows, margins, reference_margins, ticks.append
    )
    assert found is not None
    assert found.examples == sum(ticks) == len(rows)

    pairs = groups.matched_clean(
        margins[rows], trained.flagged.labels[rows], reference_margins, trained.reference.labels
    )
    clean = [len(p.cut) if p.erased else 4 for p in search.run(evaluator, trained.reference, [r for _, r in pairs])]
    assert 4 in clean  # not erased within the budget counts as more than it
    assert found.auc == pytest.approx(slow.auroc(clean, [1, 2, 4]), abs=1e-5)
    assert found.median_units == sorted(clean)[len(clean) // 2 - 1 : len(clean) // 2 + 1][0]
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.auc < found.high
