"""Atypicality: neighbours by brute force, features, live units, p-values."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.audits import atypicality as fit
from memaudit.audits.atypicality import (
    CALIBRATION,
    FEATURE_WIDTH,
    LAYERS,
    NEIGHBOURS,
    Observation,
    atypicality,
    leave_one_out,
    live_units,
    observe,
    observe_flagged,
    pooled,
    voting_sites,
)
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.evaluator import Evaluator
from memaudit.network.units import Site, UnitSpace
from tests.conftest import Trained
from tests.reference import auroc, nearest, support


def clusters(count: int, layers: int, classes: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Noisy features around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9))
    return [centres[labels] + torch.randn(count, 6, generator=generator) for _ in range(layers)], labels


@pytest.mark.parametrize(("reference", "classes", "k"), [(120, 3, 10), (40, 4, 5), (7, 2, 1), (2, 1, 1)])
def test_support_is_that_of_brute_force(reference: int, classes: int, k: int) -> None:
    base, base_labels = clusters(reference, 3, classes, seed=1)
    query, labels = clusters(15, 3, classes, seed=2)
    base_labels[0] = classes - 1  # so that the number of classes is what was asked for
    calibration = leave_one_out(base, base_labels)
    found = atypicality(query, labels, base, base_labels, calibration)
    own = [0.0] * 15
    loo = [0.0] * reference
    for q, b in zip(query, base, strict=True):
        shares = support(q.tolist(), labels.tolist(), b.tolist(), base_labels.tolist(), k)
        own = [a + s / 3 for a, s in zip(own, shares, strict=True)]
        shares = support(b.tolist(), base_labels.tolist(), b.tolist(), base_labels.tolist(), k, leave_out_self=True)
        loo = [a + s / 3 for a, s in zip(loo, shares, strict=True)]
    assert found.score.tolist() == pytest.approx([1 - s for s in own], abs=1e-6)
    assert calibration.tolist() == pytest.approx([1 - s for s in loo], abs=1e-6)
    p = [sum(1 - c >= 1 - s - 1e-6 for c in loo) / reference for s in own]
    assert found.p_value.tolist() == pytest.approx(p, abs=1e-6)


def test_the_nearest_are_those_of_brute_force() -> None:
    base, base_labels = clusters(40, 3, 4, seed=1)
    query, labels = clusters(15, 3, 4, seed=2)
    found = atypicality(query, labels, base, base_labels, torch.zeros(1))
    expected = nearest([q.tolist() for q in query], [b.tolist() for b in base])
    assert found.nearest.tolist() == [rows[:3] for rows in expected]
    assert bool((found.similarity[:, :-1] >= found.similarity[:, 1:]).all())


def test_neighbours_are_at_most_ten_and_half_a_class() -> None:
    assert NEIGHBOURS == 10  # the table above holds for this


def test_a_large_reference_is_sampled_for_calibration() -> None:
    base, base_labels = clusters(CALIBRATION + 1, 1, 3, seed=1)
    calibration = leave_one_out(base, base_labels)
    found = atypicality([base[0][:1]], base_labels[:1], base, base_labels, calibration)
    assert len(calibration) == (CALIBRATION + 2) // 2
    assert 0 <= float(found.p_value) <= 1


def test_labels_nobody_has_are_wholly_unsupported() -> None:
    base, base_labels = clusters(60, 2, 3, seed=1)
    found = atypicality([b[:5] for b in base], torch.full((5,), 7), base, base_labels, torch.zeros(1))
    assert found.score.tolist() == [1.0] * 5


def test_changed_labels_stand_out_in_a_trained_network(trained: Trained) -> None:
    evaluator = trained.evaluator()
    flagged = observe(evaluator, trained.flagged, trained.space)
    reference = observe(evaluator, trained.reference, trained.space)
    labels = trained.reference.labels
    calibration = leave_one_out(reference.features, labels)
    found = atypicality(flagged.features, trained.flagged.labels, reference.features, labels, calibration)
    assert auroc(found.score.tolist(), calibration.tolist()) > 0.95
    truth = reference.logits.argmax(1) == trained.reference.labels
    assert truth.float().mean() > 0.9


def test_flagged_examples_seen_part_by_part_are_those_seen_at_once(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, labels = trained.evaluator(), trained.reference.labels
    reference = observe(evaluator, trained.reference, trained.space)
    whole = observe(evaluator, trained.flagged, trained.space)
    calibration = leave_one_out(reference.features, labels)
    expected = atypicality(whole.features, trained.flagged.labels, reference.features, labels, calibration)
    monkeypatch.setattr(fit, "PART", 7)
    seen, found, own = observe_flagged(evaluator, trained.flagged, trained.space, reference, labels)
    assert not seen.features
    assert torch.allclose(seen.logits, whole.logits, atol=1e-5)
    for mine, theirs in zip(seen.statistics, whole.statistics, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.equal(own, calibration)
    assert torch.allclose(found.score, expected.score, atol=1e-6)
    assert torch.allclose(found.p_value, expected.p_value, atol=1e-6)


@pytest.mark.parametrize(
    ("sites", "voting"), [(1, [0]), (3, [0, 1, 2]), (8, list(range(8))), (16, list(range(1, 16, 2)))]
)
def test_at_most_eight_layers_vote_and_the_last_one_does(sites: int, voting: list[int]) -> None:
    assert LAYERS == 8
    assert voting_sites(UnitSpace(tuple(Site(str(n), "channel", 2) for n in range(sites)))) == voting


@pytest.mark.parametrize("sites", range(1, 60))
def test_voting_layers_are_spread_evenly(sites: int) -> None:
    found = voting_sites(UnitSpace(tuple(Site(str(n), "channel", 2) for n in range(sites))))
    assert len(found) == min(sites, LAYERS)
    assert found[-1] == sites - 1
    gaps = [b - a for a, b in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_pooled_features_keep_a_grid_of_two_by_two() -> None:
    positions = torch.tensor([[1.0, 2, 5, 6], [3, 4, 7, -8], [9, 9, -1, -1], [9, 9, -1, -1]])
    tensor = positions.reshape(1, 16, 1)
    assert pooled(tensor, 0, True).tolist() == [[2.5, 4.5, 9.0, 0.0]]  # rectified before the mean: (5 + 6 + 7 + 0) / 4
    assert pooled(tensor[:, :15], 0, True).shape == (1, 1)  # no square: the plain mean
    assert pooled(tensor[:, :1], 0, True).tolist() == [[1.0]]


def test_wide_features_are_projected_the_same_way_for_every_batch() -> None:
    wide = torch.rand(5, 4, FEATURE_WIDTH, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    found = pooled(wide, 3, True)
    assert found.shape == (5, FEATURE_WIDTH)
    assert torch.allclose(found[2:], pooled(wide[2:], 3, True), atol=1e-5)
    assert not torch.allclose(found, pooled(wide, 4, True), atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_are_those_of_the_whole_set_whatever_the_batches(trained: Trained) -> None:
    images = trained.reference.batch(range(50))
    value = trained.module.one(images)  # rectified: one.1's output is what comes before
    before = trained.module.one[1](trained.module.one[0](images))
    few = trained.reference.subset(range(50))
    for batch_size in (64, 7):  # 50 = 7 * 7 + 1: the last batch weighs less
        seen = observe(trained.evaluator(batch_size), few, trained.space)
        low, high, mean = seen.statistics[0]
        assert torch.equal(low, before.amin((0, 2, 3)))
        assert torch.equal(high, before.amax((0, 2, 3)))
        assert torch.allclose(mean, before.mean((0, 2, 3)), atol=1e-5)
        assert torch.equal(seen.means[0], mean)
    assert not torch.allclose(mean, value.mean((0, 2, 3)), atol=1e-2)


def test_units_that_never_vary_are_dead(trained: Trained) -> None:
    module = deepcopy(trained.module)
    for unit in (2, 5):
        module.one[1].weight[unit] = 0
        module.one[1].bias[unit] = 0.0 if unit == 2 else 3.0  # silent, or a constant
    adapter = Adapter(module, architecture="DigitsNet", preprocess=trained.adapter.preprocess)
    seen = observe(Evaluator(adapter), trained.reference, trained.space)
    assert (~live_units(trained.space, seen)).nonzero().flatten().tolist() == [2, 5]


class Rectified(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_a_unit_that_fires_in_one_of_two_sets_is_live_over_both() -> None:
    """The second unit fires for the bright image only; one image alone shows no variance."""
    module = nn.Sequential(Rectified(1, 2, 8), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.copy_(torch.tensor([0.0, -60.0]))
    shape = Preprocess((1, 8, 8))
    evaluator = Evaluator(Adapter(module, architecture="bright", preprocess=shape))
    space = UnitSpace((Site("0", "channel", 2),))
    images = torch.cat(
        [torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5, torch.ones(1, 1, 8, 8)]
    )
    labels = torch.zeros(4, dtype=torch.int64)
    both = from_tensors(images, labels, preprocess=shape, num_classes=2)
    dark, bright = (observe(evaluator, both.subset(rows), space) for rows in (range(3), [3]))
    assert live_units(space, dark).tolist() == [True, False]
    assert live_units(space, bright).tolist() == [False, False]
    assert live_units(space, dark, bright).tolist() == [True, True]


def test_a_unit_of_many_elements_is_live_when_one_of_them_is() -> None:
    space = UnitSpace((Site("gate", "neuron", 3, copies=2), Site("proj", "head", 2, span=2)))
    gate = torch.zeros(3, 6)
    gate[1, 4] = 1  # the second half of neuron 1
    proj = torch.zeros(3, 4)
    proj[0, 3] = -1  # the last column of head 1
    seen = Observation(torch.empty(0), (), (gate, proj))
    assert live_units(space, seen).tolist() == [False, True, False, False, True]
