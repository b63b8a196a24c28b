"""From a path to the model that was trained: read, choose the adapter, and settle twins by reference accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import Checkpoint
from memaudit.data import ExampleSet, Preprocess
from memaudit.engine.answers import loss, margin, predicted
from memaudit.engine.device import automatic_batch_size, exact_arithmetic, resolve_device
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import PremiseBroken, UsageError
from memaudit.findings import ReportWarning
from memaudit.intervals import mcnemar
from memaudit.pipeline.premises import AT_CHANCE, near_chance
from memaudit.text import clean

# Reference images by which twins are distinguished.
TWIN_IMAGES = 512
# And those by which several ways of preparing images are distinguished.
PRESET_IMAGES = 128
# And of each set, those whose loss along a series is looked at.
LOSS_IMAGES = 200
# One-sided exact McNemar test between the best twin and each other one: below this, the better one is taken.
TWIN_P = 0.01


@dataclass(frozen=True)
class Settled:
    """The architecture that was taken, its reference examples, and what to tell the reader about the choice."""

    adapter: Adapter
    reference: ExampleSet
    warnings: tuple[ReportWarning, ...] = ()


def candidates(checkpoint: Checkpoint, options: ModelOptions, name: str | None) -> list[Adapter]:
    """`checkpoint` as each of the architectures that its tensors fit, loaded; one where there is no doubt.

    Args:
        options: what the user said; with an `arch` there is nothing to settle.
        name: the adapter's, or None.
    """
    first = choose(checkpoint, options, name)
    if len(first.alternatives) < 2:
        return [first]
    return [choose(checkpoint, replace(options, arch=architecture), name) for architecture in first.alternatives]


def settle(
    checkpoint: Checkpoint,
    found: Sequence[Adapter],
    read_reference: Callable[[Adapter, int | None], ExampleSet],
    device: str = "auto",
) -> Settled:
    """Take the one of several architectures for the tensors of `checkpoint` that clearly fits the reference.

    Args:
        found: its `candidates`.
        read_reference: the reference set for an adapter's preprocessing, or at most so many of it.

    Raises:
        UsageError: no candidate is decisively better; the message lists them with their accuracies.
        PremiseBroken: all of them do near chance.
    """
    if len(found) == 1:
        warnings = settle_presets(found[0], read_reference, device)
        return Settled(found[0], read_reference(found[0], None), warnings)
    sets: dict[Preprocess, ExampleSet] = {}
    tried: list[tuple[str, Adapter, ExampleSet, Tensor]] = []
    for adapter in found:
        geometry = adapter.preprocess.geometry
        if geometry not in sets:
            sets[geometry] = read_reference(adapter, TWIN_IMAGES)
        reference = sets[geometry]
        tried.append((adapter.architecture, adapter, reference, right(adapter, reference, device)))
    tried.sort(key=lambda t: -float(t[3].float().mean()))
    shown = [f"{clean(a)}: reference accuracy {float(r.float().mean()):.3f}" for a, _, _, r in tried]
    best = tried[0]
    rivals = [t for t in tried[1:] if not better(best[3], t[3])]
    if near_chance(best[3], best[2].labels, best[1].num_classes):
        raise PremiseBroken(
            f"{clean(checkpoint.path.name)} fits {len(tried)} architectures, and each does near chance (reference)",
            hint=AT_CHANCE,
            details=shown,
        )
    if rivals:
        raise UsageError(
            f"{clean(checkpoint.path.name)} fits {len(tried)} architectures that compute differently, "
            "and the reference does not tell them apart",
            hint=f"Name the one it was trained as, for example: --arch {clean(tried[0][0])}",
            details=shown,
        )
    message = f"taken as {best[0]} because it fits the reference best ({'; '.join(shown)})"
    best[1].alternatives = tuple(adapter.architecture for adapter in found)
    prepared = settle_presets(best[1], read_reference, device)
    return Settled(best[1], read_reference(best[1], None), (ReportWarning(code="MEM901", message=message), *prepared))


def settle_presets(
    adapter: Adapter, read_reference: Callable[[Adapter, int | None], ExampleSet], device: str
) -> tuple[ReportWarning, ...]:
    """Take the way of preparing images, among those the network is known with, that clearly fits the reference.

    Where none does, the first stays, and its origin says that it is a guess.

    Returns:
        What to tell the reader where another one was taken.
    """
    if len(adapter.presets) < 2:
        return ()
    guess = adapter.preprocess
    tried: list[tuple[Preprocess, Tensor]] = []
    for preset in adapter.presets:
        adapter.preprocess = preset
        reference = read_reference(adapter, PRESET_IMAGES)
        tried.append((preset, right(adapter, reference, device, PRESET_IMAGES)))
    adapter.preprocess = guess
    best = max(tried, key=lambda t: float(t[1].float().mean()))
    if best[0] is tried[0][0] or not better(best[1], tried[0][1]):
        return ()
    shown = "; ".join(f"{clean(p.origin)}: {float(r.float().mean()):.3f}" for p, r in tried)
    adapter.preprocess = replace(best[0], origin=f"{best[0].origin}, which fits the reference best")
    message = f"images are prepared as {clean(best[0].origin)} because it fits the reference best ({shown})"
    return (ReportWarning(code="MEM907", message=message),)


def right(adapter: Adapter, reference: ExampleSet, device: str, most: int = TWIN_IMAGES) -> Tensor:
    """`(n,)` bool: which reference images the candidate predicts correctly."""
    logits, labels = answers(adapter, reference, device, most)
    return predicted(margin(logits, labels.clamp(max=logits.shape[1] - 1)))


def answers(adapter: Adapter, examples: ExampleSet, device: str, most: int) -> tuple[Tensor, Tensor]:
    """Logits `(n, classes)` of at most `most` examples, evenly spread, and their labels."""
    target = resolve_device(device)
    adapter.module.to(target)
    rows = list(range(0, len(examples), -(-len(examples) // most)))
    with exact_arithmetic(), torch.no_grad():
        logits = Evaluator(adapter, automatic_batch_size(examples.pixels[:1], target)).logits(examples, rows)
    adapter.module.to("cpu")
    return logits, examples.labels[rows]


def losses(adapter: Adapter, sets: Sequence[ExampleSet], device: str) -> Tensor:
    """Cross-entropy `(n,)` of some examples of each set, by the network as it stands."""
    return torch.cat([loss(*answers(adapter, examples, device, LOSS_IMAGES)) for examples in sets if len(examples)])


def better(best: Tensor, other: Tensor) -> bool:
    """Exact one-sided McNemar test on the images only one of the two gets right."""
    wins, losses = int((best & ~other).sum()), int((~best & other).sum())
    return wins + losses > 0 and mcnemar(wins, losses) < TWIN_P
