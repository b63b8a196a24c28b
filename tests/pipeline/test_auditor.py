"""One audit from tensors to report: outcomes, the module left as found, the same report twice, bad input told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import memaudit
from memaudit import report as reports
from memaudit.adapters.base import Adapter
from memaudit.audits.localize.work import RANDOM_BUDGET, REFERENCE_BUDGET
from memaudit.audits.memorization.verdict import LEVEL
from memaudit.data import ExampleSet, from_tensors
from memaudit.findings import Finding, Outcome
from memaudit.gate.policy import Limit, Policy
from memaudit.network.hooks import hook_count
from memaudit.network.units import UnitSpace
from memaudit.pipeline.auditor import Auditor
from memaudit.report.document import Report
from memaudit.settings import Settings
from tests import reference as slow
from tests.conftest import DIGIT, Trained, digits
from tests.quick import short_trainings

Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with short_trainings():
        yield


@pytest.fixture(scope="module")
def pairs(trained: Trained) -> tuple[Pair, Pair]:
    """20 memorized changed labels, 5 other digits with the label it predicts second, and the reference."""
    x, _ = digits()
    seen = {row.numpy().tobytes() for s in (trained.flagged, trained.reference) for row in s.pixels}
    unseen = torch.stack([image for image in x if image.numpy().tobytes() not in seen])
    top = trained.module(unseen).topk(2, dim=1)
    close = (top.values[:, 0] - top.values[:, 1]).argsort()[:5]  # all but predicted: their margins are just below 0
    images = torch.cat([trained.flagged.pixels[:20], unseen[close]])
    labels = torch.cat([trained.flagged.labels[:20], top.indices[close, 1]])
    return (images, labels), (trained.reference.pixels, trained.reference.labels)


def audit(trained: Trained, pairs: tuple[Pair, Pair], **options: Any) -> Report:
    return memaudit.audit(deepcopy(trained.module), *pairs, **options)


@pytest.fixture(scope="module")
def found(trained: Trained, pairs: tuple[Pair, Pair]) -> Report:
    return audit(trained, pairs, max_units=3)


def measured(report: Report) -> list[dict[str, Any]]:
    return [f.model_dump() for f in report.findings]


# ---- what is in the report ----------------------------------------------------------------------------------------


def test_findings_stand_in_the_order_of_the_flagged_set(found: Report, pairs: tuple[Pair, Pair]) -> None:
    assert found.status == "complete"
    assert [f.example.label for f in found.findings] == pairs[0][1].tolist()
    assert [f.example.index for f in found.findings] == list(range(25))


def test_what_the_network_does_not_predict_is_not_fitted(found: Report) -> None:
    fitted = [f.fitted for f in found.findings]
    assert fitted[20:] == [False] * 5
    assert sum(fitted) >= 18
    assert all(-1 < f.before.margin < 0 for f in found.findings[20:])
    for f in found.findings:
        assert f.fitted is (f.before.margin > 0) is (f.before.prediction == f.example.label)
        if not f.fitted:
            assert f.outcome is Outcome.NOT_FITTED
            assert not f.memorized
            assert not f.units
            assert f.controls is None


def test_every_outcome_follows_from_what_is_written_beside_it(found: Report) -> None:
    outcomes = set()
    for f in found.findings:
        if not f.fitted:
            continue
        assert f.after is not None
        assert f.reference_accuracy is not None
        assert f.controls is not None
        assert 0 < f.controls.random.draws <= 10  # fewer where those have decided
        erased = f.after.prediction != f.example.label
        cheap = f.reference_accuracy.after >= f.reference_accuracy.before - REFERENCE_BUDGET
        special = f.controls.random.erased <= RANDOM_BUDGET * f.controls.random.draws
        expected = Outcome.LOCALIZED if cheap and special else Outcome.ENTANGLED
        assert f.outcome is (expected if erased else Outcome.DIFFUSE)
        assert f.estimate is not None
        assert not f.memorized or f.estimate.p_value <= LEVEL
        assert 1 <= len(f.units) <= 3
        outcomes.add(f.outcome)
    assert Outcome.LOCALIZED in outcomes
    assert len(outcomes) > 1


def test_predictions_after_are_those_of_an_edited_copy(
    found: Report, trained: Trained, pairs: tuple[Pair, Pair]
) -> None:
    flagged = from_tensors(*pairs[0], preprocess=DIGIT, num_classes=10)
    for row, f in enumerate(found.findings):
        if f.after is None:
            continue
        cut = [trained.space.number(u.layer, u.index, u.kind) for u in f.units]
        logits = slow.logits_of(slow.cut_copy(trained.module, trained.space, cut), flagged, row)
        assert f.after.prediction == int(logits.argmax())
        assert f.after.margin == pytest.approx(float(slow.margin_of(logits, f.example.label)), abs=1e-3)
        assert f.after.confidence == pytest.approx(float(logits.softmax(0)[f.example.label]), abs=1e-3)


def test_the_summary_is_what_the_findings_say(found: Report) -> None:
    findings, summary = found.findings, found.summary
    erased = [f for f in findings if f.outcome in (Outcome.LOCALIZED, Outcome.ENTANGLED)]
    assert (summary.flagged, summary.fitted) == (25, sum(f.fitted for f in findings))
    assert summary.memorized == sum(f.memorized for f in findings)
    assert summary.outcomes == {o: sum(f.outcome is o for f in findings) for o in Outcome}
    sizes = sorted(len(f.units) for f in erased)
    assert summary.median_units == (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
    kept = [f.reference_accuracy.retained for f in erased if f.reference_accuracy]
    assert summary.reference_retained == pytest.approx(np.mean([k for k in kept if k is not None]), abs=1e-5)
    draws = [f.controls.random for f in findings if f.controls]
    assert summary.random_erased == pytest.approx(sum(d.erased for d in draws) / sum(d.draws for d in draws), abs=1e-5)
    assert (summary.random_low, summary.random_high) == pytest.approx(
        slow.wilson(sum(d.erased for d in draws), sum(d.draws for d in draws)), abs=1e-5
    )


def test_the_effort_counts_search_and_verification_in_forward_passes(found: Report) -> None:
    passes, effort = found.passes, found.effort
    assert effort is not None
    search = passes["localize forward"] + passes["population forward"]
    search += 1.5 * (passes["localize backward"] + passes["population backward"])
    assert effort.search == search
    others = {"check", "reference", "population", "localize", "planting", "relearning", "views"}
    verified = [(n.rsplit(" ", 1), count) for n, count in passes.items() if n.rsplit(" ", 1)[0] not in others]
    assert {stage for (stage, _), _ in verified} == {"panel", "verify", "neurons", "trade-off", "matched clean"}
    assert effort.verification == sum(count * (1.5 if way == "backward" else 1) for (_, way), count in verified)
    assert effort.ratio == pytest.approx(effort.verification / search, rel=1e-5)


def test_true_labels_that_come_back_are_counted(found: Report, trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    flagged, reference = (from_tensors(*pair, preprocess=DIGIT, num_classes=10) for pair in pairs)
    after = [f.after.prediction if f.after else 0 for f in found.findings]
    truth = [None if n % 3 == 0 else label if n % 3 == 1 else (label + 1) % 10 for n, label in enumerate(after)]
    known = tuple(e.model_copy(update={"true_label": t}) for e, t in zip(flagged.examples, truth, strict=True))
    report = audit(trained, (replace(flagged, examples=known), reference), max_units=3)  # type: ignore[arg-type]
    erased = [f for f in report.findings if f.outcome in (Outcome.LOCALIZED, Outcome.ENTANGLED)]
    labelled = [f for f in erased if f.example.true_label is not None]
    back = sum(f.after is not None and f.after.prediction == f.example.true_label for f in labelled)
    summary = report.summary
    assert (summary.true_label_known, summary.true_label_back) == (len(labelled), pytest.approx(back / len(labelled)))
    assert (summary.true_label_low, summary.true_label_high) == pytest.approx(
        slow.wilson(back, len(labelled)), abs=1e-5
    )
    assert 0 < back < len(labelled) < len(erased)


def test_settings_are_written_down(found: Report) -> None:
    assert {k: (v.value, v.origin) for k, v in found.config.items() if k in ("max_units", "seed")} == {
        "max_units": (3, "argument"),
        "seed": (0, "default"),
    }
    assert found.units.total == sum(layer.width for layer in found.units.by_layer) == 80


# ---- the same report ----------------------------------------------------------------------------------------------


def text_of(report: Report) -> str:
    data = json.loads(reports.render(report, ".json"))
    assert set(data.pop("volatile")) >= {"started", "seconds"}
    return json.dumps(data)


def test_two_runs_differ_in_the_volatile_block_only(found: Report, trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    torch.rand(5)
    assert text_of(audit(trained, pairs, max_units=3)) == text_of(found)


@pytest.fixture(scope="module")
def fewer(pairs: tuple[Pair, Pair]) -> tuple[Pair, Pair]:
    """10 that are memorized and the 5 that are not, and a third of the reference: one by one they take long."""
    (x, y), (rx, ry) = pairs
    return (torch.cat([x[:10], x[20:]]), torch.cat([y[:10], y[20:]])), (rx[:120], ry[:120])


@pytest.fixture(scope="module")
def found_of_fewer(trained: Trained, fewer: tuple[Pair, Pair]) -> Report:
    return audit(trained, fewer, max_units=3)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_no_finding(
    found_of_fewer: Report, trained: Trained, fewer: tuple[Pair, Pair], batch_size: int
) -> None:
    found = found_of_fewer
    other = audit(trained, fewer, max_units=3, batch_size=batch_size)
    assert {f.outcome for f in found.findings} >= {Outcome.LOCALIZED, Outcome.NOT_FITTED}
    for a, b in zip(found.findings, other.findings, strict=True):
        assert (a.units, a.outcome, a.memorized, a.controls) == (b.units, b.outcome, b.memorized, b.controls)
        assert a.reference_accuracy == b.reference_accuracy
        assert a.before.margin == pytest.approx(b.before.margin, abs=1e-3)
    assert other.groups == found.groups
    assert other.passes == found.passes


def test_the_order_of_the_flagged_set_changes_no_finding(
    found: Report, trained: Trained, pairs: tuple[Pair, Pair]
) -> None:
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    other = audit(trained, ((pairs[0][0][order], pairs[0][1][order]), pairs[1]), max_units=3)
    mine = {f.id: f for f in found.findings}
    for f in other.findings:
        same = mine[f.id]
        assert (f.units, f.outcome, f.reference_accuracy) == (same.units, same.outcome, same.reference_accuracy)
        assert f.controls is not None or same.controls is None
        if f.controls is not None and same.controls is not None:
            assert f.controls.random == same.controls.random


def test_another_seed_draws_other_controls(found: Report, trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    assert measured(audit(trained, pairs, max_units=3, seed=1)) != measured(found)


def test_an_audit_leaves_the_global_generator_alone(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    state = torch.get_rng_state()
    audit(trained, pairs, max_units=1)
    assert torch.equal(torch.get_rng_state(), state)


# ---- left as found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True])
def test_a_module_is_left_as_found(trained: Trained, pairs: tuple[Pair, Pair], raises: bool) -> None:
    """In training mode but for one frozen norm, gradients wanted by all but one layer."""
    module = deepcopy(trained.module).train().requires_grad_(True)
    module.two[1].eval()
    module.one.requires_grad_(False)
    modes = [m.training for m in module.modules()]
    gradients = [p.requires_grad for p in module.parameters()]
    bits = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
    flagged = (pairs[0][0], pairs[0][1] + 100) if raises else pairs[0]
    if raises:
        with pytest.raises(memaudit.MemauditError, match="out of range"):
            memaudit.audit(module, flagged, pairs[1])
    else:
        memaudit.audit(module, flagged, pairs[1], max_units=1)
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == gradients
    assert all(p.grad is None for p in module.parameters())
    assert {name: value.numpy().tobytes() for name, value in module.state_dict().items()} == bits
    assert hook_count(module) == 0


# ---- ways to call it ----------------------------------------------------------------------------------------------


def test_examples_may_be_tensors_arrays_datasets_or_sets(
    found: Report, trained: Trained, pairs: tuple[Pair, Pair]
) -> None:
    (x, y), reference = pairs
    few: list[Any] = [
        (x[:3], y[:3]),
        (x[:3].numpy(), y[:3].numpy()),
        TensorDataset(x[:3], y[:3]),
        from_tensors(x[:3], y[:3], preprocess=DIGIT, num_classes=10),
    ]
    reports = [audit(trained, (flagged, reference), max_units=3, profile="fast") for flagged in few]
    assert [f.units for f in reports[0].findings] == [f.units for f in found.findings[:3]]
    for other in reports[1:]:
        assert measured(other) == measured(reports[0])


def test_an_adapter_serves_like_a_module(found: Report, trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    report = memaudit.audit(trained.adapter, *pairs, max_units=3)
    assert measured(report) == measured(found)


def test_options_replace_single_settings(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    report = audit(trained, pairs, settings=Settings(max_units=2, seed=5), max_units=1)
    assert (report.config["max_units"].value, report.config["seed"].value) == (1, 5)
    assert max(len(f.units) for f in report.findings) == 1


def test_the_policy_decides_the_verdict(found: Report, trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    assert found.verdict == "fail"
    loose = audit(trained, pairs, max_units=1, policy=Policy(Limit(100, share=True)))
    assert (loose.verdict, loose.gate.failed) == ("pass", [])


@pytest.mark.parametrize("profile", ["fast", "deep"])
def test_profiles_set_how_much_is_measured(trained: Trained, pairs: tuple[Pair, Pair], profile: str) -> None:
    report = audit(trained, ((pairs[0][0][:3], pairs[0][1][:3]), pairs[1]), max_units=2, profile=profile)
    controls = report.findings[0].controls
    cost = report.findings[0].reference_accuracy
    assert controls is not None
    assert cost is not None
    draws, examples = {"fast": (range(1, 11), range(86, 130)), "deep": (range(11, 51), [150])}[profile]
    assert controls.random.draws in draws
    assert cost.examples in examples
    assert (report.groups.stability is not None) == (profile == "deep")


def test_layers_narrow_the_search(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    report = audit(trained, pairs, max_units=2, layers="three.*")
    assert {u.layer for f in report.findings for u in f.units} == {"three.1"}
    assert report.units.total == 32


def test_mean_ablation_end_to_end(found: Report, trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    """A unit becomes its mean over the reference: on a BatchNorm's output that is gamma = 0, beta = that mean."""
    report = audit(trained, pairs, max_units=3, ablation="mean")
    assert {f.outcome for f in report.findings} & {Outcome.LOCALIZED, Outcome.ENTANGLED}
    assert [f.units for f in report.findings] != [f.units for f in found.findings]
    flagged = from_tensors(*pairs[0], preprocess=DIGIT, num_classes=10)
    means = {}
    hooks = [
        trained.module.get_submodule(s.layer).register_forward_hook(
            lambda _, __, output, layer=s.layer: means.__setitem__(layer, output.mean((0, 2, 3)))
        )
        for s in trained.space.sites
    ]
    with torch.no_grad():
        trained.module(trained.reference.pixels)
    for hook in hooks:
        hook.remove()
    for row, f in enumerate(report.findings):
        if f.after is None:
            continue
        copy = slow.cut_copy(
            trained.module, trained.space, [trained.space.number(u.layer, u.index, u.kind) for u in f.units]
        )
        for u in f.units:
            copy.get_parameter(f"{u.layer}.bias")[u.index] = means[u.layer][u.index]
        logits = slow.logits_of(copy, flagged, row)
        assert f.after.margin == pytest.approx(float(slow.margin_of(logits, f.example.label)), abs=1e-3)


def test_findings_come_as_they_land(trained: Trained, fewer: tuple[Pair, Pair]) -> None:
    sets = [from_tensors(*pair, preprocess=DIGIT, num_classes=10) for pair in fewer]
    auditor = Auditor(trained.adapter, sets[0], sets[1], Settings(max_units=2, batch_size=2, profile="fast"))
    stream: Iterator[Finding] = auditor.findings()
    early = [next(stream) for _ in range(6)]
    assert [f.outcome for f in early[:5]] == [Outcome.NOT_FITTED] * 5
    assert auditor.evaluator.passes["localize forward"] < 15  # the search has only begun
    rest = list(stream)
    assert len(early + rest) == 15
    assert len(auditor.report().findings) == 15


def test_progress_counts_what_it_announces(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    class Counting:
        def __init__(self) -> None:
            self.stages: list[tuple[str, int | None, int]] = []

        def stage(self, name: str, total: int | None = None) -> None:
            self.stages.append((name, total, 0))

        def advance(self, steps: int = 1) -> None:
            name, total, done = self.stages[-1]
            self.stages[-1] = (name, total, done + steps)

    progress = Counting()
    audit(trained, pairs, max_units=2, progress=progress)
    assert "localize" in {name for name, _, _ in progress.stages}
    assert [(n, t, d) for n, t, d in progress.stages if t is not None and t != d] == []


# ---- what is left out, and told -----------------------------------------------------------------------------------


def codes(report: Report) -> list[str]:
    return [w.code for w in report.warnings]


def test_reference_examples_that_are_flagged_are_left_out_and_told(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    (x, y), (rx, ry) = pairs
    report = audit(trained, ((x, y), (torch.cat([rx, x[:4]]), torch.cat([ry, ry[:4]]))), max_units=1)
    assert "MEM101" in codes(report)
    assert any("4 reference examples are also flagged" in w.message for w in report.warnings)
    assert report.data.reference.count == len(rx)


def test_nothing_fitted_is_told(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    (x, y), reference = pairs
    report = audit(trained, ((x[20:], y[20:]), reference), profile="fast")
    assert "MEM102" in codes(report)
    assert {f.outcome for f in report.findings} == {Outcome.NOT_FITTED}
    assert (report.verdict, report.summary.median_units, report.groups.matched_controls) == ("pass", None, None)


def test_a_label_no_reference_has_is_told(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    flagged, (rx, ry) = pairs
    keep = ry != int(flagged[1][0])
    report = audit(trained, (flagged, (rx[keep], ry[keep])), max_units=1, profile="fast")
    assert "MEM103" in codes(report)


def test_a_limit_makes_the_audit_incomplete_and_fail(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    policy = Policy(Limit(100, share=True))
    report = audit(trained, pairs, max_units=1, limit=3, policy=policy, profile="fast")
    assert (report.status, report.verdict, len(report.findings)) == ("incomplete", "fail", 3)
    assert any("22 flagged examples not audited" in w.message for w in report.warnings if w.code == "MEM001")
    assert audit(trained, pairs, max_units=1, limit=25, policy=policy, profile="fast").status == "complete"


class Poisoned(nn.Module):
    """NaN for images whose first pixel is bright, from the first layer on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.where(x[:, :, :1, :1] > 0.9, torch.nan, x))


@pytest.mark.parametrize("which", ["flagged", "reference"])
def test_an_image_with_nan_logits_is_left_out_and_the_audit_incomplete(
    trained: Trained, pairs: tuple[Pair, Pair], which: str
) -> None:
    sets = {"flagged": [t.clone() for t in pairs[0]], "reference": [t.clone() for t in pairs[1]]}
    sets[which][0][2, 0, 0, 0] = 1.0
    module, profile = Poisoned(deepcopy(trained.module)), {"flagged": "fast", "reference": "standard"}[which]
    report = memaudit.audit(module, tuple(sets["flagged"]), tuple(sets["reference"]), max_units=3, profile=profile)
    assert (report.status, report.verdict) == ("incomplete", "fail")
    assert any(f"1 {which} examples gave logits that are not finite" in w.message for w in report.warnings)
    assert len(report.findings) == (24 if which == "flagged" else 25)
    keep = [i for i in range(len(sets[which][0])) if i != 2]
    sets[which] = [t[keep] for t in sets[which]]
    clean = memaudit.audit(module, tuple(sets["flagged"]), tuple(sets["reference"]), max_units=3, profile=profile)
    strip = {"example", "id", "nearest"}  # rows of the source, which has one less
    assert [f.model_dump(exclude=strip) for f in report.findings] == [
        f.model_dump(exclude=strip) for f in clean.findings
    ]
    assert report.units == clean.units


def test_unreadable_examples_make_the_audit_incomplete(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    sets: list[ExampleSet] = [from_tensors(*pair, preprocess=DIGIT, num_classes=10) for pair in pairs]
    broken = replace(sets[0], unreadable=("a.png: truncated",))
    report = memaudit.audit(trained.adapter, broken, sets[1], max_units=1, profile="fast")
    assert report.status == "incomplete"
    assert any("1 flagged examples could not be read: a.png: truncated" in w.message for w in report.warnings)


class Own(Adapter):
    """An adapter that knows one site itself."""

    def sites(self, images: Tensor) -> list[Any]:
        return super().sites(images)[:1]


def test_an_adapter_may_name_its_own_sites(trained: Trained, pairs: tuple[Pair, Pair]) -> None:
    adapter = Own(deepcopy(trained.module), architecture="Own", preprocess=DIGIT)
    report = memaudit.audit(adapter, *pairs, max_units=2, profile="fast")
    assert [layer.layer for layer in report.units.by_layer] == ["one.1"]
    assert report.units.total == UnitSpace(trained.space.sites[:1]).total
