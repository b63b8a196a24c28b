"""What engines with several workers share: passes and rows are cut into pieces, done out of turn, recorded in order.

The process that asks hands out pieces, a few at a time, and keeps the journal. How a piece reaches a worker is the
engine's: `copies` has threads, `ray` has other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from memaudit.engine.engines import Batches, Work
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.worker import Answer, Piece

T = TypeVar("T")
V = TypeVar("V")

# Pieces a worker has at a time: while one is done the next is on its way.
AHEAD = 2
# A search and its verification run the network some fifty times however few rows there are: on a CIFAR-10 ResNet-9 two
# workers took 1.3 times the processor seconds of one process for 60 rows in 8 pieces, 1.01 times for 240 rows in 4.
SHARE = 0.7
LEAST, FEWEST = 16, 4


@dataclass(eq=False)
class Task:
    """A piece under way.

    Attributes:
        work: where its worker finds the work; the engine's own.
        failed: the workers that died of it, or with it.
        dropped: nobody waits for its answer.
    """

    piece: Piece
    work: Any
    answer: Answer | None = None
    dropped: bool = False
    failed: list[Any] = field(default_factory=list)


class Pieces:
    """An engine whose workers do pieces.

    Attributes:
        workers: how many there are.
    """

    workers: int

    def ask(self, work: Any, piece: Piece) -> Task:
        """Put a piece of a work, as `handed` made it, in the queue."""
        raise NotImplementedError

    def drop(self, tasks: Iterable[Task]) -> None:
        """Nobody waits for `tasks` any more; what is under way is done and forgotten."""
        raise NotImplementedError

    def turn(self) -> None:
        """Hand out what waits and put answers to what is done; or wait until something is."""
        raise NotImplementedError

    def handed(self, evaluator: Evaluator, work: object) -> tuple[str, Any]:
        """A key for `work`, and what its workers find it by."""
        raise NotImplementedError

    def batches(self, evaluator: Evaluator, work: Batches[T]) -> Callable[[slice], T]:
        """As `Engine.batches`; the next batches are under way while one is waited for."""
        refs: list[tuple[str, Any]] = []
        asked: dict[tuple[int, int], Task] = {}
        total = len(work.rows)

        def body(chunk: slice) -> T:
            size = chunk.stop - chunk.start
            if (chunk.start, chunk.stop) not in asked:  # the first, or memory ran out: others than those under way
                self.drop(asked.values())
                asked.clear()
            for start in range(chunk.start, min(total, chunk.start + AHEAD * self.workers * size), size):
                place = (start, min(total, start + size))
                if place not in asked:
                    refs[:] = refs or [self.handed(evaluator, work)]
                    asked[place] = self._ask(refs[0], slice(*place), evaluator)
            task = asked.pop((chunk.start, chunk.stop))
            while task.answer is None:
                self.turn()
            value: T = value_of(task.answer)
            return value

        return body

    def each(self, evaluator: Evaluator, work: Work[V], rows: Sequence[int]) -> Iterator[tuple[int, V]]:
        """As `Engine.each`; each part of the rows is recorded when it lands."""
        journal, left = evaluator.journal, dict.fromkeys(rows)
        key = f"{evaluator.stage} {len(rows)} in parts"
        while left and journal is not None and (recorded := journal.next(key)) is not None:
            yield from self._landed(evaluator, work, left, *recorded.value)
        if not left:
            return
        refs = self.handed(evaluator, work)
        least = 1 if work.alone else max(LEAST, evaluator.batch_size // 16)
        most = max(least, evaluator.batch_size // 4)
        tasks = [self._ask(refs, part, evaluator) for part in parts(list(left), self.workers, least, most)]
        try:
            while tasks:
                while all(task.answer is None for task in tasks):
                    self.turn()
                for task in [task for task in tasks if task.answer is not None]:
                    tasks.remove(task)
                    assert task.answer is not None  # noqa: S101 - it was chosen by that
                    value = [value_of(task.answer), dict(task.answer.passes or {})]
                    if journal is not None and value[0]:
                        journal.add(key, len(value[0]), value)
                    yield from self._landed(evaluator, work, left, *value)
        finally:
            self.drop(tasks)

    def _ask(self, refs: tuple[str, Any], part: Any, evaluator: Evaluator) -> Task:
        return self.ask(refs[1], Piece(refs[0], part, evaluator.stage, evaluator.batch_size))

    def _landed(
        self, evaluator: Evaluator, work: Work[V], left: dict[int, None], found: Any, passes: Mapping[str, int]
    ) -> Iterator[tuple[int, V]]:
        evaluator.passes.update(passes)
        evaluator.advance(sum(examples for name, examples in passes.items() if name.endswith(" forward")))
        for row, plain in found:
            left.pop(row)
            yield row, work.found(plain)


class _Traceback(Exception):
    """Where a worker's error was raised; shown above it."""


def value_of(answer: Answer) -> Any:
    """What was found, or the worker's error raised here."""
    if answer.error is not None:
        raise answer.error from _Traceback(f"\n{answer.trace}")
    return answer.value


def parts(rows: Sequence[int], workers: int, least: int, most: int) -> Iterator[list[int]]:
    """`rows` in rounds of one piece for each worker, all of one size.

    A round holds `SHARE` of what is left, so that a later one evens out who was slow; all of it, where that would leave
    pieces of fewer than `least`. A piece is recorded when it is done, and one of more than `most` rows is much to do
    again after a kill.
    """
    rest = list(rows)
    while rest:
        size = -(-len(rest) // workers)
        first = round(SHARE * size)
        size = max(min(least, FEWEST), min(most, first if size - first >= least else size))
        yield from (rest[start : start + size] for start in range(0, min(len(rest), workers * size), size))
        rest = rest[workers * size :]
