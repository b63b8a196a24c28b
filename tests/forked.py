"""The package's throw-away processes, forked from the test's own, which saves them loading torch."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from subprocess import Popen
from typing import Any


def forked(command: Sequence[str], **options: Any) -> Popen[bytes]:
    """`Popen` for a `system.isolated.command`: its pipes, its limits and its exit status, without a new interpreter."""
    (module,) = re.findall(r"from ([\w.]+) import main; main\(\)", command[3])
    main = importlib.import_module(module).main

    def run() -> None:
        code = 1
        try:
            os.closerange(3, 1 << 12)  # what the parent has open, and where it waits for the interpreter's start
            os.environ.clear()
            os.environ.update(options["env"])
            sys.argv = ["-c", *command[4:]]
            sys.stdin, sys.stdout = io.TextIOWrapper(io.FileIO(0)), io.TextIOWrapper(io.FileIO(1, "w"))
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)

    return Popen(command, preexec_fn=run, **options)
