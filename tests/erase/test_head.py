"""The classifier rebuilt in closed form: against scikit-learn, and for which networks it is."""

from __future__ import annotations

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase import Choice
from memaudit.erase.ground import Ground, first_uses
from memaudit.erase.group import Task
from memaudit.erase.head import Classifier, choose, discriminant
from memaudit.errors import ModelRejected
from memaudit.network.scoped import holding
from memaudit.settings import Silent


def drawn(classes: int = 4, each: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    stretch = torch.rand(8, 8, generator=generator)
    centres = torch.randn(classes, 8, generator=generator)
    return centres[labels] + torch.randn(classes * each, 8, generator=generator) @ stretch, labels


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_the_discriminant_is_that_of_scikit_learn(shrinkage: float) -> None:
    x, y = drawn()
    found = discriminant(x, y, 4, shrinkage, spread=3.0)
    assert found is not None
    weight, bias = found
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.double().numpy(), y.numpy())
    # what all classes have in common changes no prediction, and no more does the scale
    ours, other = (w - w.mean(0) for w in (weight.double(), torch.from_numpy(theirs.coef_)))
    assert torch.allclose(ours / ours.norm(), other / other.norm(), atol=1e-4)
    assert (x @ weight.T + bias).argmax(1).tolist() == theirs.predict(x.double().numpy()).tolist()
    assert float((x @ weight.T).std()) == pytest.approx(3.0, rel=1e-4)


def test_at_full_shrinkage_the_nearest_class_mean_decides() -> None:
    x, y = drawn()
    found = discriminant(x, y, 4, 1.0)
    assert found is not None
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    assert torch.equal((x @ found[0].T + found[1]).argmax(1), torch.cdist(x, means).argmin(1))


def test_a_class_without_examples_is_never_predicted_and_equal_features_give_nothing() -> None:
    x, y = drawn()
    found = discriminant(x, y, 6, 0.5)
    assert found is not None
    assert int((10 * x @ found[0].T + found[1]).argmax(1).max()) == 3
    assert discriminant(torch.ones(20, 8), torch.arange(20) % 4, 4, 0.5) is None


class Skips(nn.Module):
    """Two layers that add to what they are given, and a classifier; or one whose logits are bent, or no linear one."""

    def __init__(self, kind: str = "linear") -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Linear(8, 8)
        self.more = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Conv2d(8, 4, 1) if kind == "convolution" else nn.Linear(8, 4, bias=kind != "unbiased")

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x.flatten(1))
        for layer in self.more:
            x = x + torch.tanh(layer(x))
        if self.kind == "convolution":
            return self.head(x[..., None, None]).flatten(1)
        return self.head(x).tanh() if self.kind == "bent" else self.head(x)


def task(module: nn.Module, choice: Choice) -> Task:
    x, y = drawn()
    shape = Preprocess((8, 1, 1))
    examples = from_tensors(x[..., None, None], y.tolist(), preprocess=shape, num_classes=4)
    run = Evaluator(Adapter(module.eval(), architecture="x", preprocess=shape), 32)
    panel = Panel(examples, range(120))
    return Task(Ground(run, panel, panel, panel, first_uses(run, examples)), panel, choice, Silent())


@pytest.mark.parametrize("kind", ["bent", "convolution"])
def test_what_is_no_last_linear_layer_is_refused(kind: str) -> None:
    with pytest.raises(ModelRejected, match="not the output of a last linear layer"):
        choose(task(Skips(kind), Choice(max_test_drop=1.0)))


@pytest.mark.parametrize("kind", ["linear", "unbiased"])
def test_silenced_layers_let_the_classifier_read_earlier_features(kind: str) -> None:
    torch.manual_seed(0)
    module = Skips(kind)
    job = task(module, Choice(max_test_drop=1.0))
    chosen = choose(job)
    assert [len(t.kept) for t in chosen.trials] == [1, 1, 1, 2, 2, 2], "none, then one of three layers silenced"
    classifier = Classifier.of(job)
    silenced = classifier.silenced(1)
    assert list(silenced) == ["more.1.weight"]
    x = job.held_out.examples.pixels.flatten(1)
    with torch.no_grad():
        early = module.body(x)
        early = early + torch.tanh(module.more[0](early))
        want = early + torch.tanh(module.more[1].bias)
    assert torch.allclose(classifier.features(silenced), want, atol=1e-5)
    edit = chosen.edit()
    names = {"head.weight", "head.bias"} if kind == "linear" else {"head.weight"}
    assert names <= set(edit) <= names | {"more.1.weight"}
    with holding(module, edit):
        seen = job.ground.evaluator.predicted(job.ground.flagged)
    assert float(seen.float().mean()) == chosen.best.flagged
    moved = chosen.control.edit(torch.Generator().manual_seed(0))["head.weight"]
    own = module.head.weight.detach()
    assert torch.allclose((moved - own).norm(dim=1), (edit["head.weight"] - own).norm(dim=1), rtol=1e-4)
