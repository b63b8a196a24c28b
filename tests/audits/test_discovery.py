"""A whole set judged by itself: no example supports its own label, nor do its copies; and errors are counted right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import memaudit
from memaudit.audits.discovery import copies as copying
from memaudit.audits.discovery import judge
from memaudit.audits.discovery.copies import Copies, folds, near_copies
from memaudit.audits.discovery.neighbours import Voters, Votes
from memaudit.audits.discovery.noise import fit_noise
from memaudit.audits.discovery.unseen import Unseen, teachers_of, unseen
from memaudit.data import Preprocess, from_tensors, joined
from memaudit.engine.answers import Answers
from memaudit.engine.draws import generator_for
from memaudit.findings.ranking import Standing
from memaudit.network.layer_groups import LayerGroup, tensors_of
from tests.conftest import Trained

NONE = Copies(torch.full((40, 3), -1), torch.full((40, 3), torch.inf))


def randoms(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- near-duplicates -------------------------------------------------------------------------------------------------


def test_a_copy_with_a_little_noise_is_found_and_nothing_else() -> None:
    pixels = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels[7] = (pixels[3] + 0.01 * randoms(1, 8, 8)).clamp(0, 1)
    pixels[30] = (pixels[3] + 0.01 * randoms(1, 8, 8, seed=1)).clamp(0, 1)
    labels = torch.arange(40) % 4
    examples = from_tensors(pixels, labels, preprocess=Preprocess((1, 8, 8), origin="given"), num_classes=4)
    copies = near_copies(examples)
    assert [(a, b) for a, b, _ in copies.pairs()] == [(3, 7), (3, 30), (7, 30)]
    assert copies.clusters()[[3, 7, 30, 8]].tolist() == [3, 3, 3, 8]


@pytest.mark.parametrize("bright", [0.0, 2.0], ids=["alike", "of different brightness"])
@pytest.mark.parametrize(("others", "most"), [(2048, 20_000), (5, 20_000), (5, 10)], ids=["few", "parts", "many"])
def test_copies_found_part_by_part_are_those_of_a_plain_comparison(
    bright: float, others: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = (pixels + bright * torch.rand(30, 1, 1, 1, generator=torch.Generator().manual_seed(1))) / (1 + bright)
    for row in (7, 11, 29):
        pixels[row] = (pixels[3] + 0.01 * randoms(1, 8, 8, seed=row)).clamp(0, 1)
    pixels = (255 * pixels).round().byte()
    monkeypatch.setattr(copying, "OTHERS", others)
    monkeypatch.setattr(copying, "ALL", most)
    monkeypatch.setattr(copying, "ASKED", 30)
    examples = from_tensors(pixels, torch.arange(30) % 3, preprocess=Preprocess((1, 8, 8)), num_classes=3)
    monkeypatch.setattr(copying, "PART", 7)
    found = near_copies(examples)
    images = list(pixels / 255)
    apart = [[9.0 if a is b else float((a - b).square().mean().sqrt()) for b in images] for a in images]
    limit = 0.13 * sorted(min(row) for row in apart)[(len(apart) - 1) // 2]
    for row, near in enumerate(apart):
        expected = sorted((o for o in range(30) if near[o] <= limit), key=lambda o: near[o])
        assert [o for o in found.rows[row].tolist() if o >= 0] == expected
        distances = [d for d in found.distances[row].tolist() if d < torch.inf]
        assert distances == pytest.approx([near[o] for o in expected], abs=1e-4)


def test_folds_keep_copies_together_and_classes_apart() -> None:
    clusters, labels = torch.arange(40), torch.arange(40) % 4
    clusters[20:30] = 0
    found = folds(clusters, labels, 2, generator_for(0, "folds", ""))
    assert sorted(row for fold in found for row in fold) == list(range(40))
    assert any({0, *range(20, 30)} <= set(fold) for fold in found)
    alone = folds(torch.arange(40), labels, 2, generator_for(0, "folds", ""))
    assert [sorted(labels[fold].tolist()) for fold in alone] == [sorted([*range(4)] * 5)] * 2


# ---- neighbours ------------------------------------------------------------------------------------------------------


def vote(layers: list[Tensor], labels: Tensor, classes: int, copies: Copies) -> Votes:
    """What the nearest of all others say of each."""
    everybody = torch.arange(len(labels))
    return Voters.of(everybody, labels, layers).asked(everybody, layers, classes, copies)


def slow_shares(layers: list[Tensor], labels: Tensor, classes: int, copies: Copies) -> Tensor:
    """Neighbour by neighbour: sort the others, leave out copies, count labels."""
    count = len(labels)
    k = max(1, min(10, count // (2 * classes)))
    shares = torch.zeros(count, classes)
    for layer in layers:
        unit = F.normalize(layer.float() - layer.float().mean(0), dim=1)
        for row in range(count):
            banned = {row, *copies.rows[row].tolist()}
            order = sorted((o for o in range(count) if o not in banned), key=lambda o: -float(unit[row] @ unit[o]))
            for other in order[:k]:
                shares[row, labels[other]] += 1 / k / len(layers)
    return shares


def test_votes_are_those_of_a_plain_count() -> None:
    layers, labels = [randoms(40, 12), randoms(40, 6, seed=1)], torch.arange(40) % 3
    copies = Copies(NONE.rows.clone(), NONE.distances)
    copies.rows[5, 0], copies.rows[9, 0] = 9, 5
    found = vote([layer.half() for layer in layers], labels, 3, copies)
    assert torch.allclose(
        found.shares[:], slow_shares(layers, labels, 3, copies), atol=0.051
    )  # a tie may turn in float16
    assert torch.allclose(found.shares[:].sum(1), torch.ones(40))
    assert 9 not in found.nearest[5].tolist()
    assert all(row not in found.nearest[row].tolist() for row in range(40))


def test_a_sample_votes_as_a_plain_count_of_its_labels() -> None:
    layers, labels = [randoms(40, 12).half(), randoms(40, 6, seed=1).half()], torch.arange(40) % 3
    copies = Copies(NONE.rows.clone(), NONE.distances)
    copies.rows[5, 0], copies.rows[9, 0] = 9, 5
    rows = torch.tensor([1, 2, 3, 5, 8, 9, 13, 20, 21, 22, 30, 37])
    voters = Voters.of(rows, labels[rows], [layer[rows] for layer in layers])
    asked = torch.tensor([0, 39, 5, 9, 17])
    found = voters.asked(asked, [layer[asked] for layer in layers], 3, copies)
    for number, row in enumerate(asked.tolist()):
        expected = torch.zeros(3)
        for layer in layers:
            centred = layer.float() - layer[rows].float().mean(0)
            near = F.normalize(centred, dim=1) @ F.normalize(centred[row], dim=0)
            allowed = [o for o in rows.tolist() if o != row and o not in copies.rows[row].tolist()]
            for other in sorted(allowed, key=lambda o: -float(near[o]))[:2]:
                expected[labels[other]] += 1 / 2 / len(layers)
        assert torch.allclose(found.shares[:][number], expected)
        nearest = found.nearest[number][found.similarity[number] > -torch.inf].tolist()
        assert set(nearest) <= {o for o in rows.tolist() if o != row and o not in copies.rows[row].tolist()}
        assert len(nearest) >= len(rows) - 3


def test_a_set_of_which_a_sample_votes_is_ranked_alike_and_says_so(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The changed labels of the flagged examples are found among the others, whoever votes."""
    both = joined(trained.flagged, trained.reference)
    whole = memaudit.discover(trained.adapter, both, profile="fast")
    monkeypatch.setattr("memaudit.pipeline.discover.VOTERS", 200)
    monkeypatch.setattr("memaudit.pipeline.discover.TOGETHER", 64)
    some = memaudit.discover(trained.adapter, both, profile="fast")
    (said,) = (w.message for w in some.warnings if w.code == "MEM121")
    assert said == "neighbours are 200 of the 350 examples, drawn by label"
    assert not [w for w in whole.warnings if w.code == "MEM121"]
    first = [{one.id for one in found.ranked[:50]} for found in (whole, some)]
    assert len(first[0] & first[1]) >= 40
    assert some.twins_in_all == whole.twins_in_all


def test_a_label_has_no_say_in_its_own_support() -> None:
    layers, labels = [randoms(40, 12).half()], torch.arange(40) % 3
    other = labels.clone()
    other[17] = (other[17] + 1) % 3
    assert torch.equal(vote(layers, labels, 3, NONE).shares[17:18], vote(layers, other, 3, NONE).shares[17:18])


# ---- relearned without the example -----------------------------------------------------------------------------------


def test_a_fold_is_asked_of_layers_that_never_saw_its_labels(trained: Trained) -> None:
    """Other labels in one fold change what is said of the other fold, and not a bit of what is said of this one."""
    group = LayerGroup("three", tuple(n for n in tensors_of(trained.module) if n.startswith(("three", "head"))), 0)
    data = trained.reference.subset(range(80))
    parts = [list(range(0, 80, 2)), list(range(1, 80, 2))]
    changed = from_tensors(
        data.pixels,
        torch.where(torch.arange(80) % 2 == 0, (data.labels + 1) % 10, data.labels),
        preprocess=trained.adapter.preprocess,
        num_classes=10,
    )
    everyone = torch.ones(80, dtype=torch.bool)
    said = [
        unseen(trained.evaluator(), Unseen(examples, [group], parts, everyone, 100, 0))[0]
        for examples in (data, changed)
    ]
    assert torch.equal(said[0][parts[0]], said[1][parts[0]])
    assert not torch.equal(said[0][parts[1]], said[1][parts[1]])
    assert unseen(trained.evaluator(), Unseen(data, [group], parts, everyone, 100, 0, deadline=0)) == []


def test_teachers_are_of_other_folds_and_may_teach() -> None:
    allowed = torch.arange(40) % 4 != 0
    found = teachers_of([list(range(20)), list(range(20, 40))], 0, allowed, 8, generator_for(0, "x", ""))
    assert len(found) == len(set(found)) == 8
    assert all(row >= 20 and bool(allowed[row]) for row in found)


def test_a_label_that_its_neighbours_outvote_teaches_nobody() -> None:
    shares = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.2, 0.8]])
    assert judge.teachers(shares, torch.tensor([1, 1, 1])).tolist() == [False, True, True]


# ---- how many labels are wrong ---------------------------------------------------------------------------------------


def planted(share: float, scale: float, count: int = 4000, classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities that are too sure or unsure by `scale`, labels drawn from them, some of them replaced."""
    generator = torch.Generator().manual_seed(3)
    logits = 2.5 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    wrong = torch.rand(count, generator=generator) < share
    moved = (labels + torch.randint(1, classes, (count,), generator=generator)) % classes
    return (scale * logits).log_softmax(1), torch.where(wrong, moved, labels), wrong


@pytest.mark.parametrize(("share", "scale"), [(0.05, 1.0), (0.2, 1.0), (0.2, 0.5), (0.4, 2.0)])
def test_the_share_of_wrong_labels_is_found_without_a_clean_one(share: float, scale: float) -> None:
    answers, labels, wrong = planted(share, scale)
    found = fit_noise(answers, labels)
    assert found.low <= float(wrong.double().mean()) <= found.high
    assert found.high - found.low < 0.06
    odds = found.replaced()
    top = odds.argsort(descending=True)[:200]
    assert float(odds[top].mean()) == pytest.approx(float(wrong[top].double().mean()), abs=0.08)


@pytest.mark.parametrize(("share", "scale"), [(0.0, 1.0), (0.2, 0.25), (0.4, 4.0)])
def test_of_many_examples_few_temperatures_are_held_and_nothing_changes(
    share: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, labels, _ = planted(share, scale)
    whole = fit_noise(answers, labels)
    monkeypatch.setattr("memaudit.audits.discovery.noise.HELD", 100)
    some = fit_noise(answers, labels)
    assert (some.wrong, some.low, some.high) == (whole.wrong, whole.low, whole.high)
    assert torch.equal(some.support[:], whole.support[:])


def test_clean_labels_are_not_said_to_be_wrong_and_their_p_values_are_honest() -> None:
    answers, labels, _ = planted(0.0, 1.0)
    found = fit_noise(answers, labels)
    assert found.low == 0
    assert found.wrong < 0.01
    p_values = found.p_values()
    assert float(p_values.min()) > 0
    assert [float((p_values <= level).double().mean()) for level in (0.01, 0.05, 0.2)] == pytest.approx(
        [0.01, 0.05, 0.2], abs=0.015
    )


def test_what_a_label_is_to_the_model() -> None:
    """Known by heart, resisted, learned: by what the model says with and without having seen it."""
    count = 60
    labels = torch.zeros(count, dtype=torch.int64)
    others = torch.tensor([0.96, 0.02, 0.02]).repeat(count, 1)
    others[:6] = torch.tensor([0.001, 0.998, 0.001])
    logits = torch.tensor([9.0, 0.0, 0.0]).repeat(count, 1)
    logits[4:6] = torch.tensor([0.0, 9.0, 0.0])
    found = judge.judge(Answers.of(logits, labels), labels, {"relearned": others}, others)
    assert found.standings[:4] == (Standing.MEMORIZED,) * 4
    assert found.standings[4:6] == (Standing.RESISTED,) * 2
    assert set(found.standings[6:]) == {Standing.LEARNED}
    assert set(found.order[:4].tolist()) == {0, 1, 2, 3}
    assert float(found.estimate[:4].min()) > 0.9
    assert float(found.estimate[4:6].max()) < 0.01
    assert found.suggested[:6].tolist() == [1] * 6


def test_views_put_in_order_and_call_nothing() -> None:
    labels = torch.arange(40) % 4
    logits = 5 * F.one_hot(labels, 4).float()
    others, shares, views = (randoms(40, 4, seed=seed).softmax(1) for seed in range(3))
    plain = judge.judge(Answers.of(logits, labels), labels, {"relearned": others}, shares)
    found = judge.judge(Answers.of(logits, labels), labels, {"relearned": others}, shares, views)
    assert torch.equal(found.wrong, plain.wrong)
    assert found.standings == plain.standings
    for row, label in enumerate(labels.tolist()):
        said = np.stack([kind[row].double().numpy() for kind in (plain.noise.support[:], shares, views)])
        together = ((said + judge.FLOOR) / (1 + 4 * judge.FLOOR)).prod(0) ** (1 / 3)
        assert float(found.gap[row]) == pytest.approx(1 - together[label] / together.sum(), abs=1e-6)


def test_views_are_asked_but_of_a_fast_ranking(trained: Trained) -> None:
    few = trained.reference.subset(range(60))
    for profile, asked in (("standard", True), ("fast", False)):
        ranking = memaudit.discover(trained.module, few, profile=profile)
        assert ("views" in ranking.parts) is asked
        assert ("views forward" in ranking.passes) is asked
