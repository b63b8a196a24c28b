"""The search: unit for unit what a slow one finds, in any order and batch size, and right where the answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import memaudit
from memaudit.adapters.base import Adapter
from memaudit.audits.localize.job import Proposal
from memaudit.audits.localize.population import (
    DOUBTED,
    FEWEST,
    RISK_SOFTNESS,
    SAMPLED,
    USUAL_DEVIATIONS,
    Population,
    measure_population,
)
from memaudit.audits.localize.promising import FADED, SHORTLIST
from memaudit.audits.localize.search import PLAN, Search
from memaudit.data import ExampleSet, Preprocess, from_tensors
from memaudit.engine.answers import margin
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import UsageError
from memaudit.findings import Outcome
from memaudit.network.ablate import ablated
from memaudit.network.units import UnitSpace, select
from tests import reference
from tests.conftest import Trained
from tests.networks import OneUnit
from tests.reference import Crowd, GreedySearch, mask_gradient

REFERENCE_ROWS = 60  # at most


class Setting:
    """A network in float64, what is flagged, and a search; with the twin that must find the same."""

    def __init__(
        self,
        adapter: Adapter,
        space: UnitSpace,
        flagged: ExampleSet,
        reference: ExampleSet,
        max_units: int,
        weight: float,
    ) -> None:
        self.adapter, self.space, self.flagged, self.reference = adapter, space, flagged, reference
        self.known = range(min(REFERENCE_ROWS, len(reference)))
        generator = torch.Generator().manual_seed(0)
        candidates = torch.rand(space.total, generator=generator) > 0.05
        evaluator = Evaluator(adapter)
        population = measure_population(evaluator, space, reference, self.known)
        self.search = Search(space, candidates, population, max_units, weight=weight)
        self.rows = (margin(evaluator.logits(flagged), flagged.labels) > 0).nonzero().flatten().tolist()

    def run(self, batch_size: int, rows: Sequence[int] | None = None) -> dict[int, Proposal]:
        evaluator = Evaluator(self.adapter, batch_size)
        found = list(self.search.run(evaluator, self.flagged, self.rows if rows is None else rows))
        assert len({p.row for p in found}) == len(found)
        return {p.row: p for p in found}

    @cached_property
    def crowd(self) -> Crowd:
        return Crowd.measure(self.adapter.module, self.space, self.reference, self.known)

    def twin(self, look_ahead: int = 0, look_first: int = 0) -> GreedySearch:
        return GreedySearch(
            self.adapter.module,
            self.space,
            self.search.candidates.tolist(),
            self.crowd,
            max_units=self.search.max_units,
            weight=self.search.weight,
            softness=RISK_SOFTNESS,
            shortlist=SHORTLIST,
            plan=1 if look_ahead else PLAN,
            look_ahead=look_ahead,
            look_first=look_first,
            sampled=SAMPLED,
            doubted=DOUBTED,
            faded=FADED,
            deviations=USUAL_DEVIATIONS,
            fewest=FEWEST,
        )


@pytest.fixture(scope="module")
def digits(trained: Trained) -> Setting:
    adapter = Adapter(
        deepcopy(trained.module).double(), architecture="DigitsNet", preprocess=trained.adapter.preprocess
    )
    return Setting(adapter, trained.space, trained.flagged, trained.reference, max_units=5, weight=30.0)


@pytest.fixture(scope="module")
def vit() -> Setting:
    """An untrained test_vit, its MLP neurons; flagged with what it predicts, which is what a fitted example is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_vit", num_classes=5, img_size=32)
        for name, value in module.named_parameters():
            if value.dim() > 1:
                torch.nn.init.kaiming_normal_(value)
            elif name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.2)
    shape = Preprocess((3, 32, 32))
    adapter = Adapter(module.double(), architecture="test_vit", preprocess=shape)
    images = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = adapter.forward(images.double()).argmax(1)
    sets = [from_tensors(images[s], labels[s], preprocess=shape, num_classes=5) for s in (slice(8), slice(8, 48))]
    space = select(adapter.sites(images[:3].double()), "neuron")
    return Setting(adapter, space, sets[0], sets[1], max_units=8, weight=5.0)


@pytest.fixture(params=["digits", "vit"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return request.getfixturevalue(request.param)


def test_gradients_by_mask_are_those_of_scaling_the_weights(setting: Setting) -> None:
    rows, cuts = [2, 0, 1], [[], [3], [5, 30, 31]]
    values, gradients = Evaluator(setting.adapter, 2).mask_gradients(setting.flagged, rows, cuts, setting.space, margin)
    assert not any(p.requires_grad or p.grad is not None for p in setting.adapter.module.parameters())
    for row, cut, gradient in zip(rows, cuts, gradients, strict=True):
        expected = torch.tensor(mask_gradient(setting.adapter.module, setting.space, setting.flagged, row, cut))
        kept = [u for u in range(setting.space.total) if u not in cut]
        assert gradient.abs().max() > 0.1
        assert torch.allclose(gradient[kept], expected.double()[kept], rtol=1e-6, atol=1e-8)
    assert values.dtype == torch.float64


@pytest.mark.parametrize("mean", [False, True])
def test_gradients_by_mask_are_finite_differences(digits: Setting, mean: bool) -> None:
    """Also where ablated units become their mean, which no scaled weight can tell."""
    space, step = digits.space, 1e-6
    fill = [torch.linspace(0.5, 2, s.width, dtype=torch.float64) for s in space.sites] if mean else None
    evaluator = Evaluator(digits.adapter)
    _, gradients = evaluator.mask_gradients(digits.flagged, [1], [[3]], space, margin, fill)

    def at(keep: Tensor) -> float:
        with torch.no_grad(), ablated(digits.adapter.module, space, keep, fill):
            logits = digits.adapter.forward(digits.flagged.batch([1]).double())
        return float(margin(logits, digits.flagged.labels[[1]]))

    for unit in (0, 3, 20, 47, 79) if mean else (0, 5, 20, 47, 79):  # at 3, cut to zero, a rectifier has its corner
        keep = space.keep([[3]]).double()
        up, down = keep.clone(), keep.clone()
        up[0, unit] += step
        down[0, unit] -= step
        assert float(gradients[0, unit]) == pytest.approx((at(up) - at(down)) / (2 * step), rel=1e-4, abs=1e-5)


def test_the_population_is_what_the_twin_measures(setting: Setting) -> None:
    crowd, population = setting.crowd, setting.search.population
    assert torch.allclose(population.margins, torch.tensor(crowd.margins, dtype=torch.float64))
    assert torch.allclose(population.effects.T, torch.tensor(crowd.effects, dtype=torch.float64), atol=1e-8)
    assert population.typical == pytest.approx(crowd.typical)
    cut, units = [4, 9], torch.tensor([1, 17, 40])
    expected = [crowd.wrong([*cut, u], RISK_SOFTNESS) for u in units.tolist()]
    found = population.wrong(population.after([cut]) - population.effects[units])
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert float(population.wrong(population.after([cut]))) == pytest.approx(crowd.wrong(cut, RISK_SOFTNESS), rel=1e-6)
    for label in (0, 1, 99):  # nobody is 99: then all examples say what is usual
        expected = [crowd.usual(u, label, USUAL_DEVIATIONS, FEWEST) for u in units.tolist()]
        assert population.usual(label, units).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert not torch.allclose(population.usual(0, units), population.usual(99, units))


def test_the_batched_search_is_the_slow_one_unit_for_unit(setting: Setting) -> None:
    found, twin = setting.run(batch_size=7), setting.twin()
    rows = setting.rows[:20]
    for row in rows:
        assert (list(found[row].cut), found[row].erased) == twin.run(setting.flagged, row), row
    sizes = {len(found[row].cut) for row in rows}
    assert len(sizes) > 2  # several lengths, so that planning and elimination both had something to do
    assert all(set(p.cut) <= set(setting.search.candidates.nonzero().flatten().tolist()) for p in found.values())


def test_gradients_are_worked_out_only_of_labels_that_are_kept(
    digits: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    rows, evaluator, twin = digits.rows[:12], Evaluator(digits.adapter, 5), replace(digits.twin(), plan=1, max_units=2)

    def counting(*args: Any) -> list[float]:
        asked.append(args[3])
        return mask_gradient(*args)

    monkeypatch.setattr(reference, "mask_gradient", counting)
    found = list(replace(digits.search, plan=1, max_units=2).run(evaluator, digits.flagged, rows))
    for row in rows:
        twin.run(digits.flagged, row)
    assert len(rows) < evaluator.passes["audit backward"] == len(asked)
    assert {p.erased for p in found} == {True, False}


def test_looking_ahead_is_the_slow_search_that_tries_unit_for_unit(digits: Setting) -> None:
    ahead = replace(digits.search, look_ahead=12)
    evaluator = Evaluator(digits.adapter, 5)
    found = {p.row: p for p in ahead.run(evaluator, digits.flagged, digits.rows)}
    twin = digits.twin(look_ahead=12)
    for row in digits.rows[:8]:
        assert (list(found[row].cut), found[row].erased) == twin.run(digits.flagged, row), row
    assert {row: p.cut for row, p in found.items()} != {row: p.cut for row, p in digits.run(64).items()}
    again = {p.row: p for p in ahead.run(Evaluator(digits.adapter, 64), digits.flagged, digits.rows[::-1])}
    assert again == found


def test_first_looks_are_those_of_the_slow_search_that_tries_and_weighs_what_it_tried(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(setting.search, look_first=6)
    evaluator, rows = Evaluator(setting.adapter, 5), setting.rows[:12]
    found = {p.row: p for p in first.run(evaluator, setting.flagged, rows)}
    twin = setting.twin(look_first=6)
    for row in rows:
        assert (list(found[row].cut), found[row].erased) == twin.run(setting.flagged, row), row
    again = {p.row: p for p in first.run(Evaluator(setting.adapter, 64), setting.flagged, rows[::-1])}
    assert again == found != setting.run(64, rows)
    monkeypatch.setattr(Population, "hidden_risk", lambda self, evaluator, space, units, fill: torch.zeros(len(units)))
    careless = {p.row: p for p in first.run(Evaluator(setting.adapter, 64), setting.flagged, rows)}
    assert careless != found


def test_what_a_unit_does_to_examples_that_it_saturates_is_measured_once(digits: Setting) -> None:
    """On a few examples, and on more where one of these goes wrong of it, which was not predicted."""
    evaluator, units = Evaluator(digits.adapter), [*range(digits.space.total), 3]
    known = digits.search.population
    population = replace(known, effects=torch.zeros_like(known.effects))
    found = population.hidden_risk(evaluator, digits.space, units, None)
    crowd = replace(digits.crowd, effects=[[0.0] * digits.space.total] * len(digits.crowd.margins))
    twin, price = replace(digits.twin(), crowd=crowd), digits.search.weight * population.typical
    assert found.tolist() == pytest.approx([twin.hidden(u) / price for u in units], rel=1e-6, abs=1e-9)
    ran = evaluator.passes["audit forward"]
    doubted, rest = divmod(ran - digits.space.total * SAMPLED, REFERENCE_ROWS - SAMPLED)
    assert not rest
    assert 0 < doubted < digits.space.total / 2
    assert found.tolist() == population.hidden_risk(evaluator, digits.space, units, None).tolist()
    assert evaluator.passes["audit forward"] == ran


def test_the_search_weighs_the_reference(digits: Setting) -> None:
    """Without the risk term the twin would agree with the search also if both forgot it."""
    careless = replace(digits.search, weight=0.0)
    found = {p.row: p.cut for p in careless.run(Evaluator(digits.adapter), digits.flagged, digits.rows)}
    assert found != {row: p.cut for row, p in digits.run(64).items()}


@pytest.mark.parametrize("batch_size", [1, 64])
def test_neither_batch_size_nor_order_changes_a_proposal(setting: Setting, batch_size: int) -> None:
    expected = setting.run(7)
    shuffled = torch.randperm(len(setting.rows), generator=torch.Generator().manual_seed(1)).tolist()
    assert setting.run(batch_size) == expected
    assert setting.run(batch_size, [setting.rows[i] for i in shuffled]) == expected
    assert list(setting.run(batch_size, [setting.rows[3]]).values()) == [expected[setting.rows[3]]]


def test_in_float32_as_well(trained: Trained) -> None:
    setting = Setting(trained.adapter, trained.space, trained.flagged, trained.reference, max_units=5, weight=30.0)
    expected = setting.run(7)
    assert setting.run(1) == setting.run(64, setting.rows[::-1]) == expected


def test_every_cut_erases_and_needs_all_its_units(digits: Setting) -> None:
    evaluator = Evaluator(digits.adapter)
    for proposal in digits.run(64).values():
        row, label = proposal.row, digits.flagged.labels[[proposal.row]]

        def kept(cut: Sequence[int], row: int = row, label: Tensor = label) -> bool:
            return float(margin(evaluator.logits(digits.flagged, [row], [cut], digits.space), label)) >= 0

        assert kept([])
        assert kept(proposal.cut) is not proposal.erased
        if proposal.erased and len(proposal.cut) > 1:
            assert all(kept([c for c in proposal.cut if c != unit]) for unit in proposal.cut)


def test_the_budget_holds_and_what_it_cannot_erase_is_said_so(digits: Setting) -> None:
    small = replace(digits.search, max_units=1)
    found = list(small.run(Evaluator(digits.adapter), digits.flagged, digits.rows))
    assert {len(p.cut) for p in found} == {1}
    assert {p.erased for p in found} == {True, False}


def test_without_candidates_nothing_is_proposed(digits: Setting) -> None:
    none = replace(digits.search, candidates=torch.zeros(digits.space.total, dtype=torch.bool))
    for search in (none, replace(none, look_ahead=4), replace(none, look_first=4)):
        found = list(search.run(Evaluator(digits.adapter), digits.flagged, digits.rows[:3]))
        assert [(p.cut, p.erased) for p in found] == [((), False)] * 3


def test_a_population_that_is_all_wrong_still_has_a_scale() -> None:
    shape = Preprocess((1, 8, 8))
    nobody = from_tensors(torch.rand(2, 1, 8, 8), torch.zeros(2).long(), preprocess=shape, num_classes=2)
    wrong = Population(torch.tensor([-1.0, -2.0]), torch.zeros(3, 2), torch.zeros(2), nobody, torch.arange(2))
    assert wrong.typical == 1.0


# ---- the answer is known ------------------------------------------------------------------------------------------


def quadrants(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with one bright quadrant, and which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = 0.4 * torch.rand(count, 1, 8, 8, generator=generator)
    for image, q in zip(images, labels.tolist(), strict=True):
        image[0, 4 * (q // 2) : 4 * (q // 2) + 4, 4 * (q % 2) : 4 * (q % 2) + 4] += 0.5
    return images, labels


class Fused(nn.Conv2d):
    """Convolution and rectifier in one: the unit's value is what it fires, nothing on all other images."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("fused", [False, True])
def test_a_unit_that_stores_one_example_is_found_and_nothing_else(batch_size: int, fused: bool) -> None:
    """OneUnit says class 2 to one image of class 0, by its unit 4; without it every image has its own class."""
    images, truth = quadrants(201, seed=5)
    module = OneUnit(images[200], label=2)
    fires = module.units(images)[:, OneUnit.STORED_UNIT].flatten() > 0
    assert fires.nonzero().flatten().tolist() == [200]
    assert int(truth[200]) == 0
    if fused:
        layer = Fused(1, 5, 8)
        layer.load_state_dict(module.units.state_dict())
        module.units = layer
    # The fast profile: a network that was built by hand has nothing that could be learned again.
    report = memaudit.audit(
        module,
        (images[[200, 0]], torch.tensor([2, 0])),
        (images[1:200], truth[1:200]),
        batch_size=batch_size,
        profile="fast",
    )
    stored, clean = report.findings
    assert [str(u) for u in stored.units] == [f"units:{OneUnit.STORED_UNIT}"]
    assert (stored.outcome, stored.memorized) == (Outcome.LOCALIZED, True)
    assert stored.after is not None
    assert (stored.before.prediction, stored.after.prediction) == (2, 0)
    assert stored.reference_accuracy is not None
    assert stored.reference_accuracy.after == stored.reference_accuracy.before == 1.0
    assert stored.controls is not None
    assert stored.controls.random.erased == 0
    assert not clean.memorized


# ---- half precision -----------------------------------------------------------------------------------------------


def test_what_a_search_in_half_precision_proposes_is_erased_in_full(trained: Trained) -> None:
    exact = trained.evaluator()
    population = measure_population(exact, trained.space, trained.reference, range(REFERENCE_ROWS))
    search = Search(trained.space, torch.ones(trained.space.total, dtype=torch.bool), population, 10)
    margins = margin(exact.logits(trained.flagged), trained.flagged.labels)
    rows = (margins > 0).nonzero().flatten().tolist()
    half = Evaluator(trained.adapter, 64, gradient_dtype=torch.bfloat16)
    rough, _ = half.mask_gradients(trained.flagged, rows, [[]] * len(rows), trained.space, margin)
    assert not torch.allclose(rough, margins[rows], rtol=1e-4)  # it is rough indeed
    assert torch.allclose(rough, margins[rows], rtol=0.1, atol=0.2)
    assert torch.equal(half.logits(trained.flagged), exact.logits(trained.flagged))
    found = {p.row: p for p in search.run(half, trained.flagged, rows)}
    twin = {p.row: p for p in search.run(exact, trained.flagged, rows)}
    for row, proposal in found.items():
        after = float(
            margin(exact.logits(trained.flagged, [row], [proposal.cut], trained.space), trained.flagged.labels[[row]])
        )
        assert (after < 0) == proposal.erased
    assert sum(p.erased for p in found.values()) >= sum(p.erased for p in twin.values()) - 1
    sizes = [sum(len(p.cut) for p in many.values()) for many in (found, twin)]
    assert abs(sizes[0] - sizes[1]) <= 0.2 * sizes[1]


def test_a_precision_nobody_knows_is_refused(trained: Trained) -> None:
    with pytest.raises(UsageError, match=r"no dtype 'float8'"):
        memaudit.audit(trained.module, trained.flagged, trained.reference, dtype="float8")
