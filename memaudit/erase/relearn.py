"""The method *relearn*: layer groups put back to random weights and learned again from clean examples alone.

What clean examples share comes back, because they are shown; a memorized label is in none of them. Everything outside
the groups is frozen. After Maini et al. 2023, section 3.3, who retrain layers to see where labels are memorized.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.erase import Choice
from memaudit.erase.finetune import LONGER
from memaudit.erase.ground import Edit, Ground, Trial
from memaudit.erase.group import FEWEST, Chosen, Control, Task, by_group
from memaudit.erase.request import Request
from memaudit.findings import Erasure
from memaudit.network.layer_groups import LayerGroup, layer_groups, merged, spans
from memaudit.network.scoped import holding
from memaudit.network.states import put_back
from memaudit.numbers import count, percent
from memaudit.text import clean

# Shares of the depth from which on layer groups are put back, and how much of each weight is random. On a half-width
# CIFAR-10 ResNet-9, all from one half on: 4 % of the labels left where all is random, 11 % where 60 % is.
STARTS = (0.75, 0.5, 0.25, 0.0)
SHARES = (1.0, 0.6)
# So many of the most promising learn for longer.
SHORT = 2


@dataclass(frozen=True)
class Relearning:
    """One edit.

    Attributes:
        group: what is put back; all else is frozen.
        share: how much of each weight is random.
    """

    group: LayerGroup
    share: float
    steps: int

    def edit(self, ground: Ground) -> Edit:
        """By name, the tensors that differ: parameters of the group, and the statistics of later BatchNorm modules."""
        generator = generator_for(ground.seed, "erase", "put back")
        values = put_back(ground.module, self.group, generator, {}, self.share)
        return ground.mended(values, ground.first(values), self.steps, self.group.names)

    def trial(self, ground: Ground, more: str = "") -> Trial:
        """What it does on the examples used for choosing; `more` is said of how."""
        how = ("random weights" if self.share == 1 else f"{percent(self.share)} random weights") + more
        return ground.trial(self.edit(ground), {self.group.layer: 1 - self.share}, self.steps, how)


def supported(edit: Relearning, ground: Ground) -> Ground:
    """The ground without clean examples whose label does not come back when it is not shown.

    Memorized labels that nobody flagged may be among them. Each half is asked after the other was learned, for half
    the steps of `edit`.
    """
    examples, rows = ground.clean.examples, list(ground.clean.rows)
    kept: set[int] = set()
    for shown, asked in ((rows[::2], rows[1::2]), (rows[1::2], rows[::2])):
        half = replace(ground, clean=Panel(examples, shown))
        with holding(ground.module, replace(edit, steps=max(1, edit.steps // 2)).edit(half)):
            back = ground.evaluator.predicted(Panel(examples, asked)).tolist()
        kept.update(row for row, right in zip(asked, back, strict=True) if right)
    return replace(ground, clean=Panel(examples, [row for row in rows if row in kept]))


def run(request: Request, choice: Choice) -> Erasure:
    """The method, for the flagged set as a whole."""
    return by_group(request, choice, choose)


def choose(task: Task) -> Chosen:
    """Put back the layer groups that leave the fewest flagged labels once relearned, within the budget of accuracy.

    In the end the best edit is tried without reference examples that the others do not support.

    Raises:
        ModelRejected: no edit keeps within the budget.
    """
    ground, choice = task.ground, task.choice
    groups = _weights(ground)
    least = ground.intact.validation - choice.max_test_drop
    found: list[tuple[Relearning, Ground, Trial]] = []

    def tried(edits: Sequence[Relearning], on: Ground) -> None:
        task.progress.stage("relearn", sum(on.cost(e.steps) + on.judging for e in edits))
        found.extend((edit, on, edit.trial(on, ", from supported examples" * (on is not ground))) for edit in edits)

    tried([Relearning(group, SHARES[0], choice.clean_steps) for group in _options(groups, choice.critical)], ground)
    found.sort(key=lambda one: one[2].flagged - one[2].validation)
    promising = [edit.group for edit, _, _ in found[:SHORT]]
    for share in SHARES:
        tried([Relearning(group, share, LONGER * choice.clean_steps) for group in promising], ground)
        if any(trial.validation >= least for _, _, trial in found):
            break
    best = ground.safest(ground.within([trial for _, _, trial in found], choice.max_test_drop))
    chosen = next(edit for edit, _, trial in found if trial is best)
    task.progress.stage("support", 2 * ground.cost(chosen.steps // 2) + len(ground.clean))
    sound = supported(chosen, ground)
    if FEWEST <= len(sound.clean) < len(ground.clean):
        tried([chosen], sound)
    trials = [trial for _, _, trial in found]
    best = ground.safest(ground.within(trials, choice.max_test_drop))
    chosen, shown = next((edit, ground) for edit, ground, trial in found if trial is best)
    size = sum(set(group.names) <= set(chosen.group.names) for group in groups)

    def random(generator: torch.Generator) -> Edit:
        """As many layer groups, but any, put back and relearned in the same way."""
        drawn = torch.randperm(len(groups), generator=generator)[:size].tolist()
        return replace(chosen, group=merged([groups[i] for i in drawn])).edit(shown)

    return Chosen(
        "relearn",
        best,
        trials,
        edit=lambda: chosen.edit(shown),
        done=f"{count(size, 'layer group')} ({clean(chosen.group.layer)}) put back and learned again: {best.how}",
        control=Control("layer group", size if size < len(groups) else 0, random),
        clean=len(shown.clean),
    )


def _weights(ground: Ground) -> list[LayerGroup]:
    """The layer groups in the order they run, with their parameters alone: what computes buffers computes them anew."""
    parameters = {n for n, p in ground.module.named_parameters() if p.is_floating_point()}
    groups = [
        replace(group, names=tuple(n for n in group.names if n in parameters))
        for group in layer_groups(ground.module, ground.use)
    ]
    return [group for group in groups if group.names]


def _options(groups: Sequence[LayerGroup], critical: Collection[str]) -> list[LayerGroup]:
    """What may be put back: the last groups, from several depths on; and those that the audit calls critical."""
    found = spans(groups, [(start, 1.0) for start in STARTS])
    named = [group for group in groups if group.layer in critical]
    return [*found, merged(named)] if named else found
