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
from memaudit.audits.localize.promising import SHORTLIST, Promising, largest
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Fill, Seen
from memaudit.network.units import UnitSpace
from memaudit.system.memory import to_device


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

    def shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin `(jobs,)`, and the units that were seen to take most of it."""
        looked = self.looked(evaluator, examples, jobs)
        drops, order = looked.drops.topk(min(SHORTLIST, looked.drops.shape[1]))
        units = looked.units.gather(1, order)
        usual = [self.population.usual(job.label, own) for job, own in zip(jobs, units, strict=True)]
        return looked.margins, Shortlist.of_drops(drops, units, torch.stack(usual)).on(evaluator.device)

    def sure(self, evaluator: Evaluator, short: Shortlist, chosen: Tensor) -> tuple[Shortlist, list[int]]:
        """What was seen is sure."""
        return short, []

    def looked(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> Looked:
        """What ablating a few units was seen to take of each job's margin, and what the gradient says of others."""
        rows, cuts = [job.row for job in jobs], [job.cut for job in jobs]

        def at(chunk: slice) -> Promising:
            size, dtype = chunk.stop - chunk.start, evaluator.gradient_dtype
            return Promising(size, self.space, cuts[chunk], self.candidates, self.most, self.fill, dtype)

        margins, units, strength, others, told = evaluator.gathered(examples, rows, at, forward=3, backward=2)
        if not evaluator.approximate:
            record([(job, job.cut) for job in jobs], margins)
        own, places = (strength >= 0).nonzero(as_tuple=True)
        found = zip(own.tolist(), units[own, places].tolist(), strict=True)
        asked = [(job, job.cut) for job in jobs] + [(jobs[n], [*jobs[n].cut, unit]) for n, unit in found]
        seen = margins.new_tensor(measured(evaluator, examples, asked, self.space, self.fill))
        taken = (seen[own] - seen[len(jobs) :]).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        drops = torch.full_like(strength, -torch.inf, dtype=taken.dtype).index_put((own, places), taken)
        return Looked(margins, units, drops, others, told.to(drops))


@dataclass(frozen=True)
class Looked:
    """Of each job its margin `(jobs,)`, the units that were tried and what each took of it `(jobs, most)`.

    Attributes:
        drops: minus infinity where nothing was measured.
        others, told: further units `(jobs, S)`, and what the gradient says that they take.
    """

    margins: Tensor
    units: Tensor
    drops: Tensor
    others: Tensor
    told: Tensor


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

    def shortlist(self, evaluator: Evaluator, examples: ExampleSet, jobs: Sequence[Job]) -> tuple[Tensor, Shortlist]:
        """Each job's margin `(jobs,)`, and the units that take most of it by trial or gradient, as far as is known."""
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
        looked = self.trial.looked(evaluator, examples, jobs)
        both = torch.cat([looked.drops, looked.told], 1)
        drops, order = both.topk(min(SHORTLIST, both.shape[1]))
        units = torch.cat([looked.units, looked.others], 1).gather(1, order)
        unsure = order < looked.units.shape[1]
        return looked.margins, Shortlist.of_drops(drops, units, torch.zeros_like(drops), unsure).on(evaluator.device)
