"""`memaudit` and `python -m memaudit`: run a command, and turn whatever happens into one line and one exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memaudit import interrupts
from memaudit.errors import ExitCode, MemauditError
from memaudit.interrupts import Terminated
from memaudit.text import MAX_LENGTH, clean

# Rejected rows and the like: so many are shown, the rest is counted.
DETAILS_SHOWN = 20
# What check, diff and render do without.
AUDIT_NEEDS = frozenset({"torch", "timm", "numpy", "PIL", "safetensors", "sklearn", "filelock"})
# What a full disk or a reader that has gone says when standard output is written.
_OUTPUT_LOST = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of `ExitCode`."""
    interrupts.install()
    code = run(arguments)
    try:
        sys.stdout.flush()
    except OSError:  # the reader has gone: the verdict stands, and Python must not complain again on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command; every error is printed here, in one place."""
    import typer.main

    from memaudit.cli import app

    # Some releases of typer bring a click of their own: its public names lead to the classes that are really raised.
    usage_problem = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        # Not app(): that turns an interrupt and a closed pipe into exit codes of its own, 1 among them.
        with command.make_context("memaudit", given, obj=given) as context:
            result = command.invoke(context)
        return int(result) if isinstance(result, int) else int(ExitCode.OK)
    except MemauditError as error:
        _complain(error.message, error.hint, (*error.details, *_notes(error)))
        return int(error.exit_code)
    except typer.Exit as finished:
        return finished.exit_code
    except (KeyboardInterrupt, typer.Abort) as stopped:
        return _stopped("interrupted", stopped, ExitCode.INTERRUPTED)
    except Terminated as stopped:
        return _stopped("terminated", stopped, ExitCode.TERMINATED)
    except OSError as error:
        if error.errno not in _OUTPUT_LOST:
            return _report_bug(error)
        if error.errno != errno.EPIPE:  # a reader that closes its end (`| head`) has seen what it wanted
            _complain(f"cannot write to standard output: {os.strerror(error.errno or 0)}")
        return int(ExitCode.ENVIRONMENT)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in AUDIT_NEEDS:
            return _report_bug(error)
        _complain(f"{error.name} is not installed", "Auditing needs it: pip install memaudit, with its dependencies.")
        return int(ExitCode.ENVIRONMENT)
    except MemoryError:
        _complain("out of memory", "Give fewer examples, or use a machine with more memory.")
        return int(ExitCode.ENVIRONMENT)
    except Exception as error:  # the one place that may catch everything: a bug must never look like a verdict
        return _refuse(error) if isinstance(error, usage_problem) else _report_bug(error)


def _stopped(how: str, error: BaseException, code: ExitCode) -> int:
    """What an interrupted user is told: what is kept, and that the same command goes on from there."""
    kept = _notes(error)
    what = "it goes on from there" if kept else "nothing was measured yet"
    _complain(f"{how}; {'; '.join(kept) or 'nothing was written'}", f"Run the same command again: {what}.")
    return int(code)


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _refuse(error: Any) -> int:
    """An option or argument that the parser did not take."""
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "memaudit"
    _complain(error.format_message(), f"See: {command} --help")
    return int(ExitCode.USAGE)


def _complain(message: str, hint: str = "", details: Sequence[str] = ()) -> None:
    lines = [f"error: {clean(message, 4 * MAX_LENGTH)}"]
    lines += [f"  {clean(d)}" for d in details[:DETAILS_SHOWN]]
    if len(details) > DETAILS_SHOWN:
        lines.append(f"  ... and {len(details) - DETAILS_SHOWN} more")
    if hint:
        lines.append(f"  fix: {clean(hint, 4 * MAX_LENGTH)}")
    try:
        print("\n".join(lines), file=sys.stderr)  # noqa: T201
    except OSError:
        return


def _report_bug(error: Exception) -> int:
    name = f"bug-{uuid.uuid4().hex[:8]}"
    where = "the log could not be written"
    try:
        from platformdirs import user_log_path

        log = user_log_path("memaudit", ensure_exists=True) / f"{name}.log"
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
        where = f"details in {_short(log)}"
    except OSError:
        pass
    _complain(f"a bug in memaudit ({name}): {type(error).__name__}; {where}", "Please report it with that log.")
    return int(ExitCode.BUG)


def _short(path: Path) -> str:
    try:
        return "~/" + str(path.relative_to(Path.home()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    main()
