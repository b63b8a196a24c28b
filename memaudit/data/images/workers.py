"""A few processes that decode images, started when they are needed and again when a file brought one down."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
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
from memaudit.data.images.worker import ANSWER, PIXELS, REQUEST, ROW_ERROR
from memaudit.system import isolated
from memaudit.text import clean

# Bytes. 40 megapixels are at most 160 MB as Pillow holds them; a few copies exist while one is turned and converted,
# and the file itself comes on top.
MEMORY = 1536 << 20
# Processor seconds for one image: several times what the slowest honest ones take, 40 megapixels of WEBP.
SECONDS = 12.0
# Seconds by the clock, for a process that hangs without using the processor; a busy machine needs the room.
PATIENCE = 120.0


class Workers:
    """Decodes on as many processes as threads call `decode` at the same time.

    Args:
        preprocess: geometry that images go through.
        memory, seconds, patience: what one image may take: bytes, processor seconds, seconds by the clock.
    """

    def __init__(
        self, preprocess: Preprocess, memory: int = MEMORY, seconds: float = SECONDS, patience: float = PATIENCE
    ) -> None:
        self._shape = preprocess.input_size
        self._dtype = np.uint8 if preprocess.bit_depth is None else np.float32
        fields = ("input_size", "crop_pct", "interpolation", "crop_mode", "mean", "exif", "bit_depth", "exact")
        geometry = {k: getattr(preprocess, k) for k in fields}
        request = {"preprocess": geometry, "memory": memory, "seconds": seconds}
        self._command = isolated.command("memaudit.data.images.worker", request)
        self._seconds, self._patience = seconds, patience
        self._idle: LifoQueue[_Worker] = LifoQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that are idle."""
        while not self._idle.empty():
            self._idle.get().close()

    def decode(self, content: bytes, suffix: str) -> tuple[np.ndarray, Odd]:
        """The image in `content`, of a file whose name ends in `suffix`, as `worker.prepared` gives it.

        Raises:
            Unreadable: it cannot be decoded, or decoding it crashed, hung or took too much.
            RowError: it is larger than an image may be.
            EnvironmentFault: no process can be started.
        """
        try:
            worker = self._idle.get_nowait()
        except Empty:
            worker = _Worker(self._command, self._patience)
        answer = worker.ask(content, suffix)
        if answer is None:
            raise Unreadable(worker.why(self._seconds, self._patience))
        self._idle.put(worker)
        kind, odd, body = answer
        if kind == PIXELS:
            return np.frombuffer(body, dtype=self._dtype).reshape(self._shape), Odd(odd)
        raise (RowError if kind == ROW_ERROR else Unreadable)(clean(body.decode("utf-8", "replace"), 1000))


class _Worker:
    """One process, and a thread that ends it where an answer takes more than `patience` seconds by the clock."""

    def __init__(self, command: list[str], patience: float) -> None:
        self.late = False
        self.process = isolated.start(command, "decodes images", subprocess.PIPE, subprocess.PIPE)
        self.requests, self.answers = cast("IO[bytes]", self.process.stdin), cast("IO[bytes]", self.process.stdout)
        self._patience, self._asked, self._closed = patience, inf, Event()
        # One for all images: to start a timer for each took half as long as decoding it.
        Thread(target=self._watch, daemon=True).start()

    def ask(self, content: bytes, suffix: str) -> tuple[int, int, bytes] | None:
        """The kind, the oddities and the body of the answer; None where the process ended instead."""
        name = suffix.encode("utf-8", "replace")
        self._asked = monotonic()
        try:
            with suppress(OSError):  # it ended before it had read the request
                self.requests.write(REQUEST.pack(len(name), len(content)) + name)
                self.requests.write(content)
                self.requests.flush()
            head = self.answers.read(ANSWER.size)
            if len(head) == ANSWER.size:
                kind, odd, size = ANSWER.unpack(head)
                body = self.answers.read(size)
                if len(body) == size:
                    return kind, odd, body
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
