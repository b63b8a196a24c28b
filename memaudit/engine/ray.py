"""The engine on Ray: actors that loaded the same network, on this machine or on a cluster (https://docs.ray.io).

This process hands out pieces, a few at a time, and keeps the journal; what an actor was doing when it died another
does again. Ray is imported when this engine is started, and by nothing else.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from torch import Tensor

from memaudit.engine.engines import Batches, Work
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.packing import packed, unpacked
from memaudit.engine.worker import Answer, Piece, Recipe, Worker
from memaudit.errors import EnvironmentFault, UsageError
from memaudit.numbers import count
from memaudit.text import clean

T = TypeVar("T")
V = TypeVar("V")
Refs = tuple[str, Any, Mapping[str, Any]]
"""The key of a work, and where Ray keeps it and its large tensors."""

# Pieces an actor has at a time: while one is done the next is on its way.
AHEAD = 2
# Rows of a piece, at the least: a batch of fewer wastes what is done once a batch.
LEAST = 4
# How often a piece is tried, and how many actors may die for each that was started.
TRIES = 4
DEATHS = 4
# Seconds until the first actor must be there; a cluster may have to start machines.
PATIENCE = 600.0
# Bytes of that memory on this machine, beside what the examples take.
ROOM = 100 << 20


@dataclass(frozen=True)
class Workers:
    """How many actors, and what each one reserves.

    Attributes:
        number: None: as many as the cluster has room for.
        gpus: of each; 0: it runs on the processor.
        cpus: of each, and the threads it runs with.
    """

    number: int | None = None
    gpus: float = 0
    cpus: int = 1


@dataclass(eq=False)
class Task:
    """A piece under way.

    Attributes:
        refs: of its work.
        failed: the actors that died of it, or with it.
    """

    piece: Piece
    refs: Refs
    answer: Answer | None = None
    failed: list[Any] = field(default_factory=list)


class RayEngine:
    """Actors that do the work; a context manager: they end with the body.

    Args:
        recipe: what they load.
        room: bytes of the examples, of which a cluster that is started here keeps one copy.

    Raises:
        EnvironmentFault: Ray does not start.
    """

    def __init__(self, recipe: Recipe, wanted: Workers, room: int = 0) -> None:
        self.recipe, self.wanted, self.room = recipe, wanted, room
        self.ray = imported()
        self._queue: deque[Task] = deque()
        self._flight: dict[Any, tuple[Any, Task | None]] = {}  # by what Ray waits for: the actor, and its task
        self._actors: list[Any] = []
        self._ready: set[Any] = set()
        self._deaths = 0
        self._tensors: dict[int, tuple[weakref.ref[Tensor], Any]] = {}  # as long as the tensor lives
        self._number = 0
        self.workers = 0

    def __enter__(self) -> Self:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._start()
        except (OSError, RuntimeError, ValueError, ConnectionError) as error:
            raise EnvironmentFault(f"Ray does not start: {clean(error)}") from error
        finally:
            for number, handler in handlers.items():  # Ray takes SIGTERM for itself
                signal.signal(number, handler)
        kind, each = ("GPU", self.wanted.gpus) if self.wanted.gpus else ("CPU", self.wanted.cpus)
        fits = int(self.ray.cluster_resources().get(kind, 0) // each)
        self.workers = self.wanted.number or max(1, fits)
        for _ in range(self.workers):
            self._add()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self.ray.kill(actor)
        self._actors, self._flight, self._tensors = [], {}, {}
        self._queue.clear()
        self.ray.shutdown()

    # ---- what the measuring code calls -----------------------------------------------------------------------------

    def batches(self, evaluator: Evaluator, work: Batches[T]) -> Callable[[slice], T]:
        """As `Engine.batches`; the next batches are under way while one is waited for."""
        refs: list[Refs] = []
        asked: dict[tuple[int, int], Task] = {}
        total = len(work.rows)

        def body(chunk: slice) -> T:
            size = chunk.stop - chunk.start
            if (chunk.start, chunk.stop) not in asked:  # the first, or memory ran out: others than those under way
                self._drop(asked.values())
                asked.clear()
            for start in range(chunk.start, min(total, chunk.start + AHEAD * self.workers * size), size):
                place = (start, min(total, start + size))
                if place not in asked:
                    refs[:] = refs or [self._packed(evaluator, work)]
                    asked[place] = self._ask(refs[0], slice(*place), evaluator)
            task = asked.pop((chunk.start, chunk.stop))
            while task.answer is None:
                self._turn()
            value: T = _value(task.answer)
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
        refs = self._packed(evaluator, work)
        least = 1 if work.alone else max(LEAST, evaluator.batch_size // 32)
        tasks = [self._ask(refs, part, evaluator) for part in parts(list(left), self.workers, least)]
        try:
            while tasks:
                while all(task.answer is None for task in tasks):
                    self._turn()
                for task in [task for task in tasks if task.answer is not None]:
                    tasks.remove(task)
                    assert task.answer is not None  # noqa: S101 - it was chosen by that
                    value = [_value(task.answer), dict(task.answer.passes or {})]
                    if journal is not None and value[0]:
                        journal.add(key, len(value[0]), value)
                    yield from self._landed(evaluator, work, left, *value)
        finally:
            self._drop(tasks)

    def _landed(
        self, evaluator: Evaluator, work: Work[V], left: dict[int, None], found: Any, passes: Mapping[str, int]
    ) -> Iterator[tuple[int, V]]:
        evaluator.passes.update(passes)
        evaluator.advance(sum(examples for name, examples in passes.items() if name.endswith(" forward")))
        for row, plain in found:
            left.pop(row)
            yield row, work.found(plain)

    # ---- handing out -----------------------------------------------------------------------------------------------

    def _ask(self, refs: Refs, part: Any, evaluator: Evaluator) -> Task:
        task = Task(Piece(refs[0], part, evaluator.stage, evaluator.batch_size), refs)
        self._queue.append(task)
        return task

    def _drop(self, tasks: Iterable[Task]) -> None:
        """Nobody waits for `tasks` any more; what is under way is done and forgotten."""
        for task in tasks:
            if task in self._queue:
                self._queue.remove(task)

    def _turn(self) -> None:
        """Hand out what waits and take what is done; or wait until something is.

        Raises:
            EnvironmentFault: nothing comes, or too many actors died.
        """
        self._hand_out()
        since = time.monotonic()
        while not (done := self.ray.wait(list(self._flight), num_returns=1, timeout=1.0)[0]):
            if not self._ready and time.monotonic() - since > PATIENCE:
                has = ", ".join(f"{v:g} {k}" for k, v in sorted(self.ray.cluster_resources().items()) if k in _KINDS)
                raise EnvironmentFault(
                    f"no worker started within {PATIENCE:.0f} s; Ray has {has or 'no processor'}",
                    hint="Ask for fewer --threads or --gpus-per-worker than a node has, or add nodes.",
                )
        for ref in done:
            actor, task = self._flight.pop(ref)
            try:
                answer: Answer = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                self._died(actor, task, error)
                continue
            if task is None:
                _value(answer)
                self._ready.add(actor)
            else:
                task.answer = answer

    def _hand_out(self) -> None:
        busy = dict.fromkeys(self._ready, 0)
        for actor, task in self._flight.values():
            if task is not None and actor in busy:
                busy[actor] += 1
        while self._queue and busy:
            most = AHEAD if len(self._queue) > len(busy) else 1  # what comes last waits for whoever is free first
            free = [actor for actor, tasks in busy.items() if tasks < most]
            if not free:
                return
            task = self._queue.popleft()
            actor = min(free, key=lambda actor: (actor in task.failed, busy[actor]))
            busy[actor] += 1
            _, content, tensors = task.refs
            self._flight[actor.do_shared.remote(task.piece, content, tensors)] = actor, task

    def _died(self, actor: Any, task: Task | None, error: Exception) -> None:
        """Another takes the place of an actor that is gone, and the task's turn comes again.

        It may have been killed because memory ran out: that leaves no other trace.
        """
        if actor in self._actors:
            self._actors.remove(actor)
            self._ready.discard(actor)
            self._deaths += 1
            if self._deaths <= DEATHS * self.workers:
                self._add()
        if task is not None:
            task.failed.append(actor)
            task.piece = task.piece.halved()
            self._queue.appendleft(task)
        if not self._actors or (task is not None and len(task.failed) >= TRIES):
            raise EnvironmentFault(
                f"{count(self._deaths, 'worker')} ended while they worked: {clean(str(error), 200)}",
                hint="Look into Ray's logs; where memory ran out, use fewer workers on a node or --batch-size.",
            ) from error

    def _add(self) -> None:
        made = self.ray.remote(_Actor).options(
            num_cpus=self.wanted.cpus, num_gpus=self.wanted.gpus, max_restarts=0, max_task_retries=0
        )
        actor = made.remote(self.recipe)
        self._actors.append(actor)
        self._flight[actor.hello.remote()] = actor, None

    # ---- what is shared --------------------------------------------------------------------------------------------

    def _packed(self, evaluator: Evaluator, work: object) -> Refs:
        """A key for `work`, and where Ray keeps it and its large tensors."""
        content, tensors = packed(work, evaluator)
        self._number += 1
        return f"{self._number}", self.ray.put(content), {name: self._put(tensor) for name, tensor in tensors.items()}

    def _put(self, tensor: Tensor) -> Any:
        key = id(tensor)
        if key not in self._tensors:
            held = weakref.ref(tensor, lambda _: self._tensors.pop(key, None))
            self._tensors[key] = held, self.ray.put(tensor.detach().contiguous().numpy())
        return self._tensors[key][1]

    def _start(self) -> None:
        """Join the cluster of RAY_ADDRESS, or start one on this machine that tells nobody."""
        if os.environ.get("RAY_ADDRESS"):
            self.ray.init(log_to_driver=False, logging_level="error")
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        wanted = self.wanted.number
        self.ray.init(
            address="local",
            num_cpus=None if wanted is None else max(1, wanted * self.wanted.cpus),
            include_dashboard=False,
            object_store_memory=ROOM + 2 * self.room,
            log_to_driver=False,
            logging_level="error",
        )


_KINDS = ("CPU", "GPU")


class _Actor(Worker):
    """A `Worker` behind Ray."""

    def do_shared(self, piece: Piece, content: bytes, tensors: Mapping[str, Any]) -> Answer:
        """As `Worker.do`; the large tensors of a work are those of this node's memory."""
        return self.do(
            piece, lambda evaluator: unpacked(content, evaluator, lambda name: imported().get(tensors[name]))
        )


class _Traceback(Exception):
    """Where a worker's error was raised; shown above it."""


def _value(answer: Answer) -> Any:
    """What was found, or the worker's error raised here."""
    if answer.error is not None:
        raise answer.error from _Traceback(f"\n{answer.trace}")
    return answer.value


def parts(rows: Sequence[int], workers: int, least: int) -> Iterator[list[int]]:
    """`rows` in pieces, the largest first: half of each worker's share of what is left, and `least` at the least."""
    rest = list(rows)
    while rest:
        size = max(least, -(-len(rest) // (2 * workers)))
        yield rest[:size]
        rest = rest[size:]


def imported() -> Any:
    """Ray.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray, which is not installed", hint="pip install 'memaudit[ray]'") from None
    return ray
