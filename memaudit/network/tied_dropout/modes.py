"""What every example-tied dropout of a network does while a body runs, put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from memaudit.network.scoped import attributes
from memaudit.network.tied_dropout.layer import ExampleTiedDropout, Mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The whole network in eval mode while the body runs."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Every example-tied dropout of the network lets everything through while the body runs."""
    layers = [m for m in model.modules() if isinstance(m, ExampleTiedDropout)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = _through
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _through(x: Tensor) -> Tensor:
    return x


@contextmanager
def set_mode(model: nn.Module, mode: Mode | None) -> Iterator[None]:
    """Every example-tied dropout of the network in one mode while the body runs."""
    with attributes([m for m in model.modules() if isinstance(m, ExampleTiedDropout)], mode=mode):
        yield
