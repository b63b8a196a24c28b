"""`read`: from a path to a `Checkpoint`, step by step. Torch is imported by the steps that make tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memaudit.checkpoints.beside import set_aside
from memaudit.checkpoints.digests import Digests
from memaudit.checkpoints.directory import Layout, lay_out
from memaudit.checkpoints.facts import from_metadata, from_training
from memaudit.checkpoints.prefixes import strip
from memaudit.checkpoints.recognise import refuse_partial
from memaudit.checkpoints.sniff import lfs_digest, sniff
from memaudit.checkpoints.source import Source, opened
from memaudit.checkpoints.types import Checkpoint, Facts, Weights
from memaudit.checkpoints.wrapped import unwrapped
from memaudit.errors import ModelRejected, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from torch import Tensor


def read(path: str | os.PathLike[str], *, weights: Weights | None = None) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Args:
        path: a file (`.safetensors .pt .pth .pth.tar .ckpt .bin`, or an index of shards), or a directory: Hugging Face
            style (`config.json` and weights), or of a timm run.
        weights: which to take where a file holds raw and averaged weights; `None` refuses to choose if they differ.

    Raises:
        ModelRejected: missing, unsafe, broken, or not the weights of a model.
        UsageError: `weights` cannot be met or must be said; several checkpoints in the directory.
        EnvironmentFault: out of memory or disk while reading.
    """
    layout = lay_out(Path(path))
    where = clean(layout.path.name)
    parts = {shard.name: _read_file(shard, weights) for shard in layout.shards}
    first = next(iter(parts.values()))
    refuse_partial((name for part in parts.values() for name in part.tensors), where)
    tensors, beside, prefix = bare(_merge(parts, layout), where)
    return Checkpoint(
        path=layout.path,
        format=first.format,
        tensors=tensors,
        facts=layout.facts.over(first.facts).over(layout.run),
        weights=first.weights,
        stripped_prefix=prefix,
        beside=beside,
        digest=_digest({name: part.digests for name, part in parts.items()}, layout),
    )


def bare(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """`(tensors, beside, prefix)` by the network's own names, without what wrappers round it or its layers left.

    Raises:
        ModelRejected: two names would become one.
    """
    own, beside = set_aside(tensors)
    rest, outer = strip(own, where)
    rest, inner = strip(unwrapped(rest, where), where)
    return rest, beside, outer + inner


def fingerprint(path: str | os.PathLike[str]) -> str:
    """The `sha256` that `read(path)` would give, without reading a tensor or loading torch.

    A Git-LFS pointer serves as well as the file it stands for.

    Raises:
        ModelRejected: as `read`, as far as it concerns which files there are.
        UsageError: several checkpoints in the directory.
    """
    layout = lay_out(Path(path))
    digests = {}
    for shard in layout.shards:
        with opened(shard) as source:
            digests[shard.name] = lfs_digest(source) or source.sha256()
    return _combined(digests, _index(layout))


@dataclass(frozen=True)
class _Part:
    """One file's share of a checkpoint."""

    tensors: Mapping[str, Tensor]
    digests: Digests
    format: Literal["safetensors", "torch"]
    facts: Facts = field(default_factory=Facts)
    weights: Weights = "raw"


def _read_file(path: Path, weights: Weights | None) -> _Part:
    with opened(path) as source:
        kind = sniff(source)
        if kind == "safetensors":
            return _read_safetensors(source, weights)
        from memaudit.checkpoints.sandbox import open_pickle

        digests = Digests(source.chunks)
        try:
            found = open_pickle(source, kind, weights)
        finally:
            digests.finish()  # before the descriptor is closed
        return _Part(found.tensors, digests, "torch", from_training(found.about), found.weights)


def _read_safetensors(source: Source, weights: Weights | None) -> _Part:
    from memaudit.checkpoints.tensors import read_tensors

    if weights == "ema":
        raise UsageError(
            f"{source.name} is a safetensors file and does not say which weights it holds",
            hint="leave --weights out: it holds only one set",
        )
    tensors, texts, chunks = read_tensors(source)
    return _Part(tensors, Digests(chunks), "safetensors", from_metadata(texts))


def _merge(parts: Mapping[str, _Part], layout: Layout) -> dict[str, Tensor]:
    """The parts' tensors in one table; each shard must hold exactly what the index says."""
    merged: dict[str, Tensor] = {}
    for name, part in parts.items():
        if layout.names and set(part.tensors) != layout.names[name]:
            odd = sorted(set(part.tensors) ^ layout.names[name])
            raise ModelRejected(
                f"{clean(name)} does not hold the tensors that {clean(layout.path.name)} says "
                f"({len(odd)} differ, first {clean(odd[0])!r})",
                hint="its shards are from different checkpoints; fetch them again",
            )
        merged |= part.tensors
    return merged


def _digest(parts: Mapping[str, Digests], layout: Layout) -> Callable[[], tuple[str, str]]:
    """`Checkpoint.digest`; the index of several shards is hashed now."""
    index = _index(layout)
    alone = next(iter(parts.values()))
    return cache(lambda: (_combined({n: d.sha256 for n, d in parts.items()}, index), "" if index else alone.md5))


def _index(layout: Layout) -> dict[str, str]:
    """The digest of the index, where there are several shards."""
    if not layout.names:
        return {}
    with opened(layout.path) as source:
        return {layout.path.name: source.sha256()}


def _combined(digests: Mapping[str, str], index: Mapping[str, str]) -> str:
    """The checkpoint's digest: the file's own, or over the lines of index and shards (see `Checkpoint.sha256`)."""
    if not index:
        return next(iter(digests.values()))
    lines = {**digests, **index}
    return hashlib.sha256("".join(f"{lines[n]}  {n}\n" for n in sorted(lines)).encode()).hexdigest()
