"""Take a whole group of memorized labels out: what every method for groups chooses with, controls and proof.

Which edit it is is decided on a validation split; what the choice is worth is measured on a split, and on flagged
examples, that chose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from memaudit.data import ExampleSet, remove_overlap
from memaudit.engine.answers import margin, predicted
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.views import Drawn, looks
from memaudit.erase import Choice
from memaudit.erase.finetune import BATCH, WRONG
from memaudit.erase.ground import Edit, Ground, Trial, first_uses
from memaudit.erase.probes import random_edits
from memaudit.erase.proof import measured, steps_alone
from memaudit.erase.request import Request, Sets, check_editable, sets_of
from memaudit.errors import DataRejected, ModelRejected
from memaudit.findings import EditedLayer, Erasure, ErasureScores, TriedEdit
from memaudit.network.scoped import holding
from memaudit.numbers import count, tidy
from memaudit.settings import Progress

# Shares of the held-out examples: for making edits, for choosing, and the rest for the final figures; most of each.
FACTORS, VALIDATION = 0.35, 0.25
MOST_FACTORS, MOST_VALIDATION = 1500, 2000
# Share of the fitted flagged examples that the choice is made with, and most of them. Where labels are known to be
# wrong, as many never see the edit, to tell what it does to such, and clean steps learn that all others are wrong.
USED, MOST_USED = 1 / 3, 400
# Random edits that the control is an average over: each takes as long as the edit itself.
DRAWS = 3
# Fewest examples that a choice can rest on.
FEWEST = 20

NO_TEST = "Without --test, reference examples were split in its place: a model trained on them looks better than it is."
TRAINED = (
    "{steps} steps of {batch} examples on {clean:,} reference examples, none of them flagged, are part of the edit"
    "{shown}. "
    "Reference accuracy is largely that of examples trained on."
)
TOLD = (
    "The steps also learn of {told} that the label is wrong, {wrong} in each step; these count as used. A model that "
    "avoids a label can give an example away as much as one that gives it: this mends wrong labels and hides nobody."
)
TOLD_BY = "flagged label, used for choosing or learned to be wrong"
SHOWN = "; images are shown moved, mirrored and zoomed into where the model knows them so"
NO_NEED = "The edit adds nothing: {steps} without it leave as few flagged labels at no lower accuracy."


@dataclass(frozen=True)
class Task:
    """What a method for groups gets.

    Attributes:
        held_out: examples that the network was not trained on, to make edits from; none of them judges one.
    """

    ground: Ground
    held_out: Panel
    choice: Choice
    progress: Progress


@dataclass(frozen=True)
class Control:
    """Random edits of the same size.

    Attributes:
        kind: what is drawn; `parts` of these.
        edit: the tensors of one draw, by name.
    """

    kind: str
    parts: int
    edit: Callable[[torch.Generator], Edit]


@dataclass(frozen=True)
class Chosen:
    """The edit that a method chose.

    Attributes:
        edit: its tensors, by name, made anew: a call takes as long as the edit.
        done: what is done, in words.
        layers: what is left of the layers' curvature.
        clean: how many examples clean steps train on; 0: all.
        edited: clean steps are not all of it, so that they alone are a control.
    """

    method: str
    best: Trial
    trials: Sequence[Trial]
    edit: Callable[[], Edit]
    done: str
    control: Control
    layers: Sequence[EditedLayer] = ()
    clean: int = 0
    edited: bool = True


Choose = Callable[[Task], Chosen]


def by_group(request: Request, choice: Choice, *methods: Choose) -> Erasure:
    """Try `methods` until one leaves at most `choice.target` of the labels, and write and measure the best edit.

    Raises:
        ModelRejected: the model cannot be edited, or no edit keeps within the budget.
        DataRejected: there are too few examples to choose with and to measure on.
    """
    module, progress = request.adapter.module, request.progress
    check_editable(module)
    with exact_arithmetic():
        before = request.evaluator()
        sets, task = _prepared(request, before, choice)
        ground = task.ground
        found = _found(task, methods)
        best = ground.safest([one.best for one in found])
        chosen = next(one for one in found if one.best is best)
        told = ground.wrong.rows if ground.wrong is not None and best.steps else ()
        sets = sets.using(told)
        progress.stage("edit", ground.cost(best.steps))
        edit = chosen.edit()
        state = {n: t.detach().clone() for n, t in module.state_dict().items()}
        request.adapter.write(state | {n: t for n, t in edit.items() if n in state}, request.output)
        notes = [] if request.test is not None else [NO_TEST]
        if len(methods) > 1:
            notes.append(f"Tried, the cheapest first: {', '.join(one.method for one in found)}.")
        if best.steps:
            shown = "" if ground.shown is None else SHOWN
            clean = chosen.clean or len(ground.clean)
            notes.append(TRAINED.format(steps=best.steps, batch=BATCH, clean=clean, shown=shown))
            if told:
                notes.append(TOLD.format(told=count(len(told), "flagged example"), wrong=WRONG))
        proof = measured(request, before, sets)
        steps = (best.steps or choice.clean_steps) if chosen.edited else 0
        judged = len(sets.used) + len(sets.reference)
        progress.stage("control", DRAWS * (ground.cost(best.steps) + judged) + ground.cost(steps))
        control, generator = chosen.control, generator_for(request.seed, "erase", f"random {chosen.control.kind}")

        alone = steps_alone(ground, sets, steps)
        if alone is not None and no_worse(alone.scores, proof.scores[1], everywhere=bool(told)):
            notes.append(NO_NEED.format(steps=count(steps, "clean step")))

        def random(_: int) -> AbstractContextManager[None]:
            return holding(module, control.edit(generator))

        return proof.erasure(
            chosen.method,
            used_by=TOLD_BY if told else "",
            done=chosen.done + (f", {count(best.steps, 'training step')} on clean examples" if best.steps else ""),
            layers=list(chosen.layers),
            clean_steps=best.steps,
            candidates=[_candidate(t, t is best) for one in found for t in one.trials],
            max_test_drop=tidy(choice.max_test_drop),
            random=random_edits(before, sets, random, DRAWS, control.kind, control.parts),
            steps_alone=alone,
            notes=notes,
        )


def no_worse(one: ErasureScores, other: ErasureScores, everywhere: bool = False) -> bool:
    """Whether `one` leaves as few flagged labels that chose nothing as `other`, at no lower accuracy.

    Args:
        everywhere: it leaves as few of those that were used, too.
    """
    left = [s.used if s.unused is None else s.unused for s in (one, other)]
    used = not everywhere or (one.used or 0) <= (other.used or 0)
    return used and (left[0] or 0) <= (left[1] or 0) and one.accuracy >= other.accuracy


def _prepared(request: Request, before: Evaluator, choice: Choice) -> tuple[Sets, Task]:
    """Who chooses the edit, who it is made with and who judges it, none of them twice."""
    reference, _ = remove_overlap(request.reference, request.flagged)
    pool = reference if request.test is None else request.test
    factors, validation, final = split(len(pool), request.seed)
    fitted = predicted(margin(before.logits(request.flagged), request.flagged.labels)).nonzero().flatten().tolist()
    order = torch.randperm(len(fitted), generator=generator_for(request.seed, "erase", "flagged")).tolist()
    part = max(1, min(MOST_USED, round(USED * len(fitted))))
    used, told = (sorted(fitted[i] for i in rows) for rows in (order[:part], order[2 * part :]))
    if not fitted:
        raise DataRejected("the model predicts none of the flagged labels: there is nothing to suppress")
    if choice.wrong and not told:
        raise DataRejected(
            f"{count(len(fitted), 'flagged label')} that the model predicts: too few to choose with, to learn to be "
            "wrong and to measure on",
            hint="Flag more, or leave --wrong-labels away.",
        )
    sets = sets_of(request, before, used, pool, final)
    clean = apart_from(sets.reference, Panel(pool, [*validation, *final]), request.seed)
    shown = None
    if choice.clean_steps:
        request.progress.stage("views", looks(before, clean))
        shown = Drawn.usable(before, clean)
    ground = Ground(
        before,
        clean=clean,
        flagged=Panel(sets.flagged, used),
        validation=Panel(pool, validation),
        use=first_uses(before, sets.reference),
        seed=request.seed,
        shown=shown,
        wrong=Panel(sets.flagged, told) if choice.wrong else None,
    )
    return sets, Task(ground, Panel(pool, factors), choice, request.progress)


def _found(task: Task, methods: Sequence[Choose]) -> list[Chosen]:
    """What the methods chose, one after the other, until one leaves few enough labels.

    Raises:
        ModelRejected: no method has an edit of this model within the budget.
    """
    found: list[Chosen] = []
    for number, method in enumerate(methods, 1):
        try:
            found.append(method(task))
        except ModelRejected:
            if number == len(methods) and not found:
                raise
            continue
        if found[-1].best.flagged <= task.choice.target:
            break
    return found


def split(count: int, seed: int) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Rows for factors, for validation and for the final figures, drawn.

    Raises:
        DataRejected: one of the three would hold too few.
    """
    order = torch.randperm(count, generator=generator_for(seed, "erase", "split")).tolist()
    first = min(MOST_FACTORS, round(FACTORS * count))
    second = first + min(MOST_VALIDATION, round(VALIDATION * count))
    parts = order[:first], order[first:second], order[second:]
    if min(map(len, parts)) < FEWEST:
        raise DataRejected(
            f"{count} held-out examples are too few to choose an edit and to measure it",
            hint=f"Give {round(FEWEST / VALIDATION)} or more with --test; a thousand tell accuracies a point apart.",
        )
    return sorted(parts[0]), sorted(parts[1]), tuple(sorted(parts[2]))


def apart_from(reference: ExampleSet, judging: Panel, seed: int) -> Panel:
    """The reference without examples that an edit is judged by, in random order: what clean steps train on.

    Raises:
        DataRejected: too few are left.
    """
    held = {judging.examples.examples[row].id for row in judging.rows}
    order = torch.randperm(len(reference), generator=generator_for(seed, "erase", "clean")).tolist()
    rows = [row for row in order if reference.examples[row].id not in held]
    if len(rows) < FEWEST:
        raise DataRejected(
            f"only {len(rows)} reference examples are not also held out",
            hint="Give --reference and --test different examples.",
        )
    return Panel(reference, rows)


def _candidate(trial: Trial, chosen: bool) -> TriedEdit:
    return TriedEdit(
        layers=list(trial.kept),
        curvature=None if trial.how else tidy(sum(trial.kept.values()) / len(trial.kept)),
        how=trial.how,
        clean_steps=trial.steps,
        flagged=tidy(trial.flagged),
        validation=tidy(trial.validation),
        chosen=chosen,
    )
