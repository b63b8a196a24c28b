"""Training steps: which parameters learn, which modules are in training mode, and one step down the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.engine.evaluator import Evaluator
from memaudit.engine.journal import Changing


def changes_of(values: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Changing:
    """What a training step changes: the group's tensors, and what the optimizer keeps of each parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def save() -> dict[str, Tensor]:
        kept = {f"{n}:{k}": v for n, p in enumerate(parameters) for k, v in optimizer.state.get(p, {}).items()}
        return {**{f"value:{name}": value for name, value in values.items()}, **kept}

    def load(saved: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value.copy_(saved[f"value:{name}"])
        for name, tensor in saved.items():
            owner, _, key = name.partition(":")
            if owner != "value":
                parameter = parameters[int(owner)]
                place = "cpu" if key == "step" else parameter.device
                optimizer.state[parameter][key] = tensor.clone().to(place)

    return Changing(save, load)


@contextmanager
def trainable(module: nn.Module, names: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    """Only the parameters `names` need gradients while the body runs; all that do are given to it."""
    wanted = set(names)
    saved = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in wanted and parameter.is_floating_point())
        yield [p for p in module.parameters() if p.requires_grad]
    finally:
        for parameter, needed, gradient in saved:
            parameter.requires_grad_(needed)
            parameter.grad = gradient


def descent(evaluator: Evaluator, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], None]:
    """From a batch to one step of `optimizer` down its cross-entropy."""

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.enable_grad():
            loss = F.cross_entropy(evaluator.adapter.forward(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


@contextmanager
def training(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put `modules`, and nothing else, in training mode while the body runs."""
    saved = [(m, m.training) for m in modules]
    try:
        for m in modules:
            m.training = True
        yield
    finally:
        for m, mode in saved:
            m.training = mode


@contextmanager
def differentiable(evaluator: Evaluator) -> Iterator[dict[str, Tensor]]:
    """All floating parameters, once each, needing gradients while the body runs."""
    parameters = {n: p for n, p in evaluator.adapter.module.named_parameters() if p.is_floating_point()}
    before = [p.requires_grad for p in parameters.values()]
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield dict(parameters)
    finally:
        for parameter, needed in zip(parameters.values(), before, strict=True):
            parameter.requires_grad_(needed)
