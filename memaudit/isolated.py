"""Throw-away processes for hostile files: how one is started, and the limits it puts on itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

# -I keeps the current directory, PYTHON* variables and the user's packages out; the fallback finds this very memaudit.
_START = "import sys; sys.path.append({root!r}); from {module} import main; main()"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT", "HOME")


def command(module: str, request: Mapping[str, object]) -> list[str]:
    """What starts `main()` of our own `module`; `request` reaches it as `json.loads(sys.argv[1])`."""
    root = str(Path(__file__).resolve().parents[1])
    return [sys.executable, "-I", "-c", _START.format(root=root, module=module), json.dumps(request)]


def environment() -> dict[str, str]:
    """The few variables such a process gets; no GPU, one thread."""
    kept = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def limit(memory: int, output: int) -> None:
    """Cap this process, where the system can: bytes it maps from now on, bytes it writes to a file; no core dump."""
    try:
        import resource
    except ImportError:  # Windows: the wall clock is the only limit there
        return
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: output}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + memory
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
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (end if hard == resource.RLIM_INFINITY else min(end, hard), hard))
