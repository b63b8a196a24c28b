"""What a checkpoint is once it has been read: plain tensors, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # sniffing and hashing a file must not load torch
    from torch import Tensor

Weights = Literal["raw", "ema"]


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says about itself. Data, never acted on: a name is looked up exactly, a number is checked.

    Attributes:
        architecture: a timm registry name, or None.
        origin: where the facts came from, for messages (`config.json`, `arch in the checkpoint`).
        model_kwargs: allow-listed scalars, or short lists of them.
        preprocess: any of `mean`, `std`, `input_size`, `crop_pct`, `interpolation`, `crop_mode`, `channel_order`.
        class_names: names by label where the file declares them.
        model_type: the `model_type` of a transformers `config.json`; the package memaudit-transformers loads those.
    """

    architecture: str | None = None
    origin: str = ""
    model_kwargs: Mapping[str, object] = field(default_factory=dict)
    num_classes: int | None = None
    preprocess: Mapping[str, object] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    epoch: int | None = None
    model_type: str | None = None

    def over(self, other: Facts) -> Facts:
        """These, and what only `other` says."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        said = {name: value if value or value == 0 else getattr(other, name) for name, value in own.items()}
        origin = self.origin if self.architecture else other.origin
        return replace(self, **{**said, "origin": origin, "preprocess": {**other.preprocess, **self.preprocess}})


@dataclass(frozen=True)
class Checkpoint:
    """Plain tensors read from one file, safely.

    Attributes:
        path: the weights file itself (inside the directory, where a directory was named).
        tensors: by name after unwrapping and prefix stripping; CPU, dense, never NaN-checked here.
        stripped_prefix: what was taken off every name, for the report.
        beside: what the file holds beside the network's own tensors (a loss's weights, counters), by full names.
        digest: gives `sha256` and `md5`; both may still be on their way.
    """

    path: Path
    format: Literal["safetensors", "torch"]
    tensors: Mapping[str, Tensor]
    facts: Facts = Facts()
    weights: Weights = "raw"
    stripped_prefix: str = ""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    digest: Callable[[], tuple[str, str]] = lambda: ("", "")

    @property
    def sha256(self) -> str:
        """Hash of the file's bytes, through the same descriptor the tensors were read from.

        For a sharded checkpoint, that of the lines `<sha256>  <name>` of its index and shards, sorted by name, as
        `sha256sum` prints them.
        """
        return self.digest()[0]

    @property
    def md5(self) -> str:
        """MD5 of a checkpoint in one file, since `.dvc` files hold nothing better; empty for several shards."""
        return self.digest()[1]
