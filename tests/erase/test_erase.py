"""`memaudit erase`: what the written file does in plain torch, that nothing else changed, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.checkpoints import read as read_checkpoint
from memaudit.engine.evaluator import Panel
from memaudit.erase import Choice
from memaudit.erase.group import apart_from, split
from memaudit.erase.inputs import STEPS, Searched
from memaudit.erase.request import check_editable
from memaudit.errors import DataRejected, ExitCode, MemauditError, ModelRejected, UsageError
from memaudit.findings import Erasure, Finding
from memaudit.network.ablate import ablated
from memaudit.numbers import tidy
from memaudit.report.document import Report
from tests.cli_support import FAST, NPZ, Command, command, tree, write_timm
from tests.conftest import Trained
from tests.erase.conftest import ALL, ERASE, plain
from tests.networks import DigitsNet


def report_of(path: Path) -> Report:
    return Report.model_validate_json(path.read_text("utf-8"))


def says(logits: Tensor, finding: Finding) -> tuple[int, float, float]:
    label = finding.example.label
    others = torch.cat([logits[:label], logits[label + 1 :]])
    return (
        int(logits.argmax()),
        tidy(float(logits[label] - others.max())),
        tidy(float(logits.double().softmax(0)[label])),
    )


def test_one_example_gets_the_reports_after(cli: Command, work: Path) -> None:
    report = report_of(work / "report" / "report.json")
    images = torch.from_numpy(np.load(work / "flagged.npz")["x"])
    localized = [f for f in report.findings if f.outcome == "localized"]
    assert len(localized) > 3
    for finding in localized[:2]:
        ran = cli(*ERASE, "-o", "out/erased.safetensors", "--examples", finding.id, "--clean-steps", "0")
        assert ran.code == 0, ran.err
        with torch.no_grad():
            logits = plain(work / "out" / "erased.safetensors")(images[[finding.example.index]])[0]
        assert finding.after is not None
        after = (finding.after.prediction, finding.after.margin, finding.after.confidence)
        assert says(logits, finding) == pytest.approx(after, rel=1e-4)
        (measured,) = json.loads((work / "out" / "erased.erase.json").read_text())["examples"]
        assert measured["as_reported"]
        assert measured["after"] == pytest.approx(finding.after.model_dump(mode="json"), rel=1e-4)


def test_all_localized_together_are_measured_from_disk(cli: Command, work: Path, trained: Trained) -> None:
    before = tree(work)
    ran = cli(*ALL, "-o", "erased.safetensors")
    assert ran.code == 0, ran.err
    written = ["erased.erase.json", "erased.report.html", "erased.report.json", "erased.safetensors"]
    assert sorted(set(tree(work)) - set(before)) == written
    assert {n: c for n, c in tree(work).items() if n not in written} == before
    report = report_of(work / "erased.report.json")
    erasure = report.erasure
    assert erasure is not None
    assert erasure == Erasure.model_validate_json((work / "erased.erase.json").read_text())
    network, original = plain(work / "erased.safetensors"), plain(work / "digits.safetensors")
    archive = np.load(work / "flagged.npz")
    x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
    cut = {f.id for f in report.findings if f.outcome == "localized"}
    assert {e.id for e in erasure.examples} == cut
    used = [f.example.index for f in report.findings if f.id in cut]
    unused = [f.example.index for f in report.findings if f.fitted and f.id not in cut]
    with torch.no_grad():
        right = network(x).argmax(1) == y
        alone = torch.stack([network(x[[i]])[0] for i in range(len(x))])
        reference = np.load(work / "reference.npz")
        clean = network(torch.from_numpy(reference["x"])).argmax(1) == torch.from_numpy(reference["y"])
        intact = original(torch.from_numpy(reference["x"])).argmax(1) == torch.from_numpy(reference["y"])
    assert erasure.after.used == pytest.approx(float(right[used].float().mean()), abs=1e-6)
    assert erasure.before.used == 1
    if unused:
        assert erasure.after.unused == pytest.approx(float(right[unused].float().mean()), abs=1e-6)
    assert erasure.after.reference == pytest.approx(float(clean.float().mean()), abs=1e-6)
    assert erasure.before.reference == pytest.approx(float(intact.float().mean()), abs=1e-6)
    by_id = {f.id: f for f in report.findings}
    for example in erasure.examples:
        finding = by_id[example.id]
        after = (example.after.prediction, example.after.margin, example.after.confidence)
        assert says(alone[finding.example.index], finding) == after
        assert example.before.margin == pytest.approx(finding.before.margin, abs=1e-4)
    # masks of the same units give the same numbers
    space = trained.space
    numbers = [space.number(u.layer, u.index, u.kind) for u in erasure.units]
    assert set(erasure.units) == {u for f in report.findings if f.id in cut for u in f.units}
    with torch.no_grad(), ablated(original, space, space.keep([numbers])[0]):
        assert torch.equal(torch.stack([original(x[[i]])[0] for i in range(len(x))]), alone)
    page = (work / "erased.report.html").read_text()
    assert 'id="erased"' in page
    for model, code, words in (("erased", 0, "its edited copy"), ("digits", 0, "of this checkpoint (sha256")):
        held = cli("check", "erased.report.json", "--model", f"{model}.safetensors", "--exit-zero")
        assert (held.code, words in held.err) == (code, True), held.err
    for text in (ran.out, (work / "erased.erase.json").read_text()):
        assert "uppressed" in text
        assert "deleted" not in text


def test_the_probes_measure_what_they_say(cli: Command, work: Path) -> None:
    assert cli(*ALL, "-o", "erased.safetensors", "--flagged", "all-flagged.npz").code == 0
    erasure = Erasure.model_validate_json((work / "erased.erase.json").read_text())
    assert [p.sigma for p in erasure.noise] == [0.1, 0.2, 0.4]
    assert all(0 <= p.after <= 1 and p.before > p.after for p in erasure.noise[:1])
    steps = [p.steps for p in erasure.relearning]
    assert steps == [0, 1, 2, 5, 10, 20]
    assert erasure.relearning[0].rest == erasure.relearning[0].control
    assert any(p.rest != erasure.relearning[0].rest for p in erasure.relearning[1:])


def test_curvature_erases_a_group_within_its_budget(cli: Command, work: Path) -> None:
    ran = cli(
        *ERASE, "-o", "c.safetensors", "--method", "curvature", "--max-test-drop", "4", "--flagged", "all-flagged.npz",
        "--test", "reference.npz", "--clean-steps", "0",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    erasure = Erasure.model_validate_json((work / "c.erase.json").read_text())
    assert (erasure.method, erasure.clean_steps) == ("curvature", 0)
    (chosen,) = [c for c in erasure.candidates if c.chosen]
    assert {e.layer for e in erasure.layers} == set(chosen.layers)
    archive = np.load(work / "all-flagged.npz")
    x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
    network, original = plain(work / "c.safetensors"), plain(work / "digits.safetensors")
    with torch.no_grad():
        fitted = original(x).argmax(1) == y
        left = float((network(x).argmax(1) == y)[fitted].float().mean())
    counts = erasure.counts
    assert counts["used"] + counts["unused"] == int(fitted.sum())
    measured = (erasure.after.used or 0) * counts["used"] + (erasure.after.unused or 0) * counts["unused"]
    assert measured == pytest.approx(left * int(fitted.sum()), abs=1e-3)
    assert left < 0.9
    assert erasure.after.used == pytest.approx(chosen.flagged, abs=1e-6)
    changed = {n for n, t in load_file(work / "c.safetensors").items() if not torch.equal(t, original.state_dict()[n])}
    weights = {n for n in changed if "running" not in n and "num_batches" not in n}
    assert weights == {f"{e.layer}.weight" for e in erasure.layers}
    random = erasure.random
    assert random is not None
    assert (random.kind, random.units > 0) == ("component", True)
    assert (random.used, random.reference) != (erasure.after.used, erasure.after.reference)
    assert "random components instead" in ran.out
    assert "deleted" not in ran.out + (work / "c.erase.json").read_text()


def test_clean_steps_suppress_more_of_a_group_at_the_same_budget(cli: Command, work: Path) -> None:
    group = ("--method", "curvature", "--max-test-drop", "4", "--flagged", "all-flagged.npz", "--clean-steps", "30")
    for name in ("a", "b"):
        ran = cli(*ERASE, *group, "-o", f"{name}/c.safetensors")
        assert ran.code == 0, ran.err
    for file in ("c.safetensors", "c.erase.json"):
        assert (work / "a" / file).read_bytes() == (work / "b" / file).read_bytes()
    erasure = Erasure.model_validate_json((work / "a" / "c.erase.json").read_text())
    (chosen,) = [c for c in erasure.candidates if c.chosen]
    assert erasure.clean_steps == chosen.clean_steps == 30
    cheap = [c for c in erasure.candidates if not c.clean_steps]
    assert chosen.flagged < 0.3
    assert all(c.flagged > chosen.flagged or c.validation < chosen.validation for c in cheap)
    page = (work / "a" / "c.report.html").read_text()
    assert f"{len(erasure.candidates)} edits tried" in page
    assert page.count("<b>chosen</b>") == 1
    # without --test, steps train on the part of the reference that gave the factors: the rest judges
    assert f"30 steps of 64 examples on {round(0.35 * 200)} reference examples" in erasure.notes[1]
    network, original = plain(work / "a" / "c.safetensors"), plain(work / "digits.safetensors").state_dict()
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, original[n])}
    first = min(["one", "two", "three"].index(e.layer.split(".")[0]) for e in erasure.layers)
    kept = ("one", "two", "three")[:first]
    assert not any(n.startswith(kept) for n in changed)
    assert {"head.weight", "head.bias"} <= changed
    archive = np.load(work / "all-flagged.npz")
    with torch.no_grad():
        right = network(torch.from_numpy(archive["x"])).argmax(1) == torch.from_numpy(archive["y"])
    counts = erasure.counts
    measured = (erasure.after.used or 0) * counts["used"] + (erasure.after.unused or 0) * counts["unused"]
    assert measured == pytest.approx(float(right.sum()), abs=1.01)  # but for labels the original did not predict


def test_clean_steps_see_no_example_that_judges_them(trained: Trained) -> None:
    reference = trained.reference
    factors, validation, final = split(len(reference), 0)
    assert sorted([*factors, *validation, *final]) == list(range(len(reference)))
    shown = apart_from(reference, Panel(reference, [*validation, *final]), 0)
    assert sorted(shown.rows) == factors
    assert list(shown.rows) == list(apart_from(reference, Panel(reference, [*validation, *final]), 0).rows)
    assert len(apart_from(reference, Panel(trained.flagged, range(50)), 0)) == len(reference)
    with pytest.raises(DataRejected, match="only 10 reference examples"):
        apart_from(reference, Panel(reference, range(10, len(reference))), 0)
    with pytest.raises(DataRejected, match="too few to choose an edit"):
        split(50, 0)
    assert [len(part) for part in split(10_000, 0)] == [1500, 2000, 6500]


def test_the_same_command_writes_the_same_bytes(cli: Command, work: Path) -> None:
    for name in ("a", "b"):
        assert cli(*ALL, "-o", f"{name}/e.safetensors").code == 0
    for file in ("e.safetensors", "e.erase.json"):
        assert (work / "a" / file).read_bytes() == (work / "b" / file).read_bytes()


REFUSED: dict[str, tuple[tuple[str, ...], ExitCode, str]] = {
    "the model itself": (("-o", "digits.safetensors", "--all"), ExitCode.USAGE, "is the audited model"),
    "another format": (("-o", "erased.pt", "--all"), ExitCode.USAGE, "no .safetensors file"),
    "nothing named": (("-o", "e.safetensors"), ExitCode.USAGE, "--all"),
    "more than allowed": (
        ("-o", "e.safetensors", "--all", "--max-test-drop", "0"), ExitCode.REJECTED, "Nothing was written",
    ),
    "an unknown id": (("-o", "e.safetensors", "--examples", "nothing"), ExitCode.USAGE, "names no finding"),
    "examples of a group": (
        ("-o", "e.safetensors", "--method", "curvature", "--examples", "x"), ExitCode.USAGE, "--method units",
    ),
    "relearning without a step": (
        ("-o", "e.safetensors", "--method", "relearn", "--clean-steps", "0"), ExitCode.USAGE, "relearn trains",
    ),
    "an unknown method": (("-o", "e.safetensors", "--method", "magic"), ExitCode.USAGE, "not one of"),
    "other flagged examples": (
        ("-o", "e.safetensors", "--all", "--flagged", "reference.npz"), ExitCode.REJECTED, "not among",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing_behind(cli: Command, work: Path, case: str) -> None:
    arguments, code, reason = REFUSED[case]
    before = tree(work)
    ran = cli(*ERASE, *arguments)
    assert ran.code == code, ran.err
    assert reason in ran.err
    assert tree(work) == before


def test_another_model_is_refused(cli: Command, work: Path) -> None:
    state = load_file(work / "digits.safetensors")
    from safetensors.torch import save_file

    save_file({n: t + 0.001 if t.is_floating_point() else t for n, t in state.items()}, work / "other.safetensors")
    ran = cli("erase", "report/report.json", "--model", "other.safetensors", "-o", "e.safetensors", "-q", "--all")
    assert ran.code == ExitCode.REJECTED
    assert "not the model of this report" in ran.err
    assert not (work / "e.safetensors").exists()


@pytest.mark.parametrize("place", ["copy.json", "deeper/and/deeper/copy.json"])
def test_a_copy_of_the_report_elsewhere_finds_the_examples(cli: Command, work: Path, place: str) -> None:
    copy = work / place
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "report" / "report.json", copy)
    ran = cli(
        "erase", place, *ERASE[2:], "-o", "e.safetensors", "--all", "--max-test-drop", "100", "--clean-steps", "1"
    )
    assert ran.code == 0, ran.err
    assert (work / "e.safetensors").is_file()


def test_a_file_of_the_same_name_with_other_examples_is_not_taken_for_the_flagged_ones(
    cli: Command, work: Path
) -> None:
    flagged = np.load(work / "flagged.npz")
    np.savez(work / "flagged.npz", x=flagged["x"][1:], y=flagged["y"][1:])
    ran = cli(*ERASE, "-o", "e.safetensors", "--method", "finetune")
    assert ran.code == ExitCode.REJECTED
    assert "1 example of the report is not among the flagged ones" in ran.err
    assert "--flagged" in ran.err
    named = cli(*ERASE, "-o", "e.safetensors", "--method", "finetune", "--flagged", "all-flagged.npz")
    assert named.code == 0, named.err


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.embed(x.flatten(1)))))


@pytest.mark.filterwarnings("ignore")  # torch.ao's quantisation announces its successor
def test_models_that_cannot_be_edited_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelRejected, match=r"output layer head shares its weight with embed\.weight"):
        check_editable(TiedHead())
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    with pytest.raises(ModelRejected, match="quantised"):
        check_editable(quantised)
    check_editable(DigitsNet())


def test_a_timm_file_loads_in_plain_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_timm(tmp_path, "test_resnet")
    cli = command(folder, monkeypatch, capsys)
    scan = cli("scan", "test_resnet.safetensors", "--input-size", "3,32,32", *NPZ, "--out", "report", *FAST)
    assert scan.code in (ExitCode.OK, ExitCode.POLICY), scan.err
    report = report_of(folder / "report" / "report.json")
    erased = [f for f in report.findings if f.after is not None and f.after.prediction != f.example.label]
    assert erased
    name = erased[0].id
    ran = cli(
        "erase",
        "report/report.json",
        "--model",
        "test_resnet.safetensors",
        "-o",
        "e.safetensors",
        "--examples",
        name,
        "--clean-steps",
        "2",
    )
    assert ran.code == 0, ran.err
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(load_file(folder / "e.safetensors"))
    x = torch.from_numpy(np.load(folder / "flagged.npz")["x"])[[erased[0].example.index]]
    config = network.default_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        logits = network((x - mean) / std)[0]
    after = erased[0].after
    assert after is not None
    assert says(logits, erased[0]) == pytest.approx((after.prediction, after.margin, after.confidence), rel=1e-4)
    # The copy says what was said of the original, and no guess: mean and std are asked again.
    facts = read_checkpoint(folder / "e.safetensors").facts
    assert (facts.architecture, facts.num_classes, facts.preprocess) == ("test_resnet", 3, {"input_size": (3, 32, 32)})
    again = cli("inspect", "e.safetensors")
    assert "architecture in the file" in again.out
    assert "guessed, until you say it: --mean --std" in again.out


def test_findings_are_named_by_id_prefix_source_or_declared_id(work: Path) -> None:
    findings = report_of(work / "report" / "report.json").findings
    wanted = next(f for f in findings if f.outcome == "localized")
    for name in (wanted.id, wanted.id[:10], wanted.example.id, wanted.example.id[:10]):
        assert Choice(findings, [name]).chosen() == [wanted]
    declared = wanted.model_copy(update={"example": wanted.example.model_copy(update={"declared_id": "17"})})
    assert Choice([declared], ["17"]).chosen() == [declared]
    none = [f.model_copy(update={"units": []}) for f in findings]
    with pytest.raises(UsageError, match="no localized finding"):
        Choice(none, []).chosen()
    with pytest.raises(UsageError, match="no units"):
        Choice(none, [wanted.id]).chosen()
    assert issubclass(ModelRejected, MemauditError)


def test_the_proof_has_controls_and_the_membership_of_both_files(cli: Command, work: Path, trained: Trained) -> None:
    ran = cli(*ALL, "-o", "erased.safetensors", "--flagged", "all-flagged.npz", "--test", "held-out.npz")
    assert ran.code == 0, ran.err
    found = Erasure.model_validate_json((work / "erased.erase.json").read_text())
    assert found.random is not None
    assert found.random.units == len(found.units)
    assert (found.after.used or 0) <= found.random.used <= 1
    assert [point.radius for point in found.inputs] == [0.05, 0.1, 0.2]
    assert all(0 <= value <= 1 for point in found.inputs for value in (point.flagged, point.control))
    assert [point.flagged for point in found.inputs] == sorted(point.flagged for point in found.inputs)
    assert found.membership is not None
    assert found.membership_before is not None
    assert found.membership.examples == []
    assert "Membership, AUC of the strongest test" in ran.out
    assert "random units instead" in ran.out
    for name in ("erased.report.html", "erased.report.json"):
        assert (work / name).exists()


def test_the_input_search_finds_what_plain_steps_find(trained: Trained) -> None:
    """One example, all steps by hand."""
    flagged, network = trained.flagged, trained.adapter
    x, y = flagged.pixels[:4], (flagged.labels[:4] + 3) % 10
    radius, found, change = 0.4, torch.zeros(4, dtype=torch.bool), torch.zeros_like(flagged.pixels[:4])
    for _ in range(STEPS + 1):
        change.requires_grad_()
        logits = trained.module(x + change)
        found |= logits.argmax(1) == y
        own = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -torch.inf).max(1).values
        (gradient,) = torch.autograd.grad((own - others).sum(), change)
        change = (change.detach() + radius / 4 * gradient.sign()).clamp(-radius, radius)
    assert torch.equal(Searched(radius)(network, x, y), found)
    assert int(found.sum()) > 0
