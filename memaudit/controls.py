"""Re-measuring what the search claims: the cut itself, what it costs, and whether random units would have done as well.

Every measurement applies a fresh ablation. Reference cost is measured on examples that the search never saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.data.examples import ExampleSet
from memaudit.evaluate import Evaluator, margin
from memaudit.findings import AugmentedControl, FlaggedOthersControl, RandomControl, ReferenceAccuracy
from memaudit.intervals import tidy, wilson
from memaudit.localize import Population
from memaudit.units import UnitSpace

# Shifted copies move by this share of the image's side, at least one pixel: small enough to keep what is shown.
SHIFT = 1 / 32


@dataclass(frozen=True)
class Judge:
    """Everything that re-measuring a cut needs; made once per audit.

    Attributes:
        panel: rows of the reference that costs are measured on, disjoint from those the search saw.
        population: margins and first-order effects of the panel: where a cut is likely to change a prediction.
        at_risk: panel rows measured one and all per cut, those most likely to change.
        at_random: panel rows drawn from the rest, per cut; with `at_risk` the whole panel where it is no larger.
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
    fill: Sequence[Tensor] | None = None

    def reference_accuracy(self, cut: Sequence[int], key: str) -> ReferenceAccuracy:
        """Accuracy on the panel with `cut` ablated, by stratified sampling.

        The rows that the first-order effects say are nearest to changing are all measured; of the rest a random
        sample, whose rate of change stands for it. Their errors are combined as independent (MOVER, Zou and
        Donner 2008) with the sampling error of the panel itself.
        """
        before = self.population.margins > 0
        away = torch.where(before, 1.0, -1.0) * self.population.after(cut)
        order = away.argsort(stable=True)
        risky, rest = order[: self.at_risk], order[self.at_risk :]
        if len(rest) > self.at_random:
            generator = generator_for(self.seed, "panel", key)
            sampled = rest[torch.randperm(len(rest), generator=generator)[: self.at_random]]
        else:
            risky, rest, sampled = order, order[:0], order[:0]
        measured = torch.cat([risky, sampled])
        rows = [self.panel[i] for i in measured.tolist()]
        logits = self.evaluator.logits(self.reference, rows, [cut], self.space, self.fill)
        after = margin(logits, self.reference.labels[rows]) > 0
        was = before[measured]
        lost, gained = was & ~after, ~was & after
        split = len(risky)
        n, r = len(order), len(rest)
        lost_rate = float(lost[split:].float().mean()) if r else 0.0
        gained_rate = float(gained[split:].float().mean()) if r else 0.0
        losses = float(lost[:split].sum()) + lost_rate * r
        gains = float(gained[:split].sum()) + gained_rate * r
        right = float(before.sum())
        accuracy = min(1.0, max(0.0, (right - losses + gains) / n))
        low, high = wilson(accuracy * n, n)
        if r:
            worst = wilson(float(lost[split:].sum()), len(sampled))[1] * r / n
            best = wilson(float(gained[split:].sum()), len(sampled))[1] * r / n
            low = accuracy - ((accuracy - low) ** 2 + (worst - lost_rate * r / n) ** 2) ** 0.5
            high = accuracy + ((high - accuracy) ** 2 + (best - gained_rate * r / n) ** 2) ** 0.5
        return ReferenceAccuracy(
            before=tidy(right / n),
            after=tidy(accuracy),
            low=tidy(max(0.0, low)),
            high=tidy(min(1.0, high)),
            retained=tidy(min(1.0, max(0.0, 1 - losses / right))) if right else None,
            examples=len(measured),
        )

    def random_units(self, examples: ExampleSet, row: int, cut: Sequence[int], draws: int, key: str) -> RandomControl:
        """As many random live units of the same layers, `draws` times: how often they erase the label too."""
        generator = generator_for(self.seed, "random", key)
        cuts = [self._draw(cut, generator) for _ in range(draws)]
        logits = self.evaluator.logits(examples, [row] * draws, cuts, self.space, self.fill)
        erased = int((margin(logits, examples.labels[[row] * draws]) < 0).sum())
        low, high = wilson(erased, draws)
        return RandomControl(draws=draws, erased=erased, low=low, high=high)

    def _draw(self, cut: Sequence[int], generator: torch.Generator) -> list[int]:
        drawn: list[int] = []
        for number in sorted(set(self.space.site_of[list(cut)].tolist())):
            first, last = self.space.offsets[number], self.space.offsets[number + 1]
            wanted = sum(first <= u < last for u in cut)
            pool = [u for u in range(first, last) if bool(self.live[u]) and u not in cut]
            order = torch.randperm(len(pool), generator=generator)[:wanted]
            drawn += [pool[i] for i in order.tolist()]
        return drawn

    def augmented(self, examples: ExampleSet, row: int, cut: Sequence[int]) -> AugmentedControl:
        """Copies the search never saw: mirrored and shifted. Of those fitted before the cut, how many it erases."""
        copies = augment(examples, row)
        rows: list[int] = []
        if len(copies):
            rows = (margin(self.evaluator.logits(copies), copies.labels) > 0).nonzero().flatten().tolist()
        if not rows:
            return AugmentedControl(copies=0, erased=0)
        logits = self.evaluator.logits(copies, rows, [cut], self.space, self.fill)
        return AugmentedControl(copies=len(rows), erased=int((margin(logits, copies.labels[rows]) < 0).sum()))

    def flagged_others(
        self, examples: ExampleSet, row: int, cut: Sequence[int], fitted: Sequence[int], most: int, key: str
    ) -> FlaggedOthersControl:
        """Other fitted flagged examples (at most `most`, drawn): how many lose their label to the same cut."""
        others = [r for r in fitted if r != row]
        order = torch.randperm(len(others), generator=generator_for(self.seed, "others", key))[:most]
        rows = [others[i] for i in order.tolist()]
        if not rows:
            return FlaggedOthersControl(examples=0, lost=0)
        logits = self.evaluator.logits(examples, rows, [cut], self.space, self.fill)
        lost = int((margin(logits, examples.labels[rows]) < 0).sum())
        return FlaggedOthersControl(examples=len(rows), lost=lost)


def augment(examples: ExampleSet, row: int) -> ExampleSet:
    """Copies of one example: mirrored, and shifted left, right and down with the edge repeated.

    At most four: one that equals the example (a symmetric image, mirrored) or another copy shows nothing new.
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
    pixels = torch.stack(copies) if copies else examples.pixels[:0]
    return ExampleSet((examples.examples[row],) * len(copies), pixels, examples.source)


def matched_clean(
    margins: Tensor, labels: Tensor, reference_margins: Tensor, reference_labels: Tensor
) -> list[tuple[int, int]]:
    """Pairs `(flagged row, reference row)`: an unused fitted reference example, same label, nearest margin."""
    pairs: list[tuple[int, int]] = []
    free = reference_margins > 0
    for row in range(len(labels)):
        gaps = (
            (reference_margins - margins[row]).abs().masked_fill(~(free & (reference_labels == labels[row])), torch.inf)
        )
        best = int(gaps.argmin()) if len(gaps) else -1
        if best >= 0 and torch.isfinite(gaps[best]):
            free[best] = False
            pairs.append((row, best))
    return pairs


def generator_for(seed: int, purpose: str, key: str) -> torch.Generator:
    """A generator that depends on the run's seed, what it is for and the example, and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
