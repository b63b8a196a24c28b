"""Pixels as the network was trained on them: what files leave open is tried on the reference, or asked, never guessed.

Torchvision and timm leave a photograph's orientation tag alone and cut 16-bit images at 255; others turn and scale.
Mean, std and the order of the channels stand in no file of weights. Where another usual way fits the reference
decisively better, it is taken (files) or named as a ready option (normalisation), as with twins of an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.data import ExampleSet, Preprocess
from memaudit.errors import UsageError
from memaudit.findings import ReportWarning
from memaudit.pipeline.class_order import other_order
from memaudit.pipeline.load import Settled, better, right
from memaudit.pipeline.trials import Tried, attempt, check_alike, other_way, raise_best, shown

# Reference images that a usual normalisation is tried on.
TRIED_IMAGES = 200
# How many more labels another mean and std have to give where somebody says what they are, as a share of all. A
# ResNet-10t trained with CIFAR-10's mean and std gave 13 more of 400 with ImageNet's, which make colours stronger.
CONTRADICTED = 0.1
# Mean and std that training scripts use, by name, of images in [0, 1].
RECIPES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "no normalisation": ((), ()),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5": ((0.5,) * 3, (0.5,) * 3),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "values from 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
}
ReadReference = Callable[[Adapter, int | None], ExampleSet]


@dataclass(frozen=True)
class Words:
    """How whoever called says what images go through: by flags here, by arguments in `CODE`.

    Attributes:
        pixels: gives mean, std and the order of channels.
        depth: says how images of more than 8 bits were taken.
        exif, bits, normal: the names of these settings.
    """

    pixels: Callable[[Preprocess, Preprocess], str]
    depth: str
    exif: str
    bits: str
    normal: str


def settle_files(
    settled: Settled,
    options: ModelOptions,
    read: ReadReference,
    device: str,
    *,
    flagged: Callable[[Adapter], ExampleSet],
    words: Words | None = None,
) -> Settled:
    """The way to decode what is odd about the reference's files that clearly fits it, among those there are.

    Args:
        flagged: the flagged examples, read for an adapter. Where photographs are recognised turned or not, these tell:
            a network gives labels that it learned by heart to the pixels that it learned them from.

    Raises:
        UsageError: images have more than 8 bits, and the reference does not tell how they were taken.
    """
    reference = settled.reference
    if reference.seen.get("turned") and options.exif is None:
        settled = _turned(settled, read, device, words or FLAGS, flagged)
    if reference.seen.get("deep") and options.bit_depth is None:
        settled = _deep(settled, read, device, words or FLAGS)
    return settled


def _turned(
    settled: Settled, read: ReadReference, device: str, words: Words, flagged: Callable[[Adapter], ExampleSet]
) -> Settled:
    base = settled.adapter.preprocess
    way = replace(base, exif="apply")
    other = _with(settled, way, read)
    after = right(other.adapter, other.reference, device)
    before = right(_with(settled, base).adapter, settled.reference, device)
    told = "the reference"
    if len(before) == len(after) and not better(after, before) and not better(before, after):
        own = [right(_with(settled, p).adapter, flagged(settled.adapter), device) for p in (base, way)]
        if len(own[0]) == len(own[1]):
            (before, after), told = own, "the flagged examples"
    figures = _figures(("turned", after), ("as they lie", before))
    if len(before) == len(after) and better(after, before):
        text = f"photographs are turned by their orientation tag because that fits {told}"
        return _with(other, way, note=f"{text}: {figures}")
    if len(before) == len(after) and better(before, after):
        return _with(settled, base)
    text = f"nothing settles whether photographs were turned by their orientation tag ({told}: {figures})"
    return _with(settled, base, note=f"{text}; they were left as they lie, as torchvision and timm do ({words.exif})")


def _deep(settled: Settled, read: ReadReference, device: str, words: Words) -> Settled:
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
            hint=f"say how the network was trained on them: {words.depth}",
            details=[figures],
        )
    taken = f"images of more than 8 bits are taken with {words.bits} {name}, which fits the reference"
    return _with(best, way, note=f"{taken}: {figures}")


def _with(settled: Settled, way: Preprocess, read: ReadReference | None = None, note: str = "") -> Settled:
    """`settled` with another way to take images: its reference read again, and a warning that says so."""
    settled.adapter.preprocess = way
    reference = settled.reference if read is None else read(settled.adapter, None)
    warnings = (ReportWarning(code="MEM914", message=note),) if note else ()
    return replace(settled, reference=reference, warnings=(*settled.warnings, *warnings))


def _figures(*tried: tuple[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(r.float().mean()):.3f}" for name, r in tried)


def check_normalisation(
    settled: Settled,
    options: ModelOptions,
    names: tuple[str, ...],
    device: str,
    *,
    flagged: Callable[[Adapter], ExampleSet],
    words: Words | None = None,
) -> Settled:
    """Raise where another usual normalisation or channel order fits the examples decisively better.

    Args:
        flagged: as for `settle_files`.

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
    check_alike(own := flagged(adapter), reference)
    before = attempt(adapter, sets := [reference, own], device, TRIED_IMAGES)
    order = other_order(names, before.answered[0][0].argmax(1), before.answered[0][1])
    if order is not None:
        before, sets = Tried(base, before.answered[:1]), [reference]
    words = words or FLAGS
    unsaid = options.mean is None and dict(base.origins).get("mean") != "checkpoint"
    # What is said, or what a user's own code does by itself, is in question only where the network does badly.
    well = min(float(given.float().mean()) for given in before.sets) >= 0.5
    if order is None and (base.raw or not unsaid) and well:
        return settled
    tried = []
    for name, way in _ways(base):
        adapter.preprocess = way
        tried.append((name, attempt(adapter, sets, device, TRIED_IMAGES)))
    adapter.preprocess = base
    raise_best(order, other_way(before, tried, words.pixels, least=0.0 if unsaid else CONTRADICTED))
    if not unsaid and (ahead := [(name, t) for name, t in tried if t.beats(before)]):
        note = f"images are prepared as it was said, and another way gives a few labels more: {shown(before, ahead)}"
        return replace(settled, warnings=(*settled.warnings, ReportWarning(code="MEM910", message=note)))
    rivals = [n for n, t in tried if not better(before.right, t.right) and t.way.bgr == base.bgr]
    if unsaid and rivals and base.mean and options.mean is None:
        note = f"mean and std are a guess ({base.origin}) that the reference does not settle: {shown(before, tried)}; "
        note += f"say them with {words.normal}"
        return replace(settled, warnings=(*settled.warnings, ReportWarning(code="MEM910", message=note)))
    return settled


def _ways(base: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    for name, (mean, std) in RECIPES.items():
        if mean != base.mean:
            yield f"{name} mean and std" if mean else name, replace(base, mean=mean, std=std)
    yield "the channels in the other order", replace(base, bgr=not base.bgr)


def _flags(way: Preprocess, base: Preprocess) -> str:
    if way.bgr != base.bgr:
        return f"--channel-order {'bgr' if way.bgr else 'rgb'}"
    if not way.mean:
        return "--mean 0,0,0 --std 1,1,1"
    return f"--mean {_listed(way.mean)} --std {_listed(way.std)}"


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{v:.6g}" for v in values)


def _arguments(way: Preprocess, base: Preprocess) -> str:
    said = [f"input_size={base.input_size}"]
    if way.mean:
        said.append(f"mean=({_listed(way.mean)}), std=({_listed(way.std)})")
    said += ["bgr=True"] if way.bgr else []
    return f"preprocess=Preprocess({', '.join(said)})"


FLAGS = Words(_flags, "--bit-depth clip (cut at 255), 12 or 16", "--exif apply", "--bit-depth", "--mean and --std")
CODE = Words(
    _arguments, "preprocess=Preprocess(..., bit_depth=12 or 16), or images of 8 bits", "exif='apply'", "bit_depth=",
    "preprocess=",
)  # fmt: skip


_SAID = {
    "turned": "have an orientation tag, {exif}",
    "deep": "have more than 8 bits, {depth}",
    "misnamed": "are named as another image format than they hold",
    "linked": "are links to files outside the folder, which were followed",
}


def notes(
    settled: Settled, options: ModelOptions, sets: Mapping[str, ExampleSet | None], words: Words | None = None
) -> tuple[ReportWarning, ...]:
    """What a reader must know of how examples became inputs, and of what the network makes of them.

    Args:
        sets: all that are read, by name.

    Raises:
        UsageError: only examples outside the reference have more than 8 bits, and nobody says how to take them.
    """
    adapter, spoken = settled.adapter, words or FLAGS
    found = [*settled.warnings, *_odd_files(options, adapter.preprocess, spoken, sets)]
    if ends_in := _ends_in(adapter):
        said = f"the network ends in {ends_in}; everything is measured on the logits below it"
        found.append(ReportWarning(code="MEM912", message=said))
    if adapter.further:
        said = f"the network returns {adapter.further + 1} tensors of one shape; the first is taken as the logits"
        found.append(ReportWarning(code="MEM915", message=said))
    return tuple(found)


def _ends_in(adapter: Adapter) -> str:
    try:
        return adapter.ends_in
    except Exception:  # a network that does not run is refused by `check_network`, in one sentence
        return ""


def _odd_files(
    options: ModelOptions, preprocess: Preprocess, words: Words, sets: Mapping[str, ExampleSet | None]
) -> list[ReportWarning]:
    """What is odd about the files of each set, counted, and how it was taken."""
    exif = f"left alone as torchvision and timm do ({words.exif})"
    exif = "which is applied" if preprocess.exif == "apply" else exif
    kept = f"scaled by {preprocess.bit_depth} bits"
    depth = kept if preprocess.bit_depth else f"cut at 255 as torchvision and timm do ({words.bits.rstrip('=')})"
    warnings = []
    deep = [name for name, examples in sets.items() if examples is not None and examples.seen.get("deep")]
    if deep and "reference" not in deep and options.bit_depth is None:
        raise UsageError(
            f"{deep[0]} images have more than 8 bits, those of the reference do not",
            hint=f"say how the network was trained on them: {words.depth}",
        )
    for name, examples in sets.items():
        for kind, said in _SAID.items():
            count = examples.seen.get(kind, 0) if examples is not None else 0
            if count:
                message = f"{count} {name} images {said.format(exif=exif, depth=depth)}"
                warnings.append(ReportWarning(code="MEM911", message=message))
    return warnings
