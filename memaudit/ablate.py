"""Silencing units: by masking their tensors in the forward pass, or by editing the weights. Both are undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memaudit.errors import BugError
from memaudit.hooks import hooked
from memaudit.sites import zero_slices
from memaudit.units import Site, UnitSpace


@contextmanager
def ablated(module: nn.Module, space: UnitSpace, keep: Tensor, fill: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Multiply every site's tensor by `keep` while the body runs. Nestable, differentiable in `keep`.

    Where no gradient is recorded, what is cut is overwritten in a module's own output, and nothing else is touched.

    Args:
        keep: `(total,)` for the whole batch or `(B, total)` with a row per example: 1 keeps a unit, 0 ablates it.
            With a row per example the body must run batches of exactly B examples. Sites that keep all are skipped
            unless `keep` requires a gradient.
        fill: per site, the value per element that an ablated unit takes instead of 0 (mean ablation).
    """
    hard = not keep.requires_grad and bool(((keep == 0) | (keep == 1)).all())
    before: list[tuple[nn.Module, Callable[..., Any]]] = []
    after: list[tuple[nn.Module, Callable[..., Any]]] = []
    for number, (site, part) in enumerate(zip(space.sites, space.split(keep), strict=True)):
        cut = _places(site, part) if hard else None
        if len(cut[-1]) if cut else keep.requires_grad or bool((part != 1).any()):
            hook = _mask_hook(site, part, cut, None if fill is None else fill[number])
            target = module.get_submodule(site.layer)
            (before if site.side == "input" else after).append((target, hook))
    with hooked(before=before, after=after):
        yield


def _places(site: Site, keep: Tensor) -> tuple[Tensor, ...]:
    """Where `keep` is 0: examples and elements of the site's axis; elements alone if one row is for the whole batch."""
    own = keep[0] if keep.dim() == 2 and len(keep) == 1 else keep
    return (site.spread(own) == 0).nonzero(as_tuple=True)


def _mask_hook(site: Site, keep: Tensor, cut: tuple[Tensor, ...] | None, fill: Tensor | None) -> Callable[..., Any]:
    def mask(value: Tensor) -> Tensor:
        factor = site.shaped(keep.to(device=value.device, dtype=value.dtype), value)
        if fill is None:
            return value * factor
        shape = [1] * value.dim()
        shape[site.axis] = len(fill)
        return value * factor + (1 - factor) * fill.to(device=value.device, dtype=value.dtype).reshape(shape)

    def on_input(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (mask(args[0]), *args[1:])

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if cut is not None and _own_memory(output, [*args, *module.parameters(), *module.buffers()]):
            return _overwrite(output, site, len(keep), cut, fill)
        return mask(output)

    return on_input if site.side == "input" else on_output


def _own_memory(output: Tensor, others: Sequence[Any]) -> bool:
    """Whether nobody else can see it when `output` is written to: no graph, none of `others`, no element twice."""
    if torch.is_grad_enabled() or 0 in output.stride():
        return False
    pointer = output.untyped_storage().data_ptr()
    return all(pointer != other.untyped_storage().data_ptr() for other in others if isinstance(other, Tensor))


def _overwrite(value: Tensor, site: Site, examples: int, cut: tuple[Tensor, ...], fill: Tensor | None) -> Tensor:
    """Put 0, or `fill`, into `value` where it is `cut`.

    A batch has a few units cut per example; multiplying every tensor for them took 3 to 5 % of a ResNet-9 pass.
    """
    *rows, elements = (index.to(value.device) for index in cut)
    level = value.new_zeros(()) if fill is None else fill.to(value)[elements]
    if rows:
        seen = site.examples_first(value, examples)
        seen[rows[0], ..., elements] = level if fill is None else level.reshape(-1, *[1] * (seen.dim() - 2))
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
