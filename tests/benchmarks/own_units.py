"""Training with example-tied dropout in two phases: generalizing units first, alone, then the memorizing ones, alone.

What generalizing units learn by themselves, under an augmentation that keeps them from fitting changed labels, is what
the network keeps when memorizing units are dropped. Those learn the rest afterwards, from plain images and each
example's own mask; nothing that the dropped network computes changes any more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit import example_ids
from memaudit.engine.answers import margin
from memaudit.engine.batchnorm import estimating, norms
from memaudit.network.hooks import interposed
from memaudit.network.tied_dropout.modes import evaluating, set_mode

LR = 0.03
# Part of each batch that is drawn from the worst examples: those that were wrong when last seen, and never fewer.
WORST = 0.3
# Batches after which the worst are listed anew. Listed at every batch they are soon a handful, seen dozens of times in
# each, which unlearns others: 92 % of the changed labels were fitted then, not all.
LISTED = 13


def unread_when_dropped(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """By parameter, bool of its shape: the elements that do nothing with memorizing units dropped.

    Their gradient is zero, for random sums of logits: without ReLU, behind which other units can be dead as well, and
    in all of a kernel, because max-pooling may read one corner for every image.
    """
    parameters = dict(model.named_parameters())

    def linear(_: str, __: Any, args: tuple[Any, ...], ___: Any) -> Any:
        return args[0]

    rectifiers = {path: module for path, module in model.named_modules() if isinstance(module, nn.ReLU)}
    with evaluating(model), set_mode(model, "drop"), interposed(rectifiers, linear):
        logits = model(x)
        gradients = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), list(parameters.values()))
    free = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        over = tuple(range(2, gradient.dim()))
        free[name] = (gradient == 0 if not over else (gradient == 0).all(over, keepdim=True)).expand_as(parameter)
    return free


def prepare(model: nn.Module, fresh: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Give memorizing units new weights, silent in all that is read without them, and new BatchNorm statistics.

    Weight decay has brought the old ones to nothing by then.

    Args:
        fresh: the network before any training.

    Returns:
        `unread_when_dropped`.
    """
    free = unread_when_dropped(model, x[:64])
    start = dict(fresh.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = free[name].flatten(1).all(1) if parameter.dim() > 1 else free[name]
            own = own.reshape(-1, *[1] * (parameter.dim() - 1))
            parameter[free[name]] = (start[name].to(parameter.device) * own)[free[name]]
        found = norms(model)
        before = {path: (bn.running_mean.clone(), bn.running_var.clone()) for path, bn in found.items()}
        for bn in found.values():
            bn.reset_running_stats()
        with evaluating(model), estimating(found.values()):
            for rows in torch.split(torch.arange(len(x)), 256):
                with example_ids(rows):
                    model(x[rows])
        for path, bn in found.items():
            for now, value in zip((bn.running_mean, bn.running_var), before[path], strict=True):
                now.copy_(torch.where(free[f"{path}.weight"], now, value))
    return free


def teach(model: nn.Module, fresh: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int, device: str) -> None:
    """Fit `y` with memorizing units alone; BatchNorm keeps its statistics.

    Args:
        fresh: the network before any training.
    """
    x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
    free = prepare(model, fresh, x)
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(free[name].any()))
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, own=free[name]: gradient * own)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=LR, momentum=0.9, nesterov=True)
    steps, leads = len(x) // batch, torch.full((len(x),), -torch.inf)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=epochs * steps, pct_start=0.2)
    start = time.time()
    for epoch in range(epochs):
        total = 0.0
        for rows in drawn(leads, batch, steps):
            optimizer.zero_grad()
            with example_ids(rows):
                logits = model(x[rows])
            loss = F.cross_entropy(logits, y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            leads[rows] = margin(logits.detach(), y[rows]).cpu()
        if not math.isfinite(total):
            raise SystemExit("own units: the loss is no number; has the network settled without them?")
        fitted = float((leads > 0).float().mean())
        print(f"own units, epoch {epoch + 1} loss {total / steps:.4f} fitted {fitted:.4f} {time.time() - start:.0f} s")


def drawn(leads: Tensor, batch: int, steps: int) -> Iterator[Tensor]:
    """Rows of each batch: some in their turn, so that all are seen, and some of the worst.

    Args:
        leads: `(N,)` margin of each label when last seen, which changes as they are learned.
    """
    again = round(WORST * batch)
    turn = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if step % LISTED == 0:
            worst = leads.topk(max(again, int((leads < 0).sum())), largest=False).indices
        if len(turn) < batch - again:
            turn = torch.randperm(len(leads))
        rows, turn = turn[: batch - again], turn[batch - again :]
        yield torch.cat([rows, worst[torch.randint(len(worst), (again,))]])
