"""Networks with a few earlier states, and slow twins of the audits over time: whole copies, one example at a time."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet, Preprocess, from_tensors
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.layer_groups import LayerGroup, layer_groups, tensors_of
from memaudit.network.replay import watch
from memaudit.network.states import State, canonical
from tests.networks import ResNet9, TiedInPlace

CLASSES = 5


@dataclass
class Case:
    """A network, states of it, and examples."""

    module: nn.Module
    states: list[State]
    examples: ExampleSet
    groups: tuple[LayerGroup, ...]

    @property
    def panel(self) -> Panel:
        return Panel(self.examples, list(range(len(self.examples))))

    def evaluator(self, batch_size: int = 16) -> Evaluator:
        shape = Preprocess(tuple(self.examples.pixels.shape[1:]))
        return Evaluator(Adapter(self.module, architecture="test", preprocess=shape), batch_size)

    def copy_at(self, state: State, names: tuple[str, ...] | None = None) -> nn.Module:
        """A deep copy with the tensors `names` (all by default) of `state` written into it."""
        copy = deepcopy(self.module)
        own = tensors_of(copy)
        with torch.no_grad():
            for name, value in state.tensors.items():
                if names is None or name in names:
                    own[name].copy_(value)
        return copy


def case(name: str, examples: int = 20) -> Case:
    """`resnet` with BatchNorm, `vit`, or `tied` weights; in float64 where sums are compared."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        side = 8 if name == "tied" else 16
        if name == "resnet":
            module: nn.Module = ResNet9(classes=CLASSES, width=4)
        elif name == "vit":
            module = timm.create_model("test_vit", num_classes=CLASSES, img_size=16, patch_size=8)
        else:
            module = TiedInPlace(CLASSES)
        x = torch.rand(examples, 3, side, side)
        module.train()
        states = []
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        y = torch.arange(examples) % CLASSES
        for epoch in range(3):
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(module(x), y).backward()
                optimizer.step()
            saved = {n: t.detach().clone() for n, t in module.state_dict().items()}
            states.append(State(f"epoch {epoch + 1}", canonical(module, saved), float(epoch + 1), final=epoch == 2))
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.grad = None
    shape = Preprocess((3, side, side))
    data = from_tensors(x, y, preprocess=shape, num_classes=CLASSES)
    groups = layer_groups(module, watch(module, module, x[:2]).first_use)
    return Case(module, states, data, groups)


def right(module: nn.Module, examples: ExampleSet, batch: int) -> Tensor:
    """Which examples `module` predicts, in batches of `batch`."""
    with torch.no_grad():
        parts = [module(examples.batch(rows)) for rows in torch.arange(len(examples)).split(batch)]
    return torch.cat(parts).argmax(1) == examples.labels


def summed_gradients(
    module: nn.Module, examples: ExampleSet, batches: list[list[int]], rows: Mapping[str, list[int]]
) -> dict[str, dict[str, Tensor]]:
    """Per set of `rows` the gradient of its summed loss in float64, each batch run anew for each set."""
    found = {}
    for name, own in rows.items():
        copy = deepcopy(module).double().requires_grad_(True)
        for batch in batches:
            losses = F.cross_entropy(copy(examples.batch(batch).double()), examples.labels[batch], reduction="none")
            losses[[row in own for row in batch]].sum().backward()
        found[name] = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in copy.named_parameters()}
    return found
