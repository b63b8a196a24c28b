"""Measurements written as if each were alone, and run side by side: what they ask for together fills whole batches.

A control looks at a handful of rows of one finding. Run one after another, a network sees two rows at a time, and where
several threads share a busy machine's cores they wait for each other at each of these passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from memaudit.data.examples import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Cut, Fill
from memaudit.network.units import UnitSpace

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What a measurement wants next: the logits of `rows` of `examples`, each with its own cut."""

    examples: ExampleSet
    rows: Sequence[int]
    cuts: Sequence[Cut]


# Yields what it asks for, is sent the logits `(rows, classes)`, and returns what it found.
Measurement = Generator[Ask, Tensor, T]


# Fast path; its slow twin: tests/twins.py.
def together(evaluator: Evaluator, space: UnitSpace, fill: Fill, measurements: Sequence[Measurement[T]]) -> list[T]:
    """What each of `measurements` returns. In eval mode rows do not touch each other: the company changes nothing."""
    found: dict[int, T] = {}
    asked: dict[int, Ask] = {}

    def go_on(number: int, logits: Tensor | None) -> None:
        try:
            asked[number] = next(measurements[number]) if logits is None else measurements[number].send(logits)
        except StopIteration as done:
            found[number] = done.value

    for number in range(len(measurements)):
        go_on(number, None)
    while asked:
        pending, asked = asked, {}
        sets: dict[int, list[int]] = {}
        for number, ask in pending.items():
            sets.setdefault(id(ask.examples), []).append(number)
        for numbers in sets.values():
            asks = [pending[number] for number in numbers]
            rows = [row for ask in asks for row in ask.rows]
            cuts = [cut for ask in asks for cut in ask.cuts]
            logits = evaluator.logits(asks[0].examples, rows, cuts, space, fill)
            for number, part in zip(numbers, torch.split(logits, [len(ask.rows) for ask in asks]), strict=True):
                go_on(number, part)
    return [found[number] for number in range(len(measurements))]
