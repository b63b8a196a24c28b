"""Suppress a whole group of memorized labels: layers keep their high-curvature components, then clean steps follow.

The choice of layers and of the share of curvature that they keep is made on a validation split; what the choice is
worth is measured on a split, and on flagged examples, that chose nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from memaudit.data import ExampleSet, remove_overlap
from memaudit.engine.answers import margin, predicted
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.erase import Choice
from memaudit.erase.curvature import Spectrum, spectra
from memaudit.erase.finetune import BATCH
from memaudit.erase.probes import random_edits
from memaudit.erase.proof import measured
from memaudit.erase.request import Request, Sets, check_editable, sets_of
from memaudit.erase.search import EditSearch, Trial, editable_layers
from memaudit.errors import DataRejected
from memaudit.findings import EditedLayer, Erasure, RandomEdit, TriedEdit
from memaudit.network.scoped import holding
from memaudit.numbers import count, tidy

# Shares of the held-out examples: for the factors, for choosing, and the rest for the final figures; and most of each.
FACTORS, VALIDATION = 0.35, 0.25
MOST_FACTORS, MOST_VALIDATION = 1500, 2000
# Share of the fitted flagged examples that the choice is made with, and most of them.
USED, MOST_USED = 1 / 3, 400
# Random edits that the control is an average over: each takes as long as the edit itself.
DRAWS = 3
# Fewest examples that a choice can rest on.
FEWEST = 20


def run(request: Request, choice: Choice) -> Erasure:
    """The method, for the flagged set as a whole."""
    return by_curvature(request, choice.max_test_drop, choice.clean_steps)


def by_curvature(request: Request, max_test_drop: float, clean_steps: int) -> Erasure:
    """Cut low-curvature components so that flagged labels go, within `max_test_drop` of validation accuracy.

    Args:
        clean_steps: steps of training on clean reference examples that follow the cut.

    Raises:
        ModelRejected: the model cannot be edited, or no edit keeps within the budget.
        DataRejected: there are too few examples to choose with and to measure on.
    """
    module = request.adapter.module
    check_editable(module)
    with exact_arithmetic():
        before = request.evaluator()
        reference, _ = remove_overlap(request.reference, request.flagged)
        pool = reference if request.test is None else request.test
        factors, validation, final = split(len(pool), request.seed)
        fitted = predicted(margin(before.logits(request.flagged), request.flagged.labels)).nonzero().flatten().tolist()
        order = torch.randperm(len(fitted), generator=generator_for(request.seed, "erase", "flagged")).tolist()
        used = sorted(fitted[i] for i in order[: max(1, min(MOST_USED, round(USED * len(fitted))))])
        if not fitted:
            raise DataRejected("the model predicts none of the flagged labels: there is nothing to suppress")
        sets = sets_of(request, before, used, pool, final)
        shown = apart_from(sets.reference, Panel(pool, [*validation, *final]), request.seed)
        layers, use = editable_layers(before, sets.reference)
        request.progress.stage("curvature", len(factors))
        found = {
            s.layer: s
            for s in spectra(before, Panel(pool, factors), layers, generator_for(request.seed, "erase", "labels"))
        }
        flagged, chosen_by = Panel(sets.flagged, used), Panel(pool, validation)
        search = EditSearch(before, found, shown, flagged, chosen_by, use, clean_steps, request.seed)
        request.progress.stage("choose", search.most())
        best, trials = search.run(max_test_drop)
        request.progress.stage("clean steps" if best.steps else "edit", search.cost(best.steps))
        edit = search.edit(best.kept, best.steps)
        state = {n: t.detach().clone() for n, t in module.state_dict().items()}
        request.adapter.write(state | {n: t for n, t in edit.items() if n in state}, request.output)
        notes = [] if request.test is not None else [NO_TEST]
        if best.steps:
            notes.append(TRAINED.format(steps=best.steps, batch=BATCH, clean=len(shown)))
        done = f"the low-curvature components of {count(len(best.kept), 'layer')} taken out"
        if best.steps:
            done += f", then {count(best.steps, 'training step')} on clean examples"
        proof = measured(request, before, sets)
        one = search.cost(best.steps) + len(sets.used) + len(sets.reference)
        request.progress.stage("control", DRAWS * one)
        return proof.erasure(
            "curvature",
            done=done,
            layers=[_edited(found[path], share) for path, share in best.kept.items()],
            clean_steps=best.steps,
            candidates=[_candidate(t, t is best) for t in trials],
            max_test_drop=tidy(max_test_drop),
            random=random_components(search, best, sets),
            notes=notes,
        )


def random_components(search: EditSearch, best: Trial, sets: Sets) -> RandomEdit | None:
    """The control: as many random components of the same layers taken out, with the same steps after it."""
    generator = generator_for(search.seed, "erase", "random components")
    found = {path: search.found[path] for path in best.kept}

    def edit(_: int) -> AbstractContextManager[None]:
        other = replace(search, found={path: one.shuffled(generator) for path, one in found.items()})
        return holding(search.evaluator.adapter.module, other.edit(best.kept, best.steps))

    parts = sum(one.cut(best.kept[path]) for path, one in found.items())
    return random_edits(search.evaluator, sets, edit, DRAWS, "component", parts)


NO_TEST = "Without --test, reference examples were split in its place: a model trained on them looks better than it is."
TRAINED = (
    "{steps} steps of {batch} examples on {clean:,} reference examples, none of them flagged, followed the cut. "
    "Reference accuracy is largely that of examples trained on."
)


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
        curvature=tidy(sum(trial.kept.values()) / len(trial.kept)),
        clean_steps=trial.steps,
        flagged=tidy(trial.flagged),
        validation=tidy(trial.validation),
        chosen=chosen,
    )


def _edited(spectrum: Spectrum, share: float) -> EditedLayer:
    return EditedLayer(layer=spectrum.layer, curvature=tidy(share), components=tidy(spectrum.components(share)))
