"""Ways of preparing images, compared by the labels that a network gives."""

from __future__ import annotations

from dataclasses import replace

import torch

from memaudit.data import Preprocess
from memaudit.pipeline.trials import Tried, other_way

WAY = Preprocess((3, 4, 4))


def tried(*right: list[bool]) -> Tried:
    """A way that gives these labels of each set, all of them 0, of two classes."""
    return Tried(
        WAY, [(torch.eye(2)[[int(not r) for r in rs]], torch.zeros(len(rs), dtype=torch.long)) for rs in right]
    )


def test_labels_learned_by_heart_decide_where_the_reference_does_not() -> None:
    before, best = tried([True] * 90 + [False] * 10, [False] * 12), tried([True] * 92 + [False] * 8, [True] * 12)
    assert best.beats(before)
    found = other_way(before, [("other", best)], lambda way, base: "--other")
    assert found is not None
    assert "reference accuracy is 0.900, 0/12 flagged, and 0.920, 12/12 flagged with other" in found[0].message
    assert found[0].hint == "if that is how it was trained: --other"
    assert not tried([True] * 90 + [False] * 10).beats(tried([True] * 88 + [False] * 12))


def test_nonsense_that_gives_half_of_the_wrong_labels_of_two_classes_is_no_better() -> None:
    before = tried([True] * 100, [False] * 300)
    nonsense = tried([True, False] * 50, [True, False] * 150)
    assert int(nonsense.right.sum()) - int(before.right.sum()) == 100
    assert not nonsense.beats(before)
    assert other_way(before, [("nonsense", nonsense)], lambda way, base: "") is None


def test_what_was_said_is_contradicted_by_a_large_difference_only() -> None:
    """The network of a list that it never saw: few flagged labels are given either way."""
    before = tried([True] * 109 + [False] * 91, [True] * 7 + [False] * 193)
    other = tried([True] * 117 + [False] * 83, [True] * 12 + [False] * 188)
    assert other.beats(before)
    assert other_way(before, [("other", other)], lambda way, base: "") is not None
    assert other_way(before, [("other", other)], lambda way, base: "", least=0.1) is None
    swapped = replace(other, way=replace(WAY, bgr=True))  # nobody said in which order they are
    assert other_way(before, [("other", swapped)], lambda way, base: "", least=0.1) is not None
    much = tried([True] * 160 + [False] * 40, [True] * 7 + [False] * 193)
    assert other_way(before, [("other", much)], lambda way, base: "", least=0.1) is not None
