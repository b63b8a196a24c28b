"""The method *curvature*: whole layers keep their high-curvature components, then clean steps follow.

And *curvature-head*: in their place the classifier is rebuilt, so that nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from memaudit.engine.draws import generator_for
from memaudit.erase import Choice, head
from memaudit.erase.curvature import Spectrum, spectra
from memaudit.erase.ground import Edit
from memaudit.erase.group import Chosen, Control, Task, by_group
from memaudit.erase.request import Request
from memaudit.erase.search import EditSearch, editable_layers
from memaudit.findings import EditedLayer, Erasure
from memaudit.numbers import count, tidy


def run(request: Request, choice: Choice) -> Erasure:
    """The method, for the flagged set as a whole."""
    return by_group(request, choice, choose)


def run_with_head(request: Request, choice: Choice) -> Erasure:
    """The method *curvature-head*: no training; the classifier is rebuilt on the features that the cut leaves."""
    return by_group(request, choice, choose_with_head)


def choose(task: Task) -> Chosen:
    """Cut low-curvature components so that flagged labels go, within the budget of accuracy.

    Raises:
        ModelRejected: no layer can be edited, or no edit keeps within the budget.
    """
    return _chosen("curvature", task, task.choice.clean_steps, None)


def choose_with_head(task: Task) -> Chosen:
    """The same without clean steps, with the classifier rebuilt after the cut.

    Raises:
        ModelRejected: there is no linear classifier, or no edit keeps within the budget.
    """
    return _chosen("curvature-head", task, 0, head.Classifier.of(task).rebuilt)


def _chosen(name: str, task: Task, steps: int, then: Callable[[Edit], Edit] | None) -> Chosen:
    ground = task.ground
    layers = editable_layers(ground.module, ground.use)
    task.progress.stage("curvature", len(task.held_out))
    labels = generator_for(ground.seed, "erase", "labels")
    found = {s.layer: s for s in spectra(ground.evaluator, task.held_out, layers, labels)}
    search = EditSearch(ground, found, steps, then)
    task.progress.stage("choose", search.most())
    best, trials = search.run(task.choice.max_test_drop)
    cut = {path: found[path] for path in best.kept}

    def random(generator: torch.Generator) -> Edit:
        """As many random components of the same layers taken out, with the same after it."""
        shuffled = {path: one.shuffled(generator) for path, one in cut.items()}
        return replace(search, found=shuffled, tried={}).edit(best.kept, best.steps)

    done = f"the low-curvature components of {count(len(cut), 'layer')} taken out"
    return Chosen(
        name,
        best,
        trials,
        edit=lambda: search.edit(best.kept, best.steps),
        done=done if then is None else f"{done}, the classifier rebuilt from held-out examples",
        control=Control("component", sum(one.cut(best.kept[path]) for path, one in cut.items()), random),
        layers=[_edited(one, best.kept[path]) for path, one in cut.items()],
    )


def _edited(spectrum: Spectrum, share: float) -> EditedLayer:
    return EditedLayer(layer=spectrum.layer, curvature=tidy(share), components=tidy(spectrum.components(share)))
