"""An edited copy of the checkpoint, written and measured again, whatever edited it.

The edit is an ordinary file of the same names and shapes: units silenced one by one (`erase_units`), or the
low-curvature components of whole layers taken out (`erase_group`). What it is worth is measured on the file as read
back from disk: on flagged examples that the edit was made for and on others it never saw, on clean ones, after noise,
and after a little training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.checkpoints import read
from memaudit.data import ExampleSet, remove_overlap
from memaudit.engine.answers import margin, predicted
from memaudit.engine.device import automatic_batch_size, resolve_device
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase.probes import noise, relearning
from memaudit.errors import DataRejected, ModelRejected
from memaudit.findings import Erasure, ErasureScores, NoisePoint, RelearnPoint
from memaudit.numbers import tidy
from memaudit.settings import Progress, Silent
from memaudit.text import clean

# Points of reference accuracy from which on an edit is called costly, and what to do about it.
COSTLY = 0.05
CHEAPER = {
    "units": "Silence fewer with --examples, or suppress the group with --method curvature.",
    "curvature": "Allow less with --max-test-drop.",
}
COMMON_NOTES = ("Suppressed is what this file no longer predicts. The probes show how much of it is still there.",)


@dataclass(frozen=True)
class Sets:
    """What an edit is measured on.

    Attributes:
        used, unused: rows of `flagged` that the original fits: those the edit was made or chosen with, and the others.
        final: rows of `test` that chose nothing.
    """

    flagged: ExampleSet
    reference: ExampleSet
    test: ExampleSet | None
    used: tuple[int, ...]
    unused: tuple[int, ...]
    final: tuple[int, ...] = ()

    @property
    def fitted(self) -> tuple[int, ...]:
        """Both kinds of flagged rows, in order."""
        return tuple(sorted((*self.used, *self.unused)))


@dataclass(frozen=True)
class Request:
    """What to edit, where the copy goes, and what it is measured on.

    Attributes:
        adapter: the original, loaded.
        output: the `.safetensors` file to write, or the folder of a model that came as one.
        source_sha256: of the original's file.
    """

    adapter: Adapter
    flagged: ExampleSet
    reference: ExampleSet
    test: ExampleSet | None
    output: Path
    source_sha256: str
    device: str = "auto"
    batch_size: int | None = None
    seed: int = 0
    progress: Progress = field(default_factory=Silent)

    def evaluator(self, adapter: Adapter | None = None) -> Evaluator:
        """An evaluator of `adapter`, by default the original, on the request's device."""
        chosen = adapter or self.adapter
        device = resolve_device(self.device)
        chosen.module.to(device)
        batch = self.batch_size or automatic_batch_size(self.reference.pixels[:1], device)
        return Evaluator(chosen, batch, advance=self.progress.advance)


def sets_of(
    request: Request, before: Evaluator, used: Sequence[int], test: ExampleSet | None, final: Sequence[int] = ()
) -> Sets:
    """The sets of an edit that was made for the flagged rows `used`; only what the original fits is counted.

    Args:
        final: rows of `test` that chose nothing; by default all.
    """
    reference, _ = remove_overlap(request.reference, request.flagged)
    if len(reference) < 3:
        raise DataRejected("fewer than 3 reference examples are not flagged", hint="Give a few hundred.")
    fitted = predicted(margin(before.logits(request.flagged), request.flagged.labels)).nonzero().flatten().tolist()
    chosen = set(used)
    rows = final or range(len(test) if test is not None else 0)
    return Sets(
        request.flagged,
        reference,
        test,
        tuple(r for r in fitted if r in chosen),
        tuple(r for r in fitted if r not in chosen),
        tuple(rows),
    )


@dataclass(frozen=True)
class Proof:
    """The written file, loaded again, and what was measured of it."""

    request: Request
    after: Evaluator
    sha256: str
    sets: Sets
    scores: tuple[ErasureScores, ErasureScores]
    noise: list[NoisePoint]
    relearning: list[RelearnPoint]

    def erasure(self, method: Literal["units", "curvature"], *, notes: Sequence[str], **more: Any) -> Erasure:
        """All of it as plain data, with what the method says of itself."""
        sets = self.sets
        cost = self.scores[0].reference - self.scores[1].reference
        if cost > COSTLY:
            notes = [*notes, f"Costly: {100 * cost:.1f} points of reference accuracy. {CHEAPER[method]}"]
        counts = {"used": len(sets.used), "unused": len(sets.unused), "reference": len(sets.reference)}
        return Erasure(
            method=method,
            file=clean(self.request.output.name),
            sha256=self.sha256,
            source_sha256=self.request.source_sha256,
            counts={**counts, "test": len(sets.final)},
            before=self.scores[0],
            after=self.scores[1],
            noise=self.noise,
            relearning=self.relearning,
            notes=[*notes, *COMMON_NOTES],
            **more,
        )


def prove(request: Request, before: Evaluator, sets: Sets) -> Proof:
    """Read the written file back and measure it beside the original."""
    adapter, sha256 = reread(request.output, request.adapter)
    after = request.evaluator(adapter)
    passes = len(sets.flagged) + len(sets.reference) + len(sets.final)
    request.progress.stage("measure", 2 * passes)
    both = (scores(before, sets), scores(after, sets))
    request.progress.stage("probe")
    fitted = Panel(sets.flagged, sets.fitted)
    shaken = noise(before, after, fitted, request.seed)
    return Proof(request, after, sha256, sets, both, shaken, relearning(after, fitted, sets.reference, request.seed))


def check_editable(module: nn.Module) -> None:
    """Raise where an edited file would not be, or not do, what is measured.

    Raises:
        ModelRejected: quantised weights, or a classifier whose weights are tied to another layer's.
    """
    for path, part in module.named_modules():
        kind = type(part).__module__
        if ".quantized" in kind or ".quantizable" in kind or isinstance(part, torch.jit.ScriptModule):
            raise ModelRejected(
                f"the model cannot be edited: {clean(path) or 'it'} is quantised or scripted",
                hint="Edit the float checkpoint it was made from, then quantise the result.",
            )
    integers = [n for n, p in module.named_parameters() if not p.is_floating_point()]
    if integers:
        raise ModelRejected(
            f"the model cannot be edited: {clean(integers[0])} holds integers, as quantised weights do",
            hint="Edit the float checkpoint it was made from, then quantise the result.",
        )
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    last = [p for p in module.named_modules() if isinstance(p[1], nn.Linear | nn.Conv2d)][-1:]
    for path, head in last:
        tied = names.get(id(head._parameters.get("weight")), [])
        if len(tied) > 1:
            raise ModelRejected(
                f"the model cannot be edited: its output layer {clean(path)} shares its weight with "
                f"{clean(next(n for n in tied if not n.startswith(path + '.')))}",
                hint="An edit of one would change the other; untie them and train, or audit without erasing.",
            )


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


def _share(right: Tensor) -> float | None:
    return tidy(float(right.float().mean())) if len(right) else None
