"""A set of labelled examples, ready to be batched: who each one is, and its values."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from memaudit.data.compact import Examples, taken
from memaudit.data.ondemand import OnDemand
from memaudit.findings import Example
from memaudit.system.memory import to_device

# Share of a GPU's free memory that a set's pixels may take there.
RESIDENT = 1 / 8
# Rows that are moved there at a time.
MOVED = 1024
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

    examples: Sequence[Example]
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
        if not len(self) or self.examples[0].declared_id is None:
            return () if not len(self) else None
        declared = [e.declared_id for e in self.examples]
        numbers = [int(d) for d in declared if d is not None and _NUMBER.fullmatch(d)]
        return tuple(numbers) if len(numbers) == len(declared) else None

    def unnumbered(self) -> ExampleSet:
        """The same images, whose ids nobody knows."""
        return replace(self, examples=_changed(self.examples, {"declared_id": None}))

    def redacted(self) -> ExampleSet:
        """The same examples without names, notes and words of theirs: row, line and id stand for each."""
        bare: dict[str, object] = {"source": "array", "note": None, "columns": {}}
        hidden = ("not named (--redact)",)
        return replace(
            self,
            examples=_changed(self.examples, bare),
            unreadable=hidden * len(self.unreadable),
            duplicates=hidden * len(self.duplicates),
        )

    def labelled(self, labels: Sequence[int]) -> ExampleSet:
        """The same images, each asked for another of `labels`."""
        if isinstance(self.examples, Examples):
            return replace(self, examples=replace(self.examples, labels=np.array(labels, np.int64)))
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
        if isinstance(self.examples, Examples):
            return torch.from_numpy(self.examples.labels)
        return torch.tensor([e.label for e in self.examples], dtype=torch.int64)

    @cached_property
    def truths(self) -> Tensor:
        """`(N,)` int64: the true label of each example, -1 where nobody says."""
        return torch.tensor([-1 if t is None else t for t in (e.true_label for e in self.examples)], dtype=torch.int64)

    def ids(self) -> Iterator[str]:
        """The content id of each example, in order."""
        if isinstance(self.examples, Examples):
            return map(self.examples.id, range(len(self)))
        return (e.id for e in self.examples)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids and labels in order: equal for equal content, whatever the files are called."""
        digest, between = hashlib.sha256(), ""
        for identity, label in zip(self.ids(), self.labels.tolist(), strict=True):
            digest.update(f"{between}{identity} {label}".encode())
            between = "\n"
        return digest.hexdigest()

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
        if device.type != "cuda":
            return None
        if device not in self._resident:
            size = math.prod(self.pixels.shape) * self.pixels.dtype.itemsize
            fits = size <= RESIDENT * torch.cuda.mem_get_info(device)[0]
            self._resident[device] = self._moved(device) if fits else None
        return self._resident[device]

    def _moved(self, device: torch.device) -> Tensor:
        """All pixels on `device`, a part at a time."""
        whole = torch.empty(self.pixels.shape, dtype=self.pixels.dtype, device=device)
        for start in range(0, len(self), MOVED):
            whole[start : start + MOVED] = to_device(self.pixels[start : start + MOVED], device)
        return whole

    @cached_property
    def _resident(self) -> dict[torch.device, Tensor | None]:
        return {}

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to make the values of `indices`, which the next batch will ask for, while this one is run."""
        if isinstance(self.pixels, OnDemand):
            self.pixels.ahead(torch.as_tensor(indices, dtype=torch.int64))

    def subset(self, indices: Sequence[int] | Tensor) -> ExampleSet:
        """The examples `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        pixels = self.pixels.pick(index) if isinstance(self.pixels, OnDemand) else self.pixels[index]
        return replace(self, examples=taken(self.examples, index.numpy()), pixels=pixels)


def joined(first: ExampleSet, second: ExampleSet) -> ExampleSet:
    """Both sets as one, read by the same preprocessing, the second after the first."""
    parts = [examples.pixels[torch.arange(len(examples))] for examples in (first, second)]
    if parts[0].dtype != parts[1].dtype:
        parts = [examples.batch(range(len(examples))) for examples in (first, second)]
    return ExampleSet((*first.examples, *second.examples), torch.cat(parts), first.source, first.class_names)


def finding_id(example_id: str, label: int) -> str:
    """The id of a finding: hash of the example's content and its flagged label. Survives retraining."""
    return hashlib.sha256(f"{example_id}:{label}".encode()).hexdigest()[:16]


def distinct(examples: Sequence[Example], paired: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """Positions of the first example of each (content, label), and `ExampleSet.duplicates` for the others.

    Args:
        paired: labels are two a question; a row for each question repeats nothing.
    """
    if isinstance(examples, Examples):
        contents, labels = examples.identities, examples.labels
    else:
        contents = np.array([e.id for e in examples], np.str_)
        labels = np.array([e.label for e in examples], np.int64)
    content = np.unique(contents, return_inverse=True)[1]
    same = content * (labels.max(initial=0) + 1)  # below this and the next lie the labels of one content
    keep = np.sort(np.unique(same + labels, return_index=True)[1])
    _, first, group = np.unique(same + labels // 2 if paired else content, return_index=True, return_inverse=True)
    kept, duplicates = np.zeros(len(labels), np.bool_), []
    kept[keep] = True
    for position in np.flatnonzero(first[group] != np.arange(len(labels))).tolist():
        example, earlier = examples[position], examples[int(first[group[position]])]
        fate = f"kept: label {example.label}, not {earlier.label}" if kept[position] else "left out"
        duplicates.append(f"{_row(example)}: same content as {_row(earlier)}, {fate}")
    return keep, tuple(duplicates)


def _row(example: Example) -> str:
    return f"{example.source} (row {example.index})"


def content_id(content: bytes) -> str:
    """The id of an example: hash of its undecoded bytes (a file), or of its dtype, shape and values (an array row)."""
    return hashlib.sha256(content).hexdigest()[:16]


def _changed(examples: Sequence[Example], fields: Mapping[str, object]) -> Sequence[Example]:
    if isinstance(examples, Examples):
        return replace(examples, changed={**examples.changed, **fields})
    return tuple(e.model_copy(update=fields) for e in examples)
