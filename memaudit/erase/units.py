"""Suppress single memorized labels: the units of chosen findings are silenced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import ceil, isclose

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin, predicted, prediction
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase import Choice
from memaudit.erase.ground import Ground, first_uses
from memaudit.erase.probes import random_edits
from memaudit.erase.proof import measured, steps_alone
from memaudit.erase.request import Request, Sets, check_editable, rows_of, sets_of
from memaudit.errors import ModelRejected
from memaudit.findings import ErasedExample, Erasure, Finding, Prediction, RandomEdit, UnitRef
from memaudit.network.ablate import edited, silence
from memaudit.network.units import UnitSpace, random_cut
from memaudit.numbers import count, percent

# Margins this near are one measurement: float32 adds up in another order where other examples are in the batch.
ROUNDING = 1e-4
# Random edits that the control is an average over.
DRAWS = 5
UNION_NOTE = (
    "The audit measured each example with its own units cut; this file has the units of all chosen examples cut.",
)


def run(request: Request, choice: Choice) -> Erasure:
    """The method: the findings that were named, or all localized ones."""
    return by_units(request, choice.chosen(), choice.max_test_drop, choice.clean_steps)


def by_units(request: Request, findings: Sequence[Finding], allowed: float = 1.0, steps: int = 0) -> Erasure:
    """Silence the units of `findings` in a copy and measure it.

    Args:
        allowed: share of reference accuracy that it may cost; what it will is measured with masks before it is written.
        steps: of training on the reference in the control; 0: none.

    Raises:
        ModelRejected: the model cannot be edited, or that would cost more than is allowed.
        DataRejected: an example of a finding is not among the flagged ones.
    """
    check_editable(request.adapter.module)
    with exact_arithmetic():
        before = request.evaluator()
        chosen = list(zip(rows_of(findings, request.flagged), findings, strict=True))
        sets = sets_of(request, before, [row for row, _ in chosen], request.test)
        request.progress.stage("predict", 2 * len(sets.reference))
        few = sets.reference.batch([0, 1, 2], before.device)
        _check_cost(before, sets.reference, few, findings, allowed)
        request.progress.stage("edit")
        state, units = silenced(request.adapter, few, findings)
        request.adapter.write(state, request.output)
        proof = measured(request, before, sets)
        request.progress.stage("control", DRAWS * (len(sets.used) + len(sets.reference)))
        random = random_units(before, sets, units, request.seed)
        everyone = Panel(sets.reference, range(len(sets.reference)))
        uses = first_uses(before, sets.reference)
        ground = Ground(before, everyone, Panel(sets.flagged, sets.used), everyone, uses, request.seed)
        alone = steps_alone(ground, sets, steps)
        each = each_alone(before, proof.after, request.flagged, chosen)
        done = f"{count(len(units), 'unit')} silenced for {count(len(each), 'flagged example')}"
        return proof.erasure(
            "units", done=done, examples=each, units=units, random=random, steps_alone=alone, notes=UNION_NOTE
        )


def _check_cost(
    before: Evaluator, reference: ExampleSet, few: Tensor, findings: Sequence[Finding], allowed: float
) -> None:
    """Measure the reference with the units of `findings` masked, which is what the edited file will do.

    Raises:
        ModelRejected: more than `allowed` of its accuracy would go.
    """
    space = UnitSpace(tuple(before.adapter.sites(few)))
    cut = sorted({space.number(u.layer, u.index, u.kind) for f in findings for u in f.units})
    rows = range(len(reference))
    accuracies = [
        float(predicted(margin(logits, reference.labels)).float().mean())
        for logits in (before.logits(reference), before.logits(reference, rows, [cut], space))
    ]
    cost = accuracies[0] - accuracies[1]
    if not cost <= allowed:
        raise ModelRejected(
            f"silencing {count(len(cut), 'unit')} of {count(len(findings), 'finding')} would take reference accuracy "
            f"from {percent(accuracies[0])} to {percent(accuracies[1])}; allowed: {100 * allowed:g} points. "
            "Nothing was written",
            hint="Name fewer with --examples, suppress the group with --method curvature, or allow more with "
            f"--max-test-drop {ceil(100 * cost)}.",
        )


def silenced(adapter: Adapter, images: Tensor, findings: Sequence[Finding]) -> tuple[dict[str, Tensor], list[UnitRef]]:
    """The state dict with the units of `findings` silenced, and those units.

    Args:
        images: `(N, C, H, W)`, three or more, that show where the sites are.

    Raises:
        UsageError: a unit is none of this model's.
    """
    space = UnitSpace(tuple(adapter.sites(images)))
    units = sorted({u for f in findings for u in f.units}, key=lambda u: (u.layer, u.index))
    numbers = [space.number(u.layer, u.index, u.kind) for u in units]
    state = {n: t.detach().clone() for n, t in adapter.module.state_dict().items()}
    silence(state, space, numbers)
    return state, [space.unit(n) for n in sorted(numbers)]


def random_units(before: Evaluator, sets: Sets, units: Sequence[UnitRef], seed: int) -> RandomEdit | None:
    """The control: as many random units of the same layers silenced, `DRAWS` times."""
    space = UnitSpace(tuple(before.adapter.sites(sets.reference.batch([0, 1, 2], before.device))))
    cut = [space.number(u.layer, u.index, u.kind) for u in units]
    generator = generator_for(seed, "erase", "random units")
    live = torch.ones(space.total, dtype=torch.bool)

    def edit(_: int) -> AbstractContextManager[None]:
        return edited(before.adapter.module, space, random_cut(space, live, cut, generator))

    return random_edits(before, sets, edit, DRAWS, "unit", len(cut))


def each_alone(
    before: Evaluator, after: Evaluator, flagged: ExampleSet, chosen: Sequence[tuple[int, Finding]]
) -> list[ErasedExample]:
    """The chosen examples on the original and on the written file, one image a pass.

    The audit measured many in one pass: a margin may differ from its by what rounding leaves.
    """
    found = []
    one, other = Evaluator(before.adapter, 1), Evaluator(after.adapter, 1)
    for row, finding in chosen:
        label = flagged.examples[row].label
        was, now = (prediction(e.logits(flagged, [row])[0], label) for e in (one, other))
        found.append(ErasedExample(id=finding.id, before=was, after=now, as_reported=_same(now, finding.after)))
    return found


def _same(now: Prediction, reported: Prediction | None) -> bool:
    return (
        reported is not None
        and now.prediction == reported.prediction
        and isclose(now.margin, reported.margin, rel_tol=ROUNDING, abs_tol=ROUNDING)
    )
