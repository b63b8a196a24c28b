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

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memaudit.data.examples import ExampleSet
from memaudit.evaluate import Evaluator, margin
from memaudit.units import UnitSpace, places

# Exchange rate between the flagged margin and the reference: one percentage point of reference accuracy at risk weighs
# as much as this many hundredths of a typical reference margin. On a CIFAR-10 ResNet-9, 15 and 50 gave 2.5 and 2.8
# units at a reference accuracy of 0.995 and 0.998 after the cut; the mean-gradient term gave 2.3 units at 0.978.
RISK_WEIGHT = 30.0
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
        right = self.margins[self.margins > 0]
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

    def after(self, cut: Sequence[int]) -> Tensor:
        """Predicted margins `(R,)` with `cut` ablated."""
        return self.margins - self.effects[list(cut)].sum(0)

    def wrong(self, margins: Tensor) -> Tensor:
        """Share of the reference that is wrong at `margins` `(..., R)`, counted softly."""
        return (margins * (-1 / (RISK_SOFTNESS * self.typical))).sigmoid_().mean(-1)


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
        reference: `(R,)` margins of the reference examples then, as predicted.
        needed: without this unit the label was seen to be kept.
        signal: `(total,)` of `signals`, where the search looks ahead.
    """

    row: int
    label: int
    reference: Tensor
    cut: list[int] = field(default_factory=list)
    margin: float = math.nan
    needed: int | None = None
    signal: Tensor | None = None


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
            stuck += [job for job in active if job.margin >= 0 and len(job.cut) >= self.max_units]
            for job in (*stuck, *reduced):
                yield Proposal(job.row, tuple(job.cut), erased=job in reduced)
            lost = [job for job in lost if job not in reduced] + [job for job in active if job.margin < 0]
            active = [job for job in active if job.margin >= 0 and job not in stuck]

    def begun(self, evaluator: Evaluator, examples: ExampleSet, rows: Sequence[int]) -> list[Job]:
        """Jobs for `rows`, with nothing cut."""
        jobs = [Job(row, int(examples.labels[row]), self.population.margins) for row in rows]
        if self.look_ahead and jobs:
            for job, signal in zip(jobs, signals(evaluator, self.space, examples, rows, self.fill), strict=True):
                job.signal = signal
        return jobs

    def drops(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job], gradients: Tensor) -> Tensor:
        """What ablating each unit would take of each job's margin `(jobs, total)`: to first order, or measured.

        With `look_ahead`, that many units are measured and all others left out: those of the largest gradient, of
        either sign, times the unit's signal. A gradient can vanish where ablation does much, behind a unit that
        saturates what follows or at a GELU's least value, so the one with all units faded a little counts as well.
        """
        given = [job.signal for job in jobs if job.signal is not None]
        if not given:
            return gradients
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]
        _, faded = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill, kept=FADED)
        size = (gradients.abs() + faded.nan_to_num().abs()) * torch.stack(given)
        allowed = self._allowed(jobs, size, -1.0)
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

    def _extended(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> list[Job]:
        """Add units to each job until the linear prediction loses its label, `plan` are added or the budget is spent.

        Returns:
            The jobs to which none could be added.
        """
        if not jobs:
            return []
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]
        margins, gradients = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill)
        for job, value in zip(jobs, margins.nan_to_num(nan=torch.inf).tolist(), strict=True):
            job.margin = value if math.isnan(job.margin) else job.margin
        drops = self.drops(evaluator, examples, jobs, gradients.nan_to_num())
        gains, units = self.shortlist(jobs, drops)
        left, added = [job.margin for job in jobs], [0] * len(jobs)
        for _ in range(1 if self.look_ahead else self.plan):
            going = [n for n, job in enumerate(jobs) if left[n] >= 0 and len(job.cut) < self.max_units]
            for n, unit in zip(going, self.best([jobs[n] for n in going], gains[going], units[going]), strict=True):
                if unit is None:
                    left[n] = -torch.inf
                    continue
                self.add(jobs[n], unit)
                left[n] -= float(drops[n, unit])
                added[n] += 1
        for job, count in zip(jobs, added, strict=True):
            job.needed = job.cut[-1] if count == 1 else None
        return [job for job, count in zip(jobs, added, strict=True) if not count and job.margin >= 0]

    def add(self, job: Job, unit: int) -> None:
        job.cut.append(unit)
        job.reference = job.reference - self.population.effects[unit]

    def shortlist(self, jobs: Sequence[Job], drops: Tensor) -> tuple[Tensor, Tensor]:
        """Gains, largest first, and numbers of the units that may be cut and take most of each job's margin.

        Args:
            drops: `(jobs, total)`, what each unit takes of each job's margin.
        """
        gains, units = self._allowed(jobs, drops, -torch.inf).topk(min(SHORTLIST, self.space.total))
        gains = gains.where(gains > 0, -torch.inf)  # cutting any other one would help the label
        if self.look_ahead:
            usual = [self.population.usual(job.label, own) for job, own in zip(jobs, units, strict=True)]
            gains, order = (gains - torch.stack(usual)).sort(descending=True)
            units = units.gather(1, order)
        return gains, units

    def best(self, jobs: Sequence[Job], gains: Tensor, units: Tensor) -> list[int | None]:
        """Of each job's `shortlist` the live unit that takes most of its margin for the reference it puts at risk.

        Risks are worked out a few units at a time, best first, until no later one could be chosen.
        """
        if not jobs:
            return []
        cuts = pad_sequence([torch.tensor(job.cut, dtype=torch.long) for job in jobs], True, -1)
        free = gains.masked_fill((units[:, :, None] == cuts[:, None]).any(-1), -torch.inf)
        now = torch.stack([job.reference for job in jobs])
        wrong = self.population.wrong(now)
        price = self.weight * self.population.typical
        best = torch.full((len(jobs),), -torch.inf, dtype=gains.dtype)
        chosen = torch.full((len(jobs),), -1)
        first, size = 0, AT_ONCE
        while first < gains.shape[1]:
            few = slice(first, first + size)
            # Not even by mending all that is wrong could a unit of the others have a better score.
            live = (gains[:, first] + price * wrong > best).nonzero()[:, 0]
            if not len(live):
                break
            after = now[live, None] - self.population.effects[units[live, few]]
            scores = free[live, few] - price * (self.population.wrong(after) - wrong[live, None])
            top, place = scores.max(1)
            better = top > best[live]
            best[live[better]] = top[better]
            chosen[live[better]] = units[live, first + place][better]
            first, size = first + size, 2 * size
        return [None if unit < 0 else unit for unit in chosen.tolist()]

    def _allowed(self, jobs: Sequence[Job], values: Tensor, otherwise: float) -> Tensor:
        """`values` `(jobs, total)` of the units that may still be cut, `otherwise` of all others."""
        allowed = values.masked_fill(~self.candidates, otherwise)
        allowed[places([job.cut for job in jobs])] = otherwise
        return allowed

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
        scores = margin(logits, examples.labels[rows]).nan_to_num(nan=torch.inf).tolist()
        for job, score in zip(jobs, scores, strict=False):
            job.margin = score
        best: dict[Job, tuple[float, int]] = {}
        for (job, unit), score in zip(trials, scores[len(jobs) :], strict=True):
            if score < 0 and (job not in best or score < best[job][0]):
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
