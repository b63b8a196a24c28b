"""Where a report goes: files that are checked before the audit and written after it, and standard output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from memaudit.errors import EnvironmentFault, ExitCode, MemauditError, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report import Thumbnails
    from memaudit.report.document import Report

# Where the training data are ranked, below the folder of a model's reports.
RANKED = "discovery"
WEIGHT_SUFFIXES = (".pth.tar", ".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def default_folder(model: Path) -> Path:
    """`reports/<model>`, without the suffix of a weights file."""
    name = model.resolve().name
    for suffix in WEIGHT_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
            break
    return Path("reports") / (name or "model")


def targets(folder: Path, further: Sequence[Path]) -> list[Path]:
    """The files to write, once each; refused now rather than after a long run.

    Raises:
        UsageError: a suffix names no format, or a path cannot be written.
    """
    paths = list(dict.fromkeys([folder / "report.json", folder / "report.html", *further]))
    check(paths)
    return paths


def check(paths: Sequence[Path]) -> None:
    """Raise `UsageError` unless every path can be written in the format of its suffix."""
    from memaudit import report as reports
    from memaudit.system.files import check_target

    for path in paths:
        reports.renderer(reports.format_of(path))
    for path in paths:
        check_target(path)


def check_model(folder: Path, model: Path, sha256: str) -> None:
    """Raise where the report in `folder` is another model's: two files of one name would write one report.

    A file that was trained anew where it lies is the same model.

    Raises:
        UsageError: names the other model and a folder of its own for this one.
    """
    from memaudit import report as reports
    from memaudit.data.paths import display

    try:
        found = reports.read(folder / "report.json").model
    except MemauditError:
        return
    path = display(model)
    if found.sha256 == sha256 or (found.path == path and Path(path).exists()):
        return
    own = f"{default_folder(model)}-{sha256[:8]}"
    raise UsageError(
        f"{clean(folder)} holds the report of another model, {clean(found.path)} ({clean(found.sha256[:8])})",
        hint=f"give this one ({sha256[:8]}) a folder of its own: --out {clean(own)}",
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other audits out of it; on the way out, no empty folder of ours is left.

    Raises:
        EnvironmentFault: another process holds it, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise EnvironmentFault(
            f"another memaudit is writing to {clean(folder)}", hint="Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise EnvironmentFault(f"cannot write to {clean(folder)}: {error.strerror}") from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone
        lock.release()
        _remove_empty(made)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def forget(folder: Path) -> None:
    """Remove the journal that a ranking left in `folder` for the scan that went on from it."""
    for name in ("journal.jsonl", "journal.0.safetensors", "journal.1.safetensors"):
        (folder / name).unlink(missing_ok=True)


def rehearse(skeleton: Report, paths: Sequence[Path]) -> None:
    """Render every format once, into nothing: what would stop the report at the end stops it before the audit."""
    from memaudit import report as reports

    for kind in dict.fromkeys(map(reports.format_of, paths)):
        for _ in reports.renderer(kind)(skeleton, {}):
            pass


def write(report: Report, paths: Sequence[Path], thumbnails: Thumbnails) -> list[Path]:
    """Write every format. An incomplete report never replaces a complete one, it is written beside it; and a complete
    one takes the place of what was left beside it."""
    from memaudit import report as reports

    beside = [p.with_name(f"{p.stem}.incomplete{p.suffix}") for p in paths]
    if report.status != "complete":
        return reports.write_all(report, beside if _is_complete(paths[0]) else paths, thumbnails)
    written = reports.write_all(report, paths, thumbnails)
    for path in beside:
        if not path.is_dir():
            path.unlink(missing_ok=True)
    return written


def _is_complete(path: Path) -> bool:
    from memaudit import report as reports

    try:
        return path.exists() and reports.read(path).status == "complete"
    except MemauditError:
        return False


def show(report: Report, paths: Sequence[Path], format_: str, brief: bool = False) -> None:
    """What stdout gets; machine formats never pass through rich.

    Args:
        brief: the table says what a gate decided and on which findings, not where they sit.
    """
    from memaudit import report as reports
    from memaudit.report import console, github

    if format_ == "table":
        console.show(report, paths, brief=brief)
    elif format_ == "github":
        typer.echo(github.render(report), nl=False)
    else:
        typer.echo(reports.render(report, ".json" if format_ == "json" else ".md"), nl=False)


def exit_code(report: Report, exit_zero: bool) -> ExitCode:
    """The exit code of a judged report; an incomplete audit is no verdict, whatever it found."""
    if report.status == "incomplete":
        return ExitCode.INCOMPLETE
    return ExitCode.POLICY if report.verdict == "fail" and not exit_zero else ExitCode.OK
