"""BatchNorm's statistics, estimated again: on clean examples, in batches of a fixed size, with any weights in place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.journal import Changing
from memaudit.engine.passes import Forward
from memaudit.network.scoped import attributes, holding

# Reference examples a re-estimation sees, and how many at a time: the statistics are those of a batch, so the size is
# fixed, whatever --batch-size says.
CALIBRATION, CALIBRATION_BATCH = 512, 64


def norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm modules that keep statistics."""
    return {p: m for p, m in module.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def unset(modules: Mapping[str, _BatchNorm]) -> dict[str, Tensor]:
    """Statistics of no batch at all, by buffer and of its shape."""
    return {
        f"{path}.{name}": torch.ones_like(value) if name == "running_var" else torch.zeros_like(value)
        for path, module in modules.items()
        for name, value in module.named_buffers(recurse=False)
    }


def whole_batches(rows: Sequence[int]) -> Sequence[int]:
    """`rows` without a last batch that is smaller: it would weigh as much as the others."""
    return rows[: max(CALIBRATION_BATCH, len(rows) // CALIBRATION_BATCH * CALIBRATION_BATCH)]


@contextmanager
def estimating(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm modules average their statistics over the batches that run in the body."""
    with attributes(norms, training=True, momentum=None):
        yield


@contextmanager
def of_the_batch(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm modules use each batch's own statistics, as in training, and keep none of them."""
    with attributes(norms, training=True, track_running_stats=False):
        yield


# Fast path; its slow twin: tests/twins.py.
def reestimated(
    evaluator: Evaluator, weights: Mapping[str, Tensor], panel: Panel, paths: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Statistics with `weights` in place, by buffer and of its shape: plain means over batches.

    Args:
        paths: of the modules; by default all.
    """
    module = evaluator.adapter.module
    modules = {p: m for p, m in norms(module).items() if paths is None or p in paths}
    fresh = unset(modules)

    def load(values: Mapping[str, Tensor]) -> None:
        for name, tensor in fresh.items():
            tensor.copy_(values[name])

    if modules:
        changing = Changing(lambda: fresh, load)
        with holding(module, {**weights, **fresh}), estimating(modules.values()):
            evaluator.each(
                panel.examples, whole_batches(panel.rows), Forward(), batch=CALIBRATION_BATCH, changing=changing
            )
    return fresh
