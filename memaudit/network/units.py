"""The sites where units are cut: descriptions and mask arithmetic, for ablation and search."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from memaudit.errors import UsageError
from memaudit.findings import Kind, UnitRef
from memaudit.system.memory import to_device
from memaudit.text import clean, closest


@dataclass(frozen=True)
class Site:
    """Where one layer's units are cut. Silencing a unit here equals zeroing `edits` in the weights.

    Attributes:
        layer: path of the module whose output (`side`) carries the units.
        width: number of units.
        axis: the tensor's unit axis, counted from the front.
        batch_axis: the axis that holds the examples, measured, because windows and tokens may be folded into it.
        batch_minor: the example is the fastest index on `batch_axis` (token-major), not the slowest.
        span: consecutive elements of `axis` a unit owns (`head_dim` for heads, else 1).
        copies: how often the units repeat on `axis` (2 where a gated MLP's first linear holds both halves).
        edits: `(parameter name below layer, axis)` of the slices that a weight edit zeroes.
    """

    layer: str
    kind: Kind
    width: int
    side: Literal["output", "input"] = "output"
    axis: int = 1
    batch_axis: int = 0
    batch_minor: bool = False
    span: int = 1
    copies: int = 1
    edits: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """Number of elements on `axis`."""
        return self.copies * self.width * self.span

    def elements(self, index: int) -> list[int]:
        """Positions on `axis` (and on the edited axis of each parameter) that unit `index` owns."""
        block = self.width * self.span
        return [c * block + index * self.span + s for c in range(self.copies) for s in range(self.span)]

    def spread(self, values: Tensor) -> Tensor:
        """Per-unit `(..., width)` to per-element `(..., copies * width * span)`."""
        if self.span > 1:
            values = values.repeat_interleave(self.span, -1)
        return values.repeat(*(1,) * (values.dim() - 1), self.copies) if self.copies > 1 else values

    def shaped(self, values: Tensor, like: Tensor) -> Tensor:
        """Per-unit values `(width,)`, or one row per example `(B, width)`, ready to multiply the site's tensor."""
        return self.aligned(self.spread(values), like)

    def aligned(self, spread: Tensor, like: Tensor) -> Tensor:
        """Per-element values `(size,)` or `(B, size)`, ready to multiply the site's tensor."""
        shape = [1] * like.dim()
        shape[self.axis] = spread.shape[-1]
        if spread.dim() == 2 and len(spread) > 1:
            repeats = like.shape[self.batch_axis] // len(spread)
            if repeats > 1:
                spread = spread.repeat(repeats, 1) if self.batch_minor else spread.repeat_interleave(repeats, 0)
            shape[self.batch_axis] = len(spread)
            if self.batch_axis > self.axis:
                spread = spread.T
        return spread.reshape(shape)

    def examples_first(self, tensor: Tensor, examples: int) -> Tensor:
        """The site's tensor as `(examples, ..., elements)`, in the same memory."""
        moved = tensor.movedim((self.batch_axis, self.axis), (0, -1))
        if self.batch_minor:
            return moved.view(-1, examples, *moved.shape[1:]).movedim(1, 0)
        return moved.view(examples, -1, *moved.shape[1:])

    def by_example(self, tensor: Tensor, examples: int) -> Tensor:
        """The site's tensor as `(examples, positions, elements)`."""
        return self.examples_first(tensor, examples).flatten(1, -2)


@dataclass(frozen=True)
class UnitSpace:
    """All units of some sites, numbered from 0 in execution order: what searches and masks count by."""

    sites: tuple[Site, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First number of each site, and the total last."""
        total, offsets = 0, [0]
        for site in self.sites:
            total += site.width
            offsets.append(total)
        return tuple(offsets)

    @property
    def total(self) -> int:
        """How many units there are."""
        return self.offsets[-1]

    @cached_property
    def site_of(self) -> Tensor:
        """`(total,)` the site number of every unit."""
        return torch.repeat_interleave(torch.arange(len(self.sites)), torch.tensor([s.width for s in self.sites]))

    @cached_property
    def _named(self) -> dict[int, UnitRef]:
        return {}

    def unit(self, number: int) -> UnitRef:
        """The unit with this number; one object, however many findings hold it."""
        if number not in self._named:
            s = int(self.site_of[number])
            site = self.sites[s]
            self._named[number] = UnitRef(layer=site.layer, index=number - self.offsets[s], kind=site.kind)
        return self._named[number]

    def number(self, layer: str, index: int, kind: str) -> int:
        """The number of a unit.

        Raises:
            UsageError: no such site, or the index is past its width.
        """
        for site, offset in zip(self.sites, self.offsets, strict=False):
            if site.layer == layer and site.kind == kind:
                if not 0 <= index < site.width:
                    raise UsageError(f"{clean(layer)} has {site.width} units, none is number {index}")
                return offset + index
        raise UsageError(f"no site {clean(layer)!r} in this model{closest(layer, (s.layer for s in self.sites))}")

    @cached_property
    def _shapes(self) -> Tensor:
        """`(4, sites)`: first number, width, span and copies of each site."""
        return torch.tensor([self.offsets[:-1], *zip(*((s.width, s.span, s.copies) for s in self.sites), strict=True)])

    def elements(self, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Site numbers, rows and elements of the sites' axes that `cut` `(2, n)`, rows and units, stands for; by site.

        Raises:
            IndexError: a unit this space does not have.
        """
        rows, units = cut
        number = self.site_of[units]
        first, width, span, copies = self._shapes[:, number]
        local = units - first
        if bool((span * copies > 1).any()):
            repeats = span * copies
            source = torch.repeat_interleave(repeats)
            part = torch.arange(len(source)) - (repeats.cumsum(0) - repeats)[source]
            span, local = span[source], local[source]
            local = (part // span) * width[source] * span + local * span + part % span
            number, rows = number[source], rows[source]
        order = number.argsort(stable=True)
        return number[order], rows[order], local[order]

    def keep(self, cuts: Sequence[Iterable[int]]) -> Tensor:
        """One row per example, `(B, total)` float32: 0 for the units in its cut, 1 elsewhere."""
        return overwritten(torch.ones(len(cuts), self.total), cuts, 0)

    def split(self, values: Tensor) -> list[Tensor]:
        """`(..., total)` into one tensor a site."""
        return list(torch.split(values, [s.width for s in self.sites], dim=-1))


def places(cuts: Sequence[Iterable[int]]) -> Tensor:
    """`(2, n)`, rows and units of all that is cut."""
    listed = [list(cut) for cut in cuts]
    units = torch.tensor(list(chain.from_iterable(listed)), dtype=torch.long)
    return torch.stack([torch.repeat_interleave(torch.tensor([len(cut) for cut in listed], dtype=torch.long)), units])


def overwritten(values: Tensor, cuts: Sequence[Iterable[int]], value: float) -> Tensor:
    """`values` `(B, total)` with `value` written where it is cut, in the same memory."""
    values[to_device(places(cuts), values.device).unbind()] = value
    return values


def select(sites: Sequence[Site], unit: str = "auto", layers: str | None = None) -> UnitSpace:
    """The sites one search runs over. Kinds are never mixed: their costs differ by an order of magnitude.

    Args:
        unit: `channel`, `neuron`, `head`, or `auto`: the kind found at the most layers, of several the one with the
            most units. So a network is cut all along its depth: a convolutional network and a transformer by channels,
            a plain multilayer perceptron by neurons.
        layers: a shell pattern that site paths must match (comma separates several).

    Raises:
        UsageError: nothing is left.
    """
    if not sites:
        raise UsageError("this model has no unit that can be cut so that a weight edit does the same")
    named = [s for s in sites if layers is None or any(fnmatch.fnmatchcase(s.layer, p) for p in layers.split(","))]
    if not named:
        known = closest(str(layers), (s.layer for s in sites))
        raise UsageError(
            f"no layer matches {clean(layers)!r}{known}", hint="List the layers with: memaudit inspect MODEL"
        )
    widths, layer_counts = Counter[str](), Counter[str](site.kind for site in named)
    for site in named:
        widths[site.kind] += site.width
    kind = max(widths, key=lambda k: (layer_counts[k], widths[k])) if unit == "auto" else unit
    if kind not in widths:
        have = ", ".join(f"{k} ({n})" for k, n in widths.most_common())
        raise UsageError(
            f"this model has no unit of kind {clean(kind)!r}; it has: {have}", hint="Leave --unit at auto."
        )
    return UnitSpace(tuple(s for s in named if s.kind == kind))


def random_cut(space: UnitSpace, live: Tensor, cut: Sequence[int], generator: torch.Generator) -> list[int]:
    """As many live units as `cut` has, of the same layers, and none of its own."""
    drawn: list[int] = []
    for number in sorted(set(space.site_of[list(cut)].tolist())):
        first, last = space.offsets[number], space.offsets[number + 1]
        wanted = sum(first <= u < last for u in cut)
        pool = [u for u in range(first, last) if bool(live[u]) and u not in cut]
        order = torch.randperm(len(pool), generator=generator)[:wanted]
        drawn += [pool[i] for i in order.tolist()]
    if len(drawn) < len(cut):  # layers with too few other live units: the rest from anywhere
        taken = {*cut, *drawn}
        pool = [u for u in live.nonzero().flatten().tolist() if u not in taken]
        order = torch.randperm(len(pool), generator=generator)[: len(cut) - len(drawn)]
        drawn += [pool[i] for i in order.tolist()]
    return drawn
