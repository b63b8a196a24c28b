"""What is quicker where it is not what is tested: starting a process, and training."""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen
from typing import Any
from unittest import mock

import memaudit
from memaudit import report
from memaudit.audits import retrain
from memaudit.audits.memorization import power, relearned
from tests.report_samples import small


@contextmanager
def short_trainings() -> Iterator[None]:
    """Relearning takes 6 steps, planting 2 epochs, retraining 20 steps; what they tell has tests of its own."""
    with (
        mock.patch.object(relearned, "EPOCHS", 2),
        mock.patch.object(relearned, "LEAST_STEPS", 6),
        mock.patch.object(power, "MOST_EPOCHS", 2),
        mock.patch.object(retrain, "LEAST_STEPS", 20),
    ):
        yield


def load_for_forks() -> None:
    """Import what a command imports late, and compile the page: a fork that scans then starts with both."""
    for found in pkgutil.walk_packages(memaudit.__path__, "memaudit."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    report.render(small(), ".html")


def forked(command: Sequence[str], **options: Any) -> Popen[bytes]:
    """`Popen` for a `system.isolated.command`: its pipes, its limits and its exit status, without a new interpreter."""
    (module,) = re.findall(r"from ([\w.]+) import main; main\(\)", command[3])
    main = importlib.import_module(module).main

    def run() -> int:
        os.environ.clear()
        os.environ.update(options["env"])
        sys.argv = ["-c", *command[4:]]
        sys.stdin, sys.stdout = io.TextIOWrapper(io.FileIO(0)), io.TextIOWrapper(io.FileIO(1, "w"))
        main()
        return 0

    return in_fork(run, command, **options)


def in_fork(run: Callable[[], int], command: Sequence[str], **options: Any) -> Popen[Any]:
    """`Popen` of a process that is a copy of this one, with the pipes asked for, and ends with what `run` returns."""

    def instead() -> None:
        code = 1
        try:
            os.closerange(3, 1 << 12)  # what the parent has open, and where it waits for the interpreter's start
            code = run()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)

    return Popen(command, preexec_fn=instead, **options)
