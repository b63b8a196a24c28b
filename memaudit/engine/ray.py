"""The engine on Ray: actors that loaded the same network, on this machine or on a cluster (https://docs.ray.io).

This process hands out pieces, a few at a time, and keeps the journal; what an actor was doing when it died another
does again. Ray is imported when this engine is started, and by nothing else.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from memaudit.engine.evaluator import Evaluator
from memaudit.engine.packing import packed, unpacked
from memaudit.engine.pieces import AHEAD, Pieces, Task, value_of
from memaudit.engine.worker import Answer, Piece, Recipe, Remote
from memaudit.errors import EnvironmentFault, UsageError
from memaudit.numbers import count
from memaudit.text import clean

Refs = tuple[Any, Mapping[str, Any]]
"""Where Ray keeps a work and its large tensors."""

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


class RayEngine(Pieces):
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

    # ---- handing out -----------------------------------------------------------------------------------------------

    def ask(self, work: Refs, piece: Piece) -> Task:
        """As `Pieces.ask`."""
        task = Task(piece, work)
        self._queue.append(task)
        return task

    def drop(self, tasks: Iterable[Task]) -> None:
        """As `Pieces.drop`."""
        for task in tasks:
            if task in self._queue:
                self._queue.remove(task)

    def turn(self) -> None:
        """As `Pieces.turn`.

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
                value_of(answer)
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
            content, tensors = task.work
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

    def handed(self, evaluator: Evaluator, work: object) -> tuple[str, Refs]:
        """As `Pieces.handed`; Ray keeps the work, and its large tensors by themselves."""
        content, tensors = packed(work, evaluator)
        self._number += 1
        return f"{self._number}", (self.ray.put(content), {name: self._put(one) for name, one in tensors.items()})

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
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: a thirtieth of what other programs get
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


class _Actor(Remote):
    """A worker behind Ray."""

    def do_shared(self, piece: Piece, content: bytes, tensors: Mapping[str, Any]) -> Answer:
        """As `Worker.do`; the large tensors of a work are those of this node's memory."""

        def apart(name: str) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that they are read-only
                return torch.from_numpy(imported().get(tensors[name]))

        return self.do(piece, lambda evaluator: unpacked(content, evaluator, apart))


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
