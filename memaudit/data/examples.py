"""A set of labelled examples, ready to be batched: who each one is, and its values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from memaudit.data.ondemand import OnDemand
from memaudit.findings import Example
from memaudit.system.memory import to_device

# Share of a GPU's free memory that a set's pixels may take there.
RESIDENT = 1 / 8
# A declared id that example-tied dropout can draw masks by.
_NUMBER = re.compile(r"-?[0-9]{1,40}")


@dataclass(frozen=True)
class ExampleSet:
    """Labelled examples: images, or whatever else a network takes.

    Who they are is in memory; their values are too, or are made when rows are asked for.

    Attributes:
        examples: who each row is; `examples[i].id` is the hash of its content, computed before any resizing.
        pixels: of images `(N, C, H, W)`, uint8 (0..255) or float (as the caller gave it), after geometry (resize,
            crop) and before normalisation; else `(N, ...)` floats as they came, or token ids. In a large set they are
            `OnDemand`, which is indexed like the tensor.
        source: what the user named, relative and printable.
        class_names: names by label, or empty where the source declares none.
        unreadable: `source: reason` of each example that could not be decoded and is therefore not in the set.
        duplicates: rows whose content was already in the set, in words: left out when the label was the same too, kept
            when it was another (the image then has two findings).
        omitted: rows that were not read because of a limit.
        drawn_from: how many rows the source lists, where a sample of them was drawn.
        row_order: whose numbers the rows have: `torchvision`, `timm`, `either` where both number them alike; None where
            the question does not arise.
        seen: how many files had what pipelines treat in their own ways, by the names of `Odd`, and `linked`.
    """

    examples: tuple[Example, ...]
    pixels: Tensor | OnDemand
    source: str
    class_names: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = field(default=())
    duplicates: tuple[str, ...] = field(default=())
    omitted: int = 0
    drawn_from: int | None = None
    row_order: str | None = None
    seen: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.pixels):
            raise ValueError(f"{len(self.examples)} examples for {len(self.pixels)} images")

    def __getstate__(self) -> dict[str, object]:
        """What another process is sent of a set: its fields, and no copy that lies on a GPU."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def numbers(self) -> tuple[int, ...] | None:
        """The ids a manifest or an array declared, if every example has one and all are integers."""
        declared = [e.declared_id for e in self.examples]
        numbers = [int(d) for d in declared if d is not None and _NUMBER.fullmatch(d)]
        return tuple(numbers) if len(numbers) == len(declared) else None

    def unnumbered(self) -> ExampleSet:
        """The same images, whose ids nobody knows."""
        return replace(self, examples=tuple(e.model_copy(update={"declared_id": None}) for e in self.examples))

    def redacted(self) -> ExampleSet:
        """The same examples without names, notes and words of theirs: row, line and id stand for each."""
        bare: dict[str, object] = {"source": "array", "note": None, "columns": {}}
        hidden = ("not named (--redact)",)
        return replace(
            self,
            examples=tuple(e.model_copy(update=bare) for e in self.examples),
            unreadable=hidden * len(self.unreadable),
            duplicates=hidden * len(self.duplicates),
        )

    def labelled(self, labels: Sequence[int]) -> ExampleSet:
        """The same images, each asked for another of `labels`."""
        pairs = zip(self.examples, labels, strict=True)
        return replace(self, examples=tuple(e.model_copy(update={"label": label}) for e, label in pairs))

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def image(self) -> bool:
        """Whether the examples are images: they can be shown, mirrored and pooled in two dimensions."""
        return self.pixels.dim() == 4

    @property
    def whole(self) -> bool:
        """Whether values are token ids: there is nothing near one."""
        return not self.pixels.dtype.is_floating_point and self.pixels.dtype != torch.uint8

    @cached_property
    def labels(self) -> Tensor:
        """`(N,)` int64."""
        return torch.tensor([e.label for e in self.examples], dtype=torch.int64)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids and labels in order: equal for equal content, whatever the files are called."""
        return hashlib.sha256("\n".join(f"{e.id} {e.label}" for e in self.examples).encode()).hexdigest()

    def batch(self, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Examples `(len(indices), *input_size)`, float32 on `device`; uint8 becomes [0, 1], token ids stay int64."""
        place, rows = torch.device(device), torch.as_tensor(indices, dtype=torch.int64)
        there = self._on(place)
        picked = to_device(self.pixels[rows], place) if there is None else there[to_device(rows, place)]
        if self.whole:
            return picked
        return picked.float() / 255 if picked.dtype == torch.uint8 else picked.float()

    def _on(self, device: torch.device) -> Tensor | None:
        """All pixels on a GPU, moved once, unless they would take more of its free memory than `RESIDENT`."""
        if device.type != "cuda" or isinstance(self.pixels, OnDemand):
            return None
        if device not in self._resident:
            room = RESIDENT * torch.cuda.mem_get_info(device)[0]
            self._resident[device] = self.pixels.to(device) if self.pixels.nbytes <= room else None
        return self._resident[device]

    @cached_property
    def _resident(self) -> dict[torch.device, Tensor | None]:
        return {}

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to make the values of `indices`, which the next batch will ask for, while this one is run."""
        if isinstance(self.pixels, OnDemand):
            self.pixels.ahead(torch.as_tensor(indices, dtype=torch.int64))

    def subset(self, indices: Sequence[int]) -> ExampleSet:
        """The examples `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        pixels = self.pixels.pick(index) if isinstance(self.pixels, OnDemand) else self.pixels[index]
        return replace(self, examples=tuple(self.examples[i] for i in index.tolist()), pixels=pixels)


def joined(first: ExampleSet, second: ExampleSet) -> ExampleSet:
    """Both sets as one, read by the same preprocessing, the second after the first."""
    parts = [examples.pixels[torch.arange(len(examples))] for examples in (first, second)]
    if parts[0].dtype != parts[1].dtype:
        parts = [examples.batch(range(len(examples))) for examples in (first, second)]
    return ExampleSet((*first.examples, *second.examples), torch.cat(parts), first.source, first.class_names)


def finding_id(example_id: str, label: int) -> str:
    """The id of a finding: hash of the example's content and its flagged label. Survives retraining."""
    return hashlib.sha256(f"{example_id}:{label}".encode()).hexdigest()[:16]


def distinct(examples: Sequence[Example], paired: bool = False) -> tuple[list[int], tuple[str, ...]]:
    """Positions of the first example of each (content, label), and `ExampleSet.duplicates` for the others.

    Args:
        paired: labels are two a question; a row for each question repeats nothing.
    """
    first: dict[tuple[str, int], Example] = {}
    seen: set[tuple[str, int]] = set()
    keep, duplicates = [], []
    for position, example in enumerate(examples):
        earlier = first.setdefault((example.id, example.label // 2 if paired else 0), example)
        new = (example.id, example.label) not in seen
        if new:
            seen.add((example.id, example.label))
            keep.append(position)
        if earlier is not example:
            fate = f"kept: label {example.label}, not {earlier.label}" if new else "left out"
            duplicates.append(f"{_row(example)}: same content as {_row(earlier)}, {fate}")
    return keep, tuple(duplicates)


def _row(example: Example) -> str:
    return f"{example.source} (row {example.index})"


def content_id(content: bytes) -> str:
    """The id of an example: hash of its undecoded bytes (a file), or of its dtype, shape and values (an array row)."""
    return hashlib.sha256(content).hexdigest()[:16]
