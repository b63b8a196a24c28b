"""Re-measuring what the search claims: the cut itself, what it costs, and whether random units would have done as well.

Every measurement applies a fresh ablation. Reference cost is measured on examples that the search never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memaudit.audits.localize.cost import first_estimate
from memaudit.audits.localize.population import Population
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import lost, margin, predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import (
    AugmentedControl,
    FlaggedOthersControl,
    RandomControl,
    ReferenceAccuracy,
    Sampled,
    interned,
)
from memaudit.intervals import wilson
from memaudit.network.units import UnitSpace

# Panel rows nearest to changing that are measured together; a block without any change ends them.
BLOCK = 8
# Shifted copies move by this share of the image's side, at least one pixel: small enough to keep what is shown.
SHIFT = 1 / 32
# Copies of what is no image get noise of this share of each feature's standard deviation.
JITTER = 0.1


@dataclass(frozen=True)
class Judge:
    """Everything that re-measuring a cut needs; made once per audit.

    Attributes:
        panel: rows of the reference that costs are measured on, disjoint from those the search saw.
        population: margins and first-order effects of the panel: where a cut is likely to change a prediction.
        at_risk: most panel rows measured one and all per cut, those most likely to change.
        at_random: panel rows drawn from the rest, per cut; where both make up the panel, all of it is measured.
        copies: augmented copies per example.
    """

    evaluator: Evaluator
    space: UnitSpace
    reference: ExampleSet
    panel: Sequence[int]
    population: Population
    live: Tensor
    at_risk: int
    at_random: int
    seed: int
    copies: int = 4
    fill: Sequence[Tensor] | None = None

    # Fast path; its slow twin: tests/twins.py.
    def reference_accuracy(self, cut: Sequence[int], key: str) -> ReferenceAccuracy:
        """Accuracy on the panel with `cut` ablated, by stratified sampling.

        The rows nearest to changing, by the first-order effects, are measured a block at a time until a whole block
        does not change; a random sample stands for the others. `cost.settle_costs` sharpens what the sample says.
        """
        before = predicted(self.population.margins)
        away = torch.where(before, 1.0, -1.0) * self.population.after([cut])[0]
        order = away.argsort(stable=True)
        first, sampled = min(BLOCK, self.at_risk), order[:0]
        if self.at_risk + self.at_random >= len(order):
            first = len(order)
        else:
            generator = generator_for(self.seed, "panel", key)
            sampled = order[first:][torch.randperm(len(order) - first, generator=generator)[: self.at_random]]
        after = torch.empty(len(order), dtype=torch.bool)
        known = torch.zeros(len(order), dtype=torch.bool)
        risky, block = order[:0], order[:first]
        wanted = torch.cat([block, sampled])
        while len(block):
            if len(wanted):
                rows = [self.panel[i] for i in wanted.tolist()]
                logits = self.evaluator.logits(self.reference, rows, [cut], self.space, self.fill)
                after[wanted] = predicted(margin(logits, self.reference.labels[rows]))
                known[wanted] = True
            risky = torch.cat([risky, block])
            if torch.equal(after[block], before[block]):
                break
            block = order[len(risky) : min(self.at_risk, len(risky) + BLOCK)]
            wanted = block[~known[block]]
        sampled = sampled[~torch.isin(sampled, risky)]
        return first_estimate(int(before.sum()), len(order), *(_changes(before[r], after[r]) for r in (risky, sampled)))

    def random_units(self, examples: ExampleSet, row: int, cut: Sequence[int], draws: int, key: str) -> RandomControl:
        """As many random live units of the same layers, `draws` times: how often they erase the label too."""
        generator = generator_for(self.seed, "random", key)
        cuts = [self._draw(cut, generator) for _ in range(draws)]
        logits = self.evaluator.logits(examples, [row] * draws, cuts, self.space, self.fill)
        erased = int(lost(margin(logits, examples.labels[[row] * draws])).sum())
        low, high = wilson(erased, draws)
        return interned(RandomControl(draws=draws, erased=erased, low=low, high=high))

    def _draw(self, cut: Sequence[int], generator: torch.Generator) -> list[int]:
        drawn: list[int] = []
        for number in sorted(set(self.space.site_of[list(cut)].tolist())):
            first, last = self.space.offsets[number], self.space.offsets[number + 1]
            wanted = sum(first <= u < last for u in cut)
            pool = [u for u in range(first, last) if bool(self.live[u]) and u not in cut]
            order = torch.randperm(len(pool), generator=generator)[:wanted]
            drawn += [pool[i] for i in order.tolist()]
        if len(drawn) < len(cut):  # layers with too few other live units: the rest from anywhere
            taken = {*cut, *drawn}
            pool = [u for u in self.live.nonzero().flatten().tolist() if u not in taken]
            order = torch.randperm(len(pool), generator=generator)[: len(cut) - len(drawn)]
            drawn += [pool[i] for i in order.tolist()]
        return drawn

    def augmented(self, examples: ExampleSet, row: int, cut: Sequence[int]) -> AugmentedControl | None:
        """Copies the search never saw: images mirrored and shifted, other examples with a little noise.

        Of those fitted before the cut, how many it erases; None where an example has no copy like it (token ids).
        """
        if examples.whole:
            return None
        copies = augment(examples, row, self.copies) if examples.image else self._jittered(examples, row)
        rows: list[int] = []
        if len(copies):
            rows = predicted(margin(self.evaluator.logits(copies), copies.labels)).nonzero().flatten().tolist()
        if not rows:
            return interned(AugmentedControl(copies=0, erased=0))
        logits = self.evaluator.logits(copies, rows, [cut], self.space, self.fill)
        return interned(AugmentedControl(copies=len(rows), erased=int(lost(margin(logits, copies.labels[rows])).sum())))

    def _jittered(self, examples: ExampleSet, row: int) -> ExampleSet:
        """Copies of one example, each value moved by `JITTER` of what it deviates by over the reference."""
        example = examples.examples[row]
        generator = generator_for(self.seed, "copies", f"{example.id}:{example.label}")
        noise = torch.randn((self.copies, *examples.pixels.shape[1:]), generator=generator)
        pixels = examples.pixels[row].float() + JITTER * self._deviation * noise
        return ExampleSet((example,) * self.copies, pixels, examples.source)

    @cached_property
    def _deviation(self) -> Tensor:
        """Standard deviation of each value over the reference, `(...)`."""
        return self.reference.batch(range(len(self.reference))).std(0)

    def flagged_others(
        self, examples: ExampleSet, row: int, cut: Sequence[int], fitted: Sequence[int], most: int, key: str
    ) -> FlaggedOthersControl:
        """Other fitted flagged examples (at most `most`, drawn): how many lose their label to the same cut."""
        others = [r for r in fitted if r != row]
        order = torch.randperm(len(others), generator=generator_for(self.seed, "others", key))[:most]
        rows = [others[i] for i in order.tolist()]
        if not rows:
            return interned(FlaggedOthersControl(examples=0, lost=0))
        logits = self.evaluator.logits(examples, rows, [cut], self.space, self.fill)
        gone = int(lost(margin(logits, examples.labels[rows])).sum())
        return interned(FlaggedOthersControl(examples=len(rows), lost=gone))


def augment(examples: ExampleSet, row: int, most: int = 4) -> ExampleSet:
    """Copies of one example: mirrored, and shifted left, right and down with the edge repeated.

    At most four: one that equals the example (a symmetric image, mirrored) or another copy shows nothing new.

    Args:
        most: only the first so many.
    """
    image = examples.pixels[row]
    step = max(1, round(SHIFT * image.shape[-1]))
    columns, lines = torch.arange(image.shape[-1]), torch.arange(image.shape[-2])
    moved = [
        image.flip(-1),
        image[..., (columns + step).clamp_max(len(columns) - 1)],
        image[..., (columns - step).clamp_min(0)],
        image[..., (lines - step).clamp_min(0), :],
    ]
    copies: list[Tensor] = []
    for copy in moved:
        if not any(torch.equal(copy, other) for other in (image, *copies)):
            copies.append(copy)
    copies = copies[:most]
    pixels = torch.stack(copies) if copies else examples.pixels[:0]
    return ExampleSet((examples.examples[row],) * len(copies), pixels, examples.source)


def _changes(before: Tensor, after: Tensor) -> Sampled:
    """Of rows measured before and after a cut."""
    lost, gained = (before & ~after).sum(), (~before & after).sum()
    return interned(Sampled(rows=len(before), right=int(before.sum()), lost=int(lost), gained=int(gained)))
