"""Searching the fewest units whose ablation makes the model lose a flagged label: batched, few gradients.

After the greedy search of Maini et al. 2023, section 4.3, with these changes: every example of a batch has its own
mask; the objective is the logit margin (the loss of a memorized example is flat); what a cut costs the reference is
predicted example by example and given the units already cut, not by the mean gradient; one gradient plans several
units, the first of them after a few candidates were ablated, or, looking ahead, many are ablated to choose each one;
and a finished set is reduced by restoring what it does not need. Nothing here is believed: `controls` measures every
set again, on reference examples the search never saw.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from memaudit.audits.localize.job import Job, Proposal, measured
from memaudit.audits.localize.population import Population
from memaudit.audits.localize.ranking import ByGradient, ByTrial, FirstByTrial, Shortlist, UnitRanking
from memaudit.data.examples import ExampleSet
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Fill
from memaudit.network.units import UnitSpace
from memaudit.system.memory import to_device

# Exchange rate between the flagged margin and the reference: one percentage point of reference accuracy at risk weighs
# as much as this many hundredths of a typical reference margin. Of 750 labels of a CIFAR-10 ResNet-9 710 are localized,
# by 3.1 units, at a reference accuracy of 0.994 after the cut; with 40 and by gradients 714, by 3.2 units, at 0.992.
RISK_WEIGHT = 60.0
# How many of those are weighed in the first go; then twice as many each time.
AT_ONCE = 4
# Units planned from one gradient before the network is asked again; 4 cost half the passes of 1 and 3 % more units.
PLAN = 4


# Fast path; its slow twin: tests/twins.py.
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
        look_first: as many before the first units are chosen, where it does not look ahead for each.
    """

    space: UnitSpace
    candidates: Tensor
    population: Population
    max_units: int
    weight: float = RISK_WEIGHT
    plan: int = PLAN
    fill: Fill = None
    look_ahead: int = 0
    look_first: int = 0

    @cached_property
    def ranking(self) -> UnitRanking:
        """How candidates are found."""
        gradient = ByGradient(self.space, self.candidates, self.fill)
        if not (tried := self.look_ahead or self.look_first):
            return gradient
        trial = ByTrial(self.space, self.candidates, self.population, tried, self.fill)
        return trial if self.look_ahead else FirstByTrial(trial, gradient, self.weight)

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
            active += [Job(row, int(examples.labels[row])) for row in (waiting.popleft() for _ in room)]
            stuck = self.extended(evaluator, examples, active)
            active = [job for job in active if job not in stuck]
            reduced = self._measured(evaluator, examples, active, lost)
            stuck += [job for job in active if job.margin > 0 and len(job.cut) >= self.max_units]
            for job in (*stuck, *reduced):
                yield Proposal(job.row, tuple(job.cut), erased=job in reduced)
            lost = [job for job in lost if job not in reduced] + [job for job in active if job.margin <= 0]
            active = [job for job in active if job.margin > 0 and job not in stuck]

    def extended(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> list[Job]:
        """Add units to each job until the linear prediction loses its label, `plan` are added or the budget is spent.

        Returns:
            The jobs to which none could be added.
        """
        if not jobs:
            return []
        margins, short = self.ranking.shortlist(evaluator, examples, jobs)
        for job, value in zip(jobs, margins.nan_to_num(nan=torch.inf).tolist(), strict=True):
            job.margin = value if math.isnan(job.margin) else job.margin
        planned = torch.full((len(jobs), 1 if self.look_ahead else self.plan), -1, device=evaluator.device)
        going = list(range(len(jobs)))
        while going:
            rows = to_device(torch.tensor(going), evaluator.device)
            planned[rows] = self._planned([jobs[n] for n in going], short.of(rows), planned[rows])
            short, going = self.ranking.sure(evaluator, short, planned)
        units = short.units.gather(1, planned.clamp_min(0)).masked_fill(planned < 0, -1)
        stuck = []
        for job, chosen in zip(jobs, units.tolist(), strict=True):
            added = [unit for unit in chosen if unit >= 0]
            job.cut += added
            stuck += [job] if not added and job.margin > 0 else []
        return stuck

    def _planned(self, jobs: Sequence[Job], short: Shortlist, places: Tensor) -> Tensor:
        """Where on the short list of each job the units are that it is to cut next, like `places`; -1: no more."""
        population = self.population.on(places.device)
        now = population.after([job.cut for job in jobs])
        taken = torch.zeros_like(short.units, dtype=torch.bool)
        places = torch.full_like(places, -1)
        left = [job.margin for job in jobs]
        for step in range(places.shape[1]):
            going = [n for n, job in enumerate(jobs) if left[n] > 0 and len(job.cut) + step < self.max_units]
            if not going:
                break
            rows = to_device(torch.tensor(going), places.device)
            chosen = self._best(now[rows], short.of(rows), taken[rows])
            rows, chosen = rows[chosen >= 0], chosen[chosen >= 0]
            places[rows, step] = chosen
            taken[rows, chosen] = True
            now[rows] -= population.effects[short.units[rows, chosen]]
            for n in set(going).difference(rows.tolist()):
                left[n] = -torch.inf
            for n, drop in zip(rows.tolist(), short.drops[rows, chosen].tolist(), strict=True):
                left[n] -= drop
        return places

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

    def _measured(
        self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job], lost: Sequence[Job]
    ) -> list[Job]:
        """Measure the margins of `jobs`, and restore of each lost job the unit without which its label is lost by most.

        One forward pass serves both, of what was not measured before. Most labels are lost at the first plan, and then
        nobody reads a gradient.

        Returns:
            Those of `lost` that need each of their units.
        """
        trials = [
            (job, unit, less)
            for job in lost
            if len(job.cut) > 1
            for unit in job.cut
            if not job.kept(less := [u for u in job.cut if u != unit])
        ]
        cuts = [(job, job.cut) for job in jobs] + [(job, less) for job, _, less in trials]
        scores = measured(evaluator, examples, cuts, self.space, self.fill)
        for job, score in zip(jobs, scores, strict=False):
            job.margin = score
        best: dict[Job, tuple[float, int]] = {}
        for (job, unit, _), score in zip(trials, scores[len(jobs) :], strict=True):
            if score <= 0 and (job not in best or score < best[job][0]):
                best[job] = (score, unit)
        for job, (_, unit) in best.items():
            job.cut.remove(unit)
        return [job for job in lost if job not in best]


@dataclass(frozen=True)
class Searching(Work[Proposal]):
    """A search alone, of rows of `examples`."""

    search: Search
    examples: ExampleSet

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, Proposal]]:
        """As `Work`: the proposal for each row."""
        return ((proposal.row, proposal) for proposal in self.search.run(evaluator, self.examples, rows))

    def plain(self, found: Proposal) -> Any:
        """As `Work.plain`."""
        return [found.row, found.cut, found.erased]

    def found(self, plain: Any) -> Proposal:
        """As `Work.found`."""
        row, cut, erased = plain
        return Proposal(row, tuple(cut), erased)
