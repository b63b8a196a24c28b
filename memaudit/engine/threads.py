"""How many of the processor's threads a network runs with: the fewest that are about as fast as more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from memaudit.data.examples import ExampleSet
from memaudit.engine.copies import copies_of
from memaudit.engine.engines import InProcess
from memaudit.engine.evaluator import Evaluator
from memaudit.numbers import count

# Threads wait for each other in every layer. On a machine with other work one that waits for its turn holds up all of
# them: with three busy loops on two cores two threads took many times as long as one.
GAIN = 0.8  # more threads must take less than this share of the time that fewer take
ALONE = 0.85  # and one thread must have this share of a core for itself
ROUNDS = 3
ROWS = 64
# Seconds that one thread is watched for: the system gives each process its turn for a few thousandths.
WATCHED = 0.1


@contextmanager
def threads_kept() -> Iterator[None]:
    """Whatever the body sets, PyTorch has as many threads afterwards as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settle_threads(evaluator: Evaluator, examples: ExampleSet, wanted: int | None = None) -> str:
    """Run on `wanted` cores, or on all that PyTorch would take, with a copy of the network on each where that is so.

    What has to run here, one batch at a time, has as many threads as a short measurement on `examples` says.

    Returns what was chosen, in words.

    Results do not depend on it beyond the rounding of float32, so a run may go on with another number of threads.
    """
    most = torch.get_num_threads()
    evaluator.threads = wanted or most
    here = evaluator.device.type == "cpu" and isinstance(evaluator.engine, InProcess)
    copies = copies_of(evaluator, examples, evaluator.threads) if here else None
    if wanted is None and most > 1 and evaluator.device.type == "cpu":
        evaluator.threads = _fewest(evaluator, examples, most)
    torch.set_num_threads(evaluator.threads)
    said = count(evaluator.threads, "thread") + (f" of {most}, by a short measurement" if wanted is None else "")
    if copies is None:
        return said
    evaluator.engine = copies
    each = count(copies.threads, "thread")
    return f"{count(copies.workers, 'copy', 'copies')} of the network, {each} each; {said} for the rest"


def _fewest(evaluator: Evaluator, examples: ExampleSet, most: int) -> int:
    """Of 1, 2, 4, ... and `most` threads the fewest about as fast as more, each timed `ROUNDS` times in turn.

    Where other work has the processor too, one.
    """
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    rows = range(min(ROWS, evaluator.batch_size, len(examples)))
    timed = Evaluator(evaluator.adapter, len(rows))  # not the audit's own: these passes are none of its measurements

    def took(number: int) -> float:
        torch.set_num_threads(number)
        start = time.perf_counter()
        timed.logits(examples, rows)
        return time.perf_counter() - start

    for number in counts:  # the first one of each prepares memory
        took(number)
    start, worked, watched = time.perf_counter(), time.thread_time(), 0.0
    while watched < WATCHED:
        took(1)
        watched = time.perf_counter() - start
    if time.thread_time() - worked < ALONE * watched:
        return 1
    times = dict.fromkeys(counts, 0.0)
    for _ in range(ROUNDS):
        for number in counts:
            times[number] += took(number)
    best: int = counts[0]
    for number in counts[1:]:
        if times[number] < GAIN * times[best]:
            best = number
    return best
