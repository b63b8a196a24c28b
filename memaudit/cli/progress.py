"""How far an audit is, on stderr: a bar with time left on a terminal, else one line per stage."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Stages:
    """Implements `memaudit.settings.Progress`; use as a context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty() and not os.environ.get("CI")
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._line = ""

    def __enter__(self) -> Stages:
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description:<14}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage of `total` steps begins."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total)
            return
        line = f"memaudit: {name}" + (f" ({total})" if total else "")
        if not self.quiet and line != self._line:  # what is tried in several ways is one stage
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        self._line = line

    def advance(self, steps: int = 1) -> None:
        """So many more steps of the stage are done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, steps)
