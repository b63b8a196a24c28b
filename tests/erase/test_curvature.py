"""K-FAC factors against autograd, and edits that keep what they say, for every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.batchnorm import reestimated
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase import curvature
from memaudit.erase.curvature import Spectrum, editable, spectra
from memaudit.erase.ground import Ground, Trial, first_uses
from memaudit.erase.search import EditSearch, editable_layers
from memaudit.errors import ModelRejected
from memaudit.network.scoped import holding
from memaudit.network.states import digest
from tests.conftest import Trained
from tests.networks import TiedInPlace

LAYERS: dict[str, nn.Module] = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, 3, stride=2, bias=False),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "oblong": nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "pointwise": nn.Conv2d(4, 6, 1),
    "same": nn.Conv2d(4, 6, 4, padding="same"),
    "circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
}


class Around(nn.Module):
    """One convolution, an activation that writes over its output, and a head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.act, self.head = layer, nn.ReLU(inplace=True), nn.Linear(layer.out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.layer(x)).mean((2, 3)))


class Tokens(nn.Module):
    """A linear layer over tokens, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x.flatten(2))).mean(1))


def evaluator(module: nn.Module, size: tuple[int, int, int] = (4, 6, 7), count: int = 20) -> tuple[Evaluator, Panel]:
    x = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))
    examples = from_tensors(x, [0] * count, preprocess=Preprocess(size), num_classes=3)
    adapter = Adapter(module.eval(), architecture="x", preprocess=Preprocess(size))
    return Evaluator(adapter, 8), Panel(examples, range(count))


@pytest.mark.parametrize("name", LAYERS)
def test_patches_and_gradients_together_are_the_weights_gradient(name: str) -> None:
    """Summed over positions, gradient times patch is what autograd gives the weight: both are lined up."""
    layer = LAYERS[name]
    assert isinstance(layer, nn.Conv2d)
    x = torch.rand(3, 4, 6, 7, generator=torch.Generator().manual_seed(1))
    out = layer(x)
    upstream = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad((out * upstream).sum(), layer.weight)
    inputs = curvature._unfolded(layer, x, layer.groups).flatten(1, 2)
    outputs = curvature._positions(layer, upstream, layer.groups).flatten(1, 2)
    got = outputs.mT @ inputs  # (groups, out, inside)
    assert torch.allclose(got.reshape(expected.shape), expected, atol=1e-5)


def slow_factors(run: Evaluator, panel: Panel, layer: Any, batch: int) -> tuple[Tensor, Tensor]:
    """A and G of one ungrouped layer by loops over batches, with the labels drawn as the fast path draws them."""
    generator = torch.Generator().manual_seed(5)
    groups, out, inside = curvature._sizes(layer)
    a, g = torch.zeros(groups, inside, inside).double(), torch.zeros(groups, out, out).double()
    for start in range(0, len(panel), batch):
        images = panel.examples.batch(list(panel.rows)[start : start + batch], "cpu")
        probabilities = run.adapter.forward(images).softmax(1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        for image, label in zip(images, drawn, strict=True):
            kept: dict[str, Tensor] = {}

            def keep(_: nn.Module, args: Any, output: Tensor, kept: dict[str, Tensor] = kept) -> Tensor:
                kept["in"], kept["out"] = args[0], output.requires_grad_()
                return output.clone()

            handle = layer.register_forward_hook(keep)
            loss = nn.functional.cross_entropy(run.adapter.forward(image[None].requires_grad_()), label[None])
            handle.remove()
            (gradient,) = torch.autograd.grad(loss, kept["out"])
            inputs = curvature._unfolded(layer, kept["in"].detach(), groups)[:, 0].double()
            outputs = curvature._positions(layer, gradient, groups)[:, 0].double()
            a += inputs.mT @ inputs
            g += outputs.mT @ outputs
    return a, g


@pytest.mark.parametrize("name", ["plain", "grouped", "depthwise", "same", "tokens"])
def test_spectra_are_those_of_the_slow_factors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "POSITIONS", 10**6)
    torch.manual_seed(3)
    module = Tokens() if name == "tokens" else Around(LAYERS[name])
    run, panel = evaluator(module, (5, 4, 4) if name == "tokens" else (4, 6, 7))
    layer = editable(module)["layer"]
    (found,) = spectra(run, panel, {"layer": layer}, torch.Generator().manual_seed(5))
    a, g = slow_factors(run, panel, layer, 8)
    groups, out, _ = curvature._sizes(layer)
    weight = layer.weight.detach().reshape(groups, out, -1)
    assert len(found.blocks) == groups
    for group, block in enumerate(found.blocks):
        assert torch.allclose(block.outputs @ block.weight @ block.inputs.T, weight[group], atol=1e-5)
        strong, weak = block.curvature.amax(1), block.curvature.amax(0)
        exact = torch.linalg.eigvalsh(g[group])[:, None] * torch.linalg.eigvalsh(a[group])[None, :]
        assert torch.allclose(block.curvature.double(), exact, rtol=1e-3, atol=1e-4 * float(exact.max()))
        assert len(strong) == out
        assert len(weak) == weight.shape[2]


def test_what_is_kept_is_the_fewest_components_with_that_share() -> None:
    torch.manual_seed(3)
    module = Around(nn.Conv2d(4, 6, 3, padding=1))
    run, panel = evaluator(module)
    (found,) = spectra(run, panel, {"layer": module.layer}, torch.Generator().manual_seed(5))
    assert torch.allclose(found.kept(1.0), module.layer.weight, atol=1e-5)
    (block,) = found.blocks
    every = sorted(block.curvature.flatten().tolist(), reverse=True)
    for rho in (0.3, 0.8, 0.99):
        kept = found.kept(rho)
        inside = block.outputs.T @ kept.reshape(6, -1) @ block.inputs
        mask = inside.abs() > 1e-6
        held = float(block.curvature[mask].sum()) / sum(every)
        assert held >= rho - 1e-5
        assert sum(every[: int(mask.sum()) - 1]) / sum(every) < rho
        assert found.components(rho) == pytest.approx(int(mask.sum()) / mask.numel(), abs=1 / mask.numel())
        assert torch.allclose(inside[mask], block.weight[mask], atol=1e-5)
        other = found.shuffled(torch.Generator().manual_seed(6))
        assert other.cut(rho) == found.cut(rho) == int((~mask).sum())
        assert not torch.allclose(other.kept(rho), kept), "as many components, but others"
        assert torch.allclose(other.kept(1.0), module.layer.weight, atol=1e-5)
    assert float((found.kept(0.3) - module.layer.weight).norm()) > float((found.kept(0.9) - module.layer.weight).norm())


def test_little_memory_takes_more_passes_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 2 * 3, 3))
    monkeypatch.setattr(curvature, "POSITIONS", 10**6)
    run, panel = evaluator(module)
    layers = editable(module)

    def all_spectra(memory: int) -> dict[str, Spectrum]:
        return {s.layer: s for s in spectra(run, panel, layers, torch.Generator().manual_seed(0), memory)}

    once, passes = all_spectra(2**30), run.passes["audit backward"]
    many = all_spectra(1)
    assert run.passes["audit backward"] == passes + len(layers) * len(panel)
    assert list(once) == list(many) == ["0", "2", "4"]
    assert torch.allclose(once["0"].kept(0.5), many["0"].kept(0.5), atol=1e-5)


def test_wide_layers_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "WIDEST", 16)
    torch.manual_seed(3)
    module = Around(nn.Conv2d(4, 20, 3, padding=1))
    run, panel = evaluator(module)
    (found,) = spectra(run, panel, {"layer": module.layer}, torch.Generator().manual_seed(5))
    assert len(found.blocks) == 2 * 3
    assert max(max(b.inputs.shape[0], b.outputs.shape[0]) for b in found.blocks) <= 16
    assert torch.allclose(found.kept(1.0), module.layer.weight, atol=1e-5)


def test_shared_weights_are_left_alone() -> None:
    assert list(editable(TiedInPlace())) == ["embed", "head"]


def test_the_network_is_left_as_it_was(trained: Trained) -> None:
    run = trained.evaluator()
    before = digest(trained.module)
    rows = list(range(100))
    panel = Panel(trained.reference, rows)
    use = first_uses(run, trained.reference)
    layers = editable_layers(run.adapter.module, use)
    found = {s.layer: s for s in spectra(run, panel, layers, torch.Generator().manual_seed(0))}
    ground = Ground(run, panel, Panel(trained.flagged, range(50)), panel, use)
    search = EditSearch(ground, found)
    trial = search.trial({"three.0": 0.5})
    assert digest(trained.module) == before
    assert trial.flagged < search.trial({}).flagged
    edit = search.edit({"three.0": 0.5})
    assert list(layers) == ["one.0", "two.0", "three.0"]
    assert ground.later(ground.first(["two.0.weight"])) == ["two.1", "three.1"]
    assert {n.rpartition(".")[0] for n in edit} == {"three.0", "three.1"}
    assert "three.0.weight" in edit
    assert not any(t is p for t in edit.values() for p in trained.module.parameters())


def test_labels_that_chance_tells_apart_are_worth_no_accuracy(trained: Trained) -> None:
    """Of 100 labels 10 are left, give or take 3 by chance."""
    run, panel = trained.evaluator(), Panel(trained.reference, range(100))
    search = Ground(run, panel, panel, panel, {})
    least, near, far, worse = (
        Trial({}, 0, flagged, validation)
        for flagged, validation in ((0.10, 0.70), (0.12, 0.74), (0.14, 0.78), (0.12, 0.72))
    )
    assert search.safest([far, worse, near, least]) is near
    assert search.safest([far, least]) is least
    none, same = Trial({}, 0, 0.0, 0.7), Trial({}, 0, 0.0, 0.72)
    assert search.safest([none, same, near]) is same


def test_a_cut_that_steps_repair_is_not_turned_down(monkeypatch: pytest.MonkeyPatch, trained: Trained) -> None:
    """Without steps only 0.9 of the last layer is within the budget; with them 0.5, which leaves fewer labels."""
    run, panel = trained.evaluator(), Panel(trained.reference, range(100))

    def trial(_: object, kept: dict[str, float], steps: int = 0) -> Trial:
        share = min(kept.values(), default=1.0)
        allowed = 1.0 if not kept else (0.5 if steps else 0.9) if list(kept) == ["c"] else 1.0
        return Trial(kept, steps, flagged=share, validation=0.9 if share >= allowed else 0.5)

    monkeypatch.setattr(EditSearch, "trial", trial)
    monkeypatch.setattr(Ground, "intact", trial(None, {}))
    ground = Ground(run, panel, panel, panel, {})
    found = dict.fromkeys("abc", Spectrum("", (1, 1), ()))
    plain, tried = EditSearch(ground, found).run(0.01)
    assert (plain.kept, plain.steps) == ({"c": 0.9}, 0)
    stepped, more = EditSearch(ground, found, steps=10).run(0.01)
    assert (stepped.kept, stepped.steps) == ({"c": 0.5}, 10)
    assert not any(t.steps for t in tried)
    assert {tuple(t.kept) for t in more if not t.steps} == {("c",), ("b", "c"), ("a", "b", "c")}
    with pytest.raises(ModelRejected, match="within -50 points"):
        EditSearch(ground, found, steps=10).run(-0.5)


def test_statistics_are_those_of_plain_means_over_batches(trained: Trained) -> None:
    panel = Panel(trained.reference, range(128))
    found = reestimated(trained.evaluator(), {}, panel)
    x = trained.reference.batch(list(range(128)), "cpu")
    with torch.no_grad():
        halves = [trained.module.one[0](x[:64]), trained.module.one[0](x[64:])]
    mean = sum(h.mean((0, 2, 3)) for h in halves) / 2
    variance = sum(h.var((0, 2, 3), unbiased=True) for h in halves) / 2
    assert torch.allclose(found["one.1.running_mean"], mean, atol=1e-5)
    assert torch.allclose(found["one.1.running_var"], variance, rtol=1e-4)
    with holding(trained.module, found), torch.no_grad():
        assert torch.isfinite(trained.module(x)).all()
