"""What to edit, where the copy goes, what it is measured on, and whether it can be edited at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet, remove_overlap
from memaudit.engine.answers import margin, predicted
from memaudit.engine.device import automatic_batch_size, resolve_device
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import DataRejected, ModelRejected
from memaudit.findings import Finding
from memaudit.numbers import count
from memaudit.settings import Progress, Silent
from memaudit.text import clean


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

    def using(self, rows: Collection[int]) -> Sets:
        """The same, with the flagged `rows` among those the edit was made with."""
        used = {*self.used, *rows}
        unused = tuple(row for row in self.fitted if row not in used)
        return replace(self, used=tuple(row for row in self.fitted if row in used), unused=unused)


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

    Raises:
        DataRejected: too few reference examples are left beside the flagged ones.
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


def rows_of(findings: Sequence[Finding], flagged: ExampleSet) -> list[int]:
    """The rows of `flagged` whose contents and labels are those of `findings`, in their order.

    Raises:
        DataRejected: there is none for one of them.
    """
    rows = {key: row for row, key in enumerate(zip(flagged.ids(), flagged.labels.tolist(), strict=True))}
    missing = [f for f in findings if (f.example.id, f.example.label) not in rows]
    if missing:
        raise DataRejected(
            f"{count(len(missing), 'example')} of the report {'is' if len(missing) == 1 else 'are'} not among the "
            f"flagged ones, first {clean(missing[0].example.source)}",
            hint="Give the flagged examples of the audit, with --flagged.",
        )
    return [rows[f.example.id, f.example.label] for f in findings]


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
