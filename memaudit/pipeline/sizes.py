"""How large a network takes its images, where nobody says: tried on the reference, before anything else is looked at.

No tensor of a convolutional network tells it, and at a wrong size every other question has a wrong answer: a ResNet-18
trained on images of 32 pixels gives 0.11 at 224, whichever of the architectures that fit its file it is taken for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.adapters.preprocessing import guessed
from memaudit.data import ExampleSet, Preprocess
from memaudit.errors import MemauditError, PremiseBroken
from memaudit.findings import ReportWarning
from memaudit.pipeline.load import better
from memaudit.pipeline.trials import attempt

# Reference images that a size is tried on; with fewer wrong ones than this, no other size can be decisively better.
SIZE_IMAGES, FEWEST_WRONG = 128, 7
# Sizes of well-known data sets and recipes.
SIDES = (224, 128, 96, 64, 32, 28)
Size = tuple[int, ...]


def settle_size(
    found: Sequence[Adapter],
    read: Callable[[Adapter, int | None], ExampleSet],
    device: str,
    shape: Sequence[int] = (),
) -> tuple[ReportWarning, ...]:
    """Give all of `found` the size that the reference images have themselves, where it fits them decisively better.

    Args:
        found: the networks that the tensors can belong to; each is tried at each size.
        read: the reference for an adapter, or at most so many of it.
        shape: of one example, where all are arrays of one shape.

    Returns:
        What to tell the reader where another size than the first guess was taken.

    Raises:
        PremiseBroken: a size that the images do not have fits decisively better; with the accuracies, and the option
            that gives it.
    """
    unsaid = [a for a in found if "input_size" in guessed(a.preprocess) and not a.multi_label]
    if not unsaid:
        return ()
    own = [adapter.preprocess for adapter in unsaid]
    sets: dict[Preprocess, ExampleSet] = {}

    def at(size: Size | None) -> Tensor:
        """`(n,)` bool: which images the network gives that gives most of them at this size; None: at its own."""
        best = torch.zeros(0, dtype=torch.bool)
        for adapter, guess in zip(unsaid, own, strict=True):
            way = guess if size is None else replace(guess, input_size=size)
            seen = replace(way, mean=(), std=(), origin="")
            adapter.preprocess = way
            try:
                if seen not in sets:
                    sets[seen] = read(adapter, SIZE_IMAGES)
                given = attempt(adapter, [sets[seen]], device, SIZE_IMAGES).right
            finally:
                adapter.preprocess = guess
            best = given if int(given.sum()) >= int(best.sum()) else best
        return best

    before = at(None)
    if int((~before).sum()) < FEWEST_WRONG:
        return ()
    tried: dict[Size, Tensor] = {}
    for size in _sizes(unsaid, shape):
        try:
            tried[size] = at(size)
        except MemauditError:  # not a size for this network
            continue
    fitting = {s: r for s, r in tried.items() if len(r) == len(before) and better(r, before)}
    if not fitting:
        return ()
    best = max(fitting, key=lambda s: int(fitting[s].sum()))
    native = {way.input_size for way, examples in sets.items() if not examples.seen.get("resized")}
    taken = next((s for s in fitting if s in native and not better(fitting[best], fitting[s])), None)
    first = own[0].input_size
    shown = "; ".join(f"{_side(s)} {float(r.float().mean()):.3f}" for s, r in {first: before, **tried}.items())
    if taken is None:
        raise PremiseBroken(
            f"images are not prepared as the network was trained (MEM909): reference accuracy is "
            f"{float(before.float().mean()):.3f}, and {float(fitting[best].float().mean()):.3f} with images of "
            f"{_side(best)}",
            hint=f"if that is how it was trained: --input-size {','.join(map(str, best))}",
            details=[shown],
        )
    for adapter in unsaid:
        adapter.preprocess = _sized(adapter.preprocess, taken)
        adapter.presets = tuple(dict.fromkeys(_sized(preset, taken) for preset in adapter.presets))
        adapter.test_size = None
    message = f"images are taken at {_side(taken)}, their own size, because it fits the reference best"
    return (ReportWarning(code="MEM907", message=f"{message} (accuracy at {shown}); --input-size says it"),)


def _sizes(found: Sequence[Adapter], shape: Sequence[int]) -> list[Size]:
    """What to try beside each network's own guess."""
    channels, guess = found[0].preprocess.input_size[0], {a.preprocess.input_size for a in found}
    tested = [a.test_size[-1] for a in found if a.test_size]
    own = shape[-1:] if len(shape) == 3 else ()
    sizes = dict.fromkeys((channels, side, side) for side in (*tested, *own, *SIDES))
    return [size for size in sizes if guess != {size}]


def _sized(way: Preprocess, size: Size) -> Preprocess:
    origins = {**dict(way.origins), "input_size": "examples"}
    return replace(way, input_size=size, origin=f"{way.origin}, examples", origins=tuple(origins.items()))


def _side(size: Size) -> str:
    return " x ".join(map(str, size[1:]))
