"""Which units are worth cutting next, for each job of a batch: by the gradient of its margin, by trying them, or both.

A ranking gives each job's margin and a short list of units; the search weighs those against what they cost the
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from memaudit.audits.localize.job import Job, measured, record
from memaudit.audits.localize.population import Population
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Fill, Seen
from memaudit.network.units import UnitSpace, overwritten
from memaudit.system.memory import to_device

# Units with the largest effect on the flagged margin that are considered; the chosen one was always among them.
SHORTLIST = 64
# Mask of all units for the second gradient by which candidates are chosen. When labels were written into units, alone
# or by threes, 0.75 kept 99 % of these units among the first 256 on a ResNet-9 and a ViT; 0.5 kept 97 % on the ResNet.
FADED = 0.75


@dataclass(frozen=True)
class Shortlist:
    """The units that take most of each job's margin, `(jobs, S)`, best first.

    Attributes:
        units: their numbers.
        drops: what each takes of the margin.
        gains: what of that speaks for it; minus infinity: it must not be cut.
        unsure: a unit's gain may turn out to be less, once what it does to the reference was measured.
    """

    units: Tensor
    drops: Tensor
    gains: Tensor
    unsure: Tensor

    @classmethod
    def of_drops(cls, drops: Tensor, units: Tensor, less: Tensor, unsure: Tensor | None = None) -> Shortlist:
        """Of `units` and what each takes, `(jobs, S)`, that speaks for a unit which goes beyond `less`."""
        # Cutting one that takes nothing would help the label.
        gains = drops.where(drops > 0, -torch.inf) - less
        sure = torch.zeros_like(units, dtype=torch.bool)
        return cls(units, drops, gains, sure if unsure is None else unsure).sorted()

    def sorted(self) -> Shortlist:
        """The same, best first."""
        order = self.gains.argsort(dim=1, descending=True, stable=True)
        return Shortlist(*(t.gather(1, order) for t in self.fields))

    def lowered(self, places: tuple[Tensor, Tensor], less: Tensor) -> Shortlist:
        """The same with the gains at these `places`, jobs and numbers, lower by `less` `(n,)`, and sure."""
        gains = self.gains.index_put(places, self.gains[places] - to_device(less, self.gains.device))
        unsure = self.unsure.index_put(places, torch.zeros_like(self.unsure[places]))
        return replace(self, gains=gains, unsure=unsure).sorted()

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that is known, in the order of the attributes."""
        return self.units, self.drops, self.gains, self.unsure

    def joined(self, other: Shortlist) -> Shortlist:
        """Those of these jobs, and then of the others."""
        return Shortlist(*(torch.cat(pair) for pair in zip(self.fields, other.fields, strict=True)))

    def of(self, rows: Tensor) -> Shortlist:
        """Those of the jobs `rows`, `(n,)`."""
        return Shortlist(*(t[rows] for t in self.fields))

    def on(self, device: torch.device) -> Shortlist:
        """The same on `device`."""
        return Shortlist(*(to_device(t, device) for t in self.fields))


class UnitRanking(Protocol):
    """How a search finds the units to consider."""

    def begin(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> None:
        """Measure what later short lists need of new `jobs`."""

    def shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin `(jobs,)`, and the units that may be cut and take most of it, on the network's device."""

    def sure(self, evaluator: Evaluator, short: Shortlist, chosen: Tensor) -> tuple[Shortlist, list[int]]:
        """`short` with what `chosen` of it rests on measured, and the jobs of which something was; none: all is sure.

        Args:
            chosen: `(jobs, n)` places in the short list; -1: none.
        """


@dataclass(frozen=True)
class ByGradient:
    """Units by what the margin's gradient says that they take; one forward and one backward pass.

    Attributes:
        candidates: `(total,)` bool, the units that may be cut.
    """

    space: UnitSpace
    candidates: Tensor
    fill: Fill = None

    def begin(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> None:
        """Nothing is needed."""

    def shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin `(jobs,)`, and the units whose gradient says that they take most of it."""
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]

        def reduce(chunk: slice, gradients: Tensor) -> Seen:
            return largest(self.candidates, cuts[chunk], gradients.nan_to_num())

        margins, drops, units = evaluator.mask_gradients(
            examples, rows, cuts, self.space, margin, self.fill, reduce=reduce
        )
        return margins, Shortlist.of_drops(drops, units, torch.zeros_like(drops)).on(evaluator.device)

    def sure(self, evaluator: Evaluator, short: Shortlist, chosen: Tensor) -> tuple[Shortlist, list[int]]:
        """The gradient's word is taken."""
        return short, []


# Fast path; its slow twin: tests/twins.py.
@dataclass(frozen=True)
class ByTrial:
    """Units by what ablating each was seen to take, beyond what it usually takes of examples of that label.

    Attributes:
        candidates: `(total,)` bool, the units that may be cut.
        most: how many are ablated, one by one, for each job.
    """

    space: UnitSpace
    candidates: Tensor
    population: Population
    most: int
    fill: Fill = None

    def begin(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> None:
        """Each job's signals."""
        found = signals(evaluator, self.space, examples, [job.row for job in jobs], self.fill)
        for job, signal in zip(jobs, found, strict=True):
            job.signal = signal

    def shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin `(jobs,)`, and the units that were seen to take most of it."""
        margins, gradients = self.gradients(evaluator, examples, jobs)
        seen = self.trials(evaluator, examples, jobs, gradients).over(torch.full_like(gradients, -torch.inf))
        drops, units = largest(self.candidates, [job.cut for job in jobs], seen)
        usual = [self.population.usual(job.label, own) for job, own in zip(jobs, units, strict=True)]
        return margins, Shortlist.of_drops(drops, units, torch.stack(usual)).on(evaluator.device)

    def sure(self, evaluator: Evaluator, short: Shortlist, chosen: Tensor) -> tuple[Shortlist, list[int]]:
        """What was seen is sure."""
        return short, []

    def gradients(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Tensor]:
        """Each job's margin `(jobs,)`, and its gradient by each unit's mask `(jobs, total)`."""
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]
        margins, gradients = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill)
        if not evaluator.approximate:
            record([(job, job.cut) for job in jobs], margins)
        return margins, gradients.nan_to_num()

    def trials(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job], gradients: Tensor) -> Trials:
        """What ablating a few units was seen to take of each job's margin.

        Tried are those of the largest gradient `(jobs, total)`, of either sign, times the unit's signal. A gradient can
        vanish where ablation does much, behind a unit that saturates what follows or at a GELU's least value, so the
        one with all units faded a little counts as well.
        """
        given = torch.stack([job.signal for job in jobs if job.signal is not None])
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]
        _, faded = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill, kept=FADED)
        allowed = allowed_units(self.candidates, cuts, (gradients.abs() + faded.nan_to_num().abs()) * given, -1.0)
        strength, units = allowed.topk(min(self.most, allowed.shape[1]))
        found = [(n, int(u)) for n in range(len(jobs)) for u in units[n][strength[n] >= 0]]
        asked = [(job, job.cut) for job in jobs] + [(jobs[n], [*jobs[n].cut, unit]) for n, unit in found]
        margins = gradients.new_tensor(measured(evaluator, examples, asked, self.space, self.fill))
        own, units = torch.tensor(found, dtype=torch.long).reshape(-1, 2).T
        drops = margins[own] - margins[len(jobs) :]
        return Trials(own, units, drops.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf))


@dataclass(frozen=True)
class Trials:
    """Of each trial `(T,)` the place of its job, its unit, and what ablating that unit took of the job's margin."""

    jobs: Tensor
    units: Tensor
    drops: Tensor

    def over(self, values: Tensor) -> Tensor:
        """`values` `(jobs, total)` with what was seen in place of those of the units that were tried."""
        return values.index_put((self.jobs, self.units), self.drops.to(values))


# Fast path; its slow twin: tests/twins.py.
@dataclass(frozen=True)
class FirstByTrial:
    """The first units of a job by the gradient and by trials of a few, what is cut after them by the gradient.

    A unit that carries a label by itself saturates what follows it, and the intact network's gradient does not show it;
    once the first units are cut it does. Neither does the gradient show what such a unit does to the reference: that is
    measured on a few examples of it, and what goes beyond the prediction is taken off.

    Attributes:
        weight: exchange rate between flagged margin and reference risk.
    """

    trial: ByTrial
    gradient: ByGradient
    weight: float

    def begin(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> None:
        """Each job's signals."""
        self.trial.begin(evaluator, examples, jobs)

    def shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin `(jobs,)`, and the units that take most of it by trial or gradient, as far as is known.

        Only jobs that try units need their gradients whole; those of a large network are slow to move and to record.
        """
        new, begun = ([n for n, job in enumerate(jobs) if bool(job.cut) is cut] for cut in (False, True))
        if not new:
            return self.gradient.shortlist(evaluator, examples, jobs)
        margins, short = self._tried(evaluator, examples, [jobs[n] for n in new])
        if begun:
            others, further = self.gradient.shortlist(evaluator, examples, [jobs[n] for n in begun])
            back = torch.tensor(new + begun).argsort()
            margins = torch.cat([margins, others])[back]
            short = short.joined(further).of(to_device(back, evaluator.device))
        return margins, short

    def sure(self, evaluator: Evaluator, short: Shortlist, chosen: Tensor) -> tuple[Shortlist, list[int]]:
        """`short` with the hidden risk of all that was tried and is `chosen` taken off, and the jobs it concerns.

        A risk only makes a unit worse: what is chosen when all of it is sure would be chosen if everything were.
        """
        doubted = short.unsure.gather(1, chosen.clamp_min(0)) & (chosen >= 0)
        jobs, columns = doubted.nonzero(as_tuple=True)
        if not len(jobs):
            return short, []
        places = (jobs, chosen[jobs, columns])
        trial, population = self.trial, self.trial.population
        risk = population.hidden_risk(evaluator, trial.space, short.units[places].tolist(), trial.fill)
        return short.lowered(places, self.weight * population.typical * risk), sorted(set(jobs.tolist()))

    def _tried(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """The same of jobs of which nothing is cut."""
        trial = self.trial
        margins, gradients = trial.gradients(evaluator, examples, jobs)
        trials = trial.trials(evaluator, examples, jobs, gradients)
        drops, units = largest(trial.candidates, [job.cut for job in jobs], trials.over(gradients))
        tried = torch.zeros_like(gradients, dtype=torch.bool).index_put((trials.jobs, trials.units), torch.tensor(True))
        less = torch.zeros_like(drops)
        return margins, Shortlist.of_drops(drops, units, less, tried.gather(1, units)).on(evaluator.device)


def largest(candidates: Tensor, cuts: Sequence[Sequence[int]], drops: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of `drops` `(jobs, total)` among units that may still be cut, and whose they are."""
    values, units = allowed_units(candidates, cuts, drops, -torch.inf).topk(min(SHORTLIST, drops.shape[1]))
    return values, units


def allowed_units(candidates: Tensor, cuts: Sequence[Sequence[int]], values: Tensor, otherwise: float) -> Tensor:
    """`values` `(jobs, total)` of the units that may still be cut, `otherwise` of all others."""
    allowed = values.masked_fill(to_device(~candidates, values.device), otherwise)
    return overwritten(allowed, cuts, otherwise)


def signals(evaluator: Evaluator, space: UnitSpace, examples: ExampleSet, rows: Sequence[int], fill: Fill) -> Tensor:
    """`(rows, total)`: the mean size of each unit's values, over the mean of its site; away from `fill`, if given."""

    def reduce(number: int, values: Tensor) -> tuple[Tensor]:
        site = space.sites[number]
        away = values if fill is None else values - fill[number].to(values)
        size = away.abs().mean(1, dtype=torch.promote_types(away.dtype, torch.float32))
        size = size.view(-1, site.copies, site.width, site.span).mean((1, 3))
        return (size / size.mean(1, keepdim=True),)

    _, seen = evaluator.observe(examples.subset(rows), space, reduce)
    return torch.cat([torch.cat([size for (size,) in site]) for site in seen], 1).nan_to_num()
