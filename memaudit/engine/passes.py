"""What is done with one batch, as values: the loop runs them here, and another engine may run them elsewhere.

A pass is called with the network, the inputs of the batch on its device and their labels. It holds nothing of the
program but what it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.engine.answers import answered
from memaudit.network.ablate import ablated, without
from memaudit.network.hooks import hooked
from memaudit.network.units import UnitSpace, overwritten

Cut = Sequence[int]
Seen = tuple[Tensor, ...]
Fill = Sequence[Tensor] | None
"""Per site the values that ablated units take (mean ablation); 0 where None."""

Result = TypeVar("Result", covariant=True)


class Pass(Protocol[Result]):
    """What one batch does: `(network, inputs (n, ...), labels (n,))` to its result."""

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Result: ...


def identity(gradient: Tensor) -> Seen:
    """The gradient itself, where nothing reduces it."""
    return (gradient,)


def whole(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits themselves."""
    return logits


@dataclass(frozen=True)
class Logits:
    """Logits `(size, classes)` on the CPU, with units ablated.

    Attributes:
        size: rows that count; the batch may be filled up behind them.
        cuts: units to ablate: one cut for all rows, or one a row; None for the intact network.
    """

    size: int
    space: UnitSpace | None = None
    cuts: Sequence[Cut] | None = None
    fill: Fill = None

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad(), self._ablation(network, len(inputs)):
            logits = network.forward(inputs)
        return logits[: self.size].detach().cpu()

    def _ablation(self, network: Adapter, batch: int) -> AbstractContextManager[None]:
        if self.cuts is None or self.space is None:
            return nullcontext()
        own = self.cuts if len(self.cuts) == 1 else [*self.cuts, *[()] * (batch - len(self.cuts))]
        return without(network.module, self.space, own, self.fill)


@dataclass(frozen=True)
class Answered:
    """What is kept of the logits of the intact network, `(size, 4)` as `answers.answered` gives it."""

    size: int

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        return answered(Logits(self.size)(network, inputs, labels), labels[: self.size].cpu())


# Fast path; its slow twin: tests/twins.py.
@dataclass(frozen=True)
class MaskGradients:
    """An objective `(size,)` of the logits, and its gradient by each unit's mask `(size, total)` as `reduce` leaves it.

    Attributes:
        cuts: one a row.
        kept: the mask of every unit that is not cut.
        dtype: what the pass is computed in, by autocast where it is less than float32.
    """

    size: int
    space: UnitSpace
    cuts: Sequence[Cut]
    objective: Callable[[Tensor, Tensor], Tensor]
    fill: Fill = None
    kept: float = 1.0
    dtype: torch.dtype = torch.float32
    reduce: Callable[[Tensor], Seen] = identity

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Seen:
        dtype = inputs.dtype if inputs.is_floating_point() else torch.float32  # token ids are whole numbers
        ones = inputs.new_full((len(inputs), self.space.total), self.kept, dtype=dtype)
        keep = overwritten(ones, self.cuts, 0).requires_grad_()
        with torch.enable_grad(), ablated(network.module, self.space, keep, self.fill):
            with torch.autocast(inputs.device.type, self.dtype, enabled=approximate(self.dtype)):
                logits = network.forward(inputs)
            scores = self.objective(logits.to(dtype), labels)
        (gradient,) = torch.autograd.grad(scores.sum(), keep)
        return tuple(value.cpu() for value in (scores[: self.size].detach(), *self.reduce(gradient[: self.size])))


@dataclass(frozen=True)
class Observe:
    """Intact logits, and per site what `reduce` makes of its tensor; None for a site that did not run.

    Attributes:
        reduce: from site number and `(batch, positions, elements)` to small tensors, which are moved to the CPU after
            the pass: a device that is waited for at every site stands still.
        said: from logits `(batch, classes)` and labels, on the CPU, to what takes their place.
    """

    space: UnitSpace
    reduce: Callable[[int, Tensor], Seen]
    said: Callable[[Tensor, Tensor], Tensor] = whole

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> tuple[Tensor, list[Seen | None]]:
        pending: dict[int, Seen] = {}

        def at(number: int) -> Callable[..., None]:
            def see(_: object, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
                if number not in pending:
                    value = args[0] if output is None else output
                    pending[number] = self.reduce(number, self.space.sites[number].by_example(value, len(inputs)))

            return see

        before: list[tuple[nn.Module, Callable[..., None]]] = []
        after: list[tuple[nn.Module, Callable[..., None]]] = []
        for number, site in enumerate(self.space.sites):
            target = network.module.get_submodule(site.layer)
            (before if site.side == "input" else after).append((target, at(number)))
        with torch.no_grad(), hooked(before=before, after=after):
            logits = network.forward(inputs).cpu()
        moved = {number: tuple(value.cpu() for value in values) for number, values in pending.items()}
        return self.said(logits, labels.cpu()), [moved.get(number) for number in range(len(self.space.sites))]


@dataclass(frozen=True)
class Forward:
    """A forward pass without gradients whose output nobody reads: what it changes is what it is for."""

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            network.forward(inputs)


def approximate(dtype: torch.dtype) -> bool:
    """Whether `dtype` holds less than float32."""
    return dtype.itemsize < torch.float32.itemsize
