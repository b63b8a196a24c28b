"""From a series of files to states of the loaded network, each held strictly against it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.checkpoints import Series, Weights, find_series, read
from memaudit.checkpoints.load import aligned, fitted
from memaudit.checkpoints.series import NAME_THEM
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.network.scoped import holding
from memaudit.network.states import State, canonical
from memaudit.pipeline.lineage import stray, uphill
from memaudit.text import clean

T = TypeVar("T")

# All states are in memory at once, because the rewinding grid runs batch by batch: at most this share of it.
MEMORY_SHARE = 0.4
AUDITED = "audited model"


def read_states(
    adapter: Adapter,
    series: Series,
    *,
    weights: Weights | None,
    most: int,
    tick: Callable[[int], None] = lambda _: None,
    losses: Callable[[], Tensor] | None = None,
) -> tuple[list[State], list[str]]:
    """The checkpoints of `series` that will be used, earliest first and the audited model last; and notes on the rest.

    Args:
        weights: which to take where a file holds raw and averaged ones: those the audited model was taken from.
        most: states at most; more checkpoints are thinned out evenly.
        losses: `(n,)` of some examples by the network as it stands: a run's losses fall.

    Raises:
        ModelRejected: a checkpoint that the user named is not this model's. One that was found by itself is left out.
        PremiseBroken: a named one holds NaN or infinity.
    """
    notes = list(series.notes)
    final = _current(adapter.module)
    size = sum(t.numel() * t.element_size() for t in final.values())
    room = max(2, int(_memory() * MEMORY_SHARE) // max(1, size))
    points = spread(series.points, min(most, room))
    if len(points) < len(series.points):
        notes.append(f"{len(points)} of {len(series.points)} checkpoints are used, evenly spread")
    states: list[State] = []
    strangers: list[str] = []
    for point in points:
        try:
            checkpoint = read(point.path, weights="ema" if weights == "ema" else None)
        except UsageError:  # it holds both, and the model is the raw one
            checkpoint = read(point.path, weights="raw")
        except MemauditError as error:
            if series.named:
                raise
            strangers.append(f"{clean(point.name)} ({error.message})")
            continue
        try:
            tensors = adapter.state_of(checkpoint)
        except MemauditError as error:
            if series.named:
                raise type(error)(
                    f"{clean(point.name)} is no checkpoint of this model: {error.message}",
                    hint="leave it out of --checkpoints" if isinstance(error, ModelRejected) else error.hint,
                ) from None
            strangers.append(f"{clean(point.name)} ({error.message})")
            continue
        own = {name: aligned(tensor) for name, tensor in canonical(adapter.module, tensors).items()}
        mark = point.mark
        same = _equal(own, final)
        states.append(State(point.label, own, mark.epoch, mark.step, checkpoint.sha256, clean(point.name), same))
        tick(1)
    if strangers:
        notes.append(f"{len(strangers)} checkpoints beside the model were left out: {strangers[0]}")
    whole = ended(states, final)
    reason = stray(whole[:-1], whole[-1])
    if not reason and losses is not None and len(whole) > 1:
        reason = uphill(whole[:-1], [_held(adapter.module, state, losses) for state in whole])
    if reason:
        shown = f"the checkpoints {'named' if series.named else 'beside the model'} do not lead to it: {reason}"
        notes.append(shown if series.named else f"{shown}; none was taken: {NAME_THEM}")
        return (whole if series.named else ended([], final)), notes
    return whole, notes


def _held(module: nn.Module, state: State, losses: Callable[[], Tensor]) -> Tensor:
    with holding(module, state.tensors):
        return losses()


def from_memory(adapter: Adapter, checkpoints: object, *, most: int) -> tuple[list[State], list[str]]:
    """States from what a library call gave: paths (a folder, a pattern, files), or networks and their state dicts.

    Raises:
        UsageError: something else, or nothing.
        ModelRejected: one is not this model's.
    """
    given: list[Any] = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)  # type: ignore[call-overload]
    if given and all(isinstance(item, str | Path) for item in given):
        return read_states(adapter, find_series(None, [str(p) for p in given]), weights=None, most=most)
    final = _current(adapter.module)
    states = []
    for number, item in enumerate(given):
        table = item.state_dict() if isinstance(item, nn.Module) else item
        if not isinstance(table, Mapping):
            kind = type(item).__name__
            raise UsageError(f"checkpoints holds a {kind}: neither a path nor a network nor a state dict")
        own = canonical(adapter.module, fitted(adapter.module, table))
        own = {name: value.clone() for name, value in own.items()}
        states.append(State(f"checkpoint {number + 1}", own, final=_equal(own, final)))
    return ended(spread(states, most), final), []


def ended(states: Sequence[State], final: Mapping[str, Tensor]) -> list[State]:
    """`states` with the audited model as the last one, once."""
    last = next((s for s in reversed(states) if s.final), None)
    return [*(s for s in states if not s.final), last or State(AUDITED, dict(final), final=True)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly spread, first and last included."""
    if len(items) <= most or most < 2:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _current(module: nn.Module) -> dict[str, Tensor]:
    """The network's own tensors, those that a checkpoint would store."""
    return canonical(module, {n: t.detach() for n, t in module.state_dict(keep_vars=True).items()})


def _equal(own: Mapping[str, Tensor], final: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, own[name]) for name, value in final.items() if name in own)


def _memory() -> int:
    """Bytes of memory of this machine; 8 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
