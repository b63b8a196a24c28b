"""Training steps: which parameters learn, which modules are in training mode, and one step down the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.engine.journal import Changing


def changes_of(values: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Changing:
    """What a training step changes: the group's tensors, and what the optimizer keeps of each parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def save() -> dict[str, Tensor]:
        kept = {f"{n}:{k}": v for n, p in enumerate(parameters) for k, v in optimizer.state.get(p, {}).items()}
        return {**{f"value:{name}": value for name, value in values.items()}, **kept}

    def load(saved: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value.copy_(saved[f"value:{name}"])
        for name, tensor in saved.items():
            owner, _, key = name.partition(":")
            if owner != "value":
                parameter = parameters[int(owner)]
                place = "cpu" if key == "step" else parameter.device
                optimizer.state[parameter][key] = tensor.clone().to(place)

    return Changing(save, load)


@dataclass(frozen=True)
class Descent:
    """A pass: one step of `optimizer` down the batch's mean cross-entropy."""

    optimizer: torch.optim.Optimizer

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        with torch.enable_grad():
            loss = F.cross_entropy(network.forward(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
