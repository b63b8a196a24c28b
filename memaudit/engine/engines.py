"""Who runs the passes of an audit: this process, or others that hold the same network.

Two kinds of work may be done elsewhere: the batches of one pass over a set, and work that treats its rows one by one,
each for itself. Both are values that hold all they need but the network; the journal stays with the process that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from memaudit.data.examples import ExampleSet
from memaudit.engine.passes import Pass

if TYPE_CHECKING:
    from memaudit.engine.evaluator import Evaluator

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class Batches(Generic[T]):
    """The batches of one pass over some rows of a set.

    Attributes:
        at: the pass for a slice of `rows`.
        padded: batches may be filled up (`Evaluator.padded`).
    """

    examples: ExampleSet
    rows: Sequence[int]
    at: Callable[[slice], Pass[T]]
    padded: bool = False


class Work(Generic[V]):
    """What is found of each of some rows (or whatever its numbers stand for).

    Seeded by its rows: neither who does it nor which rows are done together changes what is found. It leaves the
    network as it was.

    Attributes:
        alone: each row is long work, and none is shortened by company.
    """

    alone: ClassVar[bool] = False

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, V]]:
        """Each row and what was found of it, in the order they finish; fewer than `rows` where time ran out."""
        raise NotImplementedError

    def plain(self, found: V) -> Any:
        """`found` as tensors and plain containers of them, which a journal holds."""
        return found

    def found(self, plain: Any) -> V:
        """What `plain` was made of; tuples have become lists."""
        found: V = plain
        return found


class Engine(Protocol):
    """Runs the work of one loaded model.

    Attributes:
        workers: how many networks are at work.
    """

    workers: int

    def batches(self, evaluator: Evaluator, work: Batches[T]) -> Callable[[slice], T]:
        """From a slice of the rows to what the pass makes of that batch; called in order, again after an error."""

    def each(self, evaluator: Evaluator, work: Work[V], rows: Sequence[int]) -> Iterator[tuple[int, V]]:
        """What `work` finds, in the order it is found; passes are counted by `evaluator`."""


class InProcess:
    """The engine of every run that asks for no other: the network that this process has loaded."""

    workers = 1

    def batches(self, evaluator: Evaluator, work: Batches[T]) -> Callable[[slice], T]:
        """As `Engine.batches`."""
        return partial(evaluator.batch, work)

    def each(self, evaluator: Evaluator, work: Work[V], rows: Sequence[int]) -> Iterator[tuple[int, V]]:
        """As `Engine.each`."""
        return work(evaluator, rows)
