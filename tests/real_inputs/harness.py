"""One situation: a folder as a user has it, the command, and what must come of it.

A file of this package that is neither the harness nor a test holds the situations of one kind, in a list `CASES`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import shlex
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO
from unittest import mock

from memaudit.__main__ import run
from memaudit.checkpoints import child
from memaudit.checkpoints.sandbox import REFUSED
from memaudit.checkpoints.source import Source
from memaudit.data.images import RowError, Unreadable, worker
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.workers import Decoded
from memaudit.errors import MemauditError
from memaudit.report.document import Report

OUT = "report"
# Enough for every figure, and as little as a scan can do.
FAST = ("--profile", "fast", "--images", "none", "-q", "--max-units", "3", "--out", OUT)
NO_CASES = frozenset({"__main__", "harness", "pictures"})


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    folder: Path
    code: int
    out: str
    err: str

    @cached_property
    def report(self) -> Report:
        return Report.model_validate_json((self.folder / OUT / "report.json").read_text("utf-8"))

    def warned(self, code: str) -> str:
        """The text of the report's warning `code`; empty where there is none."""
        return "; ".join(w.message for w in self.report.warnings if w.code == code)


@dataclass(frozen=True)
class Expected:
    """How the command must end.

    Attributes:
        code: exit code.
        says: what it must print.
        holds: raises `AssertionError` where a figure is another one; it gets the command that ended last.
        then: the words that the printed fix adds to the command; the fix must hold them, and the command then ends
            with `then_code`.
        without: an option that the fix takes away, or whose value it replaces, with its value.
    """

    code: int
    says: str = ""
    holds: Callable[[Ran], object] | None = None
    then: tuple[str, ...] = ()
    then_code: int = 0
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        fix = f", fixed by {shlex.join(self.then)}" if self.then else ""
        return f"exit {self.code}{f' {self.says!r}' if self.says else ''}{fix}"


@dataclass(frozen=True)
class Case:
    """A situation.

    Attributes:
        build: fills an empty folder, the working directory of the command.
    """

    kind: str
    name: str
    build: Callable[[Path], object]
    argv: tuple[str, ...]
    expected: Expected

    @property
    def checked(self) -> bool:
        """Whether the scan is refused by a check, and so must its dry run be; none sees what breaks in the middle."""
        late = "in the middle" in self.name or "--dry-run" in self.argv
        return self.argv[0] == "scan" and self.expected.code > 1 and not late


@dataclass(frozen=True)
class Result:
    """How it went; `faults` is empty where everything held."""

    got: str
    faults: tuple[str, ...]


def scan(*words: str) -> tuple[str, ...]:
    """The words of a scan whose policy is met whatever it finds: the exit code then tells of the input alone."""
    return ("scan", *words, *FAST, "--max-memorized", "100%")


def every() -> list[Case]:
    """All situations, kind by kind."""
    package = importlib.import_module(__package__ or "tests.real_inputs")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in NO_CASES)
    modules = (importlib.import_module(f"{package.__name__}.{n}") for n in names if not n.startswith("test_"))
    return [case for module in modules for case in module.CASES]


def check(case: Case, folder: Path) -> Result:
    """Build the situation in the empty `folder`, run the command there, and compare."""
    with inside(folder):
        case.build(folder)
        ran = execute(folder, case.argv)
        faults = _ended(ran, case.expected.code, case.expected.says)
        if case.checked and not faults and (dry := execute(folder, (*case.argv, "--dry-run")).code) != ran.code:
            faults.append(f"a dry run ends with {dry}")
        if case.expected.then and not faults:
            faults += [f"the fix does not say {w}" for w in case.expected.then if w not in ran.err + ran.out]
            words = tuple(w for w in case.argv if w not in case.expected.without)
            ran = execute(folder, (*words, *case.expected.then))
            faults += [f"followed: {fault}" for fault in _ended(ran, case.expected.then_code, "")]
        if case.expected.holds is not None and not faults:
            try:
                case.expected.holds(ran)
            except Exception as wrong:  # the table goes on, whatever a check stumbles over
                faults.append(
                    str(wrong).split("\n")[0] or traceback.format_exc(limit=-1).strip().split("\n")[1].strip()
                )
    return Result(f"exit {ran.code}", tuple(faults))


def _ended(ran: Ran, code: int, says: str) -> list[str]:
    faults = []
    if ran.code != code:
        faults.append(f"exit {ran.code}, not {code}: {ran.err.strip()[:300]}")
    if says not in ran.out + ran.err:
        faults.append(f"does not say {says!r} but {(ran.err or ran.out).strip()[:300]!r}")
    if "Traceback" in ran.out + ran.err:
        faults.append("traceback")
    return faults


def execute(folder: Path, argv: tuple[str, ...]) -> Ran:
    """The command in this process, in the current directory."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = run(list(argv))
    return Ran(folder, code, out.getvalue(), err.getvalue())


class InThisProcess:
    """Decodes without a process of its own, whose start is most of a scan; the isolation has tests of its own."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def decode_all(self, files: Sequence[tuple[bytes, str]]) -> list[Decoded]:
        return [self._decoded(content, suffix) for content, suffix in files]

    def _decoded(self, content: bytes, suffix: str) -> Decoded:
        try:
            return worker.prepared(content, suffix, self._preprocess)
        except (Unreadable, RowError) as reason:
            return reason


def opened_here(source: Source, request: dict[str, object], output: BinaryIO) -> int:
    """What the process that opens a pickle does, in this one."""
    os.lseek(source.descriptor, 0, os.SEEK_SET)
    stdin = io.TextIOWrapper(os.fdopen(os.dup(source.descriptor), "rb"))
    try:
        with mock.patch("sys.stdin", stdin):
            child._run(request, output)
    except MemauditError as error:
        output.write(json.dumps(child._as_plain(error)).encode())
        return REFUSED
    finally:
        stdin.close()
        output.flush()
    return 0


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """`folder` is the working directory, on what looks like a CI machine."""
    before, ci = Path.cwd(), os.environ.get("CI")
    os.chdir(folder)
    os.environ["CI"] = "1"
    patches = [
        mock.patch("memaudit.data.decode.shared", InThisProcess),
        mock.patch("memaudit.checkpoints.sandbox._run_child", opened_here),
    ]
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in patches:
            patch.stop()
        os.chdir(before)
        if ci is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = ci
