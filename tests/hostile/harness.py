"""One case: a folder as a user has it, one thing in it changed, the command, and what must hold whatever it was."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memaudit.__main__ import run
from tests.cli_support import FAST, MODEL, NPZ, tree, write_work
from tests.conftest import train
from tests.quick import load_for_forks

SECONDS = 15.0
MEMORY = 3 << 30  # bytes resident at most, torch and everything it maps included
HIDDEN = ("weights_only", "--trust", "allow_pickle", "add_safe_globals")  # what no message may advise
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CANARY = "canary"
OUT = "report"


@dataclass(frozen=True)
class Case:
    """What is wrong, how to make it so, and how the command must end.

    Attributes:
        build: changes the folder; a payload in it would make the file `canary`.
        arguments: of the command; empty: the scan of the folder with the model or data that `build` put there.
        codes: exit codes that are right.
        says: what standard error must hold.
    """

    kind: str
    name: str
    build: Callable[[Path], object]
    arguments: tuple[str, ...]
    codes: tuple[int, ...] = (3,)
    says: str = ""


@dataclass(frozen=True)
class Result:
    """How a case went; `faults` is empty where every check held."""

    case: Case
    code: int
    seconds: float
    memory: int
    said: str
    faults: tuple[str, ...]


def scan(*more: str, model: Sequence[str] = MODEL, data: Sequence[str] = NPZ) -> tuple[str, ...]:
    """The words of a scan."""
    return ("scan", *model, *data, *FAST, "--out", OUT, *more)


def prepare(folder: Path) -> Path:
    """A folder with model, code, data and the complete report of an earlier scan."""
    folder.mkdir()
    write_work(folder, train())
    load_for_forks()
    code, _, errors, _, _ = execute(folder, scan())
    if code != 1:
        raise RuntimeError(f"the case that nothing is wrong with ended with {code}: {errors}")
    return folder


def check(base: Path, case: Case, place: Path, *, exec_: bool = False) -> Result:
    """Run one case in a copy of `base` at `place`."""
    work = Path(shutil.copytree(base, place / "work"))
    case.build(work)
    before = tree(work)
    code, out, err, seconds, memory = execute(work, case.arguments, exec_=exec_)
    after = tree(work)
    faults = []
    if code not in case.codes:
        faults.append(f"exit {code}, not {' or '.join(map(str, case.codes))}")
    if case.says not in err:
        faults.append(f"stderr does not say {case.says!r}")
    if code not in (0, 1, 4) and (len(re.findall(r"^error: ", err, re.M)) != 1 or out):
        faults.append("not one line of error alone")
    if code in (0, 1) and "error:" in err:
        faults.append("an error beside a verdict")
    if "Traceback" in out + err:
        faults.append("traceback")
    if CONTROL.search(out + err):
        faults.append("control characters")
    faults += [f"advises {word}" for word in HIDDEN if word in err and word not in case.says]
    if (work / CANARY).exists() or (place / CANARY).exists():
        faults.append("the payload ran")
    outside = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n) and not n.startswith(OUT + "/")}
    if outside:
        faults.append(f"changed outside the output folder: {sorted(outside)[:3]}")
    kept = {n: c for n, c in before.items() if n.startswith(OUT + "/")}
    if code not in (0, 1) and any(after.get(n) != c for n, c in kept.items()):
        faults.append("the old report changed")
    if code in (2, 3) and after.keys() != before.keys():
        faults.append(f"left behind: {sorted(after.keys() - before.keys())[:3]}")
    if seconds > SECONDS:
        faults.append(f"took {seconds:.1f} s of processor time")
    if memory > MEMORY:
        faults.append(f"took {memory >> 20} MiB")
    return Result(case, code, seconds, memory, err.strip().split("\n")[0][:160], tuple(faults))


def execute(folder: Path, arguments: Sequence[str], *, exec_: bool = False) -> tuple[int, str, str, float, int]:
    """Exit code, stdout, stderr, processor seconds and peak resident bytes of a command run in `folder`.

    Args:
        exec_: start the installed command; otherwise this process is forked, which saves it loading torch.
    """
    paths = [folder.parent / "stdout", folder.parent / "stderr"]
    child = os.fork()
    if not child:
        code = 99
        try:
            os.chdir(folder)
            os.environ["CI"] = "1"
            for number, path in zip((1, 2), paths, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            if exec_:
                tool = str(Path(sys.executable).with_name("memaudit"))
                code = subprocess.run([tool, *arguments], check=False).returncode
            else:
                sys.stdout = os.fdopen(1, "w", errors="backslashreplace")
                sys.stderr = os.fdopen(2, "w", errors="backslashreplace", buffering=1)
                code = run(list(arguments))
                sys.stdout.flush()
        finally:
            os._exit(code)
    deadline = time.monotonic() + 40 * SECONDS
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    texts = [path.read_text("utf-8", errors="surrogateescape") for path in paths]
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return os.waitstatus_to_exitcode(status), texts[0], texts[1], usage.ru_utime + usage.ru_stime, peak
