"""Which units of each example are worth ablating, by gradients and signals; reduced where these are computed.

Gradients of a large network are slow to move and to record: of a ViT-B 150 kB an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.engine.answers import margin
from memaudit.engine.passes import Cut, Fill, MaskGradients, Observe, Seen
from memaudit.network.units import UnitSpace, overwritten
from memaudit.system.memory import to_device

# Units with the largest effect on the flagged margin that are considered; the chosen one was always among them.
SHORTLIST = 64
# Mask of all units for the second gradient by which candidates are chosen. When labels were written into units, alone
# or by threes, 0.75 kept 99 % of these units among the first 256 on a ResNet-9 and a ViT; 0.5 kept 97 % on the ResNet.
FADED = 0.75


# Fast path; its slow twin: tests/twins.py.
@dataclass(frozen=True)
class Promising:
    """Margins `(size,)`, the units to try and their strength `(size, most)`, other units and gradients `(size, S)`.

    To be tried are those of the largest gradient, of either sign, times the unit's signal; a strength below 0: it may
    not be cut. A gradient can vanish where ablation does much, behind a unit that saturates what follows or at a GELU's
    least value, so the one with all units faded a little counts as well. Of the others those with the largest gradient.

    Attributes:
        cuts: one a row.
        candidates: `(total,)` bool, the units that may be cut.
        most: how many are to be tried.
        dtype: what gradients are computed in.
    """

    size: int
    space: UnitSpace
    cuts: Sequence[Cut]
    candidates: Tensor
    most: int
    fill: Fill
    dtype: torch.dtype

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Seen:
        margins, gradients = self._gradients(network, inputs, labels, 1.0)
        _, faded = self._gradients(network, inputs, labels, FADED)
        strength = (gradients.abs() + faded.abs()) * self._signals(network, inputs, labels)
        allowed = allowed_units(self.candidates, self.cuts, strength, -1.0)
        strength, tried = allowed.topk(min(self.most, self.space.total))
        drops, units = largest(self.candidates, self.cuts, gradients.scatter(1, tried, -torch.inf))
        return (margins, *(value.cpu() for value in (tried, strength, units, drops)))

    def _gradients(self, network: Adapter, inputs: Tensor, labels: Tensor, kept: float) -> tuple[Tensor, Tensor]:
        """Margins `(size,)`, and their gradients `(size, total)` with every unit that is not cut at `kept`."""
        found: list[Tensor] = []

        def stay(gradient: Tensor) -> Seen:
            found.append(gradient.nan_to_num())
            return ()

        work = MaskGradients(self.size, self.space, self.cuts, margin, self.fill, kept, self.dtype, stay)
        (margins,) = work(network, inputs, labels)
        return margins, found[0]

    def _signals(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        """`(size, total)`: mean size of each unit's values, over the mean of its site; away from `fill`, if given."""
        found: dict[int, Tensor] = {}

        def stay(number: int, values: Tensor) -> Seen:
            site = self.space.sites[number]
            away = values if self.fill is None else values - self.fill[number].to(values)
            size = away.abs().mean(1, dtype=torch.promote_types(away.dtype, torch.float32))
            size = size.view(-1, site.copies, site.width, site.span).mean((1, 3))
            found[number] = size / size.mean(1, keepdim=True)
            return ()

        Observe(self.space, stay)(network, inputs, labels)
        return torch.cat([found[number] for number in sorted(found)], 1)[: self.size].nan_to_num()


def largest(candidates: Tensor, cuts: Sequence[Cut], drops: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of `drops` `(jobs, total)` among units that may still be cut, and whose they are."""
    values, units = allowed_units(candidates, cuts, drops, -torch.inf).topk(min(SHORTLIST, drops.shape[1]))
    return values, units


def allowed_units(candidates: Tensor, cuts: Sequence[Cut], values: Tensor, otherwise: float) -> Tensor:
    """`values` `(jobs, total)` of the units that may still be cut, `otherwise` of all others."""
    allowed = values.masked_fill(to_device(~candidates, values.device), otherwise)
    return overwritten(allowed, cuts, otherwise)
