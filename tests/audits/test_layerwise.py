"""The audits over time against their slow twins, their controls, and what they leave behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

import memaudit
from memaudit.audits import learning, retrain
from memaudit.audits.gradients import account
from memaudit.audits.learning import Course, follow, p_values
from memaudit.audits.rewind import check_controls, rewind
from memaudit.audits.verdicts import of_retraining, of_rewinding
from memaudit.engine.batchnorm import CALIBRATION_BATCH, norms
from memaudit.engine.evaluator import Panel
from memaudit.errors import BugError, PremiseBroken, UsageError
from memaudit.findings import AUDITS, LayerVerdict, Retrain, RetrainEpoch, RewindPoint
from memaudit.intervals import bootstrap_runs
from memaudit.network.hooks import hook_count
from memaudit.network.layer_groups import tensors_of
from memaudit.network.scoped import holding
from memaudit.network.states import State, digest
from memaudit.report.document import Report
from tests.conftest import Trained
from tests.timeline import Case, case, right, summed_gradients

NAMES = ["resnet", "vit", "tied"]


@pytest.fixture(scope="module", params=NAMES)
def found(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


@contextmanager
def left_alone(module: nn.Module) -> Iterator[None]:
    """The network has the same bits, modes, gradients and hooks afterwards."""

    def look() -> list[object]:
        flags = [(p.requires_grad, p.grad is None) for p in module.parameters()]
        return [digest(module), [m.training for m in module.modules()], flags, hook_count(module)]

    before = look()
    yield
    assert look() == before


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_gradient_figures_are_those_of_autograd_on_the_summed_loss(found: Case) -> None:
    rows = {"flagged": [0, 3, 4, 8], "matched": [11, 12, 15], "reference": [1, 2, 5, 6, 7, 9, 10]}
    panels = {name: Panel(found.examples, r) for name, r in rows.items()}
    for state in found.states[:2]:
        with left_alone(found.module):
            accounts = account(found.evaluator(3), found.groups, state, panels)
        copy = found.copy_at(state)
        if norms(copy):  # by the batch: flagged examples among one half of the reference, matched ones among the other
            first = [*rows["flagged"], *rows["reference"][::2]]
            second = [*rows["matched"], *rows["reference"][1::2]]
            slow = summed_gradients(copy.train(), found.examples, [first, second], rows)
        else:
            alone = [[row] for own in rows.values() for row in own]
            slow = summed_gradients(copy, found.examples, alone, rows)
        for group, one in zip(found.groups, accounts, strict=True):
            own = [n for n in group.names if n in slow["flagged"]]
            vectors = {name: torch.cat([g[n].flatten() for n in own]) for name, g in slow.items()}
            for name, vector in vectors.items():
                assert one.norms[name] == pytest.approx(float(vector.norm()), rel=2e-3, abs=1e-4)
            for name in ("flagged", "matched"):
                if vectors[name].norm() < 1e-9:  # a bias before BatchNorm
                    assert (name, "reference") not in one.cosines
                    continue
                cosine = torch.nn.functional.cosine_similarity(vectors[name], vectors["reference"], dim=0)
                assert one.cosines[name, "reference"] == pytest.approx(float(cosine), abs=5e-3)


def test_batches_of_a_fixed_size_hold_their_share_of_every_panel() -> None:
    """With BatchNorm, 30 flagged and 120 reference examples make two batches of 75, each with 15 flagged."""
    found = case("resnet", examples=150)
    rows = {"flagged": list(range(0, 150, 5)), "reference": [n for n in range(150) if n % 5]}
    panels = {name: Panel(found.examples, r) for name, r in rows.items()}
    accounts = account(found.evaluator(7), found.groups, found.states[0], panels)
    halves = [[*rows["flagged"][:15], *rows["reference"][:60]], [*rows["flagged"][15:], *rows["reference"][60:]]]
    slow = summed_gradients(found.copy_at(found.states[0]).train(), found.examples, halves, rows)
    for group, one in zip(found.groups, accounts, strict=True):
        for name, gradients in slow.items():
            norm = float(torch.cat([gradients[n].flatten() for n in group.names if n in gradients]).norm())
            assert one.norms[name] == pytest.approx(norm, rel=2e-3, abs=1e-4)


def test_each_example_runs_forward_once_and_no_batch_backward_more_than_twice(found: Case) -> None:
    evaluator = found.evaluator()
    panels = {"flagged": Panel(found.examples, range(6)), "reference": Panel(found.examples, range(6, 20))}
    account(evaluator, found.groups, found.states[0], panels)
    assert evaluator.passes == {"audit forward": 20, "audit backward": 40 if norms(found.module) else 20}


def test_no_direction_is_claimed_where_there_is_no_gradient(found: Case) -> None:
    panels = {"flagged": Panel(found.examples, []), "reference": found.panel}
    accounts = account(found.evaluator(), found.groups, found.states[0], panels)
    assert all(one.norms["flagged"] == 0 and not one.cosines for one in accounts)


# ---- rewinding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 20])
def test_each_cell_is_that_of_a_plain_load_and_evaluation(found: Case, batch: int) -> None:
    with left_alone(found.module):
        grid = rewind(found.evaluator(batch), found.groups, found.states, [found.panel])
    for g, group in enumerate(found.groups):
        for c, state in enumerate(found.states):
            expected = right(found.copy_at(state, group.names), found.examples, batch)
            assert torch.equal(grid.right[0][g, c], expected), (group.layer, state.label)
    assert any(grid.replayed)


@pytest.mark.parametrize("name", ["resnet", "tied"])
def test_re_estimated_batch_norm_is_that_of_a_plain_pass_in_training_mode(name: str) -> None:
    found = case(name, examples=2 * CALIBRATION_BATCH + 9)
    with left_alone(found.module):
        grid = rewind(found.evaluator(64), found.groups, found.states, [found.panel], found.panel)
    assert grid.recalibrated is not None
    order = [g.layer for g in found.groups]
    for g, group in enumerate(found.groups):
        for c, state in enumerate(found.states[:2]):
            copy = found.copy_at(state, group.names)
            for path, norm in copy.named_modules():
                owner = next((layer for layer in order if path == layer or path.startswith(layer + ".")), "")
                if isinstance(norm, nn.modules.batchnorm._BatchNorm) and order.index(owner) >= g:
                    norm.reset_running_stats()
                    norm.momentum = None
                    norm.train()
            with torch.no_grad():
                for start in (0, CALIBRATION_BATCH):
                    copy(found.examples.batch(range(start, start + CALIBRATION_BATCH)))
            assert torch.equal(grid.recalibrated[0][g, c], right(copy.eval(), found.examples, 64)), group.layer


def test_there_is_no_second_grid_without_batch_norm() -> None:
    found = case("vit")
    assert rewind(found.evaluator(), found.groups, found.states, [found.panel], found.panel).recalibrated is None


def test_rewinding_everything_gives_the_checkpoints_own_logits_bit_by_bit(found: Case) -> None:
    evaluator = found.evaluator()
    for state in found.states:
        every = {n: v for g in found.groups for n, v in state.part(g.names).items()}
        with holding(found.module, every):
            together = evaluator.logits(found.examples)
        fresh = deepcopy(found.module)
        own = {**fresh.state_dict(), **state.tensors}
        fresh.load_state_dict(own)
        with torch.no_grad():
            expected = [fresh(found.examples.batch(rows)) for rows in torch.arange(20).split(16)]
        assert torch.equal(together, torch.cat(expected))


def test_rewinding_to_the_model_itself_changes_nothing(found: Case) -> None:
    final = State("again", found.states[-1].tensors)  # not known to be the final one, so really computed
    grid = rewind(found.evaluator(), found.groups, [final], [found.panel]).right[0]
    intact = right(found.module, found.examples, 16)
    assert all(torch.equal(grid[g, 0], intact) for g in range(len(found.groups)))


def test_the_controls_refuse_a_network_with_weights_of_its_own(found: Case) -> None:
    check_controls(found.evaluator(), found.groups, found.states, found.panel)
    moved = {n: t + 1 if t.is_floating_point() else t for n, t in found.states[2].tensors.items()}
    wrong = State("epoch 3", moved, final=True)
    with pytest.raises(PremiseBroken, match="does not give that checkpoint's logits"):
        check_controls(found.evaluator(), found.groups, [wrong], found.panel)


# ---- retraining -----------------------------------------------------------------------------------------------------


def trained_again(found: Case, number: int, **options: float) -> retrain.Retraining:
    train, held = Panel(found.examples, range(12)), Panel(found.examples, range(12, 16))
    flagged = Panel(found.examples, range(16, 20))
    given = {"target": 2.0, "epochs": 2, **options}
    generator = torch.Generator().manual_seed(0)
    return retrain.retrain(
        found.evaluator(), found.groups[number], found.states[0], flagged, train, held, generator=generator, **given
    )  # type: ignore[arg-type]


def test_retraining_trains_the_group_and_leaves_everything_as_it_was(
    found: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, Tensor]] = []
    train = retrain._train

    def watched(evaluator: object, *rest: object) -> None:
        train(evaluator, *rest)  # type: ignore[arg-type]
        steps.append({n: t.detach().clone() for n, t in tensors_of(found.module).items()})

    monkeypatch.setattr(retrain, "_train", watched)
    for number, group in enumerate(found.groups):
        steps.clear()
        before = {n: t.detach().clone() for n, t in tensors_of(found.module).items()}
        with left_alone(found.module):
            run = trained_again(found, number)
        assert len(run.epochs) == 3
        assert not run.fitted
        changed = {n for n in before if not torch.equal(steps[-1][n], before[n])}
        assert changed <= set(group.names)
        assert changed & set(dict(found.module.named_parameters())), "it did train"


def test_one_wrong_requires_grad_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("resnet")
    right_way = retrain.needing_gradients

    @contextmanager
    def one_too_many(module: nn.Module, names: object) -> Iterator[dict[str, nn.Parameter]]:
        with right_way(module, [*names, "layer2.0.0.weight"]) as parameters:  # type: ignore[misc]
            yield parameters

    monkeypatch.setattr(retrain, "needing_gradients", one_too_many)
    copy = deepcopy(found.module)
    found.module = copy
    with pytest.raises(BugError, match=r"retraining prep changed a tensor outside of it"):
        trained_again(found, 0)


def test_batch_norm_of_other_groups_keeps_its_statistics_even_in_training() -> None:
    found = case("resnet")
    seen: list[dict[str, bool]] = []
    hook = found.module.register_forward_hook(
        lambda m, *_: seen.append({n: p.training for n, p in m.named_modules() if isinstance(p, nn.BatchNorm2d)})
    )
    trained_again(found, 2)
    hook.remove()
    in_training = [modes for modes in seen if any(modes.values())]
    assert in_training
    assert all({n for n, mode in modes.items() if mode} == {"layer1.2.body.0.1"} for modes in in_training)


def test_retraining_stops_when_the_reference_is_back_and_repeats_itself() -> None:
    found = case("resnet")
    assert [e.epoch for e in trained_again(found, 3, target=0.0).epochs] == [0]
    first, again = trained_again(found, 3), trained_again(found, 3)
    assert first.epochs == again.epochs
    assert torch.equal(first.flagged, again.flagged)


# ---- learning order -------------------------------------------------------------------------------------------------


def test_the_course_is_the_confidence_of_whole_copies(found: Case) -> None:
    with left_alone(found.module):
        course = follow(found.evaluator(), found.states, found.examples, range(20))
    for number, state in enumerate(found.states):
        copy = found.copy_at(state)
        for row in range(0, 20, 5):
            with torch.no_grad():
                shares = copy(found.examples.batch([row]))[0].double().softmax(0)
            assert float(course.confidence[number, row]) == pytest.approx(float(shares[row % 5]), abs=1e-5)


@pytest.mark.parametrize(
    ("right_at", "learned"),
    [([0, 0, 1], 2), ([1, 1, 1], 0), ([1, 0, 1], 2), ([0, 1, 1], 1), ([1, 1, 0], None), ([0, 0, 0], None)],
)
def test_an_example_is_learned_when_it_is_right_for_good(right_at: list[int], learned: int | None) -> None:
    course = Course(torch.rand(3, 1), torch.tensor(right_at).bool()[:, None])
    assert course.learned == [learned]


def test_lateness_counts_the_reference_at_least_as_late() -> None:
    assert p_values(torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0.1, 0.5, 0.7, 0.3])).tolist() == [0.5, 0.0, 1.0]
    assert learning.Course(torch.tensor([[0.0], [1.0]]), torch.ones(2, 1).bool()).lateness.tolist() == [0.5]


def test_only_fitted_examples_count_as_late() -> None:
    """What the final model misses was never learned: beside it every fitted example would look early."""
    course = learning.Course(torch.tensor([[0.0, 0.2], [1.0, 0.2]]), torch.tensor([[False, False], [True, False]]))
    assert course.lateness_of_fitted.tolist() == [0.5]
    never = learning.Course(course.confidence, torch.zeros(2, 2).bool())
    assert never.lateness_of_fitted.tolist() == never.lateness.tolist()


# ---- verdicts -------------------------------------------------------------------------------------------------------


def outcome(flagged: float, low: float, high: float, *, fitted: bool = True, matched: float | None = 0.98) -> Retrain:
    return Retrain(
        checkpoint="epoch 1", flagged=flagged, low=low, high=high, reference=0.99, matched=matched,
        matched_low=None if matched is None else matched - 0.03, matched_high=1.0, reference_before=1.0, fitted=fitted,
        seeds=[0], epochs=[RetrainEpoch(epoch=0, flagged=flagged, reference=0.99)], budget=8, rate=1e-3, examples=1000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (outcome(0.9, 0.85, 0.95), "redundant", "other layers hold them"),
        (outcome(0.9, 0.85, 0.95, fitted=False), "redundant", "other layers hold them"),
        (outcome(0.2, 0.15, 0.25), "critical", "while 98.0% of matched clean examples"),
        (outcome(0.2, 0.15, 0.25, matched=None), "critical", "only 20.0%"),
        (outcome(0.2, 0.15, 0.25, matched=0.25), "undecided", "what every example needs"),
        (outcome(0.2, 0.15, 0.25, fitted=False), "undecided", "did not fit the reference again within 8 epochs"),
        (outcome(0.5, 0.45, 0.55), "undecided", "neither most of them nor few"),
    ],
)
def test_verdicts_of_retraining(found: Retrain, verdict: str, words: str) -> None:
    word, sentence = of_retraining(found)
    assert word == LayerVerdict(verdict)
    assert words in sentence


def point(flagged: float, reference: float, second: tuple[float, float] | None = None) -> RewindPoint:
    extra = {} if second is None else {
        "flagged_recalibrated": second[0], "recalibrated_low": max(0, second[0] - 0.1),
        "recalibrated_high": min(1, second[0] + 0.1), "reference_recalibrated": second[1],
    }  # fmt: skip
    return RewindPoint(
        checkpoint="epoch 1", flagged=flagged, flagged_low=max(0, flagged - 0.1), flagged_high=min(1, flagged + 0.1),
        reference=reference, **extra,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("earlier", "verdict", "words"),
    [
        (point(0.9, 0.98), "redundant", "keeps 90.0%"),
        (point(0.1, 0.98), "critical", "keeps only 10.0%"),
        (point(0.1, 0.5, (0.9, 0.99)), "redundant", "BatchNorm re-estimated"),
        (point(0.1, 0.5, (0.2, 0.6)), "undecided", "No earlier checkpoint"),
        (point(0.55, 0.98), "undecided", "neither most"),
    ],
)
def test_verdicts_of_rewinding(earlier: RewindPoint, verdict: str, words: str) -> None:
    word, sentence = of_rewinding([earlier, point(1.0, 1.0)])
    assert word == LayerVerdict(verdict)
    assert words in sentence


def test_the_interval_over_seeds_is_wider_than_over_examples_alone() -> None:
    runs = [[1.0] * 40 + [0.0] * 10, [1.0] * 10 + [0.0] * 40]
    low, high = bootstrap_runs(runs, 0)
    assert (low, high) == bootstrap_runs(runs, 0)
    assert low < 0.25 < 0.75 < high
    assert bootstrap_runs([[1.0, 1.0]], 0) == (1.0, 1.0)


# ---- the whole audit ------------------------------------------------------------------------------------------------


def earlier(trained: Trained, share: float) -> nn.Module:
    """Something like an earlier epoch: the weights part of the way to random ones."""
    copy = deepcopy(trained.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in copy.parameters():
            p.mul_(1 - share).add_(share * p.std() * torch.randn(p.shape, generator=generator))
    return copy


@pytest.fixture(scope="module")
def report(trained: Trained) -> Report:
    states = [earlier(trained, 0.8), earlier(trained, 0.4)]
    module = deepcopy(trained.module)
    before = digest(module)
    made = memaudit.audit(
        module,
        trained.flagged,
        trained.reference,
        checkpoints=states,
        profile="fast",
        max_units=2,
        audits=tuple(AUDITS),
    )
    assert digest(module) == before
    return made


def test_every_audit_runs_where_there_are_checkpoints(report: Report, trained: Trained) -> None:
    assert [p.checkpoint for p in report.series] == ["checkpoint 1", "checkpoint 2", "audited model"]
    assert [layer.layer for layer in report.layers] == ["one", "two", "three", "head"]
    assert all(len(x.gradients) == len(x.rewind) == 3 and x.retrain and x.verdict and x.sentence for x in report.layers)
    assert all(layer.rewind[-1].flagged == 1.0 for layer in report.layers), "fitted labels, nothing rewound"
    assert sum(layer.parameters for layer in report.layers) == sum(p.numel() for p in trained.module.parameters())
    assert all(f.learning and len(f.learning.confidence) == 3 for f in report.findings)
    assert report.summary.learning_auroc is not None
    assert report.status == "complete"


def test_the_report_says_what_did_not_run(report: Report, trained: Trained) -> None:
    from memaudit.report import story

    assert not {"gradient accounting", "layer rewinding", "layer retraining"} & set(story.not_run(report))
    alone = memaudit.audit(
        deepcopy(trained.module), trained.flagged, trained.reference, checkpoints=[earlier(trained, 0.5)],
        audits=("rewind",), profile="fast",
    )  # fmt: skip
    missing = story.not_run(alone)
    assert "layer rewinding" not in missing
    assert {"localization and its controls", "gradient accounting", "layer retraining"} <= set(missing)
    assert {f.outcome.value for f in alone.findings if f.fitted} == {"not_searched"}


@pytest.mark.parametrize("where", ["gradients.account", "gradients._add", "rewind.rewind", "retrain.retrain"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_audit_that_fails_leaves_the_model_as_it_was(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]
) -> None:
    module = deepcopy(trained.module)
    before = digest(module)
    forward, calls = module.forward, [0]
    monkeypatch.setattr(f"memaudit.audits.{where}", stopping(where, module, calls, error))
    with pytest.raises(error):
        memaudit.audit(
            module, trained.flagged, trained.reference, checkpoints=[earlier(trained, 0.5)], profile="fast",
            audits=("gradients", "rewind", "retrain"),
        )  # fmt: skip
    module.forward = forward
    assert digest(module) == before
    assert hook_count(module) == 0
    assert not any("forward" in m.__dict__ for m in module.children())


def stopping(where: str, module: nn.Module, calls: list[int], error: type[BaseException]) -> object:
    """The real function of `memaudit.audits`, with a network that raises at its third pass in it."""
    file, name = where.split(".")
    real = getattr(import_module(f"memaudit.audits.{file}"), name)

    def run(*args: object, **kwargs: object) -> object:
        plain = module.forward

        def fails(x: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] == 3:
                raise error
            return plain(x)

        module.forward = fails  # type: ignore[method-assign]
        return real(*args, **kwargs)

    return run


def test_audits_are_chosen_by_name(trained: Trained) -> None:
    with pytest.raises(UsageError, match="no audit 'rewinds'; closest: 'rewind'"):
        memaudit.audit(trained.module, trained.flagged, trained.reference, audits=("rewinds",))
    with pytest.raises(UsageError, match="rewind needs earlier checkpoints of the model, and there are none"):
        memaudit.audit(trained.module, trained.flagged, trained.reference, audits=("rewind",))
    with pytest.raises(UsageError, match="neither a path nor a network"):
        memaudit.audit(trained.module, trained.flagged, trained.reference, checkpoints=[3])
