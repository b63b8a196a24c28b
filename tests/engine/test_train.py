"""Training steps: those of PyTorch's optimizer, without its compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from memaudit.engine.train import AdamW, changes_of


def descend(optimizer: AdamW | torch.optim.AdamW, parameters: list[Tensor], steps: int) -> None:
    """The second one has a gradient from the third step on, the last one never."""
    for step in range(steps):
        optimizer.zero_grad()
        loss = (parameters[0] ** 2).sum()
        if step > 1:
            loss = loss + (parameters[1] - 3).abs().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def some() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((4, 3), (5,), (2,))]


def test_steps_are_those_of_pytorchs_class() -> None:
    ours, theirs = some(), some()
    optimizer, plain = AdamW(ours, 0.1), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.0)
    for rate in (0.1, 0.02):
        optimizer.rate = plain.param_groups[0]["lr"] = rate
        descend(optimizer, ours, 5)
        descend(plain, theirs, 5)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(ours[2], some()[2])


def test_it_goes_on_from_what_was_saved() -> None:
    ours = some()
    values = {str(n): p.detach() for n, p in enumerate(ours)}
    optimizer = AdamW(ours, 0.1)
    changing = changes_of(values, optimizer)
    descend(optimizer, ours, 3)
    saved = {name: tensor.clone() for name, tensor in changing.save().items()}
    descend(optimizer, ours, 3)
    then = [p.detach().clone() for p in ours]
    again = some()
    other = AdamW(again, 0.1)
    changes_of({str(n): p.detach() for n, p in enumerate(again)}, other).load(saved)
    descend(other, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(again, then, strict=True))


def test_no_compiler_is_imported() -> None:
    code = (
        "import sys, torch; from memaudit.engine.train import AdamW\n"
        "p = torch.ones(2, requires_grad=True); p.sum().backward(); AdamW([p], 0.1).step()\n"
        "assert p[0] < 1; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
