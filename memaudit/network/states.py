"""States of the network over time: earlier tensors put in place for a while, and proof that none of it stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from memaudit.network.layer_groups import LayerGroup, tensors_of


@dataclass(frozen=True)
class State:
    """One checkpoint of the series, fitted to the network.

    Attributes:
        label: what reports call it.
        tensors: by `tensors_of` name, of the network's shapes and types; what no checkpoint stores is not in it.
        final: it equals the audited model, tensor for tensor.
    """

    label: str
    tensors: Mapping[str, Tensor]
    epoch: float | None = None
    step: int | None = None
    sha256: str = ""
    file: str = ""
    final: bool = False

    def to(self, device: torch.device) -> State:
        """The same on another device."""
        moved = {n: t.to(device) for n, t in self.tensors.items()}
        return replace(self, tensors=moved)

    def part(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of the tensors `names` that the checkpoint stores, of the network's shapes and types."""
        return {n: self.tensors[n] for n in names if n in self.tensors}


def canonical(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` (by any of its names) by `tensors_of` names, on the network's device and in its types."""
    own = tensors_of(module)
    first = {id(t): n for n, t in own.items()}
    alias = {name: first[id(t)] for name, t in module.state_dict(keep_vars=True).items() if id(t) in first}
    return {alias[n]: t.to(own[alias[n]].device, own[alias[n]].dtype) for n, t in state.items() if n in alias}


def put_back(
    module: nn.Module,
    group: LayerGroup,
    generator: torch.Generator,
    start: Mapping[str, Tensor],
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Values to begin with, by name and of the group's shapes: those of `start`, or its own mixed with their shuffle.

    A weight whose entries change places is a random one of just the scale that the other layers expect.
    """
    tensors, values = tensors_of(module), {}
    for name in group.names:
        value = tensors[name].detach().clone()
        if name in start:
            value = start[name].detach().clone().to(value.device, value.dtype)
        elif value.is_floating_point():
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            other = value.flatten()[order].view_as(value)
            # Weights keep their variance; of norms and biases the mean counts.
            scale = ((1 - share) ** 2 + share**2) ** 0.5 if value.dim() > 1 else 1.0
            value = ((1 - share) * value + share * other) / scale
        values[name] = value.contiguous()
    return values


def digest(module: nn.Module, names: Iterable[str] | None = None) -> str:
    """Hash of the bytes of every parameter and buffer, or of those called `names`."""
    tensors = tensors_of(module)
    result = hashlib.sha256()
    for name in sorted(tensors if names is None else names):
        value = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        result.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return result.hexdigest()
