"""Slices: counts are those of the findings, shares carry Wilson intervals, small groups say so and come last."""

from __future__ import annotations

from itertools import pairwise

import pytest

from memaudit.findings import Finding, Outcome
from memaudit.intervals import wilson
from memaudit.pipeline.slices import SMALL, slices
from tests import report_samples as samples

NAMES = samples.CLASSES


def found(count: int) -> list[Finding]:
    return samples.large(count).findings


@pytest.mark.parametrize("by", ["label", "confidence"])
def test_every_finding_is_in_one_slice_of_a_kind(by: str) -> None:
    parts = [s for s in slices(found(200), NAMES) if s.by == by]
    for name in ("fitted", "memorized"):
        assert sum(getattr(s, name).hits for s in parts) == sum(getattr(f, name) for f in found(200))
    assert sum(s.localized.hits for s in parts) == sum(f.outcome is Outcome.LOCALIZED for f in found(200))
    assert sum(s.count for s in parts) == 200


def test_a_slice_is_counted_by_hand() -> None:
    cats = [f for f in found(200) if NAMES[f.example.label] == "cat"]
    others = [f for f in found(200) if NAMES[f.example.label] != "cat"]
    cat = next(s for s in slices(found(200), NAMES) if s.value == "cat")
    hits = sum(f.memorized for f in cats)
    assert (cat.count, cat.memorized.hits) == (len(cats), hits)
    assert cat.memorized.rate == pytest.approx(hits / len(cats), rel=1e-5)
    assert (cat.memorized.low, cat.memorized.high) == pytest.approx(wilson(hits, len(cats)), rel=1e-5)
    assert cat.gap == pytest.approx(hits / len(cats) - sum(f.memorized for f in others) / len(others), rel=1e-5)


def test_the_largest_gaps_come_first_and_small_groups_last() -> None:
    parts = slices(found(120), NAMES)
    assert [(s.small, -abs(s.gap)) for s in parts] == sorted((s.small, -abs(s.gap)) for s in parts)
    assert all(s.small == (s.count < SMALL) for s in parts)
    assert any(s.small for s in parts)


def test_few_findings_have_no_deciles_and_one_label_is_no_slice() -> None:
    one = [f for f in found(200) if f.example.label == 3][:15]
    assert slices(one, NAMES) == []


def test_confidence_rises_from_tenth_to_tenth() -> None:
    parts = sorted((s for s in slices(found(200)) if s.by == "confidence"), key=lambda s: int(s.value.split()[0]))
    assert [s.count for s in parts] == [20] * 10
    bounds = [tuple(map(float, s.value.split(": ")[1].split(" to "))) for s in parts]
    assert all(low <= high for low, high in bounds)
    assert all(a[1] <= b[0] for a, b in pairwise(bounds))
