"""The memorization estimate: p-values, the verdict on a list, and relearning against a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import betabinom
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.audits.memorization import power
from memaudit.audits.memorization.along_training import late
from memaudit.audits.memorization.joint import discrimination, join, weights_of
from memaudit.audits.memorization.parts import Calibration, Part, conformal, rests
from memaudit.audits.memorization.power import Planting
from memaudit.audits.memorization.relearned import (
    ASKED,
    LEAST_STEPS,
    MEMBERS,
    RATE,
    batch_for,
    epochs_for,
    moved,
    relearned,
)
from memaudit.audits.memorization.verdict import FALSE_DISCOVERIES, adjusted, call, false_rate, tail
from memaudit.audits.memorization.views import against
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.answers import margin, predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.views import VIEWS, asked
from memaudit.network.layer_groups import LayerGroup
from memaudit.network.replay import groups_in_order
from memaudit.network.states import digest, put_back
from tests.conftest import MOST_EPOCHS, Trained

SHAPE = Preprocess((1, 8, 8), origin="given")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_p_value_counts_the_clean_examples_that_score_as_high() -> None:
    scores, clean = drawn(20), drawn(50, seed=1)
    expected = [(1 + sum(float(c) >= float(s) - 1e-6 for c in clean)) / 51 for s in scores]
    assert conformal(scores, clean).tolist() == pytest.approx(expected)


def part(name: str = "views", flagged: int = 20, clean: int = 200, mistakes: int = 50, seed: int = 1) -> Part:
    own, weight, given, doubt = (drawn(clean, seed=seed + n) for n in range(4))
    compared = Calibration(own, weight, given, doubt / 2, torch.arange(clean) < mistakes)
    return Part(name, drawn(flagged, seed=seed + 4), drawn(flagged, seed=seed + 5) / 2, compared)


@pytest.mark.parametrize(("mistakes", "one"), [(150, 1.0), (50, 1.5), (3, None)])
def test_a_p_value_is_the_larger_of_a_right_label_and_of_one_given_unseen(mistakes: int, one: float | None) -> None:
    asked = part(mistakes=mistakes)
    clean, found = asked.calibration, []

    def right(score: float) -> float:
        above = sum(float(w) for c, w in zip(clean.own, clean.weight, strict=True) if float(c) >= score - 1e-6)
        return (1 + above) / (1 + float(clean.weight.sum()))

    for unsupported, doubt in zip(asked.unsupported.tolist(), asked.doubt.tolist(), strict=True):
        unseen = right(unsupported - doubt)
        if one is not None:
            share = 1 - (1 - unsupported) / (1 - doubt)
            pairs = zip(clean.given.tolist(), clean.doubt.tolist(), strict=True)
            others = [1 - (1 - g) / (1 - d) >= share - 1e-6 for g, d in pairs]
            above = one * sum(others[:mistakes]) + sum(others[mistakes:])
            unseen = min(unseen, (one + above) / (one + one * mistakes + 200 - mistakes))
        found.append(max(right(unsupported), unseen))
    assert asked.p_values().tolist() == pytest.approx(found, rel=1e-5)
    assert clean.known == pytest.approx(float(clean.weight.sum()))
    assert asked.scores.tolist() == pytest.approx((asked.unsupported - asked.doubt).clamp(min=0).tolist())


def test_what_a_sure_network_gives_rests_on_its_example_as_far_as_nothing_else_supports_it() -> None:
    unsupported = drawn(10)
    assert torch.allclose(rests(unsupported, torch.zeros(10)), unsupported.double())
    assert torch.allclose(rests(unsupported, unsupported), torch.zeros(10).double())  # nothing is added by the example
    assert bool(torch.isfinite(rests(torch.ones(2), torch.ones(2))).all())


def test_parts_join_to_their_weighted_mean_for_flagged_and_clean_alike() -> None:
    one, two = part("relearned", 5, 8), part("neighbours", 5, 8, seed=30)
    joint = join([one, two], torch.tensor([0.8, 0.2], dtype=torch.float64))
    pairs = [
        (joint.unsupported, one.unsupported, two.unsupported),
        (joint.calibration.own, one.calibration.own, two.calibration.own),
        (joint.calibration.given, one.calibration.given, two.calibration.given),
    ]
    for both, first, second in pairs:
        assert both.tolist() == pytest.approx((0.8 * first + 0.2 * second).tolist(), rel=1e-5)
    assert joint.doubt is one.doubt
    assert joint.calibration.weight is one.calibration.weight


def test_a_part_that_cannot_tell_changed_labels_counts_nothing() -> None:
    blind, seeing = (
        Part(
            name,
            drawn(5),
            torch.zeros(5),
            Calibration(own, torch.ones(400), own, torch.zeros(400), torch.zeros(400, dtype=torch.bool)),
        )
        for name, own in (("relearned", drawn(400, seed=3)), ("neighbours", drawn(400, seed=4) / 2))
    )
    weights = weights_of([blind, seeing], [drawn(400, seed=5), drawn(400, seed=6) / 2 + 0.5]).tolist()
    assert weights[0] < 0.3 < 0.7 < weights[1]
    assert weights_of([blind], [blind.calibration.own]).tolist() == [1.0]


def test_discrimination_is_that_of_the_area_under_the_curve() -> None:
    other, own = (drawn(60, seed=1) * 10).round() / 10, (drawn(80, seed=2) * 8).round() / 10
    labels = [1] * 60 + [0] * 80
    assert discrimination(other, own) == pytest.approx(2 * roc_auc_score(labels, torch.cat([other, own])) - 1)
    assert discrimination(own, other) == 0.0


def test_lists_of_clean_examples_are_rarely_called() -> None:
    generator, red, lists = torch.Generator().manual_seed(0), 0, 400
    for _ in range(lists):
        scores = torch.rand(300, generator=generator)
        red += bool(call(conformal(scores[:100], scores[100:]), 200).called.any())
    assert red / lists <= 0.07


def test_one_clean_example_alone_is_called_as_often_as_the_level_says() -> None:
    assert false_rate(999) == 0.05
    assert call(torch.tensor([0.05], dtype=torch.float64), 999).called.tolist() == [True]
    assert call(torch.tensor([0.051], dtype=torch.float64), 999).called.tolist() == [False]


def test_memorized_examples_among_clean_ones_are_counted_beyond_chance() -> None:
    p_values = torch.cat([torch.full((60,), 1 / 501), drawn(140).double()])
    found = call(p_values, 500)
    assert found.called[:60].all()
    assert found.called[60:].sum() <= 20
    assert found.low <= 60 <= found.high
    assert abs(found.beyond - 60) <= 8


def test_a_list_that_surely_holds_memorized_examples_has_as_many_called() -> None:
    few = torch.cat([torch.full((40,), 0.04, dtype=torch.float64), torch.linspace(0.02, 1, 960, dtype=torch.float64)])
    found = call(few, 2000)
    assert float(found.q_values.min()) > FALSE_DISCOVERIES
    assert found.chance < 0.05
    assert 0 < found.low == int(found.called.sum())
    assert found.called[few.argsort(stable=True)[: found.low]].all()


@pytest.mark.parametrize("memorized", [10, 60, 180])
def test_of_those_called_few_are_clean(memorized: int) -> None:
    """Two hundred examples, the clean ones exchangeable with the calibration, the memorized ones just above most."""
    generator, false, lists = torch.Generator().manual_seed(memorized), 0.0, 100
    for _ in range(lists):
        clean = torch.rand(1200 - memorized, generator=generator)
        scores = torch.cat([torch.rand(memorized, generator=generator) / 4 + 0.8, clean[1000:]])
        called = call(conformal(scores, clean[:1000]), 1000).called
        false += float(called[memorized:].sum()) / max(1, int(called.sum()))
    assert false / lists <= FALSE_DISCOVERIES


def test_in_a_list_that_is_memorized_nearly_whole_a_larger_p_value_is_called() -> None:
    strong = torch.full((90,), 0.001, dtype=torch.float64)
    weak = torch.tensor([0.09, 0.11], dtype=torch.float64)
    assert call(torch.cat([strong, weak]), 999).called[90:].tolist() == [True, False]
    clean = torch.linspace(0.11, 1, 200, dtype=torch.float64)
    mixed = call(torch.cat([strong, weak, clean]), 999)
    assert mixed.called[90:92].tolist() == [False, False]
    assert float(mixed.q_values[90]) > 0.05


def test_one_strong_example_in_a_short_list_is_called() -> None:
    assert call(torch.tensor([0.001, 0.5, 0.8, 0.3]), 999).called.tolist() == [True, False, False, False]


def test_no_example_makes_no_claim() -> None:
    found = call(torch.empty(0, dtype=torch.float64), 100)
    assert (found.reached, found.beyond, found.chance) == (0, 0.0, 1.0)


def test_the_tail_is_that_of_a_beta_binomial() -> None:
    for hits, count, clean in ((3, 20, 199), (12, 100, 999), (1, 1, 19)):
        below = (clean + 1) // 20
        expected = betabinom.sf(hits - 1, count, below, clean + 1 - below)
        assert tail(hits, count, clean) == pytest.approx(expected)


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg() -> None:
    assert adjusted(torch.tensor([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_a_label_that_is_learned_late_scores_higher() -> None:
    course = torch.tensor([[[0.8, 0.2], [0.2, 0.8]], [[0.9, 0.1], [0.9, 0.1]]])
    early, slow = late(course, torch.tensor([0, 0])).tolist()
    assert 0 <= early < slow <= 1


def test_moved_images_have_each_its_own_shift_and_every_other_is_mirrored() -> None:
    images = drawn(9, 1, 4, 4)
    changed = moved(images, mirror=True)
    assert torch.equal(changed[4], images[4].flip(-1))  # the place without a shift
    assert torch.equal(changed[3, :, :, 1:], images[3, :, :, :-1])
    assert torch.equal(moved(torch.arange(6).view(2, 3), mirror=True), torch.arange(6).view(2, 3))


def small() -> nn.Sequential:
    """Without a bias under BatchNorm: its gradient is rounding alone, and AdamW makes whole steps of it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


def test_relearning_is_a_plain_loop_and_leaves_the_network_as_it_was() -> None:
    network, images, labels = small(), drawn(150, 1, 8, 8), torch.arange(150) % 3
    examples = from_tensors(images, labels, preprocess=SHAPE, num_classes=None, source="drawn")
    group = LayerGroup("0 to 1", tuple(n for n in network.state_dict() if n[0] in "01"), 0)
    evaluator = Evaluator(Adapter(network, architecture="small", preprocess=SHAPE, reason="a test"), 20)
    training, asked, before = Panel(examples, range(100)), Panel(examples, range(100, 150)), digest(network)
    evaluator.logits(examples, [0])  # as every audit has: the adapter looks once at what the intact network returns
    generator = generator_for(0, "test", "")
    found = relearned(evaluator, group, training, [asked], generator=generator, share=0.6, mirror=True, epochs=6)[0]
    assert digest(network) == before
    assert torch.allclose(found, plainly(network, group, images, labels, epochs=6), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"), [(1500, 64, 5), (500, 64, 5), (250, 32, 5), (100, 16, 6), (12, 16, 40)]
)
def test_few_examples_are_learned_in_smaller_batches_before_they_are_learned_more_often(
    rows: int, batch: int, epochs: int
) -> None:
    assert (batch_for(rows), epochs_for(rows)) == (batch, epochs)
    assert epochs * -(-rows // batch) >= LEAST_STEPS


def plainly(network: nn.Sequential, group: LayerGroup, images: Tensor, labels: Tensor, epochs: int) -> Tensor:
    """The slow twin: a copy of the network, trained by hand."""
    generator, twin = generator_for(0, "test", ""), copy.deepcopy(network)
    twin.load_state_dict({**twin.state_dict(), **put_back(twin, group, generator, {}, 0.6)})
    own = [p.requires_grad_() for n, p in twin.named_parameters() if n in group.names]
    optimizer, total = torch.optim.AdamW(own, lr=RATE, weight_decay=0.0), torch.zeros(50, 3)
    for epoch in range(epochs):
        twin[1].train()
        for rows in torch.split(torch.randperm(100, generator=generator), batch_for(100)):
            optimizer.zero_grad()
            F.cross_entropy(twin(moved(images[rows], mirror=True)), labels[rows]).backward()
            optimizer.step()
        twin.eval()
        if epoch >= epochs - ASKED:
            view = images[100:].flip(-1) if epoch % 2 else images[100:]
            total += twin(view).softmax(1).detach().float() / ASKED
    return total


def test_weights_put_back_keep_their_scale_and_nothing_of_their_order() -> None:
    network = small()
    group = LayerGroup("5", ("5.weight",), 48)
    value = put_back(network, group, generator_for(0, "test", ""), {})["5.weight"]
    assert torch.equal(value.flatten().sort().values, network[5].weight.detach().flatten().sort().values)
    assert not torch.equal(value, network[5].weight)


def test_planted_labels_are_learned_and_spread_and_the_network_is_as_before(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "MOST_EPOCHS", MOST_EPOCHS)
    evaluator, before = trained.evaluator(), digest(trained.module)
    reference = trained.reference
    known = predicted(margin(evaluator.logits(reference), reference.labels)).nonzero().flatten()
    rows, beside, taught = known[:20].tolist(), known[20:80].tolist(), known[80:200].tolist()
    labels = (reference.labels[rows] + 3) % 10
    groups = groups_in_order(trained.module, evaluator.adapter.forward, reference.batch([0, 1]))
    work = Planting(reference, trained.space, groups, rows, labels, beside, VIEWS[1:5], MEMBERS[0], taught, False, 0)
    ((number, found),) = work(evaluator, range(1))
    assert number == 0
    assert digest(trained.module) == before
    assert set(found) == {"neighbours", "views", "relearned"}
    assert {len(scores) for scores in found.values()} == {len(found["views"])}
    assert len(found["views"]) >= 18  # nine in ten are learned
    unlearned = torch.stack([asked(evaluator, Panel(reference, rows), view) for view in VIEWS[1:5]]).mean(0)
    assert float(found["views"].median()) < float(against(unlearned, labels).median()) - 0.2
