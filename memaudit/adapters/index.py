"""The index of all architectures of timm and torchvision by the names and shapes of their tensors.

Per architecture it keeps one number: the sum of a hash of every `(name, shape)` of its body, in which the dimensions
that depend on the number of input channels or on the image size count as 0 and the classifier's tensors are left out.
A sum can be corrected for one tensor without hashing the others again, so a checkpoint is compared with all
architectures at the price of one pass over its names.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
import torch

from memaudit.adapters.building import (
    LIBRARIES,
    architectures,
    build,
    default_config,
    installed_version,
    library_of,
    variants,
)
from memaudit.text import clean

Shapes = Mapping[str, tuple[int, ...]]
Slot = tuple[str, int]  # a dimension: tensor name, axis
Progress = Callable[[int, int, str], None]  # done, total, architecture

SHIPPED = "timm_index.json.gz"
FORMAT = 3
MODULUS = 1 << 64
# Builds with unusual values show which dimensions depend on what: no other dimension grows as 13 to 17 or 3 to 5.
CLASSES, CHANNELS = (13, 17), 5
# Two networks compute the same where their logits in float64 differ by at most this share of what they vary by.
SAME = 1e-9
SIDES = (96, 131)  # pixels they are tried on


@dataclass(frozen=True)
class Size:
    """How an image size that the architecture takes as an argument shows in the shapes.

    Attributes:
        slots: dimensions that follow it; none where it changes settings alone (Swin's windows).
        first: the default, pixels a side; the first slot then has `d_first`.
        second: another one, with `d_second`.
    """

    slots: tuple[Slot, ...]
    first: int
    d_first: int
    second: int
    d_second: int


@dataclass(frozen=True)
class IndexEntry:
    """One architecture.

    Attributes:
        body: the hash described above.
        classifier: dimensions that follow the number of classes; their tensors are the classifier's.
        channels: dimensions that follow the number of input channels.
        default_channels: number of input channels unless said otherwise.
        default_width: the first of those dimensions then; more than the channels where patches are flattened.
        size: `None` where the architecture takes no image size.
        fixed: further arguments it is built with, where one name has several sets of tensors (auxiliary classifiers).
        like: another library's architecture that was seen to compute the same from the same tensors.
    """

    architecture: str
    body: int
    classifier: tuple[Slot, ...]
    channels: tuple[Slot, ...]
    default_channels: int
    default_width: int
    size: Size | None
    fixed: tuple[tuple[str, Any], ...] = ()
    like: str = ""

    @property
    def free(self) -> frozenset[Slot]:
        """The dimensions that count as 0."""
        return frozenset(self.channels) | frozenset(self.size.slots if self.size else ())


def load_index(progress: Progress | None = None) -> tuple[IndexEntry, ...]:
    """The index of the installed libraries: shipped, cached, or built now (minutes) and cached.

    Args:
        progress: called after each architecture while building.
    """
    shipped = resources.files("memaudit.adapters") / SHIPPED
    versions = "-".join(clean(installed_version(library)) for library in LIBRARIES)
    cached = Path(platformdirs.user_cache_dir("memaudit")) / f"timm_index-{FORMAT}-{versions}.json.gz"
    found: dict[str, tuple[IndexEntry, ...]] = {}
    for file in (shipped, cached):
        if len(found) < len(LIBRARIES) and file.is_file():
            found = {**unpacked(file.read_bytes()), **found}
    missing = [library for library in LIBRARIES if library not in found]
    if not missing:
        return tuple(entry for library in LIBRARIES for entry in found[library])
    known = tuple(entry for entries in found.values() for entry in entries)
    entries = known + build_index([a for a in architectures() if library_of(a) in missing], progress, known)
    with contextlib.suppress(OSError):  # no cache means building again next time, not failing now
        write_atomically(cached, packed(entries))
    return entries


def build_index(
    names: Iterable[str] | None = None, progress: Progress | None = None, known: Iterable[IndexEntry] = ()
) -> tuple[IndexEntry, ...]:
    """Build every architecture twice on `meta` and note what it looks like. One that cannot be built is left out.

    Args:
        names: by default all there are.
        known: entries of another library, built before.
    """
    wanted = architectures() if names is None else list(names)
    entries: list[IndexEntry] = []
    for done, name in enumerate(wanted, 1):
        for fixed in variants(name):
            entry = describe(name, fixed)
            if entry is not None:
                twins = (e for e in (*known, *entries) if _look(e) == _look(entry))
                like = next((e for e in twins if same_answers(e, entry)), None)
                entries.append(replace(entry, fixed=tuple(fixed.items()), like=like.architecture if like else ""))
        if progress is not None:
            progress(done, len(wanted), name)
    return tuple(entries)


def _look(entry: IndexEntry) -> tuple[object, ...]:
    """What two entries have in common whose tensors have the same names and shapes."""
    return entry.body, frozenset(entry.classifier), frozenset(entry.free)


def same_answers(one: IndexEntry, other: IndexEntry) -> bool:
    """Whether two architectures of the same tensors compute the same logits, seen in float64 on random tensors."""
    if library_of(one.architecture) == library_of(other.architecture):
        return False  # the modules of one library are compared by their settings
    kwargs = {"num_classes": 3}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        first, second = (build(e.architecture, {**dict(e.fixed), **kwargs}, device="cpu") for e in (one, other))
        for name, tensor in first.eval().double().state_dict().items():
            if tensor.is_floating_point():  # no norm may be an identity, no branch a zero
                tensor.add_(0.1 * torch.rand_like(tensor) if "running_var" in name else 0.02 * torch.randn_like(tensor))
        second.eval().double().load_state_dict(first.state_dict())
        for side in SIDES:
            images = torch.rand(2, 3, side, side, dtype=torch.float64)
            mine, theirs = first(images), second(images)
            if not (mine - theirs).abs().max() <= SAME * (mine[0] - mine[1]).abs().max():
                return False
    return True


def describe(
    architecture: str, kwargs: Mapping[str, object] | None = None, *, most: int | None = None
) -> IndexEntry | None:
    """The entry of one architecture, or `None` if it cannot be built (an optional dependency is missing).

    Args:
        architecture: an exact name.
        kwargs: what is fixed besides; a dimension it decides is not free.
        most: see `building.build`.
    """
    fixed = dict(kwargs or {})
    config = default_config(architecture)
    channels, *_, side = config.get("input_size") or (3, 224, 224)
    shapes = _shapes(architecture, {"num_classes": CLASSES[0], **fixed}, most)
    if shapes is None:
        return None
    other = {"num_classes": CLASSES[1], "in_chans": CHANNELS}
    resized = _shapes(architecture, {**other, "img_size": 2 * side, **fixed}, most)
    varied = resized or _shapes(architecture, {**other, **fixed}, most)
    if varied is None:
        return None
    changed = list(_changes(shapes, varied))
    by_classes = tuple((n, a) for n, a, old, new in changed if old * CLASSES[1] == new * CLASSES[0])
    by_channels = tuple((n, a) for n, a, old, new in changed if old * CHANNELS == new * channels)
    by_size = [c for c in changed if c[:2] not in by_classes + by_channels]
    size = None
    if resized:
        _, _, first, second = by_size[0] if by_size else ("", 0, 0, 0)
        size = Size(tuple((n, a) for n, a, *_ in by_size), side, first, 2 * side, second)
    free = frozenset(by_channels) | frozenset(size.slots if size else ())
    heads = {name for name, _ in by_classes}
    body = sum(hash_tensor(n, s, free) for n, s in shapes.items() if n not in heads) % MODULUS
    width = shapes[by_channels[0][0]][by_channels[0][1]] if by_channels else channels
    return IndexEntry(architecture, body, by_classes, by_channels, channels, width, size)


def _shapes(architecture: str, kwargs: Mapping[str, object], most: int | None) -> dict[str, tuple[int, ...]] | None:
    try:
        state = build(architecture, kwargs, device="meta", most=most).state_dict()
    except Exception:  # the library's own; a keyword this architecture does not take, mostly
        return None
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _changes(before: Shapes, after: Shapes) -> Iterator[tuple[str, int, int, int]]:
    """`(name, axis, old, new)` of every dimension that differs."""
    for name, shape in before.items():
        other = after.get(name, ())
        if len(other) == len(shape):
            yield from (
                (name, axis, *pair) for axis, pair in enumerate(zip(shape, other, strict=True)) if len(set(pair)) > 1
            )


def hash_tensor(name: str, shape: tuple[int, ...], free: Collection[Slot]) -> int:
    """64 bits of a name and its shape, free dimensions as 0."""
    sizes = ",".join("0" if (name, axis) in free else str(d) for axis, d in enumerate(shape))
    return int.from_bytes(hashlib.blake2b(f"{name}|{sizes}".encode("utf-8", "surrogatepass"), digest_size=8).digest())


def packed(entries: Iterable[IndexEntry]) -> bytes:
    """The index as a file: slots and layers are kept once and referred to by position."""
    shared: dict[str, int] = {}

    def refer(value: object) -> int:
        return shared.setdefault(json.dumps(value), len(shared))

    rows = []
    for e in entries:
        size = [refer(e.size.slots), e.size.first, e.size.d_first, e.size.second, e.size.d_second] if e.size else None
        slots = refer(e.classifier), refer(e.channels)
        more = [dict(e.fixed), e.like] if e.fixed or e.like else []
        rows.append([e.architecture, f"{e.body:016x}", *slots, e.default_channels, e.default_width, size, *more])
    versions = {library: installed_version(library) for library in {library_of(e.architecture) for e in entries}}
    table = {"format": FORMAT, "versions": versions, "shared": [json.loads(s) for s in shared], "rows": rows}
    return gzip.compress(json.dumps(table, separators=(",", ":")).encode(), 9, mtime=0)


def unpacked(data: bytes) -> dict[str, tuple[IndexEntry, ...]]:
    """The entries of a file by library, if of the installed version; none if it is damaged or of another format."""
    try:
        table = json.loads(gzip.decompress(data))
        if table["format"] != FORMAT:
            return {}
        current = [lib for lib, version in table["versions"].items() if version == installed_version(lib)]
        entries = [_entry(row, table["shared"]) for row in table["rows"]]
        return {lib: tuple(e for e in entries if library_of(e.architecture) == lib) for lib in current}
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError, zlib.error):
        return {}


def _entry(row: list[Any], shared: list[Any]) -> IndexEntry:
    architecture, body, classifier, channels, default, width, size, *more = row
    fixed, like = more or ({}, "")
    return IndexEntry(
        architecture,
        int(body, 16),
        tuple((n, a) for n, a in shared[classifier]),
        tuple((n, a) for n, a in shared[channels]),
        default,
        width,
        Size(tuple((n, a) for n, a in shared[size[0]]), *size[1:]) if size else None,
        tuple(fixed.items()),
        like,
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)  # the temporary file was made for this user alone
    os.replace(file.name, path)
