"""Verification: a network that saw the flagged is found, one that did not is not, and every view says the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from typer.testing import CliRunner

import memaudit
from memaudit.audits.membership import attacks
from memaudit.audits.membership.matching import compared, looks_mislabelled
from memaudit.audits.membership.measure import membership, scores_of
from memaudit.data import ExampleSet, from_tensors
from memaudit.errors import DataRejected, UsageError
from memaudit.gate.membership import MembershipPolicy
from memaudit.intervals.separation import auc
from memaudit.report.officer.verified import UNTOLD, of_verification
from memaudit.report.verification import reading, words
from memaudit.report.verification import writing as views
from memaudit.report.verified import Verification
from tests.conftest import DIGIT, Trained, digits


@pytest.fixture(scope="module")
def sets(trained: Trained) -> tuple[ExampleSet, ExampleSet, ExampleSet]:
    """Flagged with their true labels, reference, and digits that nobody was trained on."""
    x, truth = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    known = [
        e.model_copy(update={"true_label": int(truth[r])})
        for e, r in zip(trained.flagged.examples, order[:50], strict=True)
    ]
    rows = order[1300:]
    unseen = from_tensors(x[rows], truth[rows], preprocess=DIGIT, num_classes=10, source="unseen")
    return ExampleSet(tuple(known), trained.flagged.pixels, "flagged"), trained.reference, unseen


@pytest.fixture(scope="module")
def found(trained: Trained, untainted: Trained, sets: tuple[ExampleSet, ...]) -> Verification:
    return memaudit.verify(
        copy.deepcopy(trained.module), *sets, without=[copy.deepcopy(untainted.module)], profile="fast"
    )


def test_a_network_that_saw_them_is_found(found: Verification) -> None:
    said = found.membership
    assert (said.members, said.relabelled > 0, said.left_out) == (50, True, 0)
    assert found.verdict == "fail"
    assert said.found
    by_name = {attack.name: attack for attack in said.attacks}
    assert list(by_name) == ["loss", "log-odds", "calibrated log-odds", "LiRA", "RMIA", "own estimate"]
    assert by_name["LiRA"].auc > 0.95
    assert by_name["LiRA"].epsilon > 1
    assert found.without[0].accuracy > 0.9


def test_a_network_that_did_not_is_not(untainted: Trained, trained: Trained, sets: tuple[ExampleSet, ...]) -> None:
    clean = memaudit.verify(copy.deepcopy(untainted.module), *sets, profile="fast", max_tpr_at_fpr="0.1%:1%")
    said = clean.membership
    assert clean.verdict == "pass"
    assert not said.found
    assert not said.unlike
    assert said.clear is not None
    assert said.clear < 20
    assert said.attacks[0].auc_low < 0.5 < said.attacks[0].auc_high
    assert "would have been found in 8 of 10" in words.summary(clean)


@pytest.mark.parametrize("limit", [None, "5%:100%"])
def test_wrong_labels_that_nobody_declared_are_no_pass(
    untainted: Trained, sets: tuple[ExampleSet, ...], limit: str | None
) -> None:
    """Beside rightly labelled unseen digits no trace of a wrong label could show."""
    flagged, *others = sets
    silent = tuple(e.model_copy(update={"true_label": None}) for e in flagged.examples)
    blind = memaudit.verify(
        copy.deepcopy(untainted.module),
        ExampleSet(silent, flagged.pixels, "flagged"),
        *others,
        profile="fast",
        max_tpr_at_fpr=limit,
    )
    said = blind.membership
    assert (said.found, said.unlike, said.undeclared, blind.verdict) == (False, True, 50, "fail")
    assert said.p_below <= 0.01
    assert "cannot be told" in words.headline(blind)
    assert "Give the column true_label" in words.summary(blind)
    assert "8 of 10" not in words.summary(blind)
    assert of_verification(blind).headline == UNTOLD
    avoided = blind.model_copy(update={"membership": said.model_copy(update={"undeclared": 0})})
    assert "made to avoid these labels, which gives the flagged ones away" in words.summary(avoided)


@pytest.mark.parametrize("declared", [True, False], ids=["true label given", "not given"])
def test_false_alarms_of_lists_that_a_network_never_saw(trained: Trained, untainted: Trained, declared: bool) -> None:
    """40 lists of unseen digits, half of them with a wrong label: at most as many alarms as the level allows."""
    x, truth = digits()
    pool = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[1000:]
    with torch.no_grad():
        both = [network.module(x) for network in (untainted, trained)]
    rng, alarms = torch.Generator().manual_seed(1), 0
    for audit in range(40):
        order = pool[torch.randperm(len(pool), generator=rng)]
        rows, rest = order[:120], order[120:]
        given = truth.clone()
        given[rows[:60]] = (given[rows[:60]] + torch.randint(1, 10, (60,), generator=rng)) % 10
        listed, unseen = (
            from_tensors(x[r], given[r], preprocess=DIGIT, num_classes=10, source=name)
            for r, name in ((rows, "flagged"), (rest, "unseen"))
        )
        if declared:
            known = zip(listed.examples, truth[rows].tolist(), strict=True)
            marked = tuple(e.model_copy(update={"true_label": label}) for e, label in known)
            listed = ExampleSet(marked, listed.pixels, listed.source)
        pairs = compared(listed, unseen, audit)
        asked = torch.cat([rows[pairs.flagged], rest[pairs.unseen]])
        labels = torch.cat([listed.labels[pairs.flagged], torch.tensor(pairs.labels)])
        own, out = (attacks.scaled(logits[asked], labels) for logits in both)
        doubtful = looks_mislabelled([listed.examples[r] for r in pairs.flagged], out > 0)
        assert (doubtful is None) is declared, "half of the labels are wrong"
        scores = scores_of(both[0][asked], labels, seen=own, out=out[None] if doubtful is None else None)
        chosen = [[s.examples[r] for r in where] for s, where in ((listed, pairs.flagged), (unseen, pairs.unseen))]
        alarms += membership(scores, pairs, *chosen, both[0][asked[: len(chosen[0])]], (), audit, deals=99).found
    low, high = stats.binom.ppf([0.005, 0.995], 40, 0.05)
    assert (low if declared else 0) <= alarms <= high


def test_scores_are_those_of_the_logits(
    found: Verification, trained: Trained, untainted: Trained, sets: tuple[ExampleSet, ...]
) -> None:
    flagged, _, unseen = sets
    pairs = compared(flagged, unseen, 0)
    with torch.no_grad():
        both = [m.module(flagged.pixels) for m in (trained, untainted)]
    odds = [attacks.scaled(logits, flagged.labels) for logits in both]
    written = torch.tensor([one.scores["LiRA"] for one in found.membership.examples])
    assert torch.allclose(written, (odds[0] - odds[1]).float(), atol=1e-3)
    labels = torch.tensor(pairs.labels)
    with torch.no_grad():
        others = [attacks.scaled(m.module(unseen.pixels[pairs.unseen]), labels) for m in (trained, untainted)]
    area = auc((odds[0] - odds[1]).numpy(), (others[0] - others[1]).numpy())[0]
    assert next(a.auc for a in found.membership.attacks if a.name == "LiRA") == pytest.approx(area, abs=1e-5)


def test_unseen_examples_are_asked_for_what_the_flagged_were_given(sets: tuple[ExampleSet, ...]) -> None:
    flagged, _, unseen = sets
    pairs = compared(flagged, unseen, 0)
    for row, label in zip(pairs.unseen, pairs.labels, strict=True):
        true = unseen.examples[row].label
        assert any((e.true_label, e.label) == (true, label) for e in flagged.examples)
    one = ExampleSet(flagged.examples[:1], flagged.pixels[:1], "flagged")
    assert set(compared(one, unseen, 0).labels) == {flagged.examples[0].label}


def test_slices_by_columns(trained: Trained, sets: tuple[ExampleSet, ...]) -> None:
    flagged, reference, unseen = sets
    marked = tuple(
        e.model_copy(update={"columns": {"site": "=north" if n % 2 else "south"}})
        for n, e in enumerate(flagged.examples)
    )
    said = memaudit.verify(
        copy.deepcopy(trained.module), ExampleSet(marked, flagged.pixels, "f"), reference, unseen, profile="fast"
    )
    assert {s.value for s in said.membership.slices if s.by == "site"} == {"=north", "south"}
    table = "".join(views.table_of(said))
    assert ",'=north" in table
    assert "\n=north" not in views.render(said, "markdown")


@pytest.mark.parametrize(("text", "failed"), [(None, True), ("5%:100%", False), ("5%:10%", True), ("1%:0%", True)])
def test_policy(found: Verification, text: str | None, failed: bool) -> None:
    assert bool(MembershipPolicy.parse(text).judge(found.membership).failed) is failed


@pytest.mark.parametrize("text", ["1%", "x:1%", "2%:1%", "0.1%:200%", ""])
def test_no_policy(text: str) -> None:
    with pytest.raises(UsageError):
        MembershipPolicy.parse(text)


def test_nothing_to_compare_with(trained: Trained, sets: tuple[ExampleSet, ...]) -> None:
    flagged, reference, unseen = sets
    true = {e.true_label for e in flagged.examples[:1]}
    rows = [r for r, e in enumerate(unseen.examples) if e.label not in true]
    with pytest.raises(DataRejected, match="no unseen example"):
        memaudit.verify(trained.module, flagged.subset([0]), reference, unseen.subset(rows))


def test_flagged_examples_are_no_unseen_ones(trained: Trained, sets: tuple[ExampleSet, ...]) -> None:
    flagged, reference, _ = sets
    with pytest.raises(DataRejected):
        memaudit.verify(trained.module, flagged, reference, flagged)


def test_views_and_the_way_back(found: Verification, tmp_path: Path) -> None:
    paths = [tmp_path / f"v{suffix}" for suffix in (".json", ".html", ".md", ".csv", ".parquet")]
    views.write_all(found, paths)
    assert reading.read(paths[0]) == found
    page = paths[1].read_text("utf-8")
    assert words.headline(found) in page
    assert "<script" not in page
    assert paths[2].read_text("utf-8").startswith("# ❌ ")
    with pytest.raises(UsageError):
        views.check([tmp_path / "v.sarif"])
    (tmp_path / "other.json").write_text(json.dumps({"kind": "ranking"}))
    with pytest.raises(DataRejected):
        reading.read(tmp_path / "other.json")


def test_command_line(trained: Trained, untainted: Trained, sets: tuple[ExampleSet, ...], tmp_path: Path) -> None:
    from memaudit.cli import program

    for name, network in (("with", trained), ("without", untainted)):
        save_file(dict(network.module.state_dict()), tmp_path / f"{name}.safetensors")
    for name, examples in zip(("flagged", "reference", "unseen"), sets, strict=True):
        truth = [e.label if e.true_label is None else e.true_label for e in examples.examples]
        np.savez(tmp_path / f"{name}.npz", x=examples.pixels.numpy(), y=examples.labels.numpy(), true_label=truth)
    (tmp_path / "net.py").write_text("from tests.networks import DigitsNet as build\n")

    def run(model: str, *more: str) -> tuple[int, str]:
        line = ["verify", str(tmp_path / model), "--adapter", f"{tmp_path / 'net.py'}:build", "-q", "--profile", "fast"]
        for name in ("flagged", "reference", "unseen"):
            line += [f"--{name}", str(tmp_path / f"{name}.npz")]
        result = CliRunner().invoke(
            program("verify"), [*line, "--out", str(tmp_path / "out"), *more], standalone_mode=False
        )
        return (result.return_value if result.exception is None else result.exception), result.stdout  # type: ignore[return-value]

    code, text = run("with.safetensors", "--without", str(tmp_path / "without.safetensors"), "--by", "A. Auditor")
    assert code == 1
    assert "still gives the flagged examples away" in text
    assert reading.read(tmp_path / "out" / "verification.json").by == "A. Auditor"
    code, text = run("without.safetensors", "-f", "markdown")
    assert code == 0
    assert "No evidence" in text
    code, _ = run("with.safetensors", "--without", str(tmp_path / "with.safetensors"))
    assert isinstance(code, UsageError)
