"""A few processes that decode images, started when they are needed and again when a file brought one down."""

from __future__ import annotations

import atexit
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from math import inf
from queue import Empty, LifoQueue
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import IO, Self, cast

import numpy as np

from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.worker import ANSWER, MESSAGE, PIXELS, REQUEST, ROW_ERROR, geometry
from memaudit.system import isolated
from memaudit.text import clean

# Bytes. 40 megapixels are at most 160 MB as Pillow holds them; a few copies exist while one is turned and converted,
# and the file itself comes on top.
MEMORY = 1536 << 20
# Processor seconds for one image: several times what the slowest honest ones take, 40 megapixels of WEBP.
SECONDS = 12.0
# Seconds by the clock, for a process that hangs without using the processor; a busy machine needs the room.
PATIENCE = 120.0

# The image at the network's size and what is odd about its file; or why there is none.
Decoded = tuple[np.ndarray, Odd] | Unreadable | RowError


class Workers:
    """Decodes on as many processes as threads call `decode` at the same time.

    Args:
        preprocess: geometry that images go through.
        memory, seconds, patience: what one image may take: bytes, processor seconds, seconds by the clock.
        idle: processes that others use too; they serve any geometry.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        memory: int = MEMORY,
        seconds: float = SECONDS,
        patience: float = PATIENCE,
        *,
        idle: LifoQueue[_Worker] | None = None,
    ) -> None:
        self._shape, self._geometry = preprocess.input_size, geometry(preprocess)
        self._dtype = np.uint8 if preprocess.bit_depth is None else np.float32
        self._command = isolated.command("memaudit.data.images.worker", {"memory": memory, "seconds": seconds})
        self._seconds, self._patience = seconds, patience
        self._idle: LifoQueue[_Worker] = LifoQueue() if idle is None else idle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that are idle."""
        _end(self._idle)

    def decode(self, content: bytes, suffix: str) -> tuple[np.ndarray, Odd]:
        """The image in `content`, of a file whose name ends in `suffix`, as `worker.prepared` gives it.

        Raises:
            Unreadable: it cannot be decoded, or decoding it crashed, hung or took too much.
            RowError: it is larger than an image may be.
            EnvironmentFault: no process can be started.
        """
        (found,) = self.decode_all([(content, suffix)])
        if isinstance(found, Exception):
            raise found
        return found

    def decode_all(self, files: Sequence[tuple[bytes, str]]) -> list[Decoded]:
        """As `decode`, of several files in one message; each reason why there is none is returned.

        Where the process ends over them, each has one for itself, so that one file costs no other.
        """
        if not files:
            return []
        try:
            worker = self._idle.get_nowait()
        except Empty:
            worker = _Worker(self._command, self._patience)
        answers = worker.ask(self._geometry, files)
        if answers is None:
            if len(files) > 1:
                return [self.decode_all([file])[0] for file in files]
            return [Unreadable(worker.why(self._seconds, self._patience))]
        self._idle.put(worker)
        return [self._decoded(*answer) for answer in answers]

    def _decoded(self, kind: int, odd: int, body: memoryview) -> Decoded:
        if kind == PIXELS:
            return np.frombuffer(body, dtype=self._dtype).reshape(self._shape), Odd(odd)
        return (RowError if kind == ROW_ERROR else Unreadable)(clean(str(body, "utf-8", "replace"), 1000))


def shared(preprocess: Preprocess) -> Workers:
    """Decodes on the processes that this one keeps for all sets: to start them takes as long as some hundred images."""
    return Workers(preprocess, idle=_SHARED)


@atexit.register
def end_shared() -> None:
    """End those of them that are idle; others are started where they are needed."""
    _end(_SHARED)


def _end(idle: LifoQueue[_Worker]) -> None:
    with suppress(Empty):
        while True:
            idle.get_nowait().close()


class _Worker:
    """One process, and a thread that ends it where an answer takes more than `patience` seconds by the clock."""

    def __init__(self, command: list[str], patience: float) -> None:
        self.late = False
        self.process = isolated.start(command, "decodes images", subprocess.PIPE, subprocess.PIPE)
        self.requests, self.answers = cast("IO[bytes]", self.process.stdin), cast("IO[bytes]", self.process.stdout)
        self._patience, self._asked, self._closed = patience, inf, Event()
        # One for all images: to start a timer for each took half as long as decoding it.
        Thread(target=self._watch, daemon=True).start()

    def ask(self, geometry: bytes, files: Sequence[tuple[bytes, str]]) -> list[tuple[int, int, memoryview]] | None:
        """The kind, the oddities and the body of the answer for each file; None where the process ended instead."""
        names = [suffix.encode("utf-8", "replace") for _, suffix in files]
        self._asked = monotonic()
        try:
            with suppress(OSError):  # it ended before it had read the request
                sizes = (REQUEST.pack(len(name), len(content)) for name, (content, _) in zip(names, files, strict=True))
                self.requests.write(MESSAGE.pack(len(geometry), len(files)) + geometry + b"".join(sizes))
                for name, (content, _) in zip(names, files, strict=True):
                    self.requests.write(name + content)
                self.requests.flush()
            head = self.answers.read(len(files) * ANSWER.size)
            if len(head) == len(files) * ANSWER.size:
                found = list(ANSWER.iter_unpack(head))
                body = self.answers.read(sum(size for *_, size in found))
                ends = list(accumulate(size for *_, size in found))
                if len(body) == ends[-1]:
                    parts = (memoryview(body)[end - one[2] : end] for one, end in zip(found, ends, strict=True))
                    return [(kind, odd, part) for (kind, odd, _), part in zip(found, parts, strict=True)]
        finally:
            self._asked = inf
        self.close()
        return None

    def why(self, seconds: float, patience: float) -> str:
        """What ended the process, in words."""
        status = self.process.returncode
        if self.late:
            return f"decoding it did not finish in {patience:.0f} s"
        if status == -getattr(signal, "SIGXCPU", 0):
            return f"decoding it takes more than {seconds:.0f} s of processor time"
        return f"decoding it crashed the decoder ({f'signal {-status}' if status < 0 else f'status {status}'})"

    def close(self) -> None:
        for pipe in (self.requests, self.answers):
            with suppress(OSError):  # what was still to be written has no reader
                pipe.close()
        self.process.wait()
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._patience / 8):
            if monotonic() - self._asked > self._patience:
                self.late = True
                self.process.kill()
                return


_SHARED: LifoQueue[_Worker] = LifoQueue()
