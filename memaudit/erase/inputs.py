"""How near a lost label is: a small search for a changed input that brings it back, beside clean examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.findings import InputPoint
from memaudit.numbers import tidy

# Largest changes, in deviations of the inputs; steps of the search, each a share of the change; examples, at most.
RADII = (0.05, 0.1, 0.2)
STEPS = 10
STEP = 0.25
PROBED = 64


@dataclass(frozen=True)
class Searched:
    """A pass: `(n,)` bool, whether a change of at most `radius` a value makes the network give these labels.

    Projected gradient ascent on the margin (Madry et al. 2018), from the input itself; the best step counts.
    """

    radius: float

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        change, found = torch.zeros_like(inputs), torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        for _ in range(STEPS + 1):
            change.requires_grad_()
            with torch.enable_grad():
                gap = margin(network.forward(inputs + change), labels)
                (gradient,) = torch.autograd.grad(gap.sum(), change)
            found |= predicted(gap.detach())
            change = (change.detach() + STEP * self.radius * gradient.sign()).clamp(-self.radius, self.radius)
        return found.cpu()


def searched_inputs(after: Evaluator, flagged: Panel, reference: ExampleSet, seed: int) -> list[InputPoint]:
    """How many of the flagged labels that the edit took away a small search brings back; and from clean examples.

    The control searches for the same labels from reference examples of the class that the edited network gives instead:
    where both come back alike, the flagged examples are no nearer to their labels than others. None on token ids.
    """
    rows = list(flagged.rows)
    if not rows or flagged.examples.whole:
        return []
    logits = after.logits(flagged.examples, rows)
    labels = flagged.examples.labels[rows]
    lost = (~predicted(margin(logits, labels))).nonzero().flatten().tolist()
    order = torch.randperm(len(reference), generator=generator_for(seed, "inputs", "")).tolist()
    free: dict[int, list[int]] = {}
    for row in order:
        free.setdefault(reference.examples[row].label, []).append(row)
    pairs: list[tuple[int, int]] = []
    for place in lost:
        theirs = free.get(int(logits[place].argmax()), [])
        if theirs and len(pairs) < PROBED:
            pairs.append((place, theirs.pop()))
    if not pairs:
        return []
    wanted = labels[[place for place, _ in pairs]].tolist()
    own = flagged.examples.subset([rows[place] for place, _ in pairs])
    others = reference.subset([row for _, row in pairs]).labelled(wanted)
    scale = float(own.batch(range(len(own)), after.device).std())
    points = []
    for radius in RADII:
        search = Searched(radius * scale)
        both = [
            torch.cat(after.each(examples, range(len(examples)), search, forward=STEPS, backward=STEPS))
            for examples in (own, others)
        ]
        flagged_back, control = (tidy(float(one.float().mean())) for one in both)
        points.append(InputPoint(radius=radius, examples=len(own), flagged=flagged_back, control=control))
    return points
