"""Suppress flagged labels in a copy of the checkpoint, and measure the written file again.

The edit is an ordinary file of the same names and shapes: units silenced one by one (`units`), or the low-curvature
components of whole layers (`curvature`). What it is worth is measured on the file as read back from disk: on flagged
examples that the edit was made for and on others it never saw, on clean ones, after noise, and after a little training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.ablate import silence
from memaudit.adapters.base import Adapter
from memaudit.auditor import prediction_of
from memaudit.checkpoints import read
from memaudit.checkpoints.load import load_strict
from memaudit.controls import generator_for
from memaudit.data import ExampleSet, remove_overlap
from memaudit.errors import DataRejected, ModelRejected, UsageError
from memaudit.evaluate import Evaluator, automatic_batch_size, exact_arithmetic, margin, resolve_device
from memaudit.findings import ErasedExample, Erasure, ErasureScores, Finding, NoisePoint, RelearnPoint, UnitRef
from memaudit.intervals import tidy
from memaudit.report.files import replace_bytes
from memaudit.retrain import trainable
from memaudit.settings import Progress, Silent
from memaudit.states import holding
from memaudit.text import clean
from memaudit.units import UnitSpace

# Steps after which the relearning probe looks, its rate (AdamW without decay), and the noise probe's levels and draws.
STEPS = (0, 1, 2, 5, 10, 20)
RATE = 3e-4
SIGMAS = (0.1, 0.2, 0.4)
DRAWS = 3
# Examples a probe runs at most.
PROBED = 512


UNION_NOTE = (
    "The audit measured each example with its own units cut; this file has the units of all chosen examples cut.",
)
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
        output: the `.safetensors` file to write.
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


def by_units(request: Request, findings: Sequence[Finding]) -> Erasure:
    """Silence the units of `findings` in a copy and measure it.

    Raises:
        ModelRejected: the model cannot be edited.
        DataRejected: an example of a finding is not among the flagged ones.
    """
    check_editable(request.adapter.module)
    with exact_arithmetic():
        before = request.evaluator()
        rows = {(e.id, e.label): row for row, e in enumerate(request.flagged.examples)}
        missing = [f for f in findings if (f.example.id, f.example.label) not in rows]
        if missing:
            raise DataRejected(
                f"{len(missing)} examples of the report are not among the flagged ones, "
                f"first {clean(missing[0].example.source)}",
                hint="Give the flagged examples of the audit, with --flagged.",
            )
        chosen = [(rows[f.example.id, f.example.label], f) for f in findings]
        sets = sets_of(request, before, [row for row, _ in chosen], request.test)
        request.progress.stage("edit")
        state, units = silenced(request.adapter, sets.reference.batch([0, 1, 2], before.device), findings)
        write(state, request.output)
        proof = prove(request, before, sets)
        return proof.erasure(
            "units", examples=each_alone(before, proof.after, request.flagged, chosen), units=units, notes=UNION_NOTE
        )


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
    fitted = (margin(before.logits(request.flagged), request.flagged.labels) > 0).nonzero().flatten().tolist()
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
    shaken, learned = noise(before, after, sets, request.seed), relearning(after, sets, request.seed)
    return Proof(request, after, sha256, sets, both, shaken, learned)


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
    return state, [space_unit(space, n) for n in sorted(numbers)]


def space_unit(space: UnitSpace, number: int) -> UnitRef:
    """Unit `number` as reports name it."""
    unit = space.unit(number)
    return UnitRef(layer=unit.layer, index=unit.index, kind=unit.kind)


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """The state dict as a safetensors file, replaced whole or not at all."""
    from safetensors.torch import save

    replace_bytes(path, save({n: t.detach().cpu().contiguous().clone() for n, t in state.items()}, {"format": "pt"}))


def reread(path: Path, original: Adapter) -> tuple[Adapter, str]:
    """The file just written, read and loaded as any checkpoint is, with the original's preprocessing; and its hash."""
    checkpoint = read(path)
    other = copy.copy(original)
    other.module = copy.deepcopy(original.module)
    load_strict(other.module, checkpoint.tensors)
    return other, checkpoint.sha256


def scores(evaluator: Evaluator, sets: Sets) -> ErasureScores:
    """What the evaluator's model predicts of `sets`."""
    flagged = sets.flagged
    said = evaluator.logits(flagged).argmax(1)
    labelled = said == flagged.labels
    truths = [(row, e.true_label) for row, e in enumerate(flagged.examples) if e.true_label is not None]
    right = [bool(said[row] == label) for row, label in truths if row in set(sets.fitted)]
    reference = evaluator.logits(sets.reference).argmax(1) == sets.reference.labels
    tested, labels, accuracy = reference, sets.reference.labels, None
    if sets.test is not None and sets.final:
        rows = list(sets.final)
        tested = evaluator.logits(sets.test, rows).argmax(1) == sets.test.labels[rows]
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


def each_alone(
    before: Evaluator, after: Evaluator, flagged: ExampleSet, chosen: Sequence[tuple[int, Finding]]
) -> list[ErasedExample]:
    """The chosen examples on the original and on the written file, one image a pass as the audit measured them."""
    found = []
    one, other = Evaluator(before.adapter, 1), Evaluator(after.adapter, 1)
    for row, finding in chosen:
        label = flagged.examples[row].label
        was, now = (prediction_of(e.logits(flagged, [row])[0], label) for e in (one, other))
        found.append(ErasedExample(id=finding.id, before=was, after=now, as_reported=now == finding.after))
    return found


def noise(before: Evaluator, after: Evaluator, sets: Sets, seed: int) -> list[NoisePoint]:
    """How often noise on the input brings a flagged label back; the same noise for both models."""
    rows = list(sets.fitted)[:PROBED]
    if not rows:
        return []
    scale = float(sets.flagged.batch(rows[:64], before.device).std())
    points = []
    for sigma in SIGMAS:
        rates = []
        for evaluator in (before, after):
            generator = generator_for(seed, "noise", str(sigma))

            def body(
                images: Tensor, labels: Tensor, run: Evaluator = evaluator, draw: torch.Generator = generator
            ) -> int:
                size = (DRAWS, *images.shape)
                moved = images + sigma * scale * torch.randn(size, generator=draw).to(images)  # noqa: B023
                with torch.no_grad():
                    return sum(int((run.adapter.forward(m).argmax(1) == labels).sum()) for m in moved)

            rates.append(sum(evaluator.each(sets.flagged, rows, body, batch=64, forward=DRAWS)) / (DRAWS * len(rows)))
        points.append(NoisePoint(sigma=sigma, before=tidy(rates[0]), after=tidy(rates[1])))
    return points


def relearning(after: Evaluator, sets: Sets, seed: int) -> list[RelearnPoint]:
    """Train the edited model a few steps on a third of the flagged examples: how fast do the others come back?

    The control trains on as many reference examples instead.
    """
    rows = list(sets.fitted)
    order = torch.randperm(len(rows), generator=generator_for(seed, "relearn", "flagged")).tolist()
    shown, rest = [rows[i] for i in order[: len(rows) // 3]], [rows[i] for i in order[len(rows) // 3 :]]
    if not shown:
        return []
    clean_rows = torch.randperm(len(sets.reference), generator=generator_for(seed, "relearn", "reference")).tolist()
    rest = rest[:PROBED]
    flagged = _relearn(after, sets.flagged, shown[:PROBED], sets.flagged, rest, seed)
    control = _relearn(after, sets.reference, clean_rows[: len(shown[:PROBED])], sets.flagged, rest, seed)
    return [
        RelearnPoint(steps=s, rest=tidy(a), control=tidy(b)) for s, a, b in zip(STEPS, flagged, control, strict=True)
    ]


def _relearn(
    evaluator: Evaluator,
    examples: ExampleSet,
    shown: Sequence[int],
    others: ExampleSet,
    rest: Sequence[int],
    seed: int,
) -> list[float]:
    """Share of `rest` whose label is predicted after each of `STEPS`; the model is put back."""
    module = evaluator.adapter.module
    generator = generator_for(seed, "relearn", "order")
    found = []
    with _restored(module), trainable(module, [n for n, _ in module.named_parameters()]) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)

        def step(images: Tensor, labels: Tensor) -> None:
            optimizer.zero_grad()
            with torch.enable_grad():
                F.cross_entropy(evaluator.adapter.forward(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        for number in range(STEPS[-1] + 1):
            if number in STEPS:
                said = margin(evaluator.logits(others, rest), others.labels[list(rest)]) > 0
                found.append(float(said.float().mean()))
            if number < STEPS[-1]:
                drawn = torch.randperm(len(shown), generator=generator)[:64].tolist()
                evaluator.each(examples, [shown[i] for i in drawn], step, batch=64, backward=1)
    return found


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Whatever the body trains is a copy; the network's own tensors come back untouched."""
    with holding(module, {n: p.detach().clone() for n, p in module.named_parameters()}):
        yield


def _share(right: Tensor) -> float | None:
    return tidy(float(right.float().mean())) if len(right) else None


def choose_findings(findings: Sequence[Finding], wanted: Sequence[str]) -> list[Finding]:
    """The findings whose id begins with, or whose example is called, each of `wanted`; without any, all localized.

    Raises:
        UsageError: one names no finding, or several; or nothing is left to silence.
    """
    erased = [f for f in findings if f.after is not None and f.units and f.after.prediction != f.example.label]
    if not wanted:
        chosen = [f for f in erased if f.outcome == "localized"]
        if not chosen:
            raise UsageError("the report has no localized finding", hint="Name findings with --examples, by their ids.")
        return chosen
    chosen = []
    for name in wanted:
        exact = [f for f in findings if name in (f.id, f.example.id, f.example.source, _declared(f))]
        found = exact or [f for f in findings if len(name) >= 6 and f.id.startswith(name)]
        if len(found) != 1:
            what = "no finding" if not found else f"{len(found)} findings"
            raise UsageError(f"--examples {clean(name)!r} names {what} of the report", hint="Give a finding's id.")
        if found[0] not in erased:
            raise UsageError(
                f"finding {clean(name)!r} has no units that suppress its label: {found[0].outcome}",
                hint="Silence localized findings; for a whole group use --method curvature.",
            )
        chosen += found
    return list({f.id: f for f in chosen}.values())


def _declared(finding: Finding) -> str:
    """The id a manifest gave the example, which leads its note."""
    note = finding.example.note or ""
    return note.removeprefix("id ").partition(";")[0] if note.startswith("id ") else ""
