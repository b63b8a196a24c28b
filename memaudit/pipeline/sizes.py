"""How large a network takes its images, where nobody says: tried on the reference, before anything else is looked at.

No tensor of a convolutional network tells it, and at a wrong size every other question has a wrong answer: a ResNet-18
trained on images of 32 pixels gives 0.11 at 224, whichever of the architectures that fit its file it is taken for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.adapters.preprocessing import guessed
from memaudit.data import ExampleSet, Preprocess
from memaudit.errors import MemauditError, PremiseBroken
from memaudit.findings import ReportWarning
from memaudit.pipeline.load import better
from memaudit.pipeline.trials import attempt

# Reference images that every size is tried on, and those that are not decisively worse on these.
FEW, MORE = 32, 128
# With fewer wrong ones than this, no other size can be decisively better.
FEWEST_WRONG = 7
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
    trial = _Trial(unsaid, read, device)
    guess = unsaid[0].preprocess.input_size
    few = {guess: trial.at(guess, FEW)}
    if bool(few[guess].all()):
        return ()
    few |= trial.each(_sizes(unsaid, shape), FEW)
    top = max(few.values(), key=_share)
    left = [size for size, given in few.items() if not better(top, given)]
    if left == [guess]:
        return ()
    more = trial.each(left, MORE)
    own = more.get(guess, few[guess])
    fitting = {s: r for s, r in more.items() if guess not in more or (len(r) == len(own) and better(r, own))}
    if not fitting or (guess in more and int((~own).sum()) < FEWEST_WRONG):
        return ()
    best = max(fitting, key=lambda size: _share(fitting[size]))
    taken = next((s for s in fitting if s in trial.native and not better(fitting[best], fitting[s])), None)
    shown = "; ".join(f"{_side(size)} {_share(more.get(size, given)):.3f}" for size, given in few.items())
    if taken is None:
        raise PremiseBroken(
            f"images are not prepared as the network was trained (MEM909): reference accuracy is {_share(own):.3f}, "
            f"and {_share(fitting[best]):.3f} with images of {_side(best)}",
            hint=f"if that is how it was trained: --input-size {','.join(map(str, best))}",
            details=[shown],
        )
    for adapter in unsaid:
        adapter.preprocess = _sized(adapter.preprocess, taken)
        adapter.presets = tuple(dict.fromkeys(_sized(preset, taken) for preset in adapter.presets))
        adapter.test_size = None
    said = f"images are taken at {_side(taken)}, their own size, because it fits the reference best"
    said = f"{said} (accuracy on {FEW} to {MORE} images: {shown}); --input-size says it"
    return (ReportWarning(code="MEM907", message=said),)


class _Trial:
    """Networks on the reference at one size after another.

    Attributes:
        native: the sizes that no image had to be resized for.
    """

    def __init__(
        self, found: Sequence[Adapter], read: Callable[[Adapter, int | None], ExampleSet], device: str
    ) -> None:
        self._found, self._read, self._device = found, read, device
        self._sets: dict[tuple[Preprocess, int], ExampleSet] = {}
        self.native: set[Size] = set()

    def each(self, sizes: Sequence[Size], most: int) -> dict[Size, Tensor]:
        """`at` of each, without those that the networks cannot take."""
        given = {}
        for size in sizes:
            try:
                given[size] = self.at(size, most)
            except MemauditError:
                continue
        return given

    def at(self, size: Size, most: int) -> Tensor:
        """`(n,)` bool: which of at most `most` images are given their label, by the network that gives most of them."""
        return max((self._given(adapter, size, most) for adapter in self._found), key=_share)

    def _given(self, adapter: Adapter, size: Size, most: int) -> Tensor:
        guess = adapter.preprocess
        adapter.preprocess = replace(guess, input_size=size)
        try:
            seen = adapter.preprocess.geometry, most
            if seen not in self._sets:
                self._sets[seen] = self._read(adapter, most)
            if not self._sets[seen].seen.get("resized"):
                self.native.add(size)
            return attempt(adapter, [self._sets[seen]], self._device, most).right
        finally:
            adapter.preprocess = guess


def _share(given: Tensor) -> float:
    return float(given.float().mean())


def _sizes(found: Sequence[Adapter], shape: Sequence[int]) -> list[Size]:
    """What to try beside each network's own guess."""
    guess = found[0].preprocess.input_size
    tested = [a.test_size[-1] for a in found if a.test_size]
    own = shape[-1:] if len(shape) == 3 else ()
    others = [a.preprocess.input_size for a in found]
    usual = [(guess[0], side, side) for side in (*tested, *own, *SIDES)]
    return [size for size in dict.fromkeys((*others, *usual)) if size != guess]


def _sized(way: Preprocess, size: Size) -> Preprocess:
    origins = {**dict(way.origins), "input_size": "examples"}
    return replace(way, input_size=size, origin=f"{way.origin}, examples", origins=tuple(origins.items()))


def _side(size: Size) -> str:
    return " x ".join(map(str, size[1:]))
