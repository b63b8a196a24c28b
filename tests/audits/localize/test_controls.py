"""Controls: what a cut costs against a slow count, random units, copies, matched examples, intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from memaudit.audits.localize.controls import FURTHER, JITTER, MORE, NEAR, Judge, augment
from memaudit.audits.localize.cost import settle_costs
from memaudit.audits.localize.population import measure_population
from memaudit.audits.localize.together import Measurement
from memaudit.audits.panels import matched_clean
from memaudit.data import ExampleSet, Preprocess, from_tensors
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import AugmentedControl, FlaggedOthersControl, ReferenceAccuracy, interned
from memaudit.intervals import bootstrap, wilson
from memaudit.numbers import tidy
from memaudit.pipeline.assemble import auroc
from tests import reference as slow
from tests.conftest import Trained

PANEL = list(range(40, 300, 2))
T = TypeVar("T")


def alone(judge: Judge, measurement: Measurement[T]) -> T:
    """What one measurement finds with no other beside it."""
    return judge.together([measurement])[0]


def accuracy(judge: Judge, cut: Sequence[int], key: str) -> ReferenceAccuracy:
    return alone(judge, judge.reference_accuracy(cut, key))


def judge(
    trained: Trained, at_risk: int = 4, near: int = 4, at_random: int = 4, seed: int = 0, panel: Sequence[int] = PANEL
) -> Judge:
    evaluator = trained.evaluator()
    population = measure_population(evaluator, trained.space, trained.reference, panel)
    live = torch.ones(trained.space.total, dtype=torch.bool)
    live[[0, 17, 50, 51]] = False
    return Judge(evaluator, trained.space, trained.reference, panel, population, live, at_risk, near, at_random, seed)


@pytest.fixture(scope="module")
def sampling(trained: Trained) -> Judge:
    return judge(trained)


def random_cuts(count: int, seed: int = 0) -> list[list[int]]:
    """Cuts of 1 to 25 of the 80 units: from harmless to ruinous."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(80, generator=generator)[: 1 + n % 25].tolist() for n in range(count)]


class Watched:
    """An evaluator that writes down which rows and cuts it was asked for."""

    def __init__(self, judge: Judge) -> None:
        self.rows: list[list[int]] = []
        self.cuts: list[list[int]] = []
        self.inner = judge.evaluator

    def logits(self, examples: object, rows: list[int], cuts: list[list[int]], space: object, fill: object) -> Tensor:
        self.rows.append(rows)
        self.cuts += cuts
        return self.inner.logits(examples, rows, cuts, space, fill)  # type: ignore[arg-type]


# ---- reference accuracy -------------------------------------------------------------------------------------------


def whole(trained: Trained) -> Judge:
    return judge(trained, 1000, 1000, 1000)


def test_the_whole_panel_is_counted_exactly(trained: Trained) -> None:
    everything = whole(trained)
    before = slow.accuracy(trained.module, trained.space, trained.reference, PANEL, [])
    for cut in [[], [3], *random_cuts(12)]:
        found = accuracy(everything, cut, "any")
        after = slow.accuracy(trained.module, trained.space, trained.reference, PANEL, cut)
        assert (found.before, found.after, found.examples) == (tidy(before), tidy(after), len(PANEL))
        low, high = slow.wilson(round(after * len(PANEL)), len(PANEL))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


def test_retained_counts_only_those_right_before(trained: Trained) -> None:
    cut = random_cuts(25)[24]
    everything = whole(trained)
    copy = slow.cut_copy(trained.module, trained.space, cut)
    kept = right = 0
    for row in PANEL:
        label = trained.reference.examples[row].label
        if int(slow.logits_of(trained.module, trained.reference, row).argmax()) == label:
            right += 1
            kept += int(slow.logits_of(copy, trained.reference, row).argmax()) == label
    found = accuracy(everything, cut, "any")
    assert found.retained == tidy(kept / right)
    assert found.retained is not None
    assert found.retained < 0.9


@pytest.mark.parametrize(("each", "narrow"), [(5, 0.31), (20, 0.11)])
def test_a_sample_of_the_panel_comes_with_an_interval_that_holds_the_truth(
    trained: Trained, each: int, narrow: float
) -> None:
    everything, sampling = whole(trained), judge(trained, each, each, each)
    cuts = random_cuts(150, seed=1)
    alone = []
    for number, cut in enumerate(cuts):
        found = accuracy(sampling, cut, str(number))
        assert found.examples == found.at_risk.rows + found.near.rows + found.at_random.rows
        assert max(found.near.rows, found.at_random.rows) <= each * FURTHER
        assert found.at_risk.rows == min(found.at_risk.of, each + found.at_risk.of // MORE)
        assert found.low <= found.after <= found.high
        alone.append(found)
    truth = [accuracy(everything, cut, "").after for cut in cuts]
    assert min(truth) < 0.7  # the cuts do something to be estimated
    for estimates, lean, inside in ((alone, 0.05, 0.9), (settle_costs(alone), 0.015, 0.95)):
        pairs = list(zip(estimates, truth, strict=True))
        assert sum(e.low <= t <= e.high for e, t in pairs) >= inside * len(cuts)
        assert abs(sum(e.after - t for e, t in pairs)) / len(cuts) < lean
        assert min(e.high - e.low for e in estimates) < narrow  # an interval of everything would hold the truth too


def test_the_estimate_weighs_the_sample_by_what_it_stands_for(trained: Trained) -> None:
    """Averaged over many draws, a sampled stratum gives the truth."""
    cut = random_cuts(25)[20]
    truth = accuracy(whole(trained), cut, "").after
    base = judge(trained, 4, 4, 12)
    estimates = [accuracy(replace(base, seed=s), cut, "x").after for s in range(150)]
    assert len(set(estimates)) > 5
    assert sum(estimates) / len(estimates) == pytest.approx(truth, abs=0.02)


def test_strata_are_by_what_is_expected_and_counted_as_plain_copies_count(trained: Trained) -> None:
    base = judge(trained, 6, 6, 6)
    labels, before = trained.reference.labels, base.population.margins > 0
    changed: dict[str, list[bool]] = {"at_risk": [], "near": [], "at_random": []}
    for number, cut in enumerate(random_cuts(40)):
        watched = Watched(base)
        found = accuracy(replace(base, evaluator=watched), cut, str(number))  # type: ignore[arg-type]
        measured = [row for rows in watched.rows for row in rows]
        assert len(measured) == len(set(measured)) == found.examples  # none twice
        away = torch.where(before, 1.0, -1.0) * base.population.after([cut])[0]
        order, first = away.argsort(stable=True).tolist(), int((away <= 0).sum())
        strata = {"at_risk": order[:first], "near": order[first : first + NEAR], "at_random": order[first + NEAR :]}
        copy = slow.cut_copy(trained.module, trained.space, cut)
        for name, members in strata.items():
            sample = getattr(found, name)
            rows = [row for row in measured if row in {PANEL[i] for i in members}]
            was, now = (
                [int(slow.logits_of(m, trained.reference, row).argmax()) == labels[row] for row in rows]
                for m in (trained.module, copy)
            )
            assert (sample.rows, sample.of, sample.of_right) == (len(rows), len(members), int(before[members].sum()))
            assert (sample.right, sample.lost, sample.gained) == (
                sum(was),
                sum(w and not n for w, n in zip(was, now, strict=True)),
                sum(n and not w for w, n in zip(was, now, strict=True)),
            )
            changed[name] += [w != n for w, n in zip(was, now, strict=True)]
    shares = [sum(found) / len(found) for found in changed.values()]
    assert shares[0] > 1.5 * shares[1] > 2 * shares[2]


def test_the_same_key_measures_the_same_rows_in_any_order(sampling: Judge) -> None:
    cuts = random_cuts(10)
    forwards = [accuracy(sampling, c, str(i)) for i, c in enumerate(cuts)]
    backwards = [accuracy(sampling, c, str(i)) for i, c in reversed(list(enumerate(cuts)))]
    assert forwards == backwards[::-1]
    assert accuracy(replace(sampling, seed=1), cuts[9], "9") != forwards[9]


# ---- random units -------------------------------------------------------------------------------------------------


def drawn(judge: Judge, trained: Trained, cut: list[int], key: str = "k", draws: int = 30) -> list[list[int]]:
    watched = Watched(judge)
    watching = replace(judge, evaluator=watched)  # type: ignore[arg-type]
    alone(watching, watching.random_units(trained.flagged, 1, cut, range(draws), key))
    return watched.cuts


def test_random_units_are_live_of_the_same_layers_and_never_the_cut(trained: Trained, sampling: Judge) -> None:
    cut = [1, 2, 20, 49, 52, 79]
    draws = drawn(sampling, trained, cut, draws=60)
    assert len(draws) == 60
    layers = Counter(trained.space.unit(u).layer for u in cut)
    for draw in draws:
        assert Counter(trained.space.unit(u).layer for u in draw) == layers
        assert len(set(draw)) == len(draw)
        assert not set(draw) & set(cut)
        assert all(bool(sampling.live[u]) for u in draw)
    assert len({tuple(sorted(d)) for d in draws}) > 50
    reached = {u for d in draws for u in d if u < 16}
    assert len(reached) == 16 - 2 - 1  # all of the first layer but the cut and the dead one


def test_a_layer_with_too_few_other_units_is_filled_up_from_elsewhere(trained: Trained, sampling: Judge) -> None:
    cut = list(range(1, 15))  # of 16, one of which is dead
    for draw in drawn(sampling, trained, cut):
        assert len(set(draw)) == len(cut)
        assert sum(u < 16 for u in draw) == 1
        assert not set(draw) & set(cut)
        assert all(bool(sampling.live[u]) for u in draw)


def test_the_same_seed_and_key_draw_the_same_whatever_was_drawn_before(trained: Trained, sampling: Judge) -> None:
    first = drawn(sampling, trained, [1, 20], key="a")
    drawn(sampling, trained, [5, 6, 7], key="b")
    torch.rand(3)
    assert drawn(sampling, trained, [1, 20], key="a") == first
    assert drawn(sampling, trained, [1, 20], key="c") != first
    assert drawn(replace(sampling, seed=1), trained, [1, 20], key="a") != first


def test_drawing_leaves_the_global_generator_alone(trained: Trained, sampling: Judge) -> None:
    state = torch.get_rng_state()
    alone(sampling, sampling.random_units(trained.flagged, 1, [1, 20], range(10), "k"))
    accuracy(sampling, [1, 20], "k")
    assert torch.equal(torch.get_rng_state(), state)


def test_random_erasures_are_counted_as_edited_copies_say(trained: Trained, sampling: Judge) -> None:
    cut = list(range(20, 36))  # so many that random units of the layer erase too, sometimes
    draws = drawn(sampling, trained, cut, draws=20)
    for row in (0, 1, 2):
        found = alone(sampling, sampling.random_units(trained.flagged, row, cut, range(20), "k"))
        parts = [sampling.random_units(trained.flagged, row, cut, part, "k") for part in (range(3), range(3, 20))]
        label = trained.flagged.examples[row].label
        logits = [slow.logits_of(slow.cut_copy(trained.module, trained.space, d), trained.flagged, row) for d in draws]
        erased = sum(float(slow.margin_of(z, label)) < 0 for z in logits)
        assert found == erased == sum(sampling.together(parts))
    assert erased


def copied(judge: Judge, examples: ExampleSet, row: int, cut: Sequence[int]) -> AugmentedControl:
    found = judge.copied(examples, [row])
    assert found is not None
    return alone(judge, judge.augmented(found[0], found[1][0], cut))


# ---- copies and other examples ------------------------------------------------------------------------------------


def test_copies_differ_from_the_example_and_from_each_other(trained: Trained) -> None:
    for row in range(len(trained.flagged)):
        copies = augment(trained.flagged, row)
        image = trained.flagged.pixels[row]
        seen = [image, *copies.pixels]
        assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
        assert set(copies.labels.tolist()) == {trained.flagged.examples[row].label}
        assert 1 <= len(copies) <= 4


def test_copies_are_mirrored_and_moved_with_their_edge_repeated() -> None:
    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4) / 16
    examples = from_tensors(image, torch.tensor([0]), preprocess=Preprocess((1, 4, 4)), num_classes=1)
    mirrored, left, right, down = (16 * c[0] for c in augment(examples, 0).pixels)
    assert mirrored[0].tolist() == [4, 3, 2, 1]
    assert left[0].tolist() == [2, 3, 4, 4]
    assert right[0].tolist() == [1, 1, 2, 3]
    assert down[:, 0].tolist() == [1, 1, 5, 9]


def test_copies_of_what_is_no_image_move_in_its_own_units(trained: Trained, sampling: Judge) -> None:
    """Bytes mean values from 0 to 1, of the example as of the reference that says how far a copy lies from it."""
    rows = torch.randint(0, 256, (40, 6), dtype=torch.uint8)
    examples = replace(trained.reference.subset(range(40)), pixels=rows)
    judge = replace(sampling, reference=examples)
    copies = judge._jittered(examples, 3).pixels
    assert copies.dtype == torch.float32
    away = (copies - rows[3].float() / 255).abs() / (rows.float() / 255).std(0)
    assert 0 < float(away.max()) < 6 * JITTER


@pytest.mark.parametrize(("image", "copies"), [("plain", 0), ("symmetric", 3)])
def test_a_copy_that_changes_nothing_is_no_evidence(trained: Trained, sampling: Judge, image: str, copies: int) -> None:
    pixels = torch.full((1, 1, 8, 8), 0.5)
    if image == "symmetric":
        pixels[..., 3:5] = torch.arange(8.0)[:, None] / 8
    examples = from_tensors(pixels, torch.tensor([0]), preprocess=Preprocess((1, 8, 8)), num_classes=10)
    assert len(augment(examples, 0)) == copies
    assert copied(sampling, examples, 0, [1]).copies <= copies


def test_of_the_copies_that_were_fitted_so_many_are_erased(trained: Trained, sampling: Judge) -> None:
    cut = list(range(30, 60))
    fitted = erased = 0
    for row in range(20):
        found = copied(sampling, trained.flagged, row, cut)
        copies = augment(trained.flagged, row)
        copy = slow.cut_copy(trained.module, trained.space, cut)
        label = trained.flagged.examples[row].label
        before = [
            i for i in range(len(copies)) if float(slow.margin_of(slow.logits_of(trained.module, copies, i), label)) > 0
        ]
        gone = [i for i in before if float(slow.margin_of(slow.logits_of(copy, copies, i), label)) < 0]
        assert (found.copies, found.erased) == (len(before), len(gone))
        fitted, erased = fitted + len(before), erased + len(gone)
    assert 0 < erased < fitted < 80


def test_other_flagged_examples_that_go_with_the_cut(trained: Trained, sampling: Judge) -> None:
    cut = list(range(30, 50))
    fitted = list(range(2, 30))

    def others(fitted: list[int], most: int) -> FlaggedOthersControl:
        return alone(sampling, sampling.flagged_others(trained.flagged, 5, cut, fitted, most, "k"))

    found = others(fitted, 100)
    copy = slow.cut_copy(trained.module, trained.space, cut)
    lost = sum(
        float(slow.margin_of(slow.logits_of(copy, trained.flagged, r), trained.flagged.examples[r].label)) < 0
        for r in fitted
        if r != 5
    )
    assert (found.examples, found.lost) == (27, lost)
    assert 0 < lost < 27
    assert others(fitted, 4).examples == 4
    assert others([5], 4).examples == 0


def test_side_by_side_each_measurement_finds_what_it_finds_alone(trained: Trained, sampling: Judge) -> None:
    """Measurements of different lengths on two sets, in one batch after another, against one row a pass."""
    cuts = random_cuts(12)

    def everything(judge: Judge) -> list[Measurement[object]]:
        return [
            m
            for n, cut in enumerate(cuts)
            for m in (
                judge.reference_accuracy(cut, str(n)),
                judge.random_units(trained.flagged, n, cut, range(5), str(n)),
                judge.flagged_others(trained.flagged, n, cut, range(30), 3, str(n)),
            )
        ]

    watched = Watched(sampling)
    found = replace(sampling, evaluator=watched).together(everything(sampling))  # type: ignore[arg-type]
    plain = replace(sampling, evaluator=Evaluator(trained.evaluator().adapter, 1))
    assert found == [plain.together([m])[0] for m in everything(plain)]
    assert len(watched.rows[0]) >= 12 * 4
    assert sampling.together([]) == []


def test_each_matched_example_is_fitted_of_the_same_label_near_in_margin_and_used_once() -> None:
    margins, labels = torch.tensor([1.0, 1.1, 5.0, 2.0]), torch.tensor([0, 0, 0, 1])
    reference_margins = torch.tensor([1.05, 1.2, -1.0, 9.0, 2.0, 2.0])
    reference_labels = torch.tensor([0, 0, 0, 0, 2, 2])
    pairs = matched_clean(margins, labels, reference_margins, reference_labels)
    assert pairs == [(0, 0), (1, 1), (2, 3)]  # 3 has no reference example of its label; row 2 takes what is left


def test_nothing_fitted_matches_nothing() -> None:
    assert matched_clean(torch.ones(2), torch.zeros(2), -torch.ones(3), torch.zeros(3)) == []


def test_a_generator_depends_on_seed_purpose_and_key_alone() -> None:
    def first(*what: object) -> float:
        return float(torch.rand(1, generator=generator_for(*what)))  # type: ignore[arg-type]

    assert first(0, "a", "b") == first(0, "a", "b")
    assert len({first(0, "a", "b"), first(1, "a", "b"), first(0, "b", "b"), first(0, "a", "c")}) == 4


# ---- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 10), (1, 1), (0, 1), (250, 1000)])
def test_wilson_is_where_the_rate_is_1_96_standard_errors_away(hits: int, count: int) -> None:
    assert wilson(hits, count) == pytest.approx(slow.wilson(hits, count), abs=1e-9)


def test_nothing_seen_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert bootstrap([], 0) == (0.0, 1.0)


def test_a_bootstrap_interval_is_about_two_standard_errors_each_way() -> None:
    values = [float(v) for v in torch.randn(400, generator=torch.Generator().manual_seed(0))]
    mean = sum(values) / 400
    error = (sum((v - mean) ** 2 for v in values) / 400 / 400) ** 0.5
    low, high = bootstrap(values, 0)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error * 1.96)
    assert bootstrap(values, 0) == (low, high) != bootstrap(values, 1)


def test_a_bootstrap_of_many_draws_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(999, generator=torch.Generator().manual_seed(0)).tolist()
    whole = bootstrap(values, 0)
    monkeypatch.setattr("memaudit.intervals.rates.TOGETHER", 10_000)
    assert bootstrap(values, 0) == whole


def test_auroc_counts_pairs_and_ties_by_half() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(0, 8, (n,), generator=generator) / 8 for n in (30, 50))
    assert auroc(positive, negative) == pytest.approx(slow.auroc(positive.tolist(), negative.tolist()), abs=1e-6)


@pytest.mark.parametrize(("value", "tidied"), [(1 / 3, 0.333333), (123456789.0, 123457000.0), (0.0, 0.0), (1.0, 1.0)])
def test_six_digits_are_kept(value: float, tidied: float) -> None:
    assert tidy(value) == tidied


def test_equal_counts_of_many_findings_are_one_object() -> None:
    first, again = (interned(AugmentedControl(copies=4, erased=0)) for _ in range(2))
    assert first is again
    assert interned(AugmentedControl(copies=4, erased=1)) is not first
    # Equal values of another kind are another thing.
    other = interned(FlaggedOthersControl(examples=4, lost=0))
    assert isinstance(other, FlaggedOthersControl)
    changed = first.model_copy(update={"erased": 2})
    assert (first.erased, changed.erased) == (0, 2)
    assert changed.__pydantic_fields_set__ is first.__pydantic_fields_set__
