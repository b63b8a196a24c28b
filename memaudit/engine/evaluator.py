"""The only forward loop: batches, out-of-memory back-off, masks per example, finite checks, counted passes."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.engine.journal import Changing, Journal
from memaudit.errors import EnvironmentFault
from memaudit.network.ablate import ablated, without
from memaudit.network.hooks import hooked
from memaudit.network.tied_dropout import example_ids
from memaudit.network.units import UnitSpace, overwritten
from memaudit.system.interrupts import finishing
from memaudit.system.memory import out_of_memory, to_device

T = TypeVar("T")
Cut = Sequence[int]
Seen = tuple[Tensor, ...]

# What a backward pass costs, in forward passes: only activations and masks get gradients.
BACKWARD = 1.5
# Sizes that the batches of a GPU have: eighths of the largest.
SIZES = 8


@dataclass(frozen=True)
class Panel:
    """Some rows of a set, in the order they are run."""

    examples: ExampleSet
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Evaluator:
    """Runs one loaded model over examples.

    Attributes:
        adapter: the model.
        batch_size: examples a pass; halved for good when memory runs out.
        advance: called with the number of examples after each pass (progress bars).
        gradient_dtype: what mask gradients are computed in, by autocast; logits that are measured never are.
        passes: examples forwarded and backwarded so far, by stage: `passes["localize forward"]`.
        stage: what `passes` counts under.
        journal: where each batch is recorded, and taken from where it is there already.
    """

    adapter: Adapter
    batch_size: int = 64
    advance: Callable[[int], None] = lambda _: None
    gradient_dtype: torch.dtype = torch.float32
    passes: Counter[str] = field(default_factory=Counter)
    stage: str = "audit"
    journal: Journal | None = None
    _short: bool = field(default=False, init=False)
    _advanced: int = 0

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

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """`compute()`, recorded as a whole; what it returns, and what its batches change, is done with afterwards.

        Args:
            compute: returns plain data and tensors; from the journal, tuples come back as lists.
        """
        if self.journal is None:
            return compute()
        done = self.journal.begin(name)
        if done is None:
            passes, advanced = Counter(self.passes), self._advanced
            value = compute()
            self.journal.end(name, [value, self.passes - passes, self.batch_size, self._advanced - advanced])
            return value
        value, passes, self.batch_size, steps = done
        self.passes.update(passes)
        self._advance(steps)
        return value

    @property
    def device(self) -> torch.device:
        return self.adapter.device

    @property
    def pads(self) -> bool:
        """Whether batches are filled up to one of `SIZES` sizes."""
        return self.device.type != "cpu"

    @property
    def approximate(self) -> bool:
        """Whether mask gradients, and the logits that come with them, are computed in less than float32."""
        return self.gradient_dtype.itemsize < torch.float32.itemsize

    def logits(
        self,
        examples: ExampleSet,
        rows: Sequence[int] | None = None,
        cuts: Sequence[Cut] | None = None,
        space: UnitSpace | None = None,
        fill: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Logits `(len(rows), classes)`, float32 on the CPU (float64 for a float64 model).

        Args:
            rows: which examples, repeats allowed; all by default.
            cuts: units to ablate: one cut for all rows, or one per row.
            space: what the cuts count by.
            fill: values that ablated units take (mean ablation), per site; 0 by default.
        """
        chosen = range(len(examples)) if rows is None else rows

        def body(chunk: slice) -> Tensor:
            batch = self._padded(chosen[chunk])
            with torch.no_grad(), self._told(examples, batch), self._cut(space, cuts, chunk, fill, len(batch)):
                logits = self.adapter.forward(self._images(examples, batch))
            return logits[: len(chosen[chunk])].detach().cpu()

        return torch.cat(self._run(len(chosen), body)) if chosen else torch.empty(0, 0)

    def predicted(self, panel: Panel) -> Tensor:
        """Which labels of `panel` the model predicts, `(len(panel),)` bool."""
        if not len(panel):
            return torch.empty(0, dtype=torch.bool)
        labels = panel.examples.labels[list(panel.rows)]
        return predicted(margin(self.logits(panel.examples, panel.rows), labels))

    def mask_gradients(
        self,
        examples: ExampleSet,
        rows: Sequence[int],
        cuts: Sequence[Cut],
        space: UnitSpace,
        objective: Callable[[Tensor, Tensor], Tensor],
        fill: Sequence[Tensor] | None = None,
        *,
        kept: float = 1.0,
        reduce: Callable[[slice, Tensor], Seen] = lambda _, gradient: (gradient,),
    ) -> Seen:
        """The objective `(n,)` and its gradient by each unit's mask `(n, total)`, on the CPU.

        One forward and one backward per batch serve all its rows, each with its own cut: in eval mode examples do not
        touch each other, so the gradient of the sum is every example's own gradient. Parameters get none.

        Args:
            kept: the mask of every unit that is not cut.
            reduce: from a part of `rows` and its gradients, where they were computed, to tensors that are returned
                in place of the gradients: those of a large network are slow to move and to record.
        """
        labels = examples.labels

        def body(chunk: slice) -> Seen:
            batch, size = self._padded(rows[chunk]), len(rows[chunk])
            images = self._images(examples, batch)
            keep = overwritten(images.new_full((len(batch), space.total), kept), cuts[chunk], 0).requires_grad_()
            masks = ablated(self.adapter.module, space, keep, fill)
            with torch.enable_grad(), self._told(examples, batch), masks:
                with torch.autocast(images.device.type, self.gradient_dtype, enabled=self.approximate):
                    logits = self.adapter.forward(images)
                scores = objective(logits.to(images.dtype), to_device(labels[batch], images.device))
            (gradient,) = torch.autograd.grad(scores.sum(), keep)
            return tuple(value.cpu() for value in (scores[:size].detach(), *reduce(chunk, gradient[:size])))

        return tuple(map(torch.cat, zip(*self._run(len(rows), body, backward=1), strict=True)))

    def observe(
        self, examples: ExampleSet, space: UnitSpace, reduce: Callable[[int, Tensor], Seen]
    ) -> tuple[Tensor, list[list[Seen]]]:
        """Intact logits of all examples, and per site what `reduce` made of its tensor, batch by batch.

        Args:
            reduce: from site number and `(batch, positions, elements)` to small tensors, which are moved to the CPU
                after the pass: a device that is waited for at every site stands still.
        """
        seen: list[list[Seen]] = [[] for _ in space.sites]
        pending: dict[int, Seen] = {}
        size = 0

        def at(number: int) -> Callable[..., None]:
            def see(_: object, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
                if number not in pending:
                    value = args[0] if output is None else output
                    pending[number] = reduce(number, space.sites[number].by_example(value, size))

            return see

        inputs: list[tuple[nn.Module, Callable[..., None]]] = []
        outputs: list[tuple[nn.Module, Callable[..., None]]] = []
        for number, site in enumerate(space.sites):
            target = self.adapter.module.get_submodule(site.layer)
            (inputs if site.side == "input" else outputs).append((target, at(number)))

        def body(chunk: slice) -> tuple[Tensor, list[Seen | None]]:
            nonlocal size
            pending.clear()
            rows = range(len(examples))[chunk]
            images = self._images(examples, rows)
            size = len(images)
            with torch.no_grad(), self._told(examples, rows), hooked(before=inputs, after=outputs):
                logits = self.adapter.forward(images).cpu()
            moved = {number: tuple(value.cpu() for value in values) for number, values in pending.items()}
            return logits, [moved.get(number) for number in range(len(seen))]

        logits, batches = zip(*self._run(len(examples), body), strict=True)
        for values in batches:
            for number, value in enumerate(values):
                if value is not None:
                    seen[number].append(value)
        return torch.cat(logits), seen

    def each(
        self,
        examples: ExampleSet,
        rows: Sequence[int],
        body: Callable[[Tensor, Tensor], T],
        *,
        batch: int | None = None,
        forward: int = 1,
        backward: int = 0,
        changing: Changing | None = None,
    ) -> list[T]:
        """What `body(images, labels)` makes of each batch of `rows`; a batch that runs out of memory is made again.

        Args:
            batch: examples a batch, where the result depends on it; `batch_size` counts only once memory ran out.
            forward, backward: passes the body makes over its batch, for the count.
            changing: what the body changes, if it changes anything.
        """
        labels = examples.labels

        def run(chunk: slice) -> T:
            with self._told(examples, rows[chunk]):
                return body(self._images(examples, rows[chunk]), labels[list(rows[chunk])].to(self.device))

        return self._run(len(rows), run, forward=forward, backward=backward, batch=batch, changing=changing)

    def mixed(
        self,
        panels: Sequence[Panel],
        body: Callable[[Tensor, Tensor, Mapping[int, slice]], T],
        *,
        batch: int,
        backward: int = 0,
        changing: Changing | None = None,
    ) -> list[T]:
        """What `body(images, labels, origins)` makes of each batch; every batch holds its share of every panel.

        Args:
            body: `origins` says where in the batch the examples of each panel are, by the panel's number.
            batch, backward, changing: as in `each`.
        """
        order = sorted(
            ((place + 0.5) / len(panel), number, row)
            for number, panel in enumerate(panels)
            for place, row in enumerate(panel.rows)
        )

        def run(chunk: slice) -> T:
            parts = [
                (number, panel.examples, rows)
                for number, panel in enumerate(panels)
                if (rows := [row for _, origin, row in order[chunk] if origin == number])
            ]
            images = torch.cat([self._images(examples, rows) for _, examples, rows in parts])
            labels = torch.cat([examples.labels[rows] for _, examples, rows in parts])
            ends = list(accumulate(len(rows) for *_, rows in parts))
            origins = {number: slice(end - len(rows), end) for (number, _, rows), end in zip(parts, ends, strict=True)}
            ids = [examples.numbers[i] for _, examples, rows in parts if examples.numbers for i in rows]
            told = example_ids(ids) if len(ids) == len(images) else nullcontext()
            with told:
                return body(images, labels.to(self.device), origins)

        return self._run(len(order), run, backward=backward, batch=batch, changing=changing)

    def _padded(self, rows: Sequence[int]) -> list[int]:
        """`rows`, and on a GPU the last one again and again until the batch has one of a few sizes.

        cuDNN plans each convolution anew for each size it has not seen: half of a search's time on a ResNet.
        """
        batch = list(rows)
        if self.pads:
            step = -(-self.batch_size // SIZES)
            batch += batch[-1:] * (min(self.batch_size, -(-len(batch) // step) * step) - len(batch))
        return batch

    def _images(self, examples: ExampleSet, rows: Sequence[int]) -> Tensor:
        dtype = next((p.dtype for p in self.adapter.module.parameters()), torch.float32)
        return examples.batch(list(rows), self.device).to(dtype)

    def _told(self, examples: ExampleSet, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Example-tied dropout is told which examples run, where their set says so."""
        numbers = examples.numbers
        return nullcontext() if numbers is None else example_ids([numbers[i] for i in rows])

    @contextmanager
    def _cut(
        self,
        space: UnitSpace | None,
        cuts: Sequence[Cut] | None,
        chunk: slice,
        fill: Sequence[Tensor] | None,
        size: int,
    ) -> Iterator[None]:
        """Ablate what `cuts` says of `chunk`, in a batch of `size`."""
        if cuts is None or space is None:
            yield
            return
        own = cuts if len(cuts) == 1 else [*cuts[chunk], *[()] * (size - len(cuts[chunk]))]
        with without(self.adapter.module, space, own, fill):
            yield

    def _run(
        self,
        count: int,
        body: Callable[[slice], T],
        *,
        forward: int = 1,
        backward: int = 0,
        batch: int | None = None,
        changing: Changing | None = None,
    ) -> list[T]:
        """`body` on consecutive slices of `range(count)`; out of memory halves the batch for good and tries again.

        Raises:
            EnvironmentFault: out of memory with a single example.
        """
        results: list[T] = []
        start = 0
        while start < count:
            size = min(self._size(batch), count - start)
            key = f"{self.stage} {start} of {count}"
            recorded = None if self.journal is None else self.journal.next(key, changing)
            if recorded is not None:
                if recorded.size < size:  # memory ran out here
                    size = self.batch_size = recorded.size
                    self._short = True
                results.append(recorded.value)
            elif not self._measure(slice(start, start + size), body, results, key, changing):
                self._shrink(size)
                continue
            self.passes[f"{self.stage} forward"] += size * forward
            if backward:
                self.passes[f"{self.stage} backward"] += size * backward
            self._advance(size)
            start += size
        return results

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
