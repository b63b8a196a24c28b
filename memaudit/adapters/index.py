"""The index of all timm architectures by the names and shapes of their tensors.

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
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
import timm

from memaudit.adapters.building import build, default_config
from memaudit.text import clean

Shapes = Mapping[str, tuple[int, ...]]
Slot = tuple[str, int]  # a dimension: tensor name, axis
Progress = Callable[[int, int, str], None]  # done, total, architecture

SHIPPED = "timm_index.json.gz"
FORMAT = 2
MODULUS = 1 << 64
# Builds with unusual values show which dimensions depend on what: no other dimension grows as 13 to 17 or 3 to 5.
CLASSES, CHANNELS = (13, 17), 5


@dataclass(frozen=True)
class Size:
    """How an image size that the architecture must be told shows in the shapes.

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
class Entry:
    """One architecture.

    Attributes:
        body: the hash described above.
        classifier: dimensions that follow the number of classes; their tensors are the classifier's.
        channels: dimensions that follow the number of input channels.
        default_channels: number of input channels unless said otherwise.
        default_width: the first of those dimensions then; more than the channels where patches are flattened.
        size: `None` where the architecture takes no image size.
    """

    architecture: str
    body: int
    classifier: tuple[Slot, ...]
    channels: tuple[Slot, ...]
    default_channels: int
    default_width: int
    size: Size | None

    @property
    def free(self) -> frozenset[Slot]:
        """The dimensions that count as 0."""
        return frozenset(self.channels) | frozenset(self.size.slots if self.size else ())


def load_index(progress: Progress | None = None) -> tuple[Entry, ...]:
    """The index of the installed timm: shipped, cached, or built now (minutes) and cached.

    Args:
        progress: called after each architecture while building.
    """
    shipped = resources.files("memaudit.adapters") / SHIPPED
    if shipped.is_file() and (entries := decode(shipped.read_bytes())):
        return entries
    cached = Path(platformdirs.user_cache_dir("memaudit")) / f"timm_index-{FORMAT}-{clean(timm.__version__)}.json.gz"
    if cached.is_file() and (entries := decode(cached.read_bytes())):
        return entries
    entries = build_index(progress=progress)
    with contextlib.suppress(OSError):  # no cache means building again next time, not failing now
        write_atomically(cached, encode(entries))
    return entries


def build_index(architectures: Iterable[str] | None = None, progress: Progress | None = None) -> tuple[Entry, ...]:
    """Build every architecture twice on `meta` and note what it looks like. One that timm cannot build is left out."""
    names = list(timm.list_models() if architectures is None else architectures)
    entries = []
    for done, name in enumerate(names, 1):
        entry = describe(name)
        if entry is not None:
            entries.append(entry)
        if progress is not None:
            progress(done, len(names), name)
    return tuple(entries)


def describe(architecture: str, kwargs: Mapping[str, object] | None = None, *, most: int | None = None) -> Entry | None:
    """The entry of one architecture, or `None` if timm cannot build it (an optional dependency is missing).

    Args:
        architecture: a registry name.
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
    return Entry(architecture, body, by_classes, by_channels, channels, width, size)


def _shapes(architecture: str, kwargs: Mapping[str, object], most: int | None) -> dict[str, tuple[int, ...]] | None:
    try:
        state = build(architecture, kwargs, device="meta", most=most).state_dict()
    except Exception:  # timm's own; a keyword this architecture does not take, mostly
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


def encode(entries: Iterable[Entry]) -> bytes:
    """The index as a file: slots and layers are kept once and referred to by position."""
    shared: dict[str, int] = {}

    def refer(value: object) -> int:
        return shared.setdefault(json.dumps(value), len(shared))

    rows = []
    for e in entries:
        size = [refer(e.size.slots), e.size.first, e.size.d_first, e.size.second, e.size.d_second] if e.size else None
        slots = refer(e.classifier), refer(e.channels)
        rows.append([e.architecture, f"{e.body:016x}", *slots, e.default_channels, e.default_width, size])
    table = {"format": FORMAT, "timm": timm.__version__, "shared": [json.loads(s) for s in shared], "rows": rows}
    return gzip.compress(json.dumps(table, separators=(",", ":")).encode(), 9, mtime=0)


def decode(data: bytes) -> tuple[Entry, ...] | None:
    """The entries of a file, or `None` if it is damaged, of another format or of another timm."""
    try:
        table = json.loads(gzip.decompress(data))
        if table["format"] != FORMAT or table["timm"] != timm.__version__:
            return None
        return tuple(_entry(row, table["shared"]) for row in table["rows"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zlib.error):
        return None


def _entry(row: list[Any], shared: list[Any]) -> Entry:
    architecture, body, classifier, channels, default, width, size = row
    return Entry(
        architecture,
        int(body, 16),
        tuple((n, a) for n, a in shared[classifier]),
        tuple((n, a) for n, a in shared[channels]),
        default,
        width,
        Size(tuple((n, a) for n, a in shared[size[0]]), *size[1:]) if size else None,
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)  # the temporary file was made for this user alone
    os.replace(file.name, path)
