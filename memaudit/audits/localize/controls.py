"""Re-measuring what the search claims: the cut itself, what it costs, and whether random units would have done as well.

Every measurement applies a fresh ablation. Reference cost is measured on examples that the search never saw. Each is
written for one finding and run with those of many others (`together`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from memaudit.audits.localize.cost import first_estimate
from memaudit.audits.localize.population import Population
from memaudit.audits.localize.together import Ask, Measurement, together
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import lost, margin, predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import AugmentedControl, FlaggedOthersControl, ReferenceAccuracy, Sampled, interned
from memaudit.network.units import UnitSpace

T = TypeVar("T")

# Rows that come nearest to changing without being expected to. On a CIFAR-10 ResNet-9 a cut changes 18 of 512 rows:
# 0.84 of those expected to change, 0.04 of the next 32, and one in a thousand of the others.
NEAR = 32
# One in so many of the rows expected to change is measured beside the fixed number: a ruinous cut has many.
MORE = 5
# Where a sample of the others changes, the cut is no usual one: so many times as many are measured.
FURTHER = 3
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
        at_risk, near, at_random: panel rows measured per cut, of those expected to change, of the `NEAR` that come
            nearest to it, and of the others.
        copies: augmented copies per example.
    """

    evaluator: Evaluator
    space: UnitSpace
    reference: ExampleSet
    panel: Sequence[int]
    population: Population
    live: Tensor
    at_risk: int
    near: int
    at_random: int
    seed: int
    copies: int = 4
    fill: Sequence[Tensor] | None = None

    def together(self, measurements: Sequence[Measurement[T]]) -> list[T]:
        """What each of `measurements` finds, in full batches."""
        return together(self.evaluator, self.space, self.fill, measurements)

    # Fast path; its slow twin: tests/twins.py.
    def reference_accuracy(self, cut: Sequence[int], key: str) -> Measurement[ReferenceAccuracy]:
        """Accuracy on the panel with `cut` ablated, by stratified sampling.

        First-order effects say which rows change; of those, of the next ones and of the others a random sample is
        measured. `cost.settle_costs` sharpens what the samples say.
        """
        before = predicted(self.population.margins)
        away = torch.where(before, 1.0, -1.0) * self.population.after([cut])[0]
        first = int((away <= 0).sum())
        strata = away.argsort(stable=True).tensor_split([first, min(first + NEAR, len(away))])
        generator = generator_for(self.seed, "panel", key)
        order = [stratum[torch.randperm(len(stratum), generator=generator)] for stratum in strata]
        few = [self.at_risk + first // MORE, self.near, self.at_random]
        after = before.clone()
        yield from self._measure(cut, [s[:n] for s, n in zip(order, few, strict=True)], after)
        _, near, others = (int((after != before)[s[:n]].sum()) for s, n in zip(order, few, strict=True))
        counts = [few[0], few[1] * (FURTHER if near else 1), few[2] * (FURTHER if others or near > 1 else 1)]
        yield from self._measure(cut, [s[had:n] for s, had, n in zip(order, few, counts, strict=True)], after)
        samples = (_changes(before[s[:n]], after[s[:n]], before[s]) for s, n in zip(order, counts, strict=True))
        return first_estimate(int(before.sum()), len(before), *samples)

    def _measure(self, cut: Sequence[int], places: Sequence[Tensor], after: Tensor) -> Measurement[None]:
        """Write into `after` which panel rows at `places` are predicted with `cut` ablated."""
        asked = torch.cat(list(places))
        if len(asked):
            rows = [self.panel[i] for i in asked.tolist()]
            logits = yield Ask(self.reference, rows, [cut] * len(rows))
            after[asked] = predicted(margin(logits, self.reference.labels[rows]))

    def random_units(
        self, examples: ExampleSet, row: int, cut: Sequence[int], draws: range, key: str
    ) -> Measurement[int]:
        """As many random live units of the same layers, drawn again and again: how often they suppress the label too.

        Args:
            draws: which of the example's draws; they are the same whichever are asked for together.
        """
        pools = self._pools(cut)
        generator = generator_for(self.seed, "random", key)
        cuts = [self._draw(cut, pools, generator) for _ in range(draws.stop)][draws.start :]
        logits = yield Ask(examples, [row] * len(cuts), cuts)
        return int(lost(margin(logits, examples.labels[[row] * len(cuts)])).sum())

    def _pools(self, cut: Sequence[int]) -> list[tuple[int, Tensor]]:
        """By layer, how many units are cut in it and which live ones are not."""
        units = torch.tensor(cut)
        sites, counts = torch.unique(self.space.site_of[units], return_counts=True)
        others = self.live.clone()
        others[units] = False
        pools = []
        for site, wanted in zip(sites.tolist(), counts.tolist(), strict=True):
            first, last = self.space.offsets[site], self.space.offsets[site + 1]
            pools.append((wanted, first + others[first:last].nonzero().flatten()))
        return pools

    def _draw(self, cut: Sequence[int], pools: Sequence[tuple[int, Tensor]], generator: torch.Generator) -> list[int]:
        drawn: list[int] = []
        for wanted, pool in pools:
            drawn += pool[torch.randperm(len(pool), generator=generator)[:wanted]].tolist()
        if len(drawn) < len(cut):  # layers with too few other live units: the rest from anywhere
            others = self.live.clone()
            others[[*cut, *drawn]] = False
            pool = others.nonzero().flatten()
            drawn += pool[torch.randperm(len(pool), generator=generator)[: len(cut) - len(drawn)]].tolist()
        return drawn

    def copied(self, examples: ExampleSet, rows: Sequence[int]) -> tuple[ExampleSet, list[range]] | None:
        """Copies of `rows` that the search never saw, and which of them are each row's.

        Images are mirrored and shifted, other examples get a little noise; None where there is nothing like an example
        (token ids).
        """
        if examples.whole:
            return None
        sets = [augment(examples, r, self.copies) if examples.image else self._jittered(examples, r) for r in rows]
        ends = [0, *accumulate(map(len, sets))]
        merged = ExampleSet(
            tuple(chain.from_iterable(s.examples for s in sets)),
            torch.cat([s.pixels[:] for s in sets]),
            examples.source,
        )
        return merged, [range(a, b) for a, b in pairwise(ends)]

    def augmented(self, copies: ExampleSet, rows: Sequence[int], cut: Sequence[int]) -> Measurement[AugmentedControl]:
        """How many of the copies `rows` of one example, of those fitted before the cut, it suppresses."""
        if rows:
            logits = yield Ask(copies, rows, [()] * len(rows))
            fits = predicted(margin(logits, copies.labels[list(rows)])).tolist()
            rows = [row for row, fitted in zip(rows, fits, strict=True) if fitted]
        if not rows:
            return interned(AugmentedControl(copies=0, erased=0))
        logits = yield Ask(copies, rows, [cut] * len(rows))
        gone = int(lost(margin(logits, copies.labels[list(rows)])).sum())
        return interned(AugmentedControl(copies=len(rows), erased=gone))

    def _jittered(self, examples: ExampleSet, row: int) -> ExampleSet:
        """Copies of one example, each value moved by `JITTER` of what it deviates by over the reference."""
        example = examples.examples[row]
        generator = generator_for(self.seed, "copies", f"{example.id}:{example.label}")
        noise = torch.randn((self.copies, *examples.pixels.shape[1:]), generator=generator)
        pixels = examples.batch([row]) + JITTER * self._deviation * noise
        return ExampleSet((example,) * self.copies, pixels, examples.source)

    @cached_property
    def _deviation(self) -> Tensor:
        """Standard deviation of each value over the reference, `(...)`."""
        return self.reference.batch(range(len(self.reference))).std(0)

    def flagged_others(
        self, examples: ExampleSet, row: int, cut: Sequence[int], fitted: Sequence[int], most: int, key: str
    ) -> Measurement[FlaggedOthersControl]:
        """Other fitted flagged examples (at most `most`, drawn): how many lose their label to the same cut."""
        others = [r for r in fitted if r != row]
        order = torch.randperm(len(others), generator=generator_for(self.seed, "others", key))[:most]
        rows = [others[i] for i in order.tolist()]
        if not rows:
            return interned(FlaggedOthersControl(examples=0, lost=0))
        logits = yield Ask(examples, rows, [cut] * len(rows))
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


def _changes(before: Tensor, after: Tensor, whole: Tensor) -> Sampled:
    """What became of rows that were measured before and after a cut; `whole` says of all they stand for what was."""
    counts = {"lost": before & ~after, "gained": ~before & after, "right": before, "of_right": whole}
    return interned(
        Sampled(rows=len(before), of=len(whole), **{name: int(rows.sum()) for name, rows in counts.items()})
    )
