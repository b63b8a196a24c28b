"""The method *head*: the classifier rebuilt from held-out examples in closed form. Nothing is trained.

Late features tell a memorized label, and a classifier that was fitted to them uses that; one that rests on the class
means of examples the network was not trained on does so less (Ketha and Ramaswamy 2026, VeLPIC). Where layers add to
what they are given, as in residual networks and transformers, the last ones can be silenced, so that the classifier
reads earlier features; where they do not, nothing comes through and the edit is turned down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.engine.evaluator import Panel
from memaudit.erase import Choice
from memaudit.erase.ground import Edit, Ground, Trial
from memaudit.erase.group import Chosen, Control, Task, by_group
from memaudit.erase.request import Request
from memaudit.erase.search import in_order
from memaudit.errors import ModelRejected
from memaudit.findings import Erasure
from memaudit.network.hooks import hooked
from memaudit.network.layer_groups import tensors_of
from memaudit.network.scoped import holding
from memaudit.numbers import count
from memaudit.text import clean

# How far the features' covariance is drawn to the same variance in all directions; at 1 the nearest class mean decides.
SHRINKAGES = (0.1, 0.5, 1.0)
# Share of the layers that may be silenced, and how many numbers of them are tried.
SILENCED, TRIED = 0.5, 6
# What serves after a cut: on a half-width CIFAR-10 ResNet-9 0.5 cost the least accuracy.
USUAL = 0.5

NOT_LINEAR = "the classifier cannot be rebuilt: the logits are not the output of a last linear layer"
OTHERS = "Use --method relearn or --method curvature."


@dataclass(frozen=True)
class Read:
    """A pass: what a linear classifier is given, `(n, features)`, on the CPU."""

    head: nn.Linear

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        seen: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad(), hooked(after=[(self.head, lambda _, given, output: seen.append((given[0], output)))]):
            logits = network.forward(inputs)
        if len(seen) != 1 or seen[0][1].shape != logits.shape or not torch.equal(seen[0][1], logits):
            raise ModelRejected(NOT_LINEAR, hint=OTHERS)
        return seen[0][0].cpu()


@dataclass(frozen=True)
class Classifier:
    """The last layer, and what it may be rebuilt from.

    Attributes:
        path: of the layer in the network.
        layers: paths of the layers before it, in the order they run.
    """

    path: str
    head: nn.Linear
    layers: tuple[str, ...]
    ground: Ground
    held_out: Panel

    @classmethod
    def of(cls, task: Task) -> Classifier:
        """That of the task's network.

        Raises:
            ModelRejected: it is not linear.
        """
        layers = in_order(task.ground.module, task.ground.use)
        path, head = list(layers.items())[-1] if layers else ("", None)
        if not isinstance(head, nn.Linear):
            raise ModelRejected(NOT_LINEAR, hint=OTHERS)
        return cls(path, head, tuple(layers)[:-1], task.ground, task.held_out)

    def features(self, edit: Edit) -> Tensor:
        """What it is given of the held-out examples with `edit` in place: `(N, features)`, float32."""
        with holding(self.ground.module, edit):
            seen = self.ground.evaluator.each(self.held_out.examples, self.held_out.rows, Read(self.head))
        return torch.cat(seen).float()

    def rebuilt(self, edit: Edit) -> Edit:
        """Its tensors by name, rebuilt on the features that `edit` leaves; its own where nothing comes through."""
        return self.fitted(self.features(edit), USUAL)

    def fitted(self, features: Tensor, shrinkage: float) -> Edit:
        """Its tensors by name, rebuilt on `features` `(N, features)`; its own where those are all alike."""
        labels = self.held_out.examples.labels[list(self.held_out.rows)]
        own = self.head.weight.detach().float().cpu()
        spread = float((features @ own.T).std())
        found = discriminant(features, labels, len(own), shrinkage, spread)
        return {} if found is None else self.placed(*found)

    def placed(self, weight: Tensor, bias: Tensor) -> Edit:
        """Both by name, in the place and type of its own; without a bias where it has none."""
        both = {f"{self.path}.weight": weight}
        if self.head.bias is not None:
            both[f"{self.path}.bias"] = bias
        return {n: t.detach().to(self.head.weight).contiguous() for n, t in both.items()}

    def silenced(self, number: int) -> Edit:
        """Zeros for the weights of the last `number` layers before it, by name, and statistics that fit them."""
        tensors = tensors_of(self.ground.module)
        names = [f"{path}.weight" for path in self.layers[len(self.layers) - number :]]
        zeros = {n: torch.zeros_like(tensors[n]) for n in names}
        return self.ground.mended(zeros, self.ground.first(names)) if names else {}


def run(request: Request, choice: Choice) -> Erasure:
    """The method, for the flagged set as a whole."""
    return by_group(request, choice, choose)


def choose(task: Task) -> Chosen:
    """Rebuild the classifier so that flagged labels go, within the budget of accuracy.

    Raises:
        ModelRejected: there is no linear classifier, or no edit keeps within the budget.
    """
    ground, classifier = task.ground, Classifier.of(task)
    edits: list[tuple[Edit, Edit, Trial]] = []
    most = int(SILENCED * len(classifier.layers))
    numbers = range(0, most + 1, -(-most // TRIED) or 1)
    one = len(task.held_out) + ground.cost(0) + len(SHRINKAGES) * ground.judging
    task.progress.stage("classifier", len(numbers) * one)
    for number in numbers:
        silenced = classifier.silenced(number)
        features = classifier.features(silenced)
        kept = dict.fromkeys([*classifier.layers[len(classifier.layers) - number :], classifier.path], 0.0)
        for shrinkage in SHRINKAGES:
            if rebuilt := classifier.fitted(features, shrinkage):
                how = "class means" if shrinkage == 1 else f"discriminant, shrinkage {shrinkage:g}"
                edits.append((silenced, rebuilt, ground.trial({**silenced, **rebuilt}, kept, how=how)))
    trials = [trial for _, _, trial in edits]
    best = ground.safest(ground.within(trials, task.choice.max_test_drop))
    silenced, rebuilt = next((a, b) for a, b, trial in edits if trial is best)

    def random(generator: torch.Generator) -> Edit:
        """Each class's weights as far from their own as those rebuilt, in a random direction."""
        name, own = f"{classifier.path}.weight", classifier.head.weight.detach()
        drawn = F.normalize(torch.randn(own.shape, generator=generator)).to(own)
        return {**silenced, **rebuilt, name: own + drawn * (rebuilt[name] - own).norm(dim=1, keepdim=True)}

    done = (
        f"the classifier {clean(classifier.path)} rebuilt from {count(len(task.held_out), 'held-out example')} "
        f"({best.how})"
    )
    if len(best.kept) > 1:
        done += f", {count(len(best.kept) - 1, 'layer')} before it silenced"
    return Chosen(
        "head",
        best,
        trials,
        edit=lambda: {**silenced, **rebuilt},
        done=done,
        control=Control("direction of the classifier", classifier.head.out_features, random),
    )


def discriminant(
    features: Tensor, labels: Tensor, classes: int, shrinkage: float, spread: float = 1.0
) -> tuple[Tensor, Tensor] | None:
    """Weight `(classes, features)` and bias `(classes,)`, float32, of the linear discriminant on `features` `(n, d)`.

    Fisher's, with equal priors and a covariance drawn to a sphere (Friedman 1989, section 3). A class without examples
    is never predicted. None where all features are alike.

    Args:
        spread: standard deviation of the logits, up to the bias; which class is the largest does not depend on it.
    """
    x, one = features.double(), F.one_hot(labels, classes).double()
    sizes = one.sum(0)
    means = one.T @ x / sizes.clamp_min(1)[:, None]
    rest = x - means[labels]
    covariance = rest.T @ rest / len(x)
    level = float(covariance.diagonal().mean())
    if not level > torch.finfo(torch.float32).tiny:
        return None
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(len(covariance), dtype=torch.float64)
    weight = torch.linalg.solve(covariance, means.T).T
    weight = weight * (spread / (x @ weight.T).std())
    bias = -(weight * means).sum(1) / 2
    lowest = float(bias.min()) - float((x @ weight.T).abs().max()) * 2
    return weight.float(), torch.where(sizes > 0, bias, lowest).float()
