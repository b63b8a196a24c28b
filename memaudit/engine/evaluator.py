"""One loaded model over sets of examples: logits, mask gradients, observations, and any other pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from memaudit.adapters.heads import asking
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import Answers, margin, predicted
from memaudit.engine.engines import Batches, Engine, InProcess
from memaudit.engine.journal import Changing
from memaudit.engine.loop import Loop
from memaudit.engine.passes import (
    Answered,
    Cut,
    Fill,
    Logits,
    MaskGradients,
    Observe,
    Pass,
    Seen,
    approximate,
)
from memaudit.network.tied_dropout import example_ids
from memaudit.network.units import UnitSpace
from memaudit.system.memory import to_device

T = TypeVar("T")

# Sizes that the batches of a GPU have: eighths of the largest.
SIZES = 8


@dataclass(frozen=True)
class Panel:
    """Some rows of a set, in the order they are run."""

    examples: ExampleSet
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: Tensor) -> Panel:
        """The examples at `places` `(n,)` of this one, in that order."""
        return Panel(self.examples, [self.rows[i] for i in places.tolist()])


@dataclass
class Evaluator(Loop):
    """Runs one loaded model over examples.

    Attributes:
        gradient_dtype: what mask gradients are computed in, by autocast; logits that are measured never are.
        engine: who does the work that may be done elsewhere.
        intact: the network is as it was loaded and stays so: its batches may be run by others that loaded it.
    """

    gradient_dtype: torch.dtype = torch.float32
    engine: Engine = field(default_factory=InProcess, init=False)
    intact: bool = field(default=False, init=False)

    @property
    def pads(self) -> bool:
        """Whether batches are filled up to one of `SIZES` sizes."""
        return self.device.type != "cpu"

    @property
    def approximate(self) -> bool:
        """Whether mask gradients, and the logits that come with them, are computed in less than float32."""
        return approximate(self.gradient_dtype)

    @contextmanager
    def keeping(self, intact: bool = True) -> Iterator[None]:
        """The body is `intact`, or is not."""
        before, self.intact = self.intact, intact
        try:
            yield
        finally:
            self.intact = before

    def logits(
        self,
        examples: ExampleSet,
        rows: Sequence[int] | None = None,
        cuts: Sequence[Cut] | None = None,
        space: UnitSpace | None = None,
        fill: Fill = None,
    ) -> Tensor:
        """Logits `(len(rows), classes)`, float32 on the CPU (float64 for a float64 model).

        Args:
            rows: which examples, repeats allowed; all by default.
            cuts: units to ablate: one cut for all rows, or one per row.
            space: what the cuts count by.
            fill: values that ablated units take (mean ablation), per site; 0 by default.
        """
        chosen = range(len(examples)) if rows is None else rows

        def at(chunk: slice) -> Logits:
            own = cuts if cuts is None or len(cuts) == 1 else cuts[chunk]
            return Logits(chunk.stop - chunk.start, space, own, fill)

        return placed(self._over(examples, chosen, at, padded=True), len(chosen))

    def answers(self, examples: ExampleSet) -> Answers:
        """What the intact network says of all examples and their labels; less than their logits take."""
        every = range(len(examples))
        found = self._over(examples, every, lambda rows: Answered(rows.stop - rows.start), padded=True)
        return Answers(placed(found, len(examples)), self.adapter.num_classes)

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
        fill: Fill = None,
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

        def at(chunk: slice) -> MaskGradients:
            return MaskGradients(
                chunk.stop - chunk.start,
                space,
                cuts[chunk],
                objective,
                fill,
                kept,
                self.gradient_dtype,
                lambda gradient: reduce(chunk, gradient),
            )

        return self.gathered(examples, rows, at, backward=1)

    def gathered(
        self,
        examples: ExampleSet,
        rows: Sequence[int],
        at: Callable[[slice], Pass[Seen]],
        *,
        forward: int = 1,
        backward: int = 0,
    ) -> Seen:
        """Of each tensor, with one row for each of `rows`, what the pass that `at` names for a slice of them makes."""
        found = (value for _, value in self._over(examples, rows, at, padded=True, forward=forward, backward=backward))
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def observe(
        self, examples: ExampleSet, space: UnitSpace, reduce: Callable[[int, Tensor], Seen]
    ) -> tuple[Tensor, list[list[Seen]]]:
        """Intact logits `(N, classes)` of all examples, and per site what `reduce` made of its tensor, batch by batch.

        Args:
            reduce: as in `passes.Observe`.
        """
        logits: list[Tensor] = []
        seen: list[list[Seen]] = [[] for _ in space.sites]
        for said, values in self.each(examples, range(len(examples)), Observe(space, reduce)):
            logits.append(said)
            for number, value in enumerate(values):
                if value is not None:
                    seen[number].append(value)
        return torch.cat(logits), seen

    def each(
        self,
        examples: ExampleSet,
        rows: Sequence[int],
        work: Pass[T],
        *,
        batch: int | None = None,
        forward: int = 1,
        backward: int = 0,
        changing: Changing | None = None,
    ) -> list[T]:
        """What `work` makes of each batch of `rows`; a batch that runs out of memory is made again.

        Args:
            batch, forward, backward, changing: as in `Loop.run`.
        """
        found = self._over(
            examples, rows, lambda _: work, forward=forward, backward=backward, batch=batch, changing=changing
        )
        return [value for _, value in found]

    def parts(self, examples: ExampleSet, rows: Sequence[int], work: Pass[T]) -> Iterator[tuple[slice, T]]:
        """As `each`, one after another: the places of a batch in `rows`, and what `work` makes of it."""
        return self._over(examples, rows, lambda _: work)

    def mixed(
        self,
        panels: Sequence[Panel],
        work: Callable[[Mapping[int, slice]], Pass[T]],
        *,
        batch: int,
        backward: int = 0,
        changing: Changing | None = None,
    ) -> list[T]:
        """What a pass makes of each batch, where every batch holds its share of every panel.

        Args:
            work: the pass for a batch in which the examples of each panel, by its number, are in these places.
            batch, backward, changing: as in `Loop.run`.
        """
        order = sorted(
            ((place + 0.5) / len(panel), number, row)
            for number, panel in enumerate(panels)
            for place, row in enumerate(panel.rows)
        )

        def run(chunk: slice) -> T:
            self.adapter.look()
            parts = [
                (number, panel.examples, rows)
                for number, panel in enumerate(panels)
                if (rows := [row for _, origin, row in order[chunk] if origin == number])
            ]
            images = torch.cat([self.inputs(examples, rows) for _, examples, rows in parts])
            labels = torch.cat([examples.labels[rows] for _, examples, rows in parts])
            ends = list(accumulate(len(rows) for *_, rows in parts))
            origins = {number: slice(end - len(rows), end) for (number, _, rows), end in zip(parts, ends, strict=True)}
            ids = [examples.numbers[i] for _, examples, rows in parts if examples.numbers for i in rows]
            known = example_ids(ids) if len(ids) == len(images) else nullcontext()
            with known, self._asking(labels):
                return work(origins)(self.adapter, images, labels.to(self.device))

        return [found for _, found in self.run(len(order), run, backward=backward, batch=batch, changing=changing)]

    def inputs(self, examples: ExampleSet, rows: Sequence[int]) -> Tensor:
        """Inputs `(len(rows), *input_size)` on the model's device, in its parameters' type; token ids stay int64."""
        dtype = next((p.dtype for p in self.adapter.module.parameters()), torch.float32)
        batch = examples.batch(list(rows), self.device)
        return batch.to(dtype) if batch.is_floating_point() else batch

    def _over(
        self,
        examples: ExampleSet,
        rows: Sequence[int],
        at: Callable[[slice], Pass[T]],
        *,
        padded: bool = False,
        forward: int = 1,
        backward: int = 0,
        batch: int | None = None,
        changing: Changing | None = None,
    ) -> Iterator[tuple[slice, T]]:
        """Slices of `rows`, and what the pass that `at` names for each makes of it."""
        work = Batches(examples, rows, at, padded)
        engine = self.engine if self.intact and changing is None else InProcess()
        body = engine.batches(self, work)
        return self.run(len(rows), body, forward=forward, backward=backward, batch=batch, changing=changing)

    def batch(self, work: Batches[T], chunk: slice) -> T:
        """What the pass of `work` makes of one slice of its rows, on this network."""
        self.adapter.look()
        examples = work.examples
        own = self._padded(work.rows[chunk]) if work.padded else list(work.rows[chunk])
        images, known = self.inputs(examples, own), examples.labels[own]
        examples.ahead(work.rows[chunk.stop : 2 * chunk.stop - chunk.start])
        with self._known(examples, own), self._asking(known):
            return work.at(chunk)(self.adapter, images, to_device(known, images.device))

    def _padded(self, rows: Sequence[int]) -> list[int]:
        """`rows`, and on a GPU the last one again and again until the batch has one of a few sizes.

        cuDNN plans each convolution anew for each size it has not seen: half of a search's time on a ResNet. On the CPU
        a row that is alone is doubled: a product with a single row is summed in another order, up to 3e-6 away on a
        ResNet-9, while any batch of two rows and more gave the same bits.
        """
        batch = list(rows)
        if self.pads:
            step = -(-self.batch_size // SIZES)
            batch += batch[-1:] * (min(self.batch_size, -(-len(batch) // step) * step) - len(batch))
        elif len(batch) == 1 < self.batch_size:
            batch *= 2
        return batch

    def _asking(self, labels: Tensor) -> AbstractContextManager[None]:
        """A network whose labels do not exclude each other is asked for one label of each example."""
        return asking(labels) if self.adapter.multi_label else nullcontext()

    def _known(self, examples: ExampleSet, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Example-tied dropout knows which examples run, where their set says so."""
        numbers = examples.numbers
        return nullcontext() if numbers is None else example_ids([numbers[i] for i in rows])


def placed(parts: Iterable[tuple[slice, Tensor]], count: int) -> Tensor:
    """`(count, ...)`: all parts, each written where it belongs when it comes; `(0, 0)` where there is none."""
    found = torch.empty(0, 0)
    for rows, part in parts:
        if not rows.start:
            found = part.new_empty(count, *part.shape[1:])
        found[rows] = part
    return found
