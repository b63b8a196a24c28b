"""Print a hint, then do what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.real_inputs.crashes import DATA, MODEL, trained
from tests.real_inputs.harness import Ran, execute, inside

DRY = ("scan", *MODEL, *DATA, "--dry-run", "-q")
INSPECT = ("inspect", *MODEL)


@dataclass(frozen=True)
class Follow:
    """A hint and somebody who follows it.

    Attributes:
        hint: as the source has it, `{}` where a value goes.
        wrong: puts into a working folder what the hint is for; gives the command, or None for `DRY`.
        right: does what the hint says; gives the command that then succeeds, or None for the same one.
    """

    hint: str
    wrong: Callable[[Path], tuple[str, ...] | None]
    right: Callable[[Path, Ran], tuple[str, ...] | None]


def check(case: Follow, folder: Path) -> None:
    """The command fails with the hint, and succeeds once it is followed."""
    with inside(folder):
        trained(folder)
        argv = case.wrong(folder) or DRY
        ran = execute(folder, argv)
        assert ran.code not in (0, 1, 70), f"it ended with {ran.code}"
        pattern = ".*".join(re.escape(part) for part in case.hint.split("{}"))
        assert re.search(pattern, ran.err, re.DOTALL), f"it does not hint {case.hint!r} but says {ran.err}"
        again = execute(folder, case.right(folder, ran) or argv)
        assert again.code == 0, f"followed, it ends with {again.code}: {again.err}"
