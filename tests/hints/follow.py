"""Print a hint, then do what it says."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from memaudit.errors import MemauditError
from tests.real_inputs.crashes import DATA, MODEL, trained
from tests.real_inputs.harness import Ran, execute, inside

DRY = ("scan", *MODEL, *DATA, "--dry-run", "-q")
INSPECT = ("inspect", *MODEL)
REPORT = "report/report.json"
SCANNED = ("scan", *MODEL, *DATA, "--profile", "fast", "--max-units", "4", "--exit-zero", "-q", "--out", "report")
Wrong = Callable[[Path], tuple[str, ...] | None]
Right = Callable[[Path, Ran], tuple[str, ...] | None]


@dataclass(frozen=True)
class Follow:
    """A hint and somebody who follows it.

    Attributes:
        hint: as the source has it, `{}` where a value goes.
        wrong: puts into a working folder what the hint is for; gives the command, or None for `DRY`.
        right: does what the hint says; gives the command that then succeeds, or None for the same one.
        fault: what is wrong with the machine while the command is run first.
        always: what is so both times.
    """

    hint: str
    wrong: Wrong
    right: Right = lambda folder, ran: None
    fault: Callable[[], AbstractContextManager[object]] = nullcontext
    always: Callable[[], AbstractContextManager[object]] = nullcontext

    def check(self, folder: Path) -> None:
        """The command fails with the hint, and succeeds once it is followed."""
        with inside(folder), self.always():
            trained(folder)
            argv = self.wrong(folder) or DRY
            with self.fault():
                ran = execute(folder, argv)
            assert ran.code not in (0, 1, 70), f"it ended with {ran.code}: {ran.err}"
            pattern = ".*".join(re.escape(part) for part in self.hint.split("{}"))
            said = " ".join(f"{ran.err} {ran.out}".split())
            assert re.search(pattern, said), f"it does not hint {self.hint!r} but says {ran.err}"
            again = execute(folder, self.right(folder, ran) or argv)
            assert again.code == 0, f"followed, it ends with {again.code}: {again.err}"


@dataclass(frozen=True)
class InCode:
    """A hint that only Python code meets: `wrong` raises with it, `right` does what it says and does not."""

    hint: str
    wrong: Callable[[], object]
    right: Callable[[], object]

    def check(self, folder: Path) -> None:
        """The call fails with the hint, and succeeds once it is followed."""
        with pytest.raises(MemauditError) as raised:
            self.wrong()
        pattern = ".*".join(re.escape(part) for part in self.hint.split("{}"))
        assert re.search(pattern, raised.value.hint), f"it hints {raised.value.hint!r}"
        self.right()


def scanned(folder: Path) -> None:
    """The report of a scan, with its page and its pictures."""
    shutil.copytree(_scanned(), folder / "report")


@cache
def _scanned() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="memaudit-hints-"))
    with inside(folder):
        trained(folder)
        ran = execute(folder, (*SCANNED, "--images", "thumbs"))
        assert ran.code == 0, ran.err
    return folder / "report"
