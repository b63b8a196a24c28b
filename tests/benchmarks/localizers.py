"""Other ways to choose units, written from their descriptions: what the search is compared with.

Each method names the first `count` units for one example, best first, whether or not fewer already erase the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.localize.job import Job
from memaudit.audits.localize.population import Population
from memaudit.audits.localize.search import Search
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator
from memaudit.network.ablate import ablated
from memaudit.network.units import UnitSpace
from memaudit.settings import PROFILES

PATH_STEPS = 16  # integrated gradients: points on the way from all units to none
MASK_STEPS = 40  # learned mask: steps of Adam
MASK_RATE = 0.1
MASK_PENALTY = 0.02  # per unit removed, in margins


@dataclass(frozen=True)
class Bench:
    """One network and what every method may know of it.

    Attributes:
        live: `(total,)` bool, the units that may be named.
        population: what each unit does to some reference examples.
        mean, deviation: `(total,)` of each unit's activation over the reference.
    """

    evaluator: Evaluator
    space: UnitSpace
    live: Tensor
    reference: ExampleSet
    population: Population
    mean: Tensor
    deviation: Tensor


Method = Callable[[Bench, ExampleSet, int, int], list[int]]


def activations(evaluator: Evaluator, space: UnitSpace, examples: ExampleSet) -> Tensor:
    """`(N, total)` mean over positions of each unit's rectified value."""
    _, seen = evaluator.observe(examples, space, lambda _, v: (v.clamp_min(0).mean(1),))
    return torch.cat([torch.cat([mean for (mean,) in site]) for site in seen], 1)


def bench(evaluator: Evaluator, space: UnitSpace, live: Tensor, reference: ExampleSet, population: Population) -> Bench:
    """With the statistics over the first 512 reference examples."""
    seen = activations(evaluator, space, reference.subset(range(min(512, len(reference)))))
    return Bench(evaluator, space, live, reference, population, seen.mean(0), seen.std(0))


def _first(score: Tensor, live: Tensor, count: int) -> list[int]:
    return score.masked_fill(~live, -torch.inf).topk(count).indices.tolist()


def random(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """Live units, drawn."""
    return _first(torch.rand(b.space.total, generator=generator_for(0, "baseline", str(row))), b.live, count)


def activation(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """Largest activation."""
    return _first(activations(b.evaluator, b.space, examples.subset([row]))[0], b.live, count)


def activation_score(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """Largest activation in standard deviations above the reference's."""
    seen = activations(b.evaluator, b.space, examples.subset([row]))[0]
    return _first((seen - b.mean) / (b.deviation + 1e-6), b.live, count)


def gradient(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """Gradient times activation, once, at the intact model: the margin's derivative by the unit's mask."""
    return _first(b.evaluator.mask_gradients(examples, [row], [[]], b.space, margin)[1][0], b.live, count)


def leave_one_out(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """Largest drop of the margin when the unit alone is ablated, measured for every unit."""
    units = b.live.nonzero().flatten().tolist()
    logits = b.evaluator.logits(examples, [row] * len(units), [[u] for u in units], b.space)
    score = torch.full((b.space.total,), -torch.inf)
    score[units] = -margin(logits, examples.labels[[row] * len(units)])
    return _first(score, b.live, count)


def integrated_gradients(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """The margin's gradient by the mask, averaged on the straight way from all units to none (Sundararajan 2017)."""
    share = (torch.arange(PATH_STEPS) + 0.5) / PATH_STEPS
    keep = share[:, None].expand(-1, b.space.total).clone().requires_grad_()
    return _first(_gradient(b, examples, row, keep)[1].mean(0), b.live, count)


def learned_mask(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """A soft mask trained to lose the label while few units are removed (slimming, after Liu et al. 2017)."""
    cut = torch.full((1, b.space.total), -3.0, requires_grad=True)  # a sigmoid: about 5 % removed at first
    optimizer = torch.optim.Adam([cut], lr=MASK_RATE)
    for _ in range(MASK_STEPS):
        removed = cut.sigmoid()
        value, slope = _gradient(b, examples, row, (1 - removed).detach().requires_grad_())
        gain = slope if float(value) > -1 else torch.zeros_like(slope)  # a hinge: lost by 1 is lost
        optimizer.zero_grad()
        ((MASK_PENALTY - gain) * removed).sum().backward()
        optimizer.step()
    return _first(cut.detach()[0], b.live, count)


def _gradient(b: Bench, examples: ExampleSet, row: int, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The summed margin, and its derivative by a mask of any values, a row per copy of the example."""
    images = examples.batch([row] * len(keep), b.evaluator.device)
    with torch.enable_grad(), ablated(b.evaluator.adapter.module, b.space, keep):
        logits = b.evaluator.adapter.forward(images)
    total = margin(logits, examples.labels[[row] * len(keep)].to(logits.device)).sum()
    return total.detach(), torch.autograd.grad(total, keep)[0]


def memaudit(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """The project's own choice, as it plans it, past the point where the label is lost."""
    first = PROFILES["standard"].look_first
    return _chosen(Search(b.space, b.live, b.population, max_units=count, look_first=first), b, examples, row)


def looking_ahead(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """The same as the deep profile chooses: by what ablating each candidate really takes."""
    ahead = PROFILES["deep"].look_ahead
    return _chosen(Search(b.space, b.live, b.population, max_units=count, look_ahead=ahead), b, examples, row)


def whatever_it_costs(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """The same, but no unit is passed over for what cutting it costs the reference."""
    ahead = PROFILES["deep"].look_ahead
    return _chosen(Search(b.space, b.live, b.population, count, weight=0.0, look_ahead=ahead), b, examples, row)


def _chosen(search: Search, b: Bench, examples: ExampleSet, row: int) -> list[int]:
    job, before = Job(row, int(examples.labels[row])), -1
    while before < len(job.cut) < search.max_units:
        before, job.margin = len(job.cut), math.inf
        search.extended(b.evaluator, examples, [job])
    return job.cut


METHODS: Mapping[str, Method] = {
    "random": random,
    "activation": activation,
    "activation z-score": activation_score,
    "gradient x activation": gradient,
    "leave-one-out": leave_one_out,
    "integrated gradients": integrated_gradients,
    "learned mask": learned_mask,
    "memaudit": memaudit,
    "memaudit, deep": looking_ahead,
    "memaudit, deep, whatever it costs": whatever_it_costs,
}
