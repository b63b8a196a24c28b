"""Where a scan's time goes, stage by stage: here and in its workers, by the clock and in processor seconds.

    python -m tests.benchmarks.workers scan MODEL ... [--engine ray --workers N]

Prints one line a stage: seconds by the clock, processor seconds of this process, and those of each worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memaudit.__main__ import run
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.loop import Loop
from memaudit.engine.ray import RayEngine


def used(evaluator: Evaluator) -> tuple[float, ...]:
    """Seconds by the clock, processor seconds of this process and of each worker, until now."""
    engine, theirs = evaluator.engine, []
    if isinstance(engine, RayEngine):
        while len(engine._ready) < engine.workers:  # it loads the network: no part of any stage
            engine.turn()
        asked = [actor.__ray_call__.remote(lambda self: time.process_time()) for actor in engine._actors]
        theirs = [engine.ray.get(one) for one in asked]
    return time.perf_counter(), time.process_time(), *theirs


def main() -> int:
    counting, depth = Loop.counting, [0]

    @contextmanager
    def timed(self: Evaluator, stage: str, advance: Callable[[int], None] | None = None) -> Iterator[None]:
        depth[0] += 1
        before = used(self) if depth[0] == 1 else ()
        try:
            with counting(self, stage, advance):
                yield
        finally:
            depth[0] -= 1
            if before:
                took = [after - start for start, after in zip(before, used(self), strict=False)]
                print(f"{stage:16}", *(f"{seconds:8.2f}" for seconds in took), flush=True)

    Loop.counting = timed  # type: ignore[method-assign]
    start = time.perf_counter(), time.process_time()
    code = run(sys.argv[1:])
    print(f"{'in all':16} {time.perf_counter() - start[0]:8.2f} {time.process_time() - start[1]:8.2f}")
    return code


if __name__ == "__main__":
    sys.exit(main())
