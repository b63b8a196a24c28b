"""Silencing units: by masking their tensors in the forward pass, or by editing the weights. Both are undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memaudit.errors import BugError
from memaudit.network.hooks import hooked
from memaudit.network.sites import zero_slices
from memaudit.network.units import Site, UnitSpace, places
from memaudit.system.memory import to_device

# From a site's tensor, and whether nobody else holds its memory, to what takes its place.
Hook = Callable[[Tensor, bool], Tensor]


# Fast path; its slow twin: tests/twins.py.
@contextmanager
def ablated(module: nn.Module, space: UnitSpace, keep: Tensor, fill: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Multiply every site's tensor by `keep` while the body runs. Nestable, differentiable in `keep`.

    Args:
        keep: `(total,)` for the whole batch or `(B, total)` with a row per example: 1 keeps a unit, 0 ablates it.
            With a row per example the body must run batches of exactly B examples. Sites that keep all are skipped
            unless `keep` requires a gradient.
        fill: per site, the value per element that an ablated unit takes instead of 0 (mean ablation).
    """
    if not keep.requires_grad and bool(((keep == 0) | (keep == 1)).all()):
        rows = keep.reshape(-1, space.total)
        hooks = _cut_hooks(module, space, (rows == 0).nonzero().T.cpu(), len(rows), fill)
    else:
        parts = enumerate(zip(space.sites, space.split(keep), strict=True))
        hooks = {
            number: _soft_hook(site, part, None if fill is None else fill[number])
            for number, (site, part) in parts
            if keep.requires_grad or bool((part != 1).any())
        }
    with _hooked(module, space, hooks):
        yield


# Fast path; its slow twin: tests/twins.py.
@contextmanager
def without(
    module: nn.Module, space: UnitSpace, cuts: Sequence[Iterable[int]], fill: Sequence[Tensor] | None = None
) -> Iterator[None]:
    """Ablate `cuts` while the body runs: one for the whole batch, or one per example of batches of just so many.

    As `ablated` with zeros and ones. Where no gradient is recorded, what is cut is overwritten in a module's own
    output, and nothing else is touched.
    """
    with _hooked(module, space, _cut_hooks(module, space, places(cuts), len(cuts), fill)):
        yield


@contextmanager
def _hooked(module: nn.Module, space: UnitSpace, hooks: Mapping[int, Hook]) -> Iterator[None]:
    """Let each site's hook replace its tensor."""
    before: list[tuple[nn.Module, Callable[..., Any]]] = []
    after: list[tuple[nn.Module, Callable[..., Any]]] = []

    def on_input(hook: Hook) -> Callable[..., Any]:
        return lambda _, args: (hook(args[0], False), *args[1:])

    def on_output(hook: Hook) -> Callable[..., Any]:
        return lambda target, args, output: hook(
            output, _own_memory(output, [*args, *target.parameters(), *target.buffers()])
        )

    for number, hook in hooks.items():
        site = space.sites[number]
        target = module.get_submodule(site.layer)
        if site.side == "input":
            before.append((target, on_input(hook)))
        else:
            after.append((target, on_output(hook)))
    with hooked(before=before, after=after):
        yield


def _soft_hook(site: Site, keep: Tensor, fill: Tensor | None) -> Hook:
    def mask(value: Tensor, _: bool) -> Tensor:
        factor = site.shaped(keep.to(device=value.device, dtype=value.dtype), value)
        return _replaced(value, site, factor, fill)

    return mask


def _replaced(value: Tensor, site: Site, factor: Tensor, fill: Tensor | None) -> Tensor:
    """`value` where `factor` is 1, 0 or `fill` where it is 0."""
    if fill is None:
        return value * factor
    shape = [1] * value.dim()
    shape[site.axis] = len(fill)
    return value * factor + (1 - factor) * fill.to(device=value.device, dtype=value.dtype).reshape(shape)


def _cut_hooks(
    module: nn.Module, space: UnitSpace, cut: Tensor, examples: int, fill: Sequence[Tensor] | None
) -> dict[int, Hook]:
    """Hooks of the sites where anything is cut. Indices are where the network is before it runs: a GPU that waits for
    each layer's own stands still.

    Args:
        cut: `(2, n)`, rows and units.
        examples: how many rows there are; 1: for the whole batch.
    """
    first = next(module.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    number, row, element = space.elements(cut)
    counts = torch.bincount(number, minlength=len(space.sites)).tolist()
    parts = torch.split(to_device(torch.stack([row, element]), device), counts, dim=1)
    return {
        n: _cut_hook(space.sites[n], examples, part[0], part[1], None if fill is None else to_device(fill[n], device))
        for n, part in enumerate(parts)
        if counts[n]
    }


def _cut_hook(site: Site, examples: int, rows: Tensor, elements: Tensor, fill: Tensor | None) -> Hook:
    def cut(value: Tensor, own: bool) -> Tensor:
        if own:
            return _overwrite(value, site, examples, rows, elements, fill)
        kept = value.new_ones(examples, site.size)
        kept[rows, elements] = 0
        return _replaced(value, site, site.aligned(kept, value), fill)

    return cut


def _own_memory(output: Tensor, others: Sequence[Any]) -> bool:
    """Whether nobody else can see it when `output` is written to: no graph, none of `others`, no element twice."""
    if torch.is_grad_enabled() or 0 in output.stride():
        return False
    pointer = output.untyped_storage().data_ptr()
    return all(pointer != other.untyped_storage().data_ptr() for other in others if isinstance(other, Tensor))


def _overwrite(value: Tensor, site: Site, examples: int, rows: Tensor, elements: Tensor, fill: Tensor | None) -> Tensor:
    """Put 0, or `fill`, into `value` at `rows` and `elements`; with one example, at `elements` of all.

    A batch has a few units cut per example; multiplying every tensor for them took 3 to 5 % of a ResNet-9 pass.
    """
    level = value.new_zeros(()) if fill is None else fill.to(value)[elements]
    if examples > 1:
        seen = site.examples_first(value, examples)
        seen[rows, ..., elements] = level if fill is None else level.reshape(-1, *[1] * (seen.dim() - 2))
    else:
        value.movedim(site.axis, -1)[..., elements] = level
    return value


@contextmanager
def edited(module: nn.Module, space: UnitSpace, cut: Iterable[int]) -> Iterator[None]:
    """Zero the weights of the units `cut` while the body runs: what `ablated` does by masks, as an edited checkpoint.

    Every touched parameter is restored bit-exactly, also when the body raises.
    """
    names = edited_parameters(space, cut)
    saved = {name: module.get_parameter(name).detach().clone() for name in names}
    try:
        silence(dict(module.named_parameters(remove_duplicate=False)), space, cut)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                module.get_parameter(name).copy_(value)


def edited_parameters(space: UnitSpace, cut: Iterable[int]) -> list[str]:
    """Full names of the parameters that silencing `cut` writes to."""
    touched = {int(space.site_of[u]) for u in cut}
    return [_full_name(space.sites[s], name) for s in sorted(touched) for name, _ in space.sites[s].edits]


def silence(state: dict[str, Any], space: UnitSpace, cut: Iterable[int]) -> None:
    """Zero, in place, the slices of `state` (full parameter names) that units `cut` own.

    Raises:
        BugError: `state` lacks a parameter that a site edits.
    """
    chosen = sorted(set(cut))
    with torch.no_grad():
        for number, site in enumerate(space.sites):
            first, last = space.offsets[number], space.offsets[number + 1]
            indices = [u - first for u in chosen if first <= u < last]
            if indices:
                try:
                    local = {name: state[_full_name(site, name)] for name, _ in site.edits}
                except KeyError as missing:
                    raise BugError(f"the state has no parameter {missing}") from None
                zero_slices(local, site, indices)


def _full_name(site: Site, name: str) -> str:
    return f"{site.layer}.{name}" if site.layer else name
