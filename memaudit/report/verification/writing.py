"""A verification written in every format that a file's name chooses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import UsageError
from memaudit.report.names import format_of
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.verified import Verification

DOCUMENTS = (".json", ".html", ".md", ".csv", ".parquet")


def check(paths: Sequence[Path]) -> None:
    """Raise `UsageError` unless every path can be written, in a format that its suffix names."""
    from memaudit.report.table import check_parquet
    from memaudit.system.files import check_target

    for path in paths:
        if path.suffix.lower() not in DOCUMENTS:
            raise UsageError(
                f"no format {clean(path.suffix)!r} for a verification", hint=f"Choose among: {', '.join(DOCUMENTS)}"
            )
        if path.suffix.lower() == ".parquet":
            check_parquet()
        check_target(path)


def write_all(found: Verification, paths: Sequence[Path]) -> list[Path]:
    """Write every file, the first one last; an incomplete verification goes beside a complete one, never over it.

    Raises:
        UsageError, EnvironmentFault: as `report.write_all`.
    """
    from memaudit.report import reading
    from memaudit.report.table import write_parquet
    from memaudit.report.verification import text
    from memaudit.system import files

    check(paths)
    beside = [p.with_name(f"{p.stem}.incomplete{p.suffix}") for p in paths]
    complete = found.status == "complete"
    targets = list(paths) if complete or not reading.is_complete(paths[0]) else beside
    for path in (path for path in targets if path.suffix.lower() == ".parquet"):
        write_parquet(text.rows(found), path)
    files.replace_all([(p, _document(found, p)) for p in targets if p.suffix.lower() != ".parquet"])
    if complete:
        for path in beside:
            if not path.is_dir():
                path.unlink(missing_ok=True)
    return targets


def render(found: Verification, format_: str) -> str:
    """The text of `found` as json, markdown or github says it."""
    from memaudit.report.verification import text

    if format_ == "github":
        return text.github(found)
    return "".join(_document(found, Path("x.json" if format_ == "json" else "x.md")))


def table_of(found: Verification) -> Iterable[str]:
    """The flagged examples as CSV, piece by piece."""
    from memaudit.report import table
    from memaudit.report.verification import text

    return table.parts(text.rows(found))


def _document(found: Verification, path: Path) -> Iterable[str]:
    from memaudit.report import json
    from memaudit.report.verification import html, text

    suffix = format_of(path)
    if suffix in ("officer.html", "officer.md"):
        from memaudit.report.officer import verified, views

        page = verified.of_verification(found)
        return [views.html(page) if suffix == "officer.html" else views.markdown(page)]
    if suffix == "model-card.md":
        from memaudit.report import card

        return [card.of_verification(found)]
    if suffix == ".json":
        return [json.encode(json.finite(found.model_dump(mode="json")), indent=2), "\n"]
    if suffix == ".html":
        return [html.render(found)]
    if suffix == ".csv":
        return table_of(found)
    return [text.markdown(found)]
