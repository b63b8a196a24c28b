"""`memaudit` and `python -m memaudit`: run a command, and turn whatever happens into one line and one exit code."""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import traceback
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memaudit.errors import ExitCode, MemauditError, UsageError
from memaudit.system import interrupts
from memaudit.system.interrupts import Terminated
from memaudit.text import MAX_LENGTH, clean

# Rejected rows and the like: so many are shown, the rest is counted.
DETAILS_SHOWN = 20
# What check, diff and render do without.
AUDIT_NEEDS = frozenset({"torch", "timm", "numpy", "PIL", "safetensors", "sklearn", "filelock"})
USER_MODULE = "memaudit_user_"  # how the modules that `--adapter file.py:name` makes are called
ERROR_JSON = "--error-json"
# What a full disk or a reader that has gone says when standard output is written.
_OUTPUT_LOST = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of `ExitCode`."""
    interrupts.install()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them takes longer than reading a report
    gc.set_threshold(50_000)  # imports make many objects and no garbage: a tenth of the start was spent looking for it
    code = run(arguments)
    try:
        sys.stdout.flush()
    except OSError:  # the reader has gone: the verdict stands, and Python must not complain again on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


@dataclass(frozen=True)
class Failure:
    """How a command ended when it gave no verdict."""

    exit_code: ExitCode
    kind: str
    message: str
    hint: str = ""
    details: tuple[str, ...] = ()


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command; every failure is printed here, in one place.

    `--error-json PATH`, anywhere on the line, also tells it to machines: PATH then says how the command ended.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        path, given = _error_path(given)
    except MemauditError as error:
        return _tell(_failure(error))
    ended = _run(given)
    code = _tell(ended) if isinstance(ended, Failure) else ended
    if path is not None:
        _tell_machines(path, code, ended if isinstance(ended, Failure) else None)
    return code


def _run(given: list[str]) -> int | Failure:
    """The exit code of a command that did what it was asked for, or why it did not."""
    import typer.main

    from memaudit.cli import program

    # Some releases of typer bring a click of their own: its public names lead to the classes that are really raised.
    usage_problem = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    command = typer.main.get_command(program(given[0] if given else ""))
    try:
        # Not app(): that turns an interrupt and a closed pipe into exit codes of its own, 1 among them.
        with command.make_context("memaudit", given, obj=given) as context:
            result = command.invoke(context)
        return int(result) if isinstance(result, int) else int(ExitCode.OK)
    except typer.Exit as finished:
        return finished.exit_code
    except (KeyboardInterrupt, typer.Abort) as stopped:
        return _stopped("interrupted", stopped, ExitCode.INTERRUPTED)
    except Terminated as stopped:
        return _stopped("terminated", stopped, ExitCode.TERMINATED)
    except SystemExit as error:  # nothing of ours does that, and its code would pass for a verdict
        said = f"code that was run for the audit ended the program (SystemExit: {clean(error)})"
        return Failure(ExitCode.REJECTED, "ModelRejected", said, "Find the exit in the network's or adapter's code.")
    except Exception as error:  # the one place that may catch everything: a bug must never look like a verdict
        if isinstance(error, usage_problem):
            where = error.ctx.command_path if getattr(error, "ctx", None) is not None else "memaudit"  # type: ignore[attr-defined]
            message = error.format_message()  # type: ignore[attr-defined]
            return Failure(ExitCode.USAGE, "UsageError", message, f"See: {where} --help")
        return _failure(error)


def _failure(error: Exception) -> Failure:
    """An exception in the words a user reads; what nobody foresaw is a bug, with a log."""
    from memaudit.system.memory import out_of_memory  # ctypes would cost every command's start

    if isinstance(error, MemauditError):
        details = (*error.details, *_notes(error))
        return Failure(error.exit_code, type(error).__name__, error.message, error.hint, details)
    if out_of_memory(error):
        hint = "Give fewer examples, or use a machine with more memory."
        return Failure(ExitCode.ENVIRONMENT, "EnvironmentFault", "out of memory", hint)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in AUDIT_NEEDS:
        hint = "Auditing needs it: pip install memaudit, with its dependencies."
        return Failure(ExitCode.ENVIRONMENT, "EnvironmentFault", f"{error.name} is not installed", hint)
    if isinstance(error, OSError) and error.errno in _OUTPUT_LOST:
        # A reader that closes its end (`| head`) has seen what it wanted: nothing is said.
        said = "" if error.errno == errno.EPIPE else f"cannot write to standard output: {os.strerror(error.errno or 0)}"
        return Failure(ExitCode.ENVIRONMENT, "EnvironmentFault", said)
    return _in_user_code(error) or _bug(error)


def _in_user_code(error: Exception) -> Failure | None:
    """The error of a file that `--adapter` named, where its line raised it and not ours below it."""
    frames = [
        (frame.f_globals.get("__name__", ""), frame, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [n for n, (name, _, _) in enumerate(frames) if name.startswith(USER_MODULE)]
    ours = [n for n, (name, _, _) in enumerate(frames) if name.split(".")[0] == "memaudit"]
    if not own or (ours and ours[-1] > own[-1]):
        return None
    _, frame, line = frames[own[-1]]
    where = f"{Path(frame.f_code.co_filename).name} line {line}"
    message = f"{where} raised {type(error).__name__}: {clean(error)}"
    return Failure(ExitCode.REJECTED, "ModelRejected", message, "fix it and run again", tuple(_notes(error)))


def _stopped(how: str, error: BaseException, code: ExitCode) -> Failure:
    """One line for a user who interrupted the run: what is kept, and that the same command goes on from there."""
    kept = _notes(error)
    then = "it goes on from there" if kept else "nothing was measured yet"
    message = f"{how}; {'; '.join(kept) or 'nothing was written'}"
    return Failure(code, "Interrupted", message, f"Run the same command again: {then}.")


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _tell(failure: Failure) -> int:
    """Print a failure on standard error, and give its exit code."""
    lines = [f"error: {clean(failure.message, 4 * MAX_LENGTH)}"]
    lines += [f"  {clean(d)}" for d in failure.details[:DETAILS_SHOWN]]
    if len(failure.details) > DETAILS_SHOWN:
        lines.append(f"  ... and {len(failure.details) - DETAILS_SHOWN} more")
    if failure.hint:
        lines.append(f"  fix: {clean(failure.hint, 4 * MAX_LENGTH)}")
    with suppress(OSError):
        if failure.message:
            print("\n".join(lines), file=sys.stderr)  # noqa: T201
    return int(failure.exit_code)


def _error_path(given: list[str]) -> tuple[Path | None, list[str]]:
    """Where `--error-json` points, and the other words of the command line.

    Raises:
        UsageError: it names no place that can be written.
    """
    path: Path | None = None
    rest: list[str] = []
    words = iter(given)
    for word in words:
        option, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif option != ERROR_JSON:
            rest.append(word)
        elif not (named := value if equals else next(words, "")):
            raise UsageError(f"{ERROR_JSON} needs a file name")
        else:
            path = Path(named)
    if path is not None:
        from memaudit.system.files import check_target

        check_target(path)
    return path, rest


def _tell_machines(path: Path, code: int, failure: Failure | None) -> None:
    """Write how the command ended; a place that has become impossible does not change that."""
    from memaudit.system.files import replace

    error = None
    if failure is not None:
        error = {
            "kind": failure.kind,
            "message": clean(failure.message, 4 * MAX_LENGTH),
            "hint": clean(failure.hint, 4 * MAX_LENGTH),
            "details": [clean(d) for d in failure.details],
        }
    text = json.dumps({"schema_version": 1, "exit_code": code, "error": error}, indent=2, sort_keys=True)
    try:
        replace(path, text + "\n")
    except MemauditError as unwritten:
        _tell(_failure(unwritten))


def _bug(error: Exception) -> Failure:
    name = f"bug-{uuid.uuid4().hex[:8]}"
    where = "the log could not be written"
    with suppress(OSError):
        from platformdirs import user_log_path

        log = user_log_path("memaudit", ensure_exists=True) / f"{name}.log"
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
        where = f"details in {_short(log)}"
    message = f"a bug in memaudit ({name}): {type(error).__name__}; {where}"
    return Failure(ExitCode.BUG, "Bug", message, "Please report it with that log.", tuple(_notes(error)))


def _short(path: Path) -> str:
    try:
        return "~/" + str(path.relative_to(Path.home()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    main()
