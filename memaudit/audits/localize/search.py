"""Searching the fewest units whose ablation makes the model lose a flagged label: batched, few gradients.

After the greedy search of Maini et al. 2023, section 4.3, with these changes: every example of a batch has its own
mask; the objective is the logit margin (the loss of a memorized example is flat); what a cut costs the reference is
predicted example by example and given the units already cut, not by the mean gradient; one gradient plans several
units, or, looking ahead, many candidates are ablated to choose one; and a finished set is reduced by restoring what it
does not need. Nothing here is believed: `controls` measures every set again, on reference examples the search never
saw.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Seen
from memaudit.network.units import UnitSpace, overwritten
from memaudit.system.memory import to_device

# Exchange rate between the flagged margin and the reference: one percentage point of reference accuracy at risk weighs
# as much as this many hundredths of a typical reference margin. On a CIFAR-10 ResNet-9 that fits every label, 30, 50
# and 100 gave 3.6, 3.7 and 3.9 units at a reference accuracy of 0.995, 0.996 and 0.997 after the cut.
RISK_WEIGHT = 40.0
# Width of the step from right to wrong, in typical reference margins: how far the linear prediction is trusted.
RISK_SOFTNESS = 0.05
# Units with the largest effect on the flagged margin that are considered; the chosen one was always among them.
SHORTLIST = 64
# Of those, how many are weighed in the first go; then twice as many each time.
AT_ONCE = 4
# Standard deviations above the mean that still count as usual, and fewest examples of a label that tell what is.
USUAL_DEVIATIONS = 0.5
FEWEST = 8
# Units planned from one gradient before the network is asked again; 4 cost half the passes of 1 and 3 % more units.
PLAN = 4
# Mask of all units for the second gradient by which candidates are chosen. Of units that a label was written into,
# alone or by threes, 0.75 kept 99 % among the first 256 on a ResNet-9 and a ViT; 0.5 kept 97 % on the ResNet.
FADED = 0.75


@dataclass(frozen=True)
class Population:
    """Reference examples as the search sees them: how far each is from being lost, and what each unit does to it.

    Attributes:
        margins: `(R,)` at the intact model.
        effects: `(total, R)` drop of each margin per unit, to first order: the gradient by the unit's mask.
        labels: `(R,)` of the examples.
    """

    margins: Tensor
    effects: Tensor
    labels: Tensor

    @cached_property
    def typical(self) -> float:
        """Median margin of the reference examples the model gets right: the unit margins are measured in."""
        right = self.margins[predicted(self.margins)]
        return float(right.median()) if len(right) else 1.0

    def usual(self, label: int, units: Tensor) -> Tensor:
        """What ablating each of `units` `(T,)` usually takes of the margin of examples of `label`, or a little more.

        A unit that carries a class takes as much from any of its examples; one that stores an example takes more from
        that one.
        """
        rows = self.labels == label
        effects = self.effects[units]
        same = effects[:, rows] if int(rows.sum()) >= FEWEST else effects
        return same.mean(1) + USUAL_DEVIATIONS * same.std(1, correction=0)

    def after(self, cuts: Sequence[Sequence[int]]) -> Tensor:
        """Predicted margins `(cuts, R)` with each of `cuts` ablated."""
        starts = torch.tensor([0, *map(len, cuts)]).cumsum(0)[:-1]
        units = torch.tensor(list(chain.from_iterable(cuts)), dtype=torch.long)
        if not len(units):
            return self.margins.repeat(len(cuts), 1)
        units, starts = (to_device(t, self.effects.device) for t in (units, starts))
        return self.margins - F.embedding_bag(units, self.effects, starts, mode="sum")

    def wrong(self, margins: Tensor) -> Tensor:
        """Share of the reference that is wrong at `margins` `(..., R)`, counted softly.

        An example further from being lost than at the intact model counts as there: one answer mended does not pay for
        another lost. On a ViT that is wrong of 15 % of its reference, cuts were chosen for what they mended, and what
        they cost had nothing to do with what was predicted.
        """
        return margins.minimum(self.margins).mul_(-1 / (RISK_SOFTNESS * self.typical)).sigmoid_().mean(-1)

    @cached_property
    def wrong_intact(self) -> Tensor:
        """The least that `wrong` can be."""
        return self.wrong(self.margins)

    def on(self, device: torch.device) -> Population:
        """The same where `device` reads it; moved once."""
        if self.margins.device == device:
            return self
        if device not in self._elsewhere:
            moved = (t.to(device) for t in (self.margins, self.effects, self.labels))
            self._elsewhere[device] = Population(*moved)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Population]:
        return {}


@dataclass(frozen=True)
class Proposal:
    """What the search claims of one example.

    Attributes:
        row: the example.
        cut: unit numbers in the order they were cut.
        erased: whether the label was lost within the budget.
    """

    row: int
    cut: tuple[int, ...]
    erased: bool


@dataclass(eq=False)
class Job:
    """One example under way.

    Attributes:
        cut: what is cut so far.
        margin: of `label` then, in full precision once a unit is cut; not a number before it was measured.
        needed: without this unit the label was seen to be kept.
        signal: `(total,)` of `signals`, where the search looks ahead.
    """

    row: int
    label: int
    cut: list[int] = field(default_factory=list)
    margin: float = math.nan
    needed: int | None = None
    signal: Tensor | None = None


@dataclass(frozen=True)
class Shortlist:
    """The units that take most of each job's margin, `(jobs, S)`, best first.

    Attributes:
        units: their numbers.
        drops: what each takes of the margin.
        gains: what of that speaks for it; minus infinity: it must not be cut.
    """

    units: Tensor
    drops: Tensor
    gains: Tensor

    def of(self, rows: Tensor) -> Shortlist:
        return Shortlist(self.units[rows], self.drops[rows], self.gains[rows])

    def on(self, device: torch.device) -> Shortlist:
        return Shortlist(*(to_device(t, device) for t in (self.units, self.drops, self.gains)))


@dataclass(frozen=True)
class Search:
    """The settings of one search, shared by flagged examples and their controls.

    Attributes:
        candidates: `(total,)` bool, the units that may be cut.
        max_units: the budget K.
        weight: exchange rate between flagged margin and reference risk.
        plan: units taken from one gradient.
        fill: per-site values of ablated units (mean ablation); 0 where None.
        look_ahead: candidates that are each ablated in a forward pass before one is chosen, for what they take beyond
            what they usually take from examples of the label; with none the gradient's word is taken.
    """

    space: UnitSpace
    candidates: Tensor
    population: Population
    max_units: int
    weight: float = RISK_WEIGHT
    plan: int = PLAN
    fill: Sequence[Tensor] | None = None
    look_ahead: int = 0

    def run(self, evaluator: Evaluator, examples: ExampleSet, rows: Iterable[int]) -> Iterator[Proposal]:
        """A proposal for each of `rows`, in the order they finish.

        One batch is always full: as an example finishes, the next one takes its place. A row's steps depend on no
        other row, so neither order nor batch size changes a result.
        """
        waiting = deque(rows)
        active: list[Job] = []
        lost: list[Job] = []
        while waiting or active or lost:
            room = range(min(len(waiting), evaluator.batch_size - len(active)))
            active += self.begun(evaluator, examples, [waiting.popleft() for _ in room])
            stuck = self._extended(evaluator, examples, active)
            active = [job for job in active if job not in stuck]
            reduced = self._measured(evaluator, examples, active, lost)
            stuck += [job for job in active if job.margin > 0 and len(job.cut) >= self.max_units]
            for job in (*stuck, *reduced):
                yield Proposal(job.row, tuple(job.cut), erased=job in reduced)
            lost = [job for job in lost if job not in reduced] + [job for job in active if job.margin <= 0]
            active = [job for job in active if job.margin > 0 and job not in stuck]

    def begun(self, evaluator: Evaluator, examples: ExampleSet, rows: Sequence[int]) -> list[Job]:
        """Jobs for `rows`, with nothing cut."""
        jobs = [Job(row, int(examples.labels[row])) for row in rows]
        if self.look_ahead and jobs:
            for job, signal in zip(jobs, signals(evaluator, self.space, examples, rows, self.fill), strict=True):
                job.signal = signal
        return jobs

    def choose(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> list[int | None]:
        """The unit that each job would cut next, whether it has lost its label or not."""
        _, short = self._shortlist(evaluator, examples, jobs)
        now = self.population.on(evaluator.device).after([job.cut for job in jobs])
        chosen = self._best(now, short, torch.zeros_like(short.units, dtype=torch.bool))
        numbers = short.units.gather(1, chosen[:, None].clamp_min(0))[:, 0]
        return [None if place < 0 else unit for place, unit in zip(chosen.tolist(), numbers.tolist(), strict=True)]

    def _extended(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> list[Job]:
        """Add units to each job until the linear prediction loses its label, `plan` are added or the budget is spent.

        Returns:
            The jobs to which none could be added.
        """
        if not jobs:
            return []
        margins, short = self._shortlist(evaluator, examples, jobs)
        for job, value in zip(jobs, margins.nan_to_num(nan=torch.inf).tolist(), strict=True):
            job.margin = value if math.isnan(job.margin) else job.margin
        population = self.population.on(evaluator.device)
        now = population.after([job.cut for job in jobs])
        taken = torch.zeros_like(short.units, dtype=torch.bool)
        left, added = [job.margin for job in jobs], [0] * len(jobs)
        for _ in range(1 if self.look_ahead else self.plan):
            going = [n for n, job in enumerate(jobs) if left[n] > 0 and len(job.cut) < self.max_units]
            if not going:
                break
            rows = to_device(torch.tensor(going), evaluator.device)
            chosen = self._best(now[rows], short.of(rows), taken[rows])
            rows, chosen = rows[chosen >= 0], chosen[chosen >= 0]
            units, drops = short.units[rows, chosen], short.drops[rows, chosen]
            taken[rows, chosen] = True
            now[rows] -= population.effects[units]
            for n in set(going).difference(rows.tolist()):
                left[n] = -torch.inf
            for n, unit, drop in zip(rows.tolist(), units.tolist(), drops.tolist(), strict=True):
                jobs[n].cut.append(unit)
                left[n] -= drop
                added[n] += 1
        for job, count in zip(jobs, added, strict=True):
            job.needed = job.cut[-1] if count == 1 else None
        return [job for job, count in zip(jobs, added, strict=True) if not count and job.margin > 0]

    def _shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin, and the units that may be cut and take most of it, where the network computes."""
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]
        if self.look_ahead:
            margins, gradients = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill)
            drops, units = self._largest(cuts, self._tried(evaluator, examples, jobs, gradients.nan_to_num()))
            usual = [self.population.usual(job.label, own) for job, own in zip(jobs, units, strict=True)]
            gains, order = (drops.where(drops > 0, -torch.inf) - torch.stack(usual)).sort(descending=True)
            return margins, Shortlist(units.gather(1, order), drops.gather(1, order), gains).on(evaluator.device)

        def largest(chunk: slice, gradients: Tensor) -> Seen:
            return self._largest(cuts[chunk], gradients.nan_to_num())

        margins, drops, units = evaluator.mask_gradients(
            examples, rows, cuts, self.space, margin, self.fill, reduce=largest
        )
        # Cutting one that takes nothing would help the label.
        return margins, Shortlist(units, drops, drops.where(drops > 0, -torch.inf)).on(evaluator.device)

    def _largest(self, cuts: Sequence[Sequence[int]], drops: Tensor) -> tuple[Tensor, Tensor]:
        """The largest of `drops` `(jobs, total)` among units that may still be cut, and whose they are."""
        values, units = self._allowed(cuts, drops, -torch.inf).topk(min(SHORTLIST, self.space.total))
        return values, units

    def _tried(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job], gradients: Tensor) -> Tensor:
        """What ablating each unit was seen to take of each job's margin `(jobs, total)`; of the others minus infinity.

        Tried are those of the largest gradient, of either sign, times the unit's signal. A gradient can vanish where
        ablation does much, behind a unit that saturates what follows or at a GELU's least value, so the one with all
        units faded a little counts as well.
        """
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]
        given = torch.stack([job.signal for job in jobs if job.signal is not None])
        _, faded = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill, kept=FADED)
        allowed = self._allowed(cuts, (gradients.abs() + faded.nan_to_num().abs()) * given, -1.0)
        strength, units = allowed.topk(min(self.look_ahead, allowed.shape[1]))
        trials = [(n, int(u)) for n in range(len(jobs)) for u in units[n][strength[n] >= 0]]
        found = torch.full_like(gradients, -torch.inf)
        if not trials:
            return found
        cuts += [[*jobs[n].cut, u] for n, u in trials]
        rows += [jobs[n].row for n, _ in trials]
        margins = margin(evaluator.logits(examples, rows, cuts, self.space, self.fill), examples.labels[rows])
        own, units = torch.tensor(trials).T
        found[own, units] = margins[own] - margins[len(jobs) :]
        return found.nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def _best(self, now: Tensor, short: Shortlist, taken: Tensor) -> Tensor:
        """Where on each job's shortlist the unit is that takes most for the reference it puts at risk; -1: nowhere.

        Risks are worked out a few units at a time, best first, until no later one could be chosen.

        Args:
            now: `(jobs, R)` margins of the reference, as predicted for what is cut.
            taken: `(jobs, S)` what of the shortlist is cut already.
        """
        population = self.population.on(now.device)
        wrong = population.wrong(now)
        price = self.weight * population.typical
        best = torch.full_like(short.gains[:, 0], -torch.inf)
        chosen = torch.full_like(short.units[:, 0], -1)
        free = short.gains.masked_fill(taken, -torch.inf)
        first, size = 0, AT_ONCE
        while first < free.shape[1]:
            few = slice(first, first + size)
            # Not even by mending all that the cut has lost could a unit of the others have a better score.
            live = (short.gains[:, first] + price * (wrong - population.wrong_intact) > best).nonzero()[:, 0]
            if not len(live):
                break
            after = now[live, None] - population.effects[short.units[live, few]]
            scores = free[live, few] - price * (population.wrong(after) - wrong[live, None])
            top, place = scores.max(1)
            better = top > best[live]
            best[live[better]] = top[better]
            chosen[live[better]] = (first + place)[better]
            first, size = first + size, 2 * size
        return chosen

    def _allowed(self, cuts: Sequence[Sequence[int]], values: Tensor, otherwise: float) -> Tensor:
        """`values` `(jobs, total)` of the units that may still be cut, `otherwise` of all others."""
        allowed = values.masked_fill(to_device(~self.candidates, values.device), otherwise)
        return overwritten(allowed, cuts, otherwise)

    def _measured(
        self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job], lost: Sequence[Job]
    ) -> list[Job]:
        """Measure the margins of `jobs`, and restore of each lost job the unit without which its label is lost by most.

        One forward pass serves both. Most labels are lost at the first plan, and then nobody reads a gradient.

        Returns:
            Those of `lost` that need each of their units.
        """
        trials = [(j, u) for j in lost if len(j.cut) > 1 for u in j.cut if u != j.needed]
        cuts = [(j, j.cut) for j in jobs] + [(j, [c for c in j.cut if c != u]) for j, u in trials]
        if not cuts:
            return list(lost)
        rows = [job.row for job, _ in cuts]
        logits = evaluator.logits(examples, rows, [cut for _, cut in cuts], self.space, self.fill)
        margins = margin(logits, examples.labels[rows])
        scores = margins.masked_fill(
            ~torch.isfinite(margins), torch.inf
        ).tolist()  # nothing is lost that is not measured
        for job, score in zip(jobs, scores, strict=False):
            job.margin = score
        best: dict[Job, tuple[float, int]] = {}
        for (job, unit), score in zip(trials, scores[len(jobs) :], strict=True):
            if score <= 0 and (job not in best or score < best[job][0]):
                best[job] = (score, unit)
        for job, (_, unit) in best.items():
            job.cut.remove(unit)
        return [job for job in lost if job not in best]


def signals(
    evaluator: Evaluator, space: UnitSpace, examples: ExampleSet, rows: Sequence[int], fill: Sequence[Tensor] | None
) -> Tensor:
    """`(rows, total)`: the mean size of each unit's values, over the mean of its site; away from `fill`, if given."""

    def reduce(number: int, values: Tensor) -> tuple[Tensor]:
        site = space.sites[number]
        away = values if fill is None else values - fill[number].to(values)
        size = away.abs().mean(1, dtype=torch.promote_types(away.dtype, torch.float32))
        size = size.view(-1, site.copies, site.width, site.span).mean((1, 3))
        return (size / size.mean(1, keepdim=True),)

    _, seen = evaluator.observe(examples.subset(rows), space, reduce)
    return torch.cat([torch.cat([size for (size,) in site]) for site in seen], 1).nan_to_num()


def measure_population(
    evaluator: Evaluator,
    space: UnitSpace,
    reference: ExampleSet,
    rows: Sequence[int],
    fill: Sequence[Tensor] | None = None,
) -> Population:
    """Margins and per-unit effects of the reference examples `rows`, in one forward and one backward pass."""
    margins, gradients = evaluator.mask_gradients(reference, rows, [[]] * len(rows), space, margin, fill)
    return Population(margins, gradients.nan_to_num().T.contiguous(), reference.labels[list(rows)])
