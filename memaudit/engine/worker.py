"""One process among several that hold the same network: loads it by path, does pieces of work, answers in data."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from memaudit import checkpoints
from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import Weights
from memaudit.data.images.preprocess import Preprocess
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.engines import Batches, Work
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import EnvironmentFault
from memaudit.system.memory import keeping_freed, out_of_memory

# Largest difference of logits, in units of the largest one, that threads and batch sizes explain.
TOLERANCE = 1e-3
PROBES = 2


class Source(Protocol):
    """Where a worker has its network from; `device` is its kind."""

    @property
    def device(self) -> str: ...

    def load(self) -> Evaluator: ...


@dataclass(frozen=True)
class Recipe:
    """From what a worker builds the network that the asking process has, by the same code.

    Attributes:
        path: of the checkpoint, absolute; each worker must see it.
        options: what was said of the model; of several architectures that fit, the one that was taken.
        adapter: the name, or an absolute `file.py:factory`.
        device: `cpu` or `cuda`.
        threads: of the processor.
        expected: logits of `PROBES` noise examples, by the network of the asking process.
    """

    path: str
    sha256: str
    weights: Weights | None
    options: ModelOptions
    adapter: str | None
    preprocess: Preprocess
    multi_label: bool
    device: str
    threads: int
    dtype: torch.dtype
    expected: Tensor

    def load(self) -> Evaluator:
        """The network on its device, shown to be the same.

        Raises:
            MemauditError: it cannot be loaded here.
            EnvironmentFault: the file is another one, or the network answers otherwise.
        """
        torch.set_num_threads(self.threads)
        checkpoint = checkpoints.read(self.path, weights=self.weights)
        adapter = choose(checkpoint, self.options, self.adapter)
        adapter.preprocess, adapter.multi_label = self.preprocess, self.multi_label
        adapter.module.to(self.device)
        gap = float((probed(adapter) - self.expected).abs().max()) / (1 + float(self.expected.abs().max()))
        if checkpoint.sha256 != self.sha256 or not gap <= TOLERANCE:
            raise EnvironmentFault(
                f"the network loaded from {checkpoint.path.name} is not the one that is audited",
                hint="Let every node see the same files, at the same paths, with the same packages.",
            )
        return Evaluator(adapter, gradient_dtype=self.dtype)


def probed(adapter: Adapter) -> Tensor:
    """Logits `(PROBES, classes)` of noise: what shows that two processes hold the same network."""
    noise = adapter.noise(PROBES, generator_for(0, "probe", "")).to(adapter.device)
    with exact_arithmetic():
        return adapter.attempt(noise).float().cpu()


@dataclass(frozen=True)
class Piece:
    """What a worker is asked for.

    Attributes:
        key: of the work, which it unpacks once.
        part: rows, or of a pass over a set a slice of its rows.
        stage: what passes count under; `batch_size`: examples a pass at the most.
    """

    key: str
    part: Any
    stage: str
    batch_size: int

    def halved(self) -> Piece:
        """The same in batches of half the size; a slice is one batch."""
        return self if isinstance(self.part, slice) else replace(self, batch_size=max(1, self.batch_size // 2))


@dataclass(frozen=True)
class Answer:
    """What became of a piece: what was found and the passes it took, or the error.

    Attributes:
        trace: where the error was raised, as text.
    """

    value: Any = None
    passes: Mapping[str, int] | None = None
    error: Exception | None = None
    trace: str = ""


class Worker:
    """The network, and the work it was given last."""

    def __init__(self, recipe: Source) -> None:
        self.recipe = recipe
        self._evaluator: Evaluator | None = None
        self._work: tuple[str, Any] = ("", None)
        self._most: int | None = None  # examples a pass that were found to fit in memory here

    def hello(self) -> Answer:
        """Load the network."""
        return self.answered(lambda evaluator: None)

    def do(self, piece: Piece, unpack: Callable[[Evaluator], Any]) -> Answer:
        """One piece; `unpack` makes its work, where it is not the last one's."""

        def run(evaluator: Evaluator) -> Any:
            if self._work[0] != piece.key:
                self._work = ("", None)  # two would need the memory of both
                self._work = (piece.key, unpack(evaluator))
            work = self._work[1]
            evaluator.batch_size = piece.batch_size
            with evaluator.counting(piece.stage):
                if isinstance(work, Batches):
                    return evaluator.batch(work, piece.part)
                assert isinstance(work, Work)  # noqa: S101 - there is no third kind
                asked = evaluator.batch_size = min(piece.batch_size, self._most or piece.batch_size)
                found = [[row, work.plain(one)] for row, one in work(evaluator, piece.part)]
                if evaluator.batch_size < asked:
                    self._most = evaluator.batch_size
                return found

        return self.answered(run)

    def answered(self, run: Callable[[Evaluator], Any]) -> Answer:
        """What `run` makes of the network; an error is an answer."""
        try:
            if self._evaluator is None:
                self._evaluator = self.recipe.load()
            self._evaluator.passes = Counter()
            return Answer(run(self._evaluator), dict(self._evaluator.passes))
        except Exception as error:
            return Answer(error=error, trace=traceback.format_exc())


class Remote(Worker):
    """A worker in a process of its own."""

    def __init__(self, recipe: Source) -> None:
        super().__init__(recipe)
        self._always = ExitStack()  # what is so as long as this process lives
        self._always.enter_context(keeping_freed())

    def answered(self, run: Callable[[Evaluator], Any]) -> Answer:
        """As `Worker.answered`; an error says where it was raised, and can be sent."""
        with exact_arithmetic():
            answer = super().answered(run)
        if answer.error is None:
            return answer
        if self.recipe.device == "cuda" and not out_of_memory(answer.error):
            leave_if_broken()
        answer.error.add_note(f"in worker {os.getpid()} on {socket.gethostname()}")
        return replace(answer, error=portable(answer.error))


def leave_if_broken() -> None:
    """End this process where its CUDA context is broken: nothing it is asked for would ever succeed."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(1)


def portable(error: Exception) -> Exception:
    """`error` itself, or where it cannot be sent, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:
        said = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            said.add_note(note)
        return said
    return error.with_traceback(None)
