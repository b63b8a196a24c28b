"""Layer rewinding: one layer group put back to an earlier checkpoint, everything else as it is.

After Zhang et al. 2022 ("Are all layers created equal?") and Maini et al. 2023, section 3.2. The grid of groups and
checkpoints runs batch by batch, so that what ran before the rewound group is computed once per batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from memaudit.engine.answers import margin, predicted
from memaudit.engine.batchnorm import CALIBRATION_BATCH, estimating, norms, unset, whole_batches
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.journal import Changing
from memaudit.errors import PremiseBroken
from memaudit.network.layer_groups import LayerGroup
from memaudit.network.replay import Replayer
from memaudit.network.states import State, holding

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

    Raises:
        PremiseBroken: one bit of a logit differs.
    """
    rows = list(panel.rows[:8])
    intact = evaluator.logits(panel.examples, rows)
    for state in states:
        with holding(evaluator.adapter.module, state.tensors):
            whole = evaluator.logits(panel.examples, rows)
        every = {name: value for group in groups for name, value in state.part(group.names).items()}
        with holding(evaluator.adapter.module, every):
            together = evaluator.logits(panel.examples, rows)
        expected = intact if state.final else whole
        if not torch.equal(together, expected) and len(every) == len(state.tensors):
            raise PremiseBroken(
                f"rewinding every layer group to {state.label} does not give that checkpoint's logits",
                hint="the model keeps weights or state outside its parameters and buffers; leave out --audit rewind",
            )


def _grid(
    evaluator: Evaluator,
    replayer: Replayer,
    groups: Sequence[LayerGroup],
    states: Sequence[State],
    panel: Panel,
    buffers: Mapping[tuple[int, int], Buffers] | None,
) -> Tensor:
    module = replayer.module

    def body(images: Tensor, labels: Tensor) -> Tensor:
        cells = torch.empty(len(groups), len(states), len(images), dtype=torch.bool)
        with torch.no_grad():
            intact = _right(replayer.start(images), labels)
            for g, group in enumerate(groups):
                for c, state in enumerate(states):
                    if state.final and buffers is None:
                        cells[g, c] = intact
                        continue
                    with holding(module, {**state.part(group.names), **(buffers[g, c] if buffers else {})}):
                        cells[g, c] = _right(replayer.run(g, images), labels)
        return cells

    passes = 1 + len(groups) * sum(not s.final or buffers is not None for s in states)
    return torch.cat(evaluator.each(panel.examples, panel.rows, body, forward=passes), dim=2)


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
    module = replayer.module
    modules = norms(module)
    use = replayer.plan.first_use if replayer.plan else {}
    cells: dict[tuple[int, int], Buffers] = {}
    later: list[dict[str, _BatchNorm]] = []
    for g, group in enumerate(groups):
        start = min((use[n] for n in group.names if n in use), default=0)
        later.append({p: m for p, m in modules.items() if use.get(f"{p}.running_mean", start) >= start})
        for c in range(len(states)):
            cells[g, c] = unset(later[g])
    rows = whole_batches(panel.rows)

    def body(images: Tensor, _: Tensor) -> None:
        with torch.no_grad():
            replayer.start(images)
            for g, group in enumerate(groups):
                for c, state in enumerate(states):
                    values = {**state.part(group.names), **cells[g, c]}
                    with holding(module, values), estimating(later[g].values()):
                        replayer.run(g, images)

    def load(values: Mapping[str, Tensor]) -> None:
        for name, tensor in changed().items():
            tensor.copy_(values[name])

    def changed() -> dict[str, Tensor]:
        return {f"{g} {c} {name}": tensor for (g, c), cell in cells.items() for name, tensor in cell.items()}

    passes = 1 + len(groups) * len(states)
    changing = Changing(changed, load)
    evaluator.each(panel.examples, rows, body, batch=CALIBRATION_BATCH, forward=passes, changing=changing)
    return cells
