"""Throw-away processes for hostile files: how one is started, and the limits it puts on itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import IO

from memaudit.errors import EnvironmentFault
from memaudit.text import clean

# -I keeps the current directory, PYTHON* variables and the user's packages out; the fallback finds this very memaudit.
_START = "import sys; sys.path.append({root!r}); from {module} import main; main()"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT", "HOME")


def command(module: str, request: Mapping[str, object]) -> list[str]:
    """What starts `main()` of our own `module`; `request` reaches it as `json.loads(sys.argv[1])`."""
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-I", "-c", _START.format(root=root, module=module), json.dumps(request)]


def start(command: Sequence[str], purpose: str, stdin: int | IO[bytes], stdout: int | IO[bytes]) -> Popen[bytes]:
    """The process of a `command`, with a few environment variables, no GPU and one thread.

    Args:
        purpose: what it does, for the error.

    Raises:
        EnvironmentFault: it cannot be started.
    """
    kept = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
    kept |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        # This interpreter and our own module; what is hostile reaches it as data on stdin.
        return Popen(command, stdin=stdin, stdout=stdout, stderr=DEVNULL, env=kept)  # noqa: S603
    except OSError as error:
        raise EnvironmentFault(
            f"cannot start the process that {purpose}: {clean(error.strerror)}",
            hint="free memory or process slots, then run again",
        ) from error


def limit(memory: int, output: int, seconds: float | None = None) -> None:
    """Cap this process until it ends, where the system can; it writes no core dump.

    Args:
        memory, output: bytes it may map from now on, and write to a file.
        seconds: of processor time from now on.
    """
    try:
        import resource
    except ImportError:  # Windows: the wall clock is the only limit there
        return
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: output}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + memory
    if seconds is not None:
        limits[resource.RLIMIT_CPU] = _end(seconds)
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or value < hard:
            resource.setrlimit(kind, (value, value))


def limit_time(seconds: float) -> None:
    """End this process after so many more seconds of processor time; a later call sets a new end."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    end = _end(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (end if hard == resource.RLIM_INFINITY else min(end, hard), hard))


def _end(seconds: float) -> int:
    """The processor time of this process after so many more seconds of it."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime + seconds) + 1
