"""The engine on one processor with several cores: copies of the network, each on a thread of its own.

PyTorch's threads share one batch and wait for each other in every layer; copies take a batch each and never wait. With
two cores a ResNet-9's batches of 8 took 29 ms on two of PyTorch's threads and 17 ms on two copies; with three busy
loops beside them 206 and 37 ms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.data.examples import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.packing import packed, unpacked
from memaudit.engine.pieces import Pieces, Task
from memaudit.engine.worker import Answer, Piece, Worker, probed
from memaudit.system.memory import available

# What one example of a ResNet-50 keeps for the backward pass, in inputs.
KEPT = 1000
# Share of the free memory that copies and their batches may take.
SHARE = 0.5


class _Dropped(Exception):
    """Nobody waits for the piece that a copy is at."""


class _Copy(Worker):
    """A worker with a copy of the network; what is dropped ends with its batch."""

    device = "cpu"

    def __init__(self, adapter: Adapter, like: Evaluator) -> None:
        super().__init__(self)
        self.task: Task | None = None
        self.evaluator = Evaluator(adapter, gradient_dtype=like.gradient_dtype, advance=self._go_on)

    def load(self) -> Evaluator:
        """As `Source.load`."""
        return self.evaluator

    def _go_on(self, _: int) -> None:
        if self.task is not None and self.task.dropped:
            raise _Dropped


# Fast path; its slow twin: tests/twins.py.
class Copies(Pieces):
    """Workers on threads; what is left of them ends with the engine.

    Args:
        evaluator: the original.
        adapters: its copies, none of which anybody else uses.
        threads: of PyTorch's, for each.
    """

    def __init__(self, evaluator: Evaluator, adapters: Iterable[Adapter], threads: int = 1) -> None:
        self._free: SimpleQueue[_Copy] = SimpleQueue()
        for adapter in adapters:
            self._free.put(_Copy(adapter, evaluator))
        self.workers, self.threads = self._free.qsize(), threads
        self._pool = ThreadPoolExecutor(self.workers, "memaudit-copy", torch.set_num_threads, (threads,))
        self._flight: dict[Future[Answer], Task] = {}
        self._number = 0

    def handed(self, evaluator: Evaluator, work: object) -> tuple[str, Callable[[Evaluator], Any]]:
        """As `Pieces.handed`: from a copy's evaluator to `work` about it."""
        self._number += 1
        return f"{self._number}", rebound(work, evaluator)

    def ask(self, work: Callable[[Evaluator], Any], piece: Piece) -> Task:
        """As `Pieces.ask`."""
        task = Task(piece, work)
        self._flight[self._pool.submit(self._do, task)] = task
        return task

    def drop(self, tasks: Iterable[Task]) -> None:
        """As `Pieces.drop`."""
        dropped = set(tasks)
        for future, task in list(self._flight.items()):
            if task in dropped:
                task.dropped = True
                future.cancel()
                del self._flight[future]

    def turn(self) -> None:
        """As `Pieces.turn`."""
        for future in wait(self._flight, return_when=FIRST_COMPLETED).done:
            self._flight.pop(future).answer = future.result()

    def _do(self, task: Task) -> Answer:
        worker = self._free.get()
        worker.task = task
        try:
            return worker.do(task.piece, task.work)
        finally:
            self._free.put(worker)


def copies_of(evaluator: Evaluator, examples: ExampleSet, wanted: int) -> Copies | None:
    """Copies for `wanted` cores, as many as memory has room for, that answer bit for bit as the network does.

    Returns:
        None where that are fewer than two, or the network cannot be copied.
    """
    adapter = evaluator.adapter
    number = min(wanted, _room(evaluator, examples))
    if number < 2:
        return None
    try:
        adapters = [copy.deepcopy(adapter) for _ in range(number)]
        said = [probed(one) for one in (adapter, *adapters)]
    except Exception:  # whatever a user's module does when it is copied: it runs as it is
        return None
    same = all(torch.equal(said[0], one) for one in said[1:])
    return Copies(evaluator, adapters, wanted // number) if same else None


def _room(evaluator: Evaluator, examples: ExampleSet) -> int:
    """How many copies, with a batch each, the free memory has room for."""
    values = [*evaluator.adapter.module.parameters(), *evaluator.adapter.module.buffers()]
    batch = 4 * KEPT * evaluator.batch_size * math.prod(examples.batch([0]).shape[1:])
    return int(SHARE * available() // (sum(v.nbytes for v in values) + batch))


def rebound(work: object, evaluator: Evaluator) -> Callable[[Evaluator], Any]:
    """From another evaluator to `work` about its network.

    Tensors, sets of examples and other networks are shared: nobody writes to them.
    """
    content, shared = packed(
        work, evaluator, lambda thing: isinstance(thing, Evaluator | Adapter | ExampleSet | Tensor)
    )
    return lambda other: unpacked(content, other, shared.__getitem__)
