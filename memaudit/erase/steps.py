"""The method *finetune*: clean steps of the whole network and nothing else.

A memorized label is in none of the clean examples, so it goes as its traces are written over. What an edit is worth
shows beside it: a small transformer lost more labels by this alone than by any edit that was tried.
"""

from __future__ import annotations

import torch

from memaudit.erase import Choice
from memaudit.erase.finetune import LONGER
from memaudit.erase.ground import Edit, Trial
from memaudit.erase.group import Chosen, Control, Task, by_group
from memaudit.erase.request import Request
from memaudit.findings import Erasure


def run(request: Request, choice: Choice) -> Erasure:
    """The method, for the flagged set as a whole."""
    return by_group(request, choice, choose)


def choose(task: Task) -> Chosen:
    """Train on clean examples for as long as the fewest flagged labels ask, within the budget of accuracy.

    Raises:
        ModelRejected: the steps cost more than the budget.
    """
    ground, found = task.ground, list[tuple[Trial, dict[str, float]]]()
    own = dict(ground.module.named_parameters())
    lengths = [times * task.choice.clean_steps for times in (1, LONGER)]
    task.progress.stage("finetune", sum(ground.cost(steps) + ground.judging for steps in lengths))
    for steps in lengths:
        edit = ground.mended({}, 0, steps)
        moved = {name: float((value - own[name]).norm()) for name, value in edit.items() if name in own}
        found.append((ground.trial(edit, {"all layers": 1.0}, steps, "trained further"), moved))
    trials = [trial for trial, _ in found]
    best = ground.safest(ground.within(trials, task.choice.max_test_drop))
    moved = next(moved for trial, moved in found if trial is best)

    def random(generator: torch.Generator) -> Edit:
        """Every tensor as far from its own, in a random direction."""
        drawn = {name: torch.randn(own[name].shape, generator=generator).to(own[name]) for name in moved}
        values = {name: own[name].detach() + z * (moved[name] / z.norm()) for name, z in drawn.items()}
        return ground.mended(values, 0)

    return Chosen(
        "finetune",
        best,
        trials,
        edit=lambda: ground.mended({}, 0, best.steps),
        done="the whole network trained further",
        control=Control("direction", len(moved), random),
        edited=ground.wrong is not None,
    )
