"""Pixels as the network was trained on them: what files leave open is tried on the reference, or asked, never guessed.

Torchvision and timm leave a photograph's orientation tag alone and cut 16-bit images at 255; others turn and scale.
Mean, std and the order of the channels stand in no file of weights. Where another usual way fits the reference
decisively better, it is taken (files) or named as a ready option (normalisation), as with twins of an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.data import ExampleSet, Preprocess
from memaudit.engine.device import exact_arithmetic, resolve_device
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import PremiseBroken, UsageError
from memaudit.findings import ReportWarning
from memaudit.pipeline.class_order import check_class_order
from memaudit.pipeline.load import Settled, better, right

# Reference images that a usual normalisation is tried on.
TRIED_IMAGES = 200
# Mean and std that training scripts use, by name, of images in [0, 1].
RECIPES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "no normalisation": ((), ()),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5": ((0.5,) * 3, (0.5,) * 3),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "values from 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
}
ReadReference = Callable[[Adapter, int | None], ExampleSet]


def settle_files(settled: Settled, options: ModelOptions, read: ReadReference, device: str) -> Settled:
    """Of the ways to decode what is odd about the reference's files, the one that clearly fits it.

    Raises:
        UsageError: images have more than 8 bits, and the reference does not tell how they were taken.
    """
    reference = settled.reference
    if reference.seen.get("turned") and options.exif is None:
        settled = _turned(settled, read, device)
    if reference.seen.get("deep") and options.bit_depth is None:
        settled = _deep(settled, read, device)
    return settled


def _turned(settled: Settled, read: ReadReference, device: str) -> Settled:
    base = settled.adapter.preprocess
    other = _with(settled, replace(base, exif="apply"), read)
    before, after = (right(s.adapter, s.reference, device) for s in (_with(settled, base), other))
    if len(before) == len(after) and better(after, before):
        text = "photographs are turned by their orientation tag because that fits the reference"
        return _with(
            other, replace(base, exif="apply"), note=f"{text}: {_figures(('turned', after), ('as they lie', before))}"
        )
    return _with(settled, base)


def _deep(settled: Settled, read: ReadReference, device: str) -> Settled:
    base, seen = settled.adapter.preprocess, settled.reference.seen
    ways = [base, replace(base, bit_depth=16)]
    if not seen.get("beyond_12_bits"):
        ways.append(replace(base, bit_depth=12))
    tried = []
    for way in ways:
        found = _with(settled, way, None if way is base else read)
        tried.append((str(way.bit_depth or "clip"), found, right(found.adapter, found.reference, device), way))
    tried.sort(key=lambda t: -float(t[2].float().mean()))
    name, best, score, way = tried[0]
    figures = _figures(*((n, r) for n, _, r, _ in tried))
    if any(len(score) != len(r) or not better(score, r) for _, _, r, _ in tried[1:]):
        raise UsageError(
            f"{seen['deep']} reference images have more than 8 bits, and nothing tells how the network was given them",
            hint=f"as the network was trained: --bit-depth {name} (cut at 255), --bit-depth 12 or --bit-depth 16"
            if name == "clip"
            else f"as the network was trained: --bit-depth {name}, or --bit-depth clip (cut at 255)",
            details=[figures],
        )
    return _with(
        best,
        way,
        note=f"images of more than 8 bits are taken with --bit-depth {name}, which fits the reference: {figures}",
    )


def _with(settled: Settled, way: Preprocess, read: ReadReference | None = None, note: str = "") -> Settled:
    """`settled` with another way to take images: its reference read again, the reader told."""
    settled.adapter.preprocess = way
    reference = settled.reference if read is None else read(settled.adapter, None)
    warnings = (ReportWarning(code="MEM914", message=note),) if note else ()
    return replace(settled, reference=reference, warnings=(*settled.warnings, *warnings))


def _figures(*tried: tuple[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(r.float().mean()):.3f}" for name, r in tried)


def check_normalisation(settled: Settled, options: ModelOptions, names: tuple[str, ...], device: str) -> Settled:
    """Raise where another usual normalisation or channel order fits the reference decisively better.

    Returns:
        `settled`, with a warning where mean and std are a guess that the reference does not settle.

    Raises:
        PremiseBroken: with the accuracies, and the option that gives the better one.
    """
    adapter, reference, base = settled.adapter, settled.reference, settled.adapter.preprocess
    if not base.image or base.input_size[0] != 3 or adapter.multi_label or len(reference) < 2:
        return settled
    if getattr(adapter, "transform", None) is not None:
        return settled
    before, predictions, labels = _answers(adapter, reference, device)
    check_class_order(names, predictions, labels)
    guessed = dict(base.origins).get("mean", "default") not in ("flags", "checkpoint")
    # What is said, or what a user's own code does by itself, is in question only where the network does badly.
    if (base.raw or not guessed) and float(before.float().mean()) >= 0.5:
        return settled
    tried = []
    for name, way in _ways(base):
        adapter.preprocess = way
        tried.append((name, way, _answers(adapter, reference, device)[0]))
    adapter.preprocess = base
    name, way, best = max(tried, key=lambda t: float(t[2].float().mean()))
    figures = _figures(("as it is", before), *((n, r) for n, _, r in tried))
    if better(best, before):
        raise PremiseBroken(
            f"images are not prepared as the network was trained (MEM909): reference accuracy is "
            f"{float(before.float().mean()):.3f}, and {float(best.float().mean()):.3f} with {name}",
            hint=f"if that is how it was trained: {_option(way, base)}",
            details=[figures],
        )
    rivals = [n for n, w, r in tried if not better(before, r) and w.bgr == base.bgr]
    if guessed and rivals and base.mean and options.mean is None:
        note = f"mean and std are a guess ({base.origin}) that the reference does not settle: {figures}; say them with "
        note += "--mean and --std"
        return replace(settled, warnings=(*settled.warnings, ReportWarning(code="MEM910", message=note)))
    return settled


def _ways(base: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    for name, (mean, std) in RECIPES.items():
        if mean != base.mean:
            yield f"{name} mean and std" if mean else name, replace(base, mean=mean, std=std)
    yield "the channels in the other order", replace(base, bgr=not base.bgr)


def _option(way: Preprocess, base: Preprocess) -> str:
    if way.bgr != base.bgr:
        return f"--channel-order {'bgr' if way.bgr else 'rgb'}"
    if not way.mean:
        return "--mean 0,0,0 --std 1,1,1"
    return f"--mean {_listed(way.mean)} --std {_listed(way.std)}"


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{v:.6g}" for v in values)


def _answers(adapter: Adapter, reference: ExampleSet, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """`(n,)` each: which of some reference images are predicted correctly, what is predicted, their labels."""
    target = resolve_device(device)
    adapter.module.to(target)
    rows = list(range(0, len(reference), -(-len(reference) // TRIED_IMAGES)))
    with exact_arithmetic(), torch.no_grad():
        predictions = Evaluator(adapter, 64).logits(reference, rows).argmax(1)
    adapter.module.to("cpu")
    labels = reference.labels[rows]
    return predictions == labels, predictions, labels


_TOLD = {
    "turned": "have an orientation tag, {exif}",
    "deep": "have more than 8 bits, {depth}",
    "misnamed": "are named as another image format than they hold",
    "linked": "are links to files outside the folder, which were followed",
}


def odd_files(options: ModelOptions, preprocess: Preprocess, **sets: ExampleSet | None) -> list[ReportWarning]:
    """What is odd about the files of each set, counted, and how it was taken.

    Raises:
        UsageError: only examples outside the reference have more than 8 bits, and nobody says how to take them.
    """
    exif = "which is applied" if preprocess.exif == "apply" else "left alone as torchvision and timm do (--exif apply)"
    kept = f"scaled by {preprocess.bit_depth} bits"
    depth = kept if preprocess.bit_depth else "cut at 255 as torchvision and timm do (--bit-depth)"
    warnings = []
    deep = [name for name, examples in sets.items() if examples is not None and examples.seen.get("deep")]
    if deep and "reference" not in deep and options.bit_depth is None:
        raise UsageError(
            f"{deep[0]} images have more than 8 bits, those of the reference do not",
            hint="say how the network was trained on them: --bit-depth clip (cut at 255), --bit-depth 12 or 16",
        )
    for name, examples in sets.items():
        for kind, told in _TOLD.items():
            count = examples.seen.get(kind, 0) if examples is not None else 0
            if count:
                message = f"{count} {name} images {told.format(exif=exif, depth=depth)}"
                warnings.append(ReportWarning(code="MEM911", message=message))
    return warnings
