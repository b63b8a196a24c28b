"""Searching the fewest units whose ablation makes the model lose a flagged label: batched, few gradients.

After the greedy search of Maini et al. 2023, section 4.3, with these changes: every example of a batch has its own
mask; the objective is the logit margin (the loss of a memorized example is flat); what a cut costs the reference is
predicted example by example and given the units already cut, not by the mean gradient; one gradient plans several
units, or, looking ahead, many candidates are ablated to choose one; and a finished set is reduced by restoring what it
does not need. Nothing here is believed: `controls` measures every set again, on reference examples the search never
saw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memaudit.data.examples import ExampleSet
from memaudit.evaluate import Evaluator, margin
from memaudit.units import UnitSpace

# Exchange rate between the flagged margin and the reference: one percentage point of reference accuracy at risk weighs
# as much as this many hundredths of a typical reference margin. On a CIFAR-10 ResNet-9, 15 and 50 gave 2.5 and 2.8
# units at a reference accuracy of 0.995 and 0.998 after the cut; the mean-gradient term gave 2.3 units at 0.978.
RISK_WEIGHT = 30.0
# Width of the step from right to wrong, in typical reference margins: how far the linear prediction is trusted.
RISK_SOFTNESS = 0.05
# Units with the largest effect on the flagged margin whose risk is worked out; the chosen one was always among them.
SHORTLIST = 64
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

    @property
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

    def risk(self, cut: Sequence[int], units: Tensor) -> Tensor:
        """Predicted share of the reference that each of `units` `(T,)`, cut on top of `cut`, turns wrong; `(T,)`."""
        now = self.after(cut)
        scale = RISK_SOFTNESS * self.typical
        return torch.sigmoid((self.effects[units] - now) / scale).mean(1) - torch.sigmoid(-now / scale).mean()


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


@dataclass
class Job:
    """One example under way: what is cut so far."""

    row: int
    cut: list[int] = field(default_factory=list)
    needed: int | None = None  # without this unit the label was seen to be kept
    signal: Tensor | None = None  # `(total,)` of `signals`, where the search looks ahead


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
        while waiting or active:
            room = range(min(len(waiting), evaluator.batch_size - len(active)))
            active += self.begun(evaluator, examples, [waiting.popleft() for _ in room])
            _, values, gradients = evaluator.mask_gradients(
                examples, [j.row for j in active], [j.cut for j in active], self.space, margin, self.fill
            )
            margins = values.nan_to_num(nan=torch.inf).tolist()
            if evaluator.approximate:
                margins = self._checked(evaluator, examples, active, margins)
            lost = [j for j, m in zip(active, margins, strict=True) if m < 0]
            for job in self._reduced(evaluator, examples, lost):
                yield Proposal(job.row, tuple(job.cut), erased=True)
            open_jobs = [n for n, m in enumerate(margins) if m >= 0]
            active = [active[n] for n in open_jobs]
            drops = self.drops(evaluator, examples, active, gradients.nan_to_num()[open_jobs])
            going: list[Job] = []
            for job, place, drop in zip(active, open_jobs, drops, strict=True):
                if self._extend(job, margins[place], drop, int(examples.labels[job.row])):
                    going.append(job)
                else:
                    yield Proposal(job.row, tuple(job.cut), erased=False)
            active = going

    def begun(self, evaluator: Evaluator, examples: ExampleSet, rows: Sequence[int]) -> list[Job]:
        """Jobs for `rows`, with nothing cut."""
        jobs = [Job(row) for row in rows]
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
        _, _, faded = evaluator.mask_gradients(examples, rows, cuts, self.space, margin, self.fill, kept=FADED)
        size = (gradients.abs() + faded.nan_to_num().abs()) * torch.stack(given)
        allowed = size.masked_fill(~self.candidates, -1.0)
        for number, job in enumerate(jobs):
            allowed[number, job.cut] = -1.0
        strength, units = allowed.topk(min(self.look_ahead, allowed.shape[1]))
        trials = [(n, int(u)) for n in range(len(jobs)) for u in units[n][strength[n] >= 0]]
        found = torch.full_like(gradients, -torch.inf)
        if not trials:
            return found
        cuts += [[*jobs[n].cut, u] for n, u in trials]
        rows += [jobs[n].row for n, _ in trials]
        margins = margin(evaluator.logits(examples, rows, cuts, self.space, self.fill), examples.labels[rows])
        places = torch.tensor(trials).T
        found[places[0], places[1]] = margins[places[0]] - margins[len(jobs) :]
        return found.nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def _checked(
        self, evaluator: Evaluator, examples: ExampleSet, jobs: list[Job], margins: list[float]
    ) -> list[float]:
        """Margins that say "lost", measured again in full precision."""
        lost = [n for n, m in enumerate(margins) if m < 0]
        rows = [jobs[n].row for n in lost]
        logits = evaluator.logits(examples, rows, [jobs[n].cut for n in lost], self.space, self.fill)
        if lost:
            exact = margin(logits, examples.labels[rows]).nan_to_num(nan=torch.inf).tolist()
            for n, value in zip(lost, exact, strict=True):
                margins[n] = value
        return margins

    def _extend(self, job: Job, value: float, drops: Tensor, label: int) -> bool:
        """Add units until the linear prediction loses the label, `plan` are added or the budget is spent."""
        added = 0
        most = 1 if self.look_ahead else self.plan
        while value >= 0 and added < most and len(job.cut) < self.max_units:
            unit = self.best(drops, job.cut, label)
            if unit is None:
                break
            value -= float(drops[unit])
            job.cut.append(unit)
            added += 1
        job.needed = job.cut[-1] if added == 1 else None
        return added > 0

    def best(self, drops: Tensor, cut: list[int], label: int) -> int | None:
        """The live unit that takes most of the flagged margin for the reference it puts at risk."""
        allowed = drops.masked_fill(~self.candidates, -torch.inf)
        allowed[cut] = -torch.inf
        drop, units = allowed.topk(min(SHORTLIST, len(allowed)))
        units = units[drop > 0]  # cutting any other one would help the label
        if not len(units):
            return None
        score = allowed[units] - self.weight * self.population.typical * self.population.risk(cut, units)
        if self.look_ahead:
            score -= self.population.usual(label, units)
        return int(units[score.argmax()])

    def _reduced(self, evaluator: Evaluator, examples: ExampleSet, jobs: list[Job]) -> list[Job]:
        """Restore, one at a time, every unit without which the label stays lost."""
        open_jobs = [j for j in jobs if len(j.cut) > 1]
        while open_jobs:
            trials = [(j, u) for j in open_jobs for u in j.cut if u != j.needed]
            logits = evaluator.logits(
                examples,
                [j.row for j, _ in trials],
                [[c for c in j.cut if c != u] for j, u in trials],
                self.space,
                self.fill,
            )
            labels = examples.labels[[j.row for j, _ in trials]]
            scores = margin(logits, labels).nan_to_num(nan=torch.inf).tolist()
            best: dict[int, tuple[float, int]] = {}
            for (job, unit), score in zip(trials, scores, strict=True):
                if score < 0 and (id(job) not in best or score < best[id(job)][0]):
                    best[id(job)] = (score, unit)
            open_jobs = [j for j in open_jobs if id(j) in best]
            for job in open_jobs:
                job.cut.remove(best[id(job)][1])
            open_jobs = [j for j in open_jobs if len(j.cut) > 1]
        return jobs


def signals(
    evaluator: Evaluator, space: UnitSpace, examples: ExampleSet, rows: Sequence[int], fill: Sequence[Tensor] | None
) -> Tensor:
    """`(rows, total)`: the mean size of each unit's values, over the mean of its site; away from `fill`, if given."""

    def reduce(number: int, values: Tensor) -> Tensor:
        site = space.sites[number]
        away = values if fill is None else values - fill[number].to(values)
        size = away.abs().mean(1, dtype=torch.promote_types(away.dtype, torch.float32))
        size = size.view(-1, site.copies, site.width, site.span).mean((1, 3))
        return (size / size.mean(1, keepdim=True)).cpu()

    _, seen = evaluator.observe(examples.subset(rows), space, reduce)
    return torch.cat([torch.cat(site) for site in seen], 1).nan_to_num()


def measure_population(
    evaluator: Evaluator,
    space: UnitSpace,
    reference: ExampleSet,
    rows: Sequence[int],
    fill: Sequence[Tensor] | None = None,
) -> Population:
    """Margins and per-unit effects of the reference examples `rows`, in one forward and one backward pass."""
    _, margins, gradients = evaluator.mask_gradients(reference, rows, [[]] * len(rows), space, margin, fill)
    return Population(margins, gradients.nan_to_num().T.contiguous(), reference.labels[list(rows)])
