"""The only loop over batches: sizes that fit in memory, each batch recorded or read back, passes counted."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from memaudit.adapters.base import Adapter
from memaudit.engine.journal import Changing, Journal
from memaudit.errors import EnvironmentFault
from memaudit.system.interrupts import finishing
from memaudit.system.memory import give_back, out_of_memory

T = TypeVar("T")

# Batches after which freed memory is given back: what each leaves behind keeps the freed blocks apart. In a pass over
# 200,000 images these came to 370 MiB.
TOGETHER = 256
# What a backward pass costs, in forward passes: only activations and masks get gradients.
BACKWARD = 1.5


def silent(_: int) -> None:
    """No progress: for stages that count in other steps than examples run."""


@dataclass
class Loop:
    """Runs a loaded model batch by batch.

    Attributes:
        adapter: the model.
        batch_size: examples a pass; halved, and not raised again, when memory runs out.
        advance: called with the number of examples after each pass (progress bars).
        passes: examples forwarded and backwarded so far, by stage: `passes["localize forward"]`.
        stage: what `passes` counts under; `counting` sets it for a while.
        threads: of the processor that the network runs with; 0: nobody chose.
        journal: where each batch is recorded, and taken from where it is there already.
    """

    adapter: Adapter
    batch_size: int = 64
    advance: Callable[[int], None] = silent
    passes: Counter[str] = field(default_factory=Counter, init=False)
    stage: str = field(default="audit", init=False)
    threads: int = field(default=0, init=False)
    journal: Journal | None = field(default=None, init=False)
    _short: bool = field(default=False, init=False)
    _advanced: int = field(default=0, init=False)
    _made: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.adapter.device

    @contextmanager
    def counting(self, stage: str, advance: Callable[[int], None] | None = None) -> Iterator[None]:
        """Count passes under `stage`, and report them to `advance`, while the body runs."""
        before = self.stage, self.advance
        self.stage = stage
        if advance is not None:
            self.advance = advance
        try:
            yield
        finally:
            self.stage, self.advance = before

    def resume(self, journal: Journal | None) -> None:
        """Record every batch from now on in `journal`, and go on from those it holds, in batches of the same size."""
        self.journal = journal
        if journal is None:
            return
        begun = journal.next("batch size")
        if begun is None:
            journal.add("batch size", self.batch_size, None)
        else:
            self.batch_size = begun.size

    def once(self, name: str, compute: Callable[[], T], *, short: bool = False, large: bool = False) -> T:
        """`compute()`, recorded as a whole; what it returns, and what its batches change, is done with afterwards.

        Args:
            compute: returns plain data and tensors; from the journal, tuples come back as lists.
            short: its batches are not recorded by themselves: they return more than it does, and are soon made again.
            large: what it returns is not recorded, but made again of its batches.
        """
        journal = self.journal
        if journal is None:
            return compute()
        done = journal.begin(name, again=large)
        if done is None:
            passes, advanced = Counter(self.passes), self._advanced
            self.journal = None if short else journal
            try:
                value = compute()
            finally:
                self.journal = journal
            steps = self._advanced - advanced
            journal.end(name, None if large else [value, self.passes - passes, self.batch_size, steps])
            return value
        value, passes, self.batch_size, steps = done
        self.passes.update(passes)
        self._advance(steps)
        return value

    def run(
        self,
        count: int,
        body: Callable[[slice], T],
        *,
        forward: int = 1,
        backward: int = 0,
        batch: int | None = None,
        changing: Changing | None = None,
    ) -> Iterator[tuple[slice, T]]:
        """Consecutive slices of `range(count)`, and what `body` makes of each; a batch is run when it is asked for.

        Out of memory halves the batch size and tries again. What is small and kept should be written where it belongs:
        in a list it lies between the large blocks of its batch and the next one, and keeps what is free there apart.

        Args:
            forward, backward: passes the body makes over its slice, for the count.
            batch: examples a slice, where the result depends on it; `batch_size` counts only once memory ran out.
            changing: what the body changes, if it changes anything.

        Raises:
            EnvironmentFault: out of memory with a single example.
        """
        start = 0
        while start < count:
            size = min(self._size(batch), count - start)
            key = f"{self.stage} {start} of {count}"
            recorded = None if self.journal is None else self.journal.next(key, changing)
            found: list[T] = []
            if recorded is not None:
                if recorded.size < size:  # memory ran out here
                    size = self.batch_size = recorded.size
                    self._short = True
                found.append(recorded.value)
            elif not self._measure(slice(start, start + size), body, found, key, changing):
                self._shrink(size)
                continue
            self.passes[f"{self.stage} forward"] += size * forward
            if backward:
                self.passes[f"{self.stage} backward"] += size * backward
            self._advance(size)
            yield slice(start, start + size), found.pop()
            start += size
            self._made += 1
            if self._made % TOGETHER == 0:
                give_back()

    def _size(self, batch: int | None) -> int:
        if batch is None:
            return self.batch_size
        return min(batch, self.batch_size) if self._short else batch

    def _measure(
        self, chunk: slice, body: Callable[[slice], T], results: list[T], key: str, changing: Changing | None
    ) -> bool:
        """Run one batch and record it; False where it does not fit in memory. An interrupt waits until it is recorded.

        The caller leaves this function before it frees memory, so that no traceback holds the batch's tensors.
        """
        with finishing():
            try:
                value = body(chunk)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                return False
            if self.journal is not None:
                self.journal.add(key, chunk.stop - chunk.start, value, changing)
            results.append(value)
        return True

    def _advance(self, steps: int) -> None:
        self._advanced += steps
        self.advance(steps)

    def _shrink(self, size: int) -> None:
        if size <= 1:
            raise EnvironmentFault(
                f"out of memory on {self.device} with a single example in the batch",
                hint="Use a machine with more memory, or --device cpu.",
            )
        self.batch_size, self._short = max(1, size // 2), True
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
