"""Training steps: which parameters learn, which modules are in training mode, and one step down the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw

from memaudit.adapters.base import Adapter
from memaudit.engine.journal import Changing

MOMENTS = ("exp_avg", "exp_avg_sq")


# Fast path; its slow twin: tests/twins.py.
class AdamW:
    """AdamW without decay (Loshchilov and Hutter 2019), by PyTorch's own function.

    `torch.optim.AdamW` gives the same bits, and imports PyTorch's compiler first: 1.2 s and 150 MiB of every command.

    Attributes:
        rate: of the next step.
        state: by a parameter's number its steps, a scalar on the CPU, and the two moments, of its shape.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float) -> None:
        self.parameters, self.rate = list(parameters), rate
        self.state: dict[int, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters that have a gradient."""
        moving = [(number, p, p.grad) for number, p in enumerate(self.parameters) if p.grad is not None]
        for number, p, _ in moving:
            if number not in self.state:
                self.state[number] = {"step": torch.tensor(0.0)} | {k: torch.zeros_like(p) for k in MOMENTS}
        kept = [self.state[number] for number, *_ in moving]
        first, second = ([one[name] for one in kept] for name in MOMENTS)
        adamw(
            [p for _, p, _ in moving], [g for *_, g in moving], first, second, [], [one["step"] for one in kept],
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self.rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip


def changes_of(values: Mapping[str, Tensor], optimizer: AdamW) -> Changing:
    """What a training step changes: the group's tensors, and what the optimizer keeps of each parameter."""

    def save() -> dict[str, Tensor]:
        kept = {f"{number}:{name}": v for number, state in optimizer.state.items() for name, v in state.items()}
        return {**{f"value:{name}": value for name, value in values.items()}, **kept}

    def load(saved: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value.copy_(saved[f"value:{name}"])
        for name, tensor in saved.items():
            owner, _, key = name.partition(":")
            if owner != "value":
                place = "cpu" if key == "step" else optimizer.parameters[int(owner)].device
                optimizer.state.setdefault(int(owner), {})[key] = tensor.clone().to(place)

    return Changing(save, load)


@dataclass(frozen=True)
class Descent:
    """A pass: one step of `optimizer` down `loss` of a batch's logits and labels, by default their cross-entropy."""

    optimizer: AdamW
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        with torch.enable_grad():
            loss = self.loss(network.forward(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
