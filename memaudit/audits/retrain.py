"""Layer retraining: one layer group put back to an early checkpoint and trained again on clean examples alone.

After Maini et al. 2023, section 3.3. If flagged labels come back although nobody shows them, the other layers hold
them and this one is redundant for them. Freezing is real here and is proven: every tensor outside the group is hashed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from memaudit.audits.base import ForLayer, Piece, Unfinished, Workload
from memaudit.audits.context import Context
from memaudit.engine.draws import generator_for
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.journal import Changing
from memaudit.engine.train import AdamW, Descent, changes_of
from memaudit.errors import BugError
from memaudit.findings import Retrain as Retrained
from memaudit.findings import RetrainEpoch
from memaudit.intervals import bootstrap_runs
from memaudit.network.layer_groups import LayerGroup, tensors_of
from memaudit.network.scoped import attributes, holding, needing_gradients, unchanged
from memaudit.network.states import State, digest
from memaudit.numbers import tidy
from memaudit.text import clean

# AdamW without decay at a rate that fits a layer of a CNN or a ViT in a few passes; both are in the report.
RATE = 1e-3
BATCH = 64
# The reference counts as fitted again within one point of the intact model.
BACK = 0.01
# A few dozen reference examples make few steps an epoch: the budget is never fewer steps than this.
LEAST_STEPS = 150


@dataclass(frozen=True)
class Epoch:
    """Accuracies after so many epochs; epoch 0 is the rewound group before any training."""

    epoch: int
    flagged: float
    reference: float
    matched: float | None


@dataclass(frozen=True)
class Retraining:
    """One seed's retraining of one group.

    Attributes:
        flagged: `(N,)` bool at the end, the flagged label is predicted; it was never shown.
        matched: the same for clean examples that were left out of the training; None without any.
        fitted: the reference is back within `BACK` of the intact model.
    """

    epochs: tuple[Epoch, ...]
    flagged: Tensor
    matched: Tensor | None
    fitted: bool


def retrain(
    evaluator: Evaluator,
    group: LayerGroup,
    start: State,
    flagged: Panel,
    reference: Panel,
    matched: Panel,
    *,
    target: float,
    epochs: int,
    generator: torch.Generator,
    rate: float = RATE,
) -> Retraining:
    """Train `group` from `start` on the reference until its accuracy is `target` less `BACK`, or `epochs` are over.

    BatchNorm of the group runs as in training, of all other groups as in evaluation; everything else too.

    Raises:
        BugError: a tensor outside the group changed.
    """
    module = evaluator.adapter.module
    tensors = tensors_of(module)
    outside = [n for n in tensors if n not in set(group.names)]

    def measure() -> tuple[list[tuple[int, float, float, float | None]], Tensor, Tensor | None, bool]:
        frozen = digest(module, outside)
        values = {n: start.tensors.get(n, tensors[n]).detach().clone() for n in group.names}
        history: list[tuple[int, float, float, float | None]] = []
        with holding(module, values), needing_gradients(module, group.names) as parameters:
            optimizer = AdamW(parameters.values(), rate)
            changing = changes_of(values, optimizer)
            for epoch in range(epochs + 1):
                if epoch:
                    _train(evaluator, group, reference, optimizer, generator, changing)
                seen = [evaluator.predicted(panel) for panel in (flagged, reference, matched)]
                shares = [float(s.float().mean()) if len(s) else None for s in seen]
                history.append((epoch, shares[0] or 0.0, shares[1] or 0.0, shares[2]))
                fitted = (shares[1] or 0.0) >= target - BACK
                if fitted:
                    break
            if digest(module, outside) != frozen:
                raise BugError(f"retraining {clean(group.layer)} changed a tensor outside of it")
        return history, seen[0], seen[2] if len(matched) else None, fitted

    name = f"retrain {group.layer} {generator.initial_seed()}"
    history, on_flagged, on_matched, fitted = evaluator.once(name, measure)
    return Retraining(tuple(Epoch(*one) for one in history), on_flagged, on_matched, fitted)


@dataclass(frozen=True)
class Retrainings(Work[Retraining]):
    """Every group with every seed; its numbers are `len(seeds) * group + seed`.

    Attributes:
        start: the checkpoint that a group is put back to.
        target, epochs: as for `retrain`.
        seeds: of the runs.
        deadline: seconds since the epoch; no further run is begun after it.
    """

    groups: Sequence[LayerGroup]
    start: State
    flagged: Panel
    reference: Panel
    matched: Panel
    target: float
    epochs: int
    seeds: Sequence[int]
    deadline: float
    alone: ClassVar[bool] = True

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, Retraining]]:
        """As `Work`."""
        for place in rows:
            if time.time() > self.deadline:
                return
            number, seed = divmod(place, len(self.seeds))
            group = self.groups[number]
            generator = generator_for(self.seeds[seed], "retrain", group.layer)
            found = retrain(
                evaluator, group, self.start, self.flagged, self.reference, self.matched,
                target=self.target, epochs=self.epochs, generator=generator,
            )  # fmt: skip
            yield place, found

    def plain(self, found: Retraining) -> Any:
        """As `Work.plain`."""
        return [[astuple(one) for one in found.epochs], found.flagged, found.matched, found.fitted]

    def found(self, plain: Any) -> Retraining:
        """As `Work.found`."""
        epochs, flagged, matched, fitted = plain
        return Retraining(tuple(Epoch(*one) for one in epochs), flagged, matched, fitted)


def _train(
    evaluator: Evaluator,
    group: LayerGroup,
    reference: Panel,
    optimizer: AdamW,
    generator: torch.Generator,
    changing: Changing,
) -> None:
    """One pass over the reference in a new order."""
    order = torch.randperm(len(reference), generator=generator).tolist()
    if len(order) > BATCH and len(order) % BATCH == 1:
        order.pop()  # BatchNorm cannot train on a single example

    with attributes(own_norms(evaluator.adapter.module, group), training=True):
        rows = [reference.rows[i] for i in order]
        evaluator.each(reference.examples, rows, Descent(optimizer), batch=BATCH, backward=1, changing=changing)


def own_norms(module: nn.Module, group: LayerGroup) -> list[nn.Module]:
    """The BatchNorm modules whose statistics belong to `group`."""
    owned = set(group.names)
    return [m for p, m in module.named_modules() if isinstance(m, _BatchNorm) and f"{p}.running_mean" in owned]


class Retrain:
    """Layer retraining: every layer group, from the first checkpoint, with several seeds."""

    name = "retrain"

    def passes(self, size: Workload) -> float:
        """Retraining stops after about half its budget of epochs."""
        rows = 2 * min(size.fitted, size.profile.flagged_rows) + min(size.reference, size.profile.reference_rows)
        trained = min(size.reference, size.profile.retrain_rows)
        return size.groups * size.profile.retrain_seeds * size.profile.retrain_epochs / 2 * (3 * trained + rows)

    def pieces(self, size: Workload) -> int:
        """One a run."""
        return size.groups * size.profile.retrain_seeds

    def run(self, context: Context) -> Iterator[Piece]:
        """`retrain` of every layer group.

        Raises:
            BugError: a tensor outside the group changed.
        """
        if context.late:
            yield Unfinished("layer retraining not done")
            return
        evaluator, panels, groups = context.evaluator, context.panels, context.groups
        seeds = range(context.seed, context.seed + context.profile.retrain_seeds)
        training = panels.training
        budget = max(context.profile.retrain_epochs, -(-LEAST_STEPS // -(-len(training) // BATCH)))
        with evaluator.counting(self.name):
            before = float(evaluator.predicted(training).float().mean())
        work = Retrainings(
            groups, context.states[0], panels.flagged, training, panels.matched,
            before, budget, seeds, context.deadline,
        )  # fmt: skip
        steps, found = len(groups) * len(seeds), dict[int, Retraining]()
        with (
            unchanged(evaluator.adapter.module, "layer retraining"),
            context.stage("retrain", steps, own_steps=True),
        ):
            for place, one in evaluator.engine.each(evaluator, work, range(steps)):
                found[place] = one
                context.progress.advance()
        for number, group in enumerate(groups):
            runs = [found.get(len(seeds) * number + place) for place in range(len(seeds))]
            whole = [run for run in runs if run is not None]
            if len(whole) < len(seeds):
                yield Unfinished(f"retraining {group.layer} not done")
            else:
                yield ForLayer(number, "retrain", _summed(context, whole, before, budget))


def _summed(context: Context, runs: Sequence[Retraining], before: float, budget: int) -> Retrained:
    """All seeds of one group together."""
    flagged = [run.flagged.float().tolist() for run in runs]
    matched = [run.matched.float().tolist() for run in runs if run.matched is not None]
    low, high = bootstrap_runs(flagged, context.seed)
    clean = bootstrap_runs(matched, context.seed) if matched else (None, None)
    last = [run.epochs[-1] for run in runs]
    return Retrained(
        checkpoint=context.states[0].label,
        flagged=tidy(_average([e.flagged for e in last])),
        low=tidy(low),
        high=tidy(high),
        reference=tidy(_average([e.reference for e in last])),
        matched=tidy(_average([sum(m) / len(m) for m in matched])) if matched else None,
        matched_low=None if clean[0] is None else tidy(clean[0]),
        matched_high=None if clean[1] is None else tidy(clean[1]),
        reference_before=tidy(before),
        fitted=all(run.fitted for run in runs),
        seeds=list(range(context.seed, context.seed + len(runs))),
        epochs=_epochs(runs),
        budget=budget,
        rate=RATE,
        examples=len(context.panels.training),
    )


def _epochs(runs: Sequence[Retraining]) -> list[RetrainEpoch]:
    """Epoch by epoch, the mean over seeds; a seed that was done earlier stays where it was."""
    longest = max(len(run.epochs) for run in runs)
    rows = []
    for number in range(longest):
        now = [run.epochs[min(number, len(run.epochs) - 1)] for run in runs]
        matched = [e.matched for e in now if e.matched is not None]
        rows.append(
            RetrainEpoch(
                epoch=number,
                flagged=tidy(_average([e.flagged for e in now])),
                reference=tidy(_average([e.reference for e in now])),
                matched=tidy(_average(matched)) if matched else None,
            )
        )
    return rows


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean(values: Tensor) -> float | None:
    return tidy(min(1.0, float(values.double().mean()))) if len(values) else None
