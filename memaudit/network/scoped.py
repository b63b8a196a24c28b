"""Every change of a network for a while: made here, and undone here, also when the body raises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memaudit.errors import BugError
from memaudit.network.hooks import hook_count
from memaudit.network.layer_groups import tensors_of
from memaudit.network.states import digest
from memaudit.text import clean


@contextmanager
def holding(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters and buffers hold `values` while the body runs; nothing is copied and nothing of it stays.

    What the network held is set aside untouched, so it comes back bit by bit.

    Args:
        values: by `tensors_of` name; what writes to such a parameter in the body writes to the value itself.
    """
    tensors = tensors_of(module)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        for name, value in values.items():
            saved.append((tensors[name], tensors[name].data))
            tensors[name].data = value
        yield
    finally:
        for tensor, data in reversed(saved):
            tensor.data = data


@contextmanager
def attributes(modules: Iterable[nn.Module], **values: object) -> Iterator[None]:
    """Let attributes of `modules` have these values while the body runs."""
    saved = [(m, name, getattr(m, name)) for m in modules for name in values]
    try:
        for m, name, _ in saved:
            setattr(m, name, values[name])
        yield
    finally:
        for m, name, value in saved:
            setattr(m, name, value)


@contextmanager
def needing_gradients(module: nn.Module, names: Iterable[str] | None = None) -> Iterator[dict[str, nn.Parameter]]:
    """Let only the floating parameters `names`, by default all, need gradients while the body runs.

    Yields:
        Those parameters by name, each once. What the body leaves in `.grad` goes with it.
    """
    wanted = None if names is None else set(names)
    saved = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    chosen = {n: p for n, p in module.named_parameters() if p.is_floating_point() and (wanted is None or n in wanted)}
    own = {id(p) for p in chosen.values()}
    try:
        for parameter, _, _ in saved:
            parameter.requires_grad_(id(parameter) in own)
        yield chosen
    finally:
        for parameter, needed, gradient in saved:
            parameter.requires_grad_(needed)
            parameter.grad = gradient


@contextmanager
def unchanged(module: nn.Module, what: str) -> Iterator[None]:
    """Raise when the body left a bit of the network, a mode, a gradient, or a hook changed.

    Raises:
        BugError: names `what` and the first thing that changed.
    """
    before, bits = _condition(module), digest(module)
    yield
    after = _condition(module)
    changed = next((name for name in before if before[name] != after[name]), None)
    if changed is None and digest(module) != bits:
        changed = "weights or buffers"
    if changed is not None:
        raise BugError(f"{clean(what)} left the model changed: {changed}")


def _condition(module: nn.Module) -> dict[str, object]:
    """What of a network `digest` does not see."""
    parameters = list(module.parameters())
    return {
        "training mode": [m.training for m in module.modules()],
        "which parameters need gradients": [p.requires_grad for p in parameters],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad._version) for p in parameters],
        "hooks": hook_count(module),
    }


@contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Put back each sub-module's mode, which parameters need a gradient, and the device they were on."""
    modes = [(m, m.training) for m in module.modules()]
    needed_grad = [p for p in module.parameters() if p.requires_grad]
    devices: set[torch.device] = {t.device for t in (*module.parameters(), *module.buffers())}
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter in needed_grad:
            parameter.requires_grad_(True)
        if len(devices) == 1:
            module.to(devices.pop())
