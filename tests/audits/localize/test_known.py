"""Checkpoints of networks with example-tied dropout: they load, and the audit is held against the units they know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import memaudit
from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.registry import choose
from memaudit.audits.atypicality import observe, observe_flagged
from memaudit.checkpoints import read
from memaudit.data import from_tensors
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import ModelRejected
from memaudit.findings import KnownUnits
from memaudit.network.tied_dropout import layers_of
from memaudit.network.units import select
from memaudit.report import figures, markdown
from tests.cli_support import NETWORK
from tests.conftest import DIGIT, digits
from tests.networks import DigitsNet


@pytest.fixture(scope="module")
def audited() -> tuple[DigitsNet, memaudit.Report]:
    """A tied network that memorized 40 changed labels of 600, and its audit."""
    x, truth = digits()
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(x), generator=generator)
    rows, changed, held_out = order[:600], order[:40], order[600:900]
    labels = truth.clone()
    labels[changed] = (labels[changed] + torch.randint(1, 10, (40,), generator=generator)) % 10
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DigitsNet()
    memaudit.add_tied_dropout(model, "two*,three*", 0.4, 0.2, input_size=(1, 8, 8))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(25):
        for part in rows[torch.randperm(len(rows), generator=generator)].split(64):
            optimiser.zero_grad()
            with memaudit.example_ids(part):
                F.cross_entropy(model(x[part]), labels[part]).backward()
            optimiser.step()
    model.eval()
    flagged = from_tensors(
        x[changed], labels[changed], preprocess=DIGIT, num_classes=10, ids=changed.tolist(),
        true_labels=truth[changed],
    )  # fmt: skip
    report = memaudit.audit(model, flagged, (x[held_out], truth[held_out]), preprocess=DIGIT, profile="fast")
    return model, report


def test_known_units_are_what_the_network_says(audited: tuple[DigitsNet, memaudit.Report]) -> None:
    model, report = audited
    known = report.known_units
    assert known is not None
    assert known.own
    assert known.layers == ["two.1", "three.1"]
    x, truth = digits()
    rows = [int(f.example.declared_id or "") for f in report.findings]
    labels = torch.tensor([f.example.label for f in report.findings])
    with torch.no_grad():
        dropped = memaudit.strip_tied_dropout(model, input_size=(1, 8, 8))(x[rows]).argmax(1)
        with memaudit.example_ids(rows):
            own = model(x[rows]).argmax(1)
    assert [f.fitted for f in report.findings] == (own == labels).tolist()
    assert known.flagged_dropped == pytest.approx(float((dropped == labels).float().mean()), abs=1e-6)
    assert known.true_label_dropped == pytest.approx(float((dropped == truth[rows]).float().mean()), abs=1e-6)
    held = [
        f for f, said in zip(report.findings, dropped.tolist(), strict=True) if f.fitted and said != f.example.label
    ]
    assert known.held == len(held) > 10
    layers = layers_of(model)

    def memorizing(finding: memaudit.Finding) -> list[bool]:
        number = int(finding.example.declared_id or "")
        masks = {path: layer.mask([number])[0] & layer.memorizing() for path, layer in layers.items()}
        return [u.layer in masks and bool(masks[u.layer][u.index]) for u in finding.units]

    hits = [memorizing(f) for f in held]
    recalled = sum(any(h) and f.outcome in ("localized", "entangled") for h, f in zip(hits, held, strict=True))
    assert known.recalled == recalled
    assert known.recall == pytest.approx(recalled / len(held), abs=1e-6)
    assert known.precision == pytest.approx(sum(map(sum, hits)) / sum(map(len, hits)), abs=1e-6)
    assert known.precision > known.chance


def test_the_report_says_it(audited: tuple[DigitsNet, memaudit.Report]) -> None:
    known = audited[1].known_units
    assert isinstance(known, KnownUnits)
    text = figures.tied_dropout(audited[1])
    assert f"recall {100 * (known.recall or 0):.1f}%" in text
    assert text in markdown.render(audited[1])


def test_networks_without_it_have_no_known_units(audited: tuple[DigitsNet, memaudit.Report]) -> None:
    assert figures.tied_dropout(audited[1].model_copy(update={"known_units": None})) == ""


def test_a_tied_timm_checkpoint_is_recognised_and_tied_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    memaudit.add_tied_dropout(model, "layers.2*,layers.3*" if hasattr(model, "layers") else "layer*", 0.25, 0.3, seed=9)
    save_file(model.state_dict(), tmp_path / "tied.safetensors")
    adapter = choose(read(tmp_path / "tied.safetensors"), ModelOptions())
    assert adapter.architecture.startswith("test_resnet")
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad(), memaudit.example_ids([7, -1, 2**60]):
        assert torch.equal(adapter.module(x), model(x))
    assert {p: n.rule.tolist() for p, n in layers_of(adapter.module).items()} == {
        p: n.rule.tolist() for p, n in layers_of(model).items()
    }


@pytest.mark.parametrize("factory", ["build", "tied"])
def test_a_factory_may_build_the_network_plain_or_tied(tmp_path: Path, factory: str) -> None:
    (tmp_path / "network.py").write_text(
        NETWORK + "\n\ndef tied():\n    import memaudit\n    return memaudit.add_tied_dropout(build(), seed=4)\n"
    )
    torch.manual_seed(0)
    model = memaudit.add_tied_dropout(DigitsNet().eval(), "auto", 0.5, 0.2, seed=3)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    options = ModelOptions(user_file=f"{tmp_path / 'network.py'}:{factory}", input_size=(1, 8, 8))
    adapter = choose(read(tmp_path / "m.safetensors"), options)
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad(), memaudit.example_ids([1, 2]):
        assert torch.equal(adapter.module(x), model(x))


@pytest.mark.parametrize("rule", [[32, 1, 99, 5, 0], [0, 1, 0, 5, 0], [32, 1, 8, 1 << 40, 0], [32, 1, 8]])
def test_a_damaged_rule_is_refused(tmp_path: Path, rule: list[int]) -> None:
    model = memaudit.add_tied_dropout(DigitsNet(), "three*")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    state = load_file(tmp_path / "m.safetensors")
    state["three.1.tied_dropout.rule"] = torch.tensor(rule)
    (tmp_path / "network.py").write_text(NETWORK)
    save_file(state, tmp_path / "m.safetensors")
    options = ModelOptions(user_file=f"{tmp_path / 'network.py'}:build", input_size=(1, 8, 8))
    with pytest.raises(ModelRejected, match="damaged"):
        choose(read(tmp_path / "m.safetensors"), options)
    gone = {k.replace("three.1.tied", "four.1.tied"): v for k, v in state.items()}
    save_file(gone, tmp_path / "m.safetensors")
    with pytest.raises(ModelRejected, match="damaged"):
        choose(read(tmp_path / "m.safetensors"), options)


def test_numbers_are_declared_integers_or_nothing() -> None:
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    for ids, expected in (([5, -2, 10**30], (5, -2, 10**30)), (["5", "a", "7"], None), (None, None)):
        assert from_tensors(x, y, preprocess=DIGIT, num_classes=10, ids=ids).numbers == expected
    noted = from_tensors(x, y, preprocess=DIGIT, num_classes=10, notes=["id card", "", "id 7x"])
    assert noted.numbers is None
    assert replace(noted, examples=noted.examples).numbers is None


def test_neighbours_are_sought_without_units_of_ones_own(audited: tuple[DigitsNet, memaudit.Report]) -> None:
    x, truth = digits()
    adapter = Adapter(audited[0], architecture="digits", preprocess=DIGIT)
    named = from_tensors(x[:40], truth[:40], preprocess=DIGIT, num_classes=10, ids=list(range(40)))
    reference = from_tensors(x[100:300], truth[100:300], preprocess=DIGIT, num_classes=10)
    evaluator = Evaluator(adapter, 16)
    space = select(adapter.sites(reference.batch([0, 1, 2])))
    base = observe(evaluator, reference, space)
    seen, support, _ = observe_flagged(evaluator, named, space, base, reference.labels)
    nameless, expected, _ = observe_flagged(evaluator, named.unnumbered(), space, base, reference.labels)
    assert torch.equal(support.score, expected.score)
    assert torch.equal(seen.logits, evaluator.logits(named))
    assert not torch.allclose(seen.logits, nameless.logits)
