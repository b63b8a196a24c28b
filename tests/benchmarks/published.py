"""The search as Maini et al. 2023 (section 4.3) describe it, one example at a time: the baseline of the benchmarks.

Per unit: the gradient, by a mask on every conv output, of the example's loss minus the loss of a random population
batch, averaged over five noisy forwards; the unit of largest score is zeroed; repeat until the label is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data.examples import ExampleSet
from memaudit.network.ablate import ablated
from memaudit.network.units import Site, UnitSpace

POPULATION = 512
NOISY_FORWARDS = 5
NOISE = 0.1  # standard deviation, of inputs in [0, 1]


def conv_outputs(module: nn.Module) -> UnitSpace:
    """Every convolution's own output channels, under any normalisation: where the published search cuts."""
    sites = [
        Site(name, "channel", m.out_channels, edits=tuple((n, 0) for n, _ in m.named_parameters(recurse=False)))
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    return UnitSpace(tuple(sites))


def search(
    adapter: Adapter, space: UnitSpace, examples: ExampleSet, row: int, reference: ExampleSet, max_units: int, seed: int
) -> list[int]:
    """The units cut for one example, in order; stops when the label is lost or `max_units` are gone."""
    generator = torch.Generator().manual_seed(seed)
    image = examples.batch([row], adapter.device)
    label = examples.labels[[row]].to(adapter.device)
    cut: list[int] = []
    while len(cut) < max_units and int(_logits(adapter, space, cut, image)[0].argmax()) == int(label):
        rows = torch.randperm(len(reference), generator=generator)[:POPULATION]
        batch = reference.batch(rows, adapter.device)
        labels = reference.labels[rows].to(adapter.device)
        score = torch.zeros(space.total)
        for _ in range(NOISY_FORWARDS):
            keep = space.keep([cut])[0].to(adapter.device).requires_grad_()
            inputs = torch.cat([image, batch])
            noise = torch.randn(inputs.shape, generator=generator).to(adapter.device)
            with ablated(adapter.module, space, keep):
                logits = adapter.forward(inputs + NOISE * noise)
            loss = F.cross_entropy(logits[:1], label) - F.cross_entropy(logits[1:], labels)
            score -= torch.autograd.grad(loss, keep)[0].cpu()
        score[cut] = -torch.inf
        cut.append(int(score.argmax()))
    return cut


def _logits(adapter: Adapter, space: UnitSpace, cut: Sequence[int], images: Tensor) -> Tensor:
    with torch.no_grad(), ablated(adapter.module, space, space.keep([cut])[0]):
        return adapter.forward(images)
