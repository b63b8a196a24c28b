"""An edited copy of the checkpoint, written and measured again, whatever edited it.

The edit is an ordinary file of the same names and shapes: units silenced one by one (`erase.units`), or whole layers
changed (`erase.group`). What it is worth is measured on the file as read
back from disk: on flagged examples that the edit was made for and on others it never saw, on clean ones, after noise,
and after a little training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.checkpoints import read
from memaudit.engine.answers import margin, predicted
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase import METHODS
from memaudit.erase.ground import Ground
from memaudit.erase.inputs import searched_inputs
from memaudit.erase.probes import noise, relearning
from memaudit.erase.request import Request, Sets
from memaudit.findings import Erasure, ErasureScores, InputPoint, NoisePoint, RelearnPoint, StepsAlone
from memaudit.network.scoped import holding
from memaudit.numbers import tidy
from memaudit.text import clean

# Points of accuracy from which on an edit is called costly, and what to do about it.
COSTLY = 0.05
COMMON_NOTES = ("Suppressed is what this file no longer predicts. The probes show how much of it is still there.",)


@dataclass(frozen=True)
class Proof:
    """The written file, loaded again, and what was measured of it."""

    request: Request
    after: Evaluator
    sha256: str
    sets: Sets
    scores: tuple[ErasureScores, ErasureScores]
    noise: list[NoisePoint]
    inputs: list[InputPoint]
    relearning: list[RelearnPoint]

    def erasure(self, method: str, *, notes: Sequence[str], used_by: str = "", **more: Any) -> Erasure:
        """All of it as plain data, with what the method says of itself; `used_by` in place of its own words."""
        sets = self.sets
        before, after = self.scores
        # Clean steps unlearn what was memorized of a reference trained on, which costs nobody anything.
        if (cost := before.accuracy - after.accuracy) > COSTLY:
            kind = "reference" if before.test is None else "test"
            notes = [*notes, f"Costly: {100 * cost:.1f} points of {kind} accuracy. {METHODS[method].cheaper}"]
        true = sum(sets.flagged.examples[row].true_label is not None for row in sets.fitted)
        counts = {"used": len(sets.used), "unused": len(sets.unused), "true": true, "reference": len(sets.reference)}
        return Erasure(
            method=method,
            used_by=used_by or METHODS[method].used,
            file=clean(self.request.output.name),
            sha256=self.sha256,
            source_sha256=self.request.source_sha256,
            counts={**counts, "test": len(sets.final)},
            before=before,
            after=after,
            noise=self.noise,
            inputs=self.inputs,
            relearning=self.relearning,
            notes=[*notes, *COMMON_NOTES],
            **more,
        )


def measured(request: Request, before: Evaluator, sets: Sets) -> Proof:
    """Read the written file back and measure it beside the original."""
    adapter, sha256 = reread(request.output, request.adapter)
    after = request.evaluator(adapter)
    passes = len(sets.flagged) + len(sets.reference) + len(sets.final)
    request.progress.stage("measure", 2 * passes)
    both = (scores(before, sets), scores(after, sets))
    request.progress.stage("probe")
    edited, others = Panel(sets.flagged, sets.used), Panel(sets.flagged, sets.unused)
    shaken = noise(before, after, edited, request.seed)
    searched = searched_inputs(after, edited, sets.reference, request.seed)
    again = relearning(after, edited, others, sets.reference, request.seed)
    return Proof(request, after, sha256, sets, both, shaken, searched, again)


def reread(path: Path, original: Adapter) -> tuple[Adapter, str]:
    """The file just written, read and loaded as any checkpoint is, with the original's preprocessing; and its hash."""
    checkpoint = read(path)
    other = copy.copy(original)
    other.module = copy.deepcopy(original.module)
    other.module.load_state_dict(original.state_of(checkpoint))
    return other, checkpoint.sha256


def scores(evaluator: Evaluator, sets: Sets) -> ErasureScores:
    """What the evaluator's model predicts of `sets`."""
    flagged = sets.flagged
    logits, fitted = evaluator.logits(flagged), set(sets.fitted)
    labelled = predicted(margin(logits, flagged.labels))
    truths = {row: e.true_label for row, e in enumerate(flagged.examples) if e.true_label is not None and row in fitted}
    right = predicted(margin(logits[list(truths)], torch.tensor([*truths.values()], dtype=torch.long))).tolist()
    reference = evaluator.predicted(Panel(sets.reference, range(len(sets.reference))))
    tested, labels, accuracy = reference, sets.reference.labels, None
    if sets.test is not None and sets.final:
        rows = list(sets.final)
        tested = evaluator.predicted(Panel(sets.test, rows))
        labels, accuracy = sets.test.labels[rows], tidy(float(tested.float().mean()))
    classes = range(int(max(labels.max(), flagged.labels.max())) + 1)
    return ErasureScores(
        used=_share(labelled[list(sets.used)]),
        unused=_share(labelled[list(sets.unused)]),
        true_label=tidy(sum(right) / len(right)) if right else None,
        reference=tidy(float(reference.float().mean())),
        test=accuracy,
        by_class=[_share(tested[labels == c]) for c in classes],
    )


def steps_alone(ground: Ground, sets: Sets, steps: int) -> StepsAlone | None:
    """The control: what clean steps of the whole network do without an edit, not told which labels are wrong.

    None where there are no steps.
    """
    if not steps:
        return None
    with holding(ground.module, replace(ground, wrong=None).mended({}, 0, steps)):
        return StepsAlone(steps=steps, scores=scores(ground.evaluator, sets))


def _share(right: Tensor) -> float | None:
    return tidy(float(right.float().mean())) if len(right) else None
