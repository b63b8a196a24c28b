"""Every method for groups: the file in plain torch, what it leaves alone, and the controls beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from memaudit.erase import Choice, auto
from memaudit.erase.ground import Trial
from memaudit.erase.group import Chosen, Control, Task, _found, no_worse
from memaudit.erase.proof import reread
from memaudit.errors import ModelRejected
from memaudit.findings import Erasure, ErasureScores
from tests.cli_support import Command
from tests.conftest import Trained
from tests.erase.conftest import ERASE, plain

GROUP = (*ERASE, "--flagged", "all-flagged.npz", "--test", "held-out.npz", "--max-test-drop", "30")
# By method: its steps, what it may change, and what a random edit of its size is made of.
METHODS = {
    "head": ("0", ("head",), "direction of the classifier"),
    "curvature-head": ("0", ("one", "two", "three", "head"), "component"),
    "finetune": ("10", ("one", "two", "three", "head"), "direction"),
    "relearn": ("10", ("one", "two", "three", "head"), "layer group"),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_file_predicts_in_plain_torch_what_the_report_says(
    method: str, cli: Command, work: Path, trained: Trained
) -> None:
    steps, touched, kind = METHODS[method]
    ran = cli(*GROUP, "-o", "e.safetensors", "--method", method, "--clean-steps", steps)
    assert ran.code == 0, ran.err
    found = Erasure.model_validate_json((work / "e.erase.json").read_text())
    assert (found.method, found.clean_steps % max(1, int(steps))) == (method, 0)
    (chosen,) = [c for c in found.candidates if c.chosen]
    assert found.after.used == pytest.approx(chosen.flagged, abs=1e-6)

    network, original = plain(work / "e.safetensors"), plain(work / "digits.safetensors")
    changed = {n for n, t in load_file(work / "e.safetensors").items() if not torch.equal(t, original.state_dict()[n])}
    assert changed
    assert all(n.startswith(touched) for n in changed)
    archive = np.load(work / "all-flagged.npz")
    x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
    with torch.no_grad():
        logits = network(x)
        read, _ = reread(work / "e.safetensors", trained.adapter)
        assert torch.equal(read.forward(x), logits), "bit for bit"
        fitted = original(x).argmax(1) == y
        left = float((logits.argmax(1) == y)[fitted].double().mean())
    counts = found.counts
    measured = (found.after.used or 0) * counts["used"] + (found.after.unused or 0) * counts["unused"]
    assert measured == pytest.approx(left * int(fitted.sum()), abs=1e-3)
    assert left < 0.9

    assert found.random is not None
    assert found.random.kind == kind
    assert f"random {kind}s instead" in ran.out or f"random {kind} instead" in ran.out
    if int(steps) and method != "finetune":  # which is such steps, and nothing to hold against them
        assert found.steps_alone is not None
        assert found.steps_alone.steps == found.clean_steps
        assert f"{found.clean_steps} clean steps, no edit: test" in ran.out
        assert found.steps_alone.scores != found.after
    else:
        assert found.steps_alone is None
    assert "deleted" not in ran.out


@pytest.mark.parametrize("method", ["finetune", "relearn", "curvature"])
def test_steps_that_learn_which_labels_are_wrong_are_measured_on_others(method: str, cli: Command, work: Path) -> None:
    ran = cli(*GROUP, "-o", "plain.safetensors", "--method", method, "--clean-steps", "10")
    assert ran.code == 0, ran.err
    ran = cli(*GROUP, "-o", "told.safetensors", "--method", method, "--clean-steps", "10", "--wrong-labels")
    assert ran.code == 0, ran.err
    without, told = (Erasure.model_validate_json((work / f"{n}.erase.json").read_text()) for n in ("plain", "told"))
    fitted = sum(without.counts[kind] for kind in ("used", "unused"))
    third = round(fitted / 3)
    assert without.counts["used"] == third
    assert (told.counts["used"], told.counts["unused"]) == (fitted - third, third)
    assert told.used_by == "flagged label, used for choosing or learned to be wrong"
    assert "used for choosing or learned to be wrong" in ran.out
    (note,) = [n for n in told.notes if n.startswith("The steps also learn of")]
    assert f"{fitted - 2 * third} flagged examples" in note
    assert not any(n.startswith("The steps also learn of") for n in without.notes)

    network, original = plain(work / "told.safetensors"), plain(work / "digits.safetensors")
    archive = np.load(work / "all-flagged.npz")
    x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
    with torch.no_grad():
        kept = original(x).argmax(1) == y
        left = float((network(x).argmax(1) == y)[kept].double().mean())
    measured = (told.after.used or 0) * told.counts["used"] + (told.after.unused or 0) * told.counts["unused"]
    assert measured == pytest.approx(left * fitted, abs=1e-3)
    assert told.steps_alone is not None, "the control: as many steps that are not told"
    if method == "finetune":
        assert without.steps_alone is None
        assert told.after.used is not None
        assert told.steps_alone.scores.used is not None
        assert told.after.used < told.steps_alone.scores.used


def test_labels_of_which_nothing_was_learned_count_as_never_used(cli: Command, work: Path) -> None:
    words = ("--method", "auto", "--target", "100", "--clean-steps", "10", "--wrong-labels")
    ran = cli(*GROUP, "-o", "e.safetensors", *words)
    assert ran.code == 0, ran.err
    found = Erasure.model_validate_json((work / "e.erase.json").read_text())
    assert (found.method, found.clean_steps, found.used_by) == ("head", 0, "flagged label, used for choosing")
    assert found.counts["used"] == round((found.counts["used"] + found.counts["unused"]) / 3)
    assert not any(n.startswith("The steps also learn of") for n in found.notes)


def test_too_few_labels_to_tell_which_are_wrong(cli: Command, work: Path) -> None:
    archive = np.load(work / "all-flagged.npz")
    original = plain(work / "digits.safetensors")
    with torch.no_grad():
        kept = (original(torch.from_numpy(archive["x"])).argmax(1) == torch.from_numpy(archive["y"])).nonzero()[:2, 0]
    np.savez(work / "all-flagged.npz", x=archive["x"][kept], y=archive["y"][kept])
    ran = cli(*GROUP, "-o", "e.safetensors", "--method", "finetune", "--clean-steps", "10", "--wrong-labels")
    assert ran.code != 0
    assert "2 flagged labels that the model predicts: too few" in ran.err
    assert not (work / "e.safetensors").exists()


@pytest.mark.parametrize(("steps", "tried"), [(150, "head steps components relearn"), (0, "head components")])
def test_auto_goes_from_cheap_to_dear(steps: int, tried: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "by_group", lambda request, choice, *methods: [m.__module__ for m in methods])
    assert auto.run(None, Choice(clean_steps=steps)) == [f"memaudit.erase.{name}" for name in tried.split()]  # type: ignore


def test_auto_tries_until_the_target_is_met(cli: Command, work: Path) -> None:
    for target, tried in (("100", "head"), ("0", "head, curvature-head")):
        ran = cli(*GROUP, "-o", f"{target}.safetensors", "--method", "auto", "--clean-steps", "0", "--target", target)
        assert ran.code == 0, ran.err
        found = Erasure.model_validate_json((work / f"{target}.erase.json").read_text())
        assert f"Tried, the cheapest first: {tried}." in found.notes
        assert found.method in tried
        assert len({c.how for c in found.candidates}) > 1


def test_an_edit_that_clean_steps_alone_match_is_said_to_add_nothing() -> None:
    def scores(unused: float | None, test: float | None, used: float = 0.5) -> ErasureScores:
        return ErasureScores(used=used, unused=unused, true_label=None, reference=0.9, test=test, by_class=[])

    assert no_worse(scores(0.1, 0.8), scores(0.1, 0.8))
    assert not no_worse(scores(0.2, 0.9), scores(0.1, 0.8))
    assert not no_worse(scores(0.1, 0.7), scores(0.1, 0.8))
    assert no_worse(scores(None, None, 0.1), scores(None, None, 0.2))
    assert not no_worse(scores(None, None, 0.3), scores(None, None, 0.2))
    assert no_worse(scores(0.1, 0.8, used=0.2), scores(0.1, 0.8, used=0.1))
    assert not no_worse(scores(0.1, 0.8, used=0.2), scores(0.1, 0.8, used=0.1), everywhere=True)
    assert no_worse(scores(0.1, 0.8, used=0.1), scores(0.1, 0.8, used=0.1), everywhere=True)


def test_a_method_that_fits_no_budget_is_passed_over(trained: Trained) -> None:
    best = Trial({}, 0, 0.5, 0.9)
    chosen = Chosen("x", best, [best], edit=dict, done="", control=Control("unit", 0, lambda g: {}))

    def refuses(_: Task) -> Chosen:
        raise ModelRejected("no edit keeps validation accuracy within 1 points")

    job = Task(None, None, Choice(target=0.1), None)  # type: ignore[arg-type]
    assert _found(job, [refuses, lambda _: chosen]) == [chosen]
    assert _found(job, [lambda _: chosen, refuses]) == [chosen]
    with pytest.raises(ModelRejected, match="within 1 points"):
        _found(job, [refuses, refuses])
