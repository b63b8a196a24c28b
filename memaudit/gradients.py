"""Gradient accounting: what flagged and reference examples ask of each layer, at each checkpoint.

After Maini et al. 2023, section 3.1, with what its scripts lack: matched clean examples in the flagged ones' place,
and evaluation mode, so that a sum over examples is one figure whatever the batches. BatchNorm's running averages lag
behind weights that still move, and every example's gradient asks for the same correction, which hides where flagged
and reference examples disagree: the statistics are estimated anew for each checkpoint first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.batchnorm import reestimated
from memaudit.evaluate import Evaluator, Panel
from memaudit.journal import Changing
from memaudit.layers import LayerGroup
from memaudit.states import State, holding


@dataclass(frozen=True)
class Account:
    """One layer group at one checkpoint.

    Attributes:
        norms: by panel, the norm of the gradient of the summed loss.
        cosines: by pair of panels, the cosine between their gradients; absent where one of them is zero.
    """

    norms: Mapping[str, float]
    cosines: Mapping[tuple[str, str], float]


def account(
    evaluator: Evaluator,
    groups: Sequence[LayerGroup],
    state: State,
    panels: Mapping[str, Panel],
    calibration: Panel | None = None,
) -> list[Account]:
    """Every group's account at `state`: one forward and one backward pass for each example of each panel.

    Each panel's batches hold its own examples alone, so no pass computes a gradient that is not used.

    Args:
        calibration: clean examples that BatchNorm's statistics are estimated on.
    """

    fresh: dict[str, Tensor] = {}
    if calibration is not None:
        # A loop of its own: a resumed run puts back what the loop that was cut short has changed, and no other.
        found = evaluator.once(
            f"statistics at {state.label}", lambda: reestimated(evaluator, state.tensors, calibration)
        )
        fresh = {name: value.to(evaluator.device) for name, value in found.items()}

    def measure() -> list[tuple[dict[str, float], list[tuple[str, str, float]]]]:
        module = evaluator.adapter.module
        with holding(module, {**state.tensors, **fresh}), differentiable(evaluator) as parameters:
            sums = {name: [torch.zeros_like(p) for p in parameters.values()] for name in panels}
            changing = _changing(sums)
            for name, panel in panels.items():
                _add(evaluator, panel, list(parameters.values()), sums[name], changing)
        # Products are taken in float64, which not every device has.
        on_cpu = {name: [t.cpu() for t in total] for name, total in sums.items()}
        place = {name: n for n, name in enumerate(parameters)}
        accounts = [_account(on_cpu, [place[n] for n in group.names if n in place]) for group in groups]
        return [(dict(one.norms), [(a, b, c) for (a, b), c in one.cosines.items()]) for one in accounts]

    measured = evaluator.once(f"gradients at {state.label}", measure)
    return [Account(norms, {(a, b): c for a, b, c in cosines}) for norms, cosines in measured]


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


def _add(evaluator: Evaluator, panel: Panel, parameters: list[Tensor], total: list[Tensor], changing: Changing) -> None:
    """Add the gradient of the panel's summed cross-entropy by each parameter to `total`."""

    def gradient_of(images: Tensor, labels: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            loss = F.cross_entropy(evaluator.adapter.forward(images), labels, reduction="sum")
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    def add(images: Tensor, labels: Tensor) -> None:
        for sum_, gradient in zip(total, gradient_of(images, labels), strict=True):
            if gradient is not None:
                sum_.add_(gradient)

    with torch.no_grad():
        evaluator.each(panel.examples, panel.rows, add, backward=1, changing=changing)


def _changing(sums: Mapping[str, list[Tensor]]) -> Changing:
    tensors = {f"{name} {n}": t for name, total in sums.items() for n, t in enumerate(total)}

    def load(values: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(values[name])

    return Changing(lambda: tensors, load)


def _account(sums: Mapping[str, list[Tensor]], own: list[int]) -> Account:
    names = list(sums)
    dots = {
        (a, b): sum(float((sums[a][i].double() * sums[b][i].double()).sum()) for i in own)
        for n, a in enumerate(names)
        for b in names[n:]
    }
    norms = {a: max(0.0, dots[a, a]) ** 0.5 for a in names}
    cosines = {
        (a, b): max(-1.0, min(1.0, dots[a, b] / (norms[a] * norms[b])))
        for (a, b) in dots
        if a != b and norms[a] > 0 and norms[b] > 0
    }
    return Account(norms, cosines)
