"""Which architectures of timm and torchvision a bare set of tensors can belong to, by names and shapes alone.

`python -m memaudit.adapters.identify` writes the index that ships with memaudit.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from memaudit.adapters import index
from memaudit.adapters.building import build, variants
from memaudit.adapters.compute import signature
from memaudit.adapters.index import IndexEntry, Shapes, Size, Slot
from memaudit.adapters.remembered import remembered
from memaudit.checkpoints.load import check_fit
from memaudit.errors import ModelRejected

Kwargs = Mapping[str, Any]
# Some constructors take time with the fourth power of the image size; nobody trains at more than 4 times its default.
MAX_ENLARGEMENT = 4


@dataclass(frozen=True)
class Candidate:
    """A network whose names and shapes are the checkpoint's.

    Attributes:
        architecture: the registry name that stands for all of `same`.
        kwargs: for `building.build`: `num_classes`, and `in_chans` or `img_size` where they are not the default.
        same: the registry names, this one first, that compute the same from these tensors.
        printed: the network's modules as `repr` prints them: candidates that print alike are variants of one network
            that differ in settings no module shows (window sizes, pooling, numbers of heads).
    """

    architecture: str
    kwargs: Kwargs
    same: tuple[str, ...] = ()
    printed: str = ""


def identify(tensors: Mapping[str, Tensor], entries: Collection[IndexEntry] | None = None) -> list[Candidate]:
    """Every network that fits, those that compute the same counted as one; empty where none does.

    Args:
        tensors: a whole state dict.
        entries: the index; default: that of the installed libraries.

    Raises:
        ModelRejected: the tensors are a known network without its classifier.
    """
    if entries is None:
        return list(remembered(tensors, Candidate, lambda: _identify(tensors, _installed())))
    return _identify(tensors, Tables(entries))


def _identify(tensors: Mapping[str, Tensor], tables: Tables) -> list[Candidate]:
    """`identify` with an index arranged for lookup."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    matches = [match for entry in tables.lookup(shapes) if (match := _match(entry, shapes, tensors)) is not None]
    if not matches and (headless := tables.headless(shapes)):
        raise _no_classifier(headless)
    # An architecture at its own image size is what people train; resized ones count only where there is none.
    own = [m for m in matches if "img_size" not in m.kwargs] or matches
    own.sort(key=lambda m: (len(m.architecture), m.architecture))  # the plainest name stands for its group
    groups: dict[str, list[_Match]] = {}
    signatures: dict[str, str] = {}
    for match in sorted(own, key=lambda m: bool(m.entry.like)):  # the sort is stable; what is alike comes after
        like = match.entry.like
        found = signatures.get(like) or signature(_comparable(match, own[0], tensors))
        signatures.setdefault(match.architecture, found)
        groups.setdefault(found, []).append(match)
    return [
        Candidate(g[0].architecture, g[0].kwargs, tuple(m.architecture for m in g), repr(g[0].network))
        for g in groups.values()
    ]


@dataclass(frozen=True)
class _Match:
    """An entry that fits, with the keyword arguments that make it fit, and the network on `meta`."""

    entry: IndexEntry
    kwargs: Kwargs
    network: nn.Module

    @property
    def architecture(self) -> str:
        return self.entry.architecture


def _match(entry: IndexEntry, shapes: Shapes, tensors: Mapping[str, Tensor]) -> _Match | None:
    for kwargs in _keywords(entry, shapes):
        if (network := _fits(entry.architecture, kwargs, tensors)) is not None:
            return _Match(entry, kwargs, network)
    return None


def _comparable(match: _Match, reference: _Match, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of `match` for the image size of `reference`, where its tensors allow that size too."""
    size, wanted = match.entry.size, reference.entry.size
    if size is None or wanted is None or "img_size" in match.kwargs or size.first == wanted.first:
        return match.network
    return _fits(match.architecture, {**match.kwargs, "img_size": wanted.first}, tensors) or match.network


def fit(architecture: str, tensors: Mapping[str, Tensor], fixed: Mapping[str, object]) -> Kwargs:
    """The number of classes and channels and the image size with which a known architecture fits.

    Args:
        architecture: an exact registry name.
        tensors: a whole state dict.
        fixed: further keyword arguments, already decided.

    Returns:
        What to add to `fixed`; the likeliest if nothing fits exactly, so that building it shows the difference.

    Raises:
        ModelRejected: the tensors are this network without its classifier.
    """
    first, *others = variants(architecture)
    found = _fit(architecture, tensors, {**first, **fixed})
    for variant in others:
        if _fits(architecture, {**first, **found, **fixed}, tensors) is not None:
            break
        more = {**variant, **_fit(architecture, tensors, {**variant, **fixed})}
        if _fits(architecture, {**more, **fixed}, tensors) is not None:
            return more
    return found


def _fit(architecture: str, tensors: Mapping[str, Tensor], fixed: Mapping[str, object]) -> Kwargs:
    """`fit` of one variant."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    entry = index.describe(architecture, fixed, most=most_parameters(tensors))
    if entry is None:
        return {}
    if any(name not in shapes for name, _ in entry.classifier):
        if Tables([entry]).headless(shapes):
            raise _no_classifier(architecture)
        return {}
    if any(axis >= len(shapes.get(name, ())) for name, axis in entry.classifier + tuple(entry.free)):
        return {}  # a tensor that says the size is missing, or is of another kind: building it shows the difference
    tries = [k for k in _keywords(entry, shapes) if not k.keys() & fixed.keys()]
    fitting = (k for k in tries if _fits(architecture, {**k, **fixed}, tensors) is not None)
    return next(fitting, tries[0] if tries else {})


class Tables:
    """The index, arranged for lookup: entries by what is free in them, then by the hash of the rest."""

    def __init__(self, entries: Collection[IndexEntry]) -> None:
        self._by_pattern: dict[tuple[tuple[Slot, ...], frozenset[Slot]], dict[int, list[IndexEntry]]] = {}
        for entry in entries:
            bodies = self._by_pattern.setdefault((entry.classifier, entry.free), {})
            bodies.setdefault(entry.body, []).append(entry)

    def lookup(self, shapes: Shapes) -> list[IndexEntry]:
        """Entries whose body and classifier have these names, and these shapes but for the free dimensions."""
        whole = {name: index.hash_tensor(name, shape, ()) for name, shape in shapes.items()}
        total = sum(whole.values())
        found = []
        for (classifier, free), bodies in self._by_pattern.items():
            heads = {name for name, _ in classifier}
            loose = {name for name, _ in free}
            if not (heads and heads <= shapes.keys() and loose <= shapes.keys()):
                continue
            body = total - sum(whole[name] for name in heads | loose)
            body += sum(index.hash_tensor(name, shapes[name], free) for name in loose)
            found += bodies.get(body % index.MODULUS, [])
        return found

    def headless(self, shapes: Shapes) -> str:
        """The architecture these shapes are the body of, or an empty string."""
        total = sum(index.hash_tensor(name, shape, ()) for name, shape in shapes.items())
        for (_, free), bodies in self._by_pattern.items():
            loose = {name for name, _ in free}
            if loose <= shapes.keys():
                changes = (index.hash_tensor(n, shapes[n], free) - index.hash_tensor(n, shapes[n], ()) for n in loose)
                if entries := bodies.get((total + sum(changes)) % index.MODULUS):
                    return entries[0].architecture
        return ""


@functools.cache
def _installed() -> Tables:
    return Tables(index.load_index(_report if sys.stderr.isatty() else None))


def _fits(architecture: str, kwargs: Mapping[str, object], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The network on `meta`, or `None` where it cannot be built or the tensors are not its own."""
    try:
        network = build(architecture, kwargs, device="meta", most=most_parameters(tensors))
        check_fit(network, tensors)
    except Exception:  # the library's, for a value this architecture cannot have; or the mismatch
        return None
    return network


def most_parameters(tensors: Mapping[str, Tensor]) -> int:
    """How many parameters may be made on the way to a network of these tensors: some constructors replace a few."""
    return 2 * len(tensors) + 100


def _no_classifier(architecture: str) -> ModelRejected:
    return ModelRejected(
        f"the checkpoint is {architecture} without a classifier (num_classes=0)",
        hint="memorization of labels needs the layer that predicts them; give the checkpoint that has it",
    )


def _keywords(entry: IndexEntry, shapes: Shapes) -> Iterator[Kwargs]:
    """The keyword arguments that could give these shapes, likeliest first; the caller checks."""
    name, axis = entry.classifier[0]
    kwargs = {**dict(entry.fixed), "num_classes": shapes[name][axis]}
    if entry.channels:
        name, axis = entry.channels[0]
        channels, rest = divmod(shapes[name][axis] * entry.default_channels, entry.default_width)
        if rest == 0 and channels != entry.default_channels:
            kwargs["in_chans"] = channels
    if entry.size is None or not entry.size.slots:
        yield kwargs
        return
    for side in _sides(entry.size, shapes):
        yield kwargs if side == entry.size.first else {**kwargs, "img_size": side}


def _sides(size: Size, shapes: Shapes) -> Iterator[int]:
    """Image sizes that would give the first slot its value, within reason."""
    return (side for side in _solutions(size, shapes) if 0 < side <= MAX_ENLARGEMENT * size.first)


def _solutions(size: Size, shapes: Shapes) -> Iterator[int]:
    """Image sizes that give the first slot its value, if it grows as one of the known position tables does."""
    name, axis = size.slots[0]
    value = shapes[name][axis]
    if value == size.d_first:
        yield size.first
        return
    # One row per place (and class tokens): with the area. One per row offset: with the side.
    area = _extrapolate(size.d_first, size.d_second, value, size.first**2, size.second**2)
    if area is not None and area > 0 and isqrt(area) ** 2 == area:
        yield isqrt(area)
    side = _extrapolate(size.d_first, size.d_second, value, size.first, size.second)
    if side is not None:
        yield side
    # One per offset of two places, (2n - 1)^2, and in BEiT three more for the class token.
    for extra in (0, 3):
        roots = [isqrt(d - extra) for d in (size.d_first, size.d_second, value) if d >= extra]
        if len(roots) == 3 and [r * r + extra for r in roots] == [size.d_first, size.d_second, value]:
            side = _extrapolate(roots[0], roots[1], roots[2], size.first, size.second)
            if side is not None:
                yield side


def _extrapolate(d_first: int, d_second: int, value: int, first: int, second: int) -> int | None:
    """Where on the line through `(first, d_first)` and `(second, d_second)` the `value` lies, if on a whole number."""
    steps, rest = divmod((value - d_first) * (second - first), d_second - d_first)
    return first + steps if rest == 0 else None


def _report(done: int, total: int, architecture: str) -> None:
    end = "\n" if done == total else ""
    sys.stderr.write(f"\rindexing architectures, once for this version: {done}/{total} {architecture:<50.50}{end}")


def main() -> None:
    """Write the index of the installed libraries beside this file."""
    path = Path(__file__).with_name(index.SHIPPED)
    entries = index.build_index(progress=_report)
    index.write_atomically(path, index.packed(entries))
    sys.stderr.write(f"{path.name}: {len(entries)} architectures, {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
