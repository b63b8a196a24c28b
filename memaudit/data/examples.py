"""A set of labelled images, ready to be batched: who each example is, and its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from memaudit.findings import Example


@dataclass(frozen=True)
class ExampleSet:
    """Labelled images in memory.

    Attributes:
        examples: who each row is; `examples[i].id` is the hash of its content, computed before any resizing.
        pixels: `(N, C, H, W)`, uint8 (0..255) or float (as the caller gave it), after geometry (resize, crop) and
            before normalisation.
        source: what the user named, relative and printable.
        class_names: names by label, or empty where the source declares none.
        unreadable: `source: reason` of each example that could not be decoded and is therefore not in the set.
    """

    examples: tuple[Example, ...]
    pixels: Tensor
    source: str
    class_names: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.pixels):
            raise ValueError(f"{len(self.examples)} examples for {len(self.pixels)} images")

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> Tensor:
        """`(N,)` int64."""
        return torch.tensor([e.label for e in self.examples], dtype=torch.int64)

    @property
    def sha256(self) -> str:
        """Hash of ids and labels in order: equal for equal content, whatever the files are called."""
        return hashlib.sha256("\n".join(f"{e.id} {e.label}" for e in self.examples).encode()).hexdigest()

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Images `indices` as float32 on `device`; uint8 is scaled to [0, 1]."""
        picked = self.pixels[torch.as_tensor(indices, dtype=torch.int64)].to(device, non_blocking=True)
        return picked.float() / 255 if picked.dtype == torch.uint8 else picked.float()

    def subset(self, indices: Sequence[int]) -> ExampleSet:
        """The examples `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, examples=tuple(self.examples[i] for i in index.tolist()), pixels=self.pixels[index])


def finding_id(example_id: str, label: int) -> str:
    """The id of a finding: hash of the example's content and its flagged label. Survives retraining."""
    return hashlib.sha256(f"{example_id}:{label}".encode()).hexdigest()[:16]


def content_id(content: bytes) -> str:
    """The id of an example: hash of its undecoded bytes (a file), or of its dtype, shape and values (an array row)."""
    return hashlib.sha256(content).hexdigest()[:16]
