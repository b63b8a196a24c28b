"""Layer rewinding: one layer group put back to an earlier checkpoint, everything else as it is.

After Zhang et al. 2022 ("Are all layers created equal?") and Maini et al. 2023, section 3.2. The grid of groups and
checkpoints runs batch by batch, so that what ran before the rewound group is computed once per batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from memaudit.adapters.base import Adapter
from memaudit.audits.base import ForLayer, Piece, Unfinished, Workload
from memaudit.audits.context import Context
from memaudit.audits.panels import mean_or_none
from memaudit.engine.answers import margin, predicted
from memaudit.engine.batchnorm import CALIBRATION, CALIBRATION_BATCH, estimating, norms, unset, whole_batches
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.journal import Changing
from memaudit.errors import PremiseBroken
from memaudit.findings import RewindPoint
from memaudit.intervals import bootstrap
from memaudit.network.layer_groups import LayerGroup, tensors_of
from memaudit.network.replay import Replayer
from memaudit.network.scoped import holding, unchanged
from memaudit.network.states import State
from memaudit.numbers import tidy

Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Grid:
    """Right answers `(groups, checkpoints, N)` bool per panel; `recalibrated` where the network has BatchNorm.

    Attributes:
        replayed: per group, whether its cells started in the middle of the network.
    """

    right: list[Tensor]
    recalibrated: list[Tensor] | None
    replayed: tuple[bool, ...]


# Fast path; its slow twin: tests/twins.py.
def rewind(
    evaluator: Evaluator,
    groups: Sequence[LayerGroup],
    states: Sequence[State],
    panels: Sequence[Panel],
    calibration: Panel | None = None,
) -> Grid:
    """Every cell of the grid: `groups[g]` at `states[c]`, all else intact.

    Args:
        calibration: clean examples that BatchNorm statistics from the rewound group on are re-estimated on, for a
            second grid; None leaves it out.
    """
    module = evaluator.adapter.module
    replayer = Replayer(module, evaluator.adapter.forward, [g.names for g in groups])
    right = [_grid(evaluator, replayer, groups, states, panel, None) for panel in panels]
    recalibrated = None
    if calibration is not None and norms(module):
        count = len(states)
        flat = evaluator.once(
            "recalibration",
            lambda: list(_recalibrated(evaluator, replayer, groups, states, calibration).values()),
        )
        buffers = {
            divmod(number, count): {n: t.to(evaluator.device) for n, t in cell.items()}
            for number, cell in enumerate(flat)
        }
        recalibrated = [_grid(evaluator, replayer, groups, states, panel, buffers) for panel in panels]
    return Grid(right, recalibrated, tuple(bool(t) for t in replayer.trusted))


def check_controls(evaluator: Evaluator, groups: Sequence[LayerGroup], states: Sequence[State], panel: Panel) -> None:
    """Rewinding all groups must be the checkpoint, and rewinding to the model must change nothing; on a few examples.

    Two runs of the same numbers from other places in memory may differ in the last bits: so may these.

    Raises:
        PremiseBroken: a logit differs by more than twice what such runs differ by; by one bit where they do not.
    """
    rows, module = list(panel.rows[:8]), evaluator.adapter.module

    def logits(values: Mapping[str, Tensor]) -> Tensor:
        with holding(module, values):
            return evaluator.logits(panel.examples, rows)

    intact = logits({})
    moved = logits({name: tensor.detach().clone() for name, tensor in tensors_of(module).items()})
    for state in states:
        whole = logits(state.tensors)
        every = {name: value for group in groups for name, value in state.part(group.names).items()}
        if len(every) != len(state.tensors):
            continue
        again = logits({name: value.clone() for name, value in every.items()})
        equal_runs = max(_gap(intact, moved), _gap(whole, again))
        gap = _gap(logits(every), intact if state.final else whole)
        if not gap <= 2 * equal_runs:
            raise PremiseBroken(
                f"rewinding every layer group to {state.label} does not give that checkpoint's logits: they differ by "
                f"{gap:.2g}, two equal runs by {equal_runs:.2g}",
                hint="the model keeps weights or state outside its parameters and buffers; leave out --audit rewind",
            )


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


@dataclass(frozen=True)
class Cells:
    """A pass: right answers `(groups, checkpoints, n)` bool, each group at each checkpoint, all else intact.

    The network is as it was after each batch.
    """

    replayer: Replayer
    groups: Sequence[LayerGroup]
    states: Sequence[State]
    buffers: Mapping[tuple[int, int], Buffers] | None

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        cells = torch.empty(len(self.groups), len(self.states), len(inputs), dtype=torch.bool)
        with torch.no_grad():
            intact = _right(self.replayer.start(inputs), labels)
            for g, group in enumerate(self.groups):
                for c, state in enumerate(self.states):
                    if state.final and self.buffers is None:
                        cells[g, c] = intact
                        continue
                    statistics = self.buffers[g, c] if self.buffers else {}
                    with holding(network.module, {**state.part(group.names), **statistics}):
                        cells[g, c] = _right(self.replayer.run(g, inputs), labels)
        return cells


@dataclass(frozen=True)
class Recalibrate:
    """A pass: the statistics of `later` BatchNorms go on being averaged, for each group at each checkpoint.

    Attributes:
        cells: the statistics, by group and checkpoint.
        later: by group, the modules that run at or after it.
    """

    replayer: Replayer
    groups: Sequence[LayerGroup]
    states: Sequence[State]
    cells: Mapping[tuple[int, int], Buffers]
    later: Sequence[Mapping[str, _BatchNorm]]

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            self.replayer.start(inputs)
            for g, group in enumerate(self.groups):
                for c, state in enumerate(self.states):
                    values = {**state.part(group.names), **self.cells[g, c]}
                    with holding(network.module, values), estimating(self.later[g].values()):
                        self.replayer.run(g, inputs)


def _grid(
    evaluator: Evaluator,
    replayer: Replayer,
    groups: Sequence[LayerGroup],
    states: Sequence[State],
    panel: Panel,
    buffers: Mapping[tuple[int, int], Buffers] | None,
) -> Tensor:
    passes = 1 + len(groups) * sum(not s.final or buffers is not None for s in states)
    return torch.cat(
        evaluator.each(panel.examples, panel.rows, Cells(replayer, groups, states, buffers), forward=passes), dim=2
    )


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return predicted(margin(logits, labels)).cpu()


def _recalibrated(
    evaluator: Evaluator,
    replayer: Replayer,
    groups: Sequence[LayerGroup],
    states: Sequence[State],
    panel: Panel,
) -> dict[tuple[int, int], Buffers]:
    """Per cell, the statistics of every BatchNorm that runs at or after the rewound group: plain means over batches."""
    modules = norms(replayer.module)
    if replayer.plan is None:
        # Resumed with all grids in the journal: whether replays hold is tried here, and not below.
        few = list(panel.rows[:2])
        labels = panel.examples.labels[few].to(evaluator.device)
        Cells(replayer, groups, states, None)(evaluator.adapter, evaluator.inputs(panel.examples, few), labels)
    use = replayer.plan.first_use if replayer.plan else {}
    cells: dict[tuple[int, int], Buffers] = {}
    later: list[dict[str, _BatchNorm]] = []
    for g, group in enumerate(groups):
        start = min((use[n] for n in group.names if n in use), default=0)
        later.append({p: m for p, m in modules.items() if use.get(f"{p}.running_mean", start) >= start})
        for c in range(len(states)):
            cells[g, c] = unset(later[g])
    rows = whole_batches(panel.rows)

    def load(values: Mapping[str, Tensor]) -> None:
        for name, tensor in changed().items():
            tensor.copy_(values[name])

    def changed() -> dict[str, Tensor]:
        return {f"{g} {c} {name}": tensor for (g, c), cell in cells.items() for name, tensor in cell.items()}

    passes = 1 + len(groups) * len(states)
    changing = Changing(changed, load)
    work = Recalibrate(replayer, groups, states, cells, later)
    evaluator.each(panel.examples, rows, work, batch=CALIBRATION_BATCH, forward=passes, changing=changing)
    return cells


class Rewind:
    """Layer rewinding: every layer group at every checkpoint, all else as it is."""

    name = "rewind"

    def passes(self, size: Workload) -> float:
        """A replayed cell is half a pass."""
        rows = 2 * min(size.fitted, size.profile.flagged_rows) + min(size.reference, size.profile.reference_rows)
        return 0.5 * size.groups * size.states * (2 * rows + CALIBRATION)

    def pieces(self, size: Workload) -> int:
        """One a batch of each panel; statistics are averaged batch after batch."""
        return -(-2 * min(size.fitted, size.profile.flagged_rows) // size.batch)

    def run(self, context: Context) -> Iterator[Piece]:
        """`rewind` of every layer group.

        Raises:
            PremiseBroken: putting a checkpoint in place does not give that checkpoint.
        """
        if context.late:
            yield Unfinished("layer rewinding not done")
            return
        evaluator, states, panels = context.evaluator, context.states, context.panels.by_name
        calibration = Panel(context.reference, context.panels.reference.rows[:CALIBRATION])
        with unchanged(evaluator.adapter.module, "layer rewinding"):
            with evaluator.counting(self.name):
                check_controls(evaluator, context.groups, states, context.panels.reference)
            with context.stage("rewind", sum(map(len, panels.values())), intact=True):
                grid = rewind(evaluator, context.groups, states, list(panels.values()), calibration)
        for g in range(len(context.groups)):
            points = [_point(grid, list(panels), (g, c), state.label, context.seed) for c, state in enumerate(states)]
            yield ForLayer(g, "rewind", points)


def _point(grid: Grid, names: Sequence[str], cell: tuple[int, int], checkpoint: str, seed: int) -> RewindPoint:
    """One cell of the grid, whose panels are called `names`."""
    plain = {name: right[cell] for name, right in zip(names, grid.right, strict=True)}
    low, high = bootstrap(plain["flagged"].float().tolist(), seed)
    values: dict[str, float | None] = {}
    if grid.recalibrated is not None:
        second = {name: right[cell] for name, right in zip(names, grid.recalibrated, strict=True)}
        again = bootstrap(second["flagged"].float().tolist(), seed)
        values = {
            "flagged_recalibrated": mean_or_none(second["flagged"]),
            "recalibrated_low": tidy(again[0]),
            "recalibrated_high": tidy(again[1]),
            "reference_recalibrated": mean_or_none(second["reference"]),
            "matched_recalibrated": mean_or_none(second["matched"]) if "matched" in second else None,
        }
    return RewindPoint(
        checkpoint=checkpoint,
        flagged=mean_or_none(plain["flagged"]) or 0.0,
        flagged_low=tidy(low),
        flagged_high=tidy(high),
        reference=mean_or_none(plain["reference"]) or 0.0,
        matched=mean_or_none(plain["matched"]) if "matched" in plain else None,
        **values,
    )
