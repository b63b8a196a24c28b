"""Every view of a ranking, each drawn from the plain data of `report.ranked.Ranking` and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import UsageError
from memaudit.report.formats import Thumbnails
from memaudit.report.ranking.documents import DOCUMENTS, document, write
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.ranked import Ranking
    from memaudit.report.table import Table

__all__ = ["DOCUMENTS", "check", "document", "pictured", "rehearse", "render", "show", "write", "write_all"]

KNOWN = ".json, .html, .md, flagged*.csv (rows for scan --flagged), ranking*.csv or .parquet (all rows)"


def check(paths: Sequence[Path]) -> None:
    """Raise `UsageError` unless every path can be written, in a format that its name tells."""
    from memaudit.report import table
    from memaudit.system.files import check_target

    for path in paths:
        suffix, name = path.suffix.lower(), path.name.lower()
        if suffix == ".csv" and not name.startswith(("flagged", "ranking")):
            raise UsageError(
                f"{clean(path.name)} could be two things",
                hint="call it flagged….csv (rows that scan --flagged takes) or ranking….csv (all rows)",
            )
        if suffix not in (*DOCUMENTS, ".csv", ".parquet"):
            raise UsageError(f"no ranking format {clean(suffix)!r}", hint=f"Choose the format by name: {KNOWN}")
        if suffix == ".parquet":
            table.check_parquet()
        check_target(path)


def rehearse(skeleton: Ranking, paths: Sequence[Path]) -> None:
    """Render every document once, into nothing: what would stop it at the end stops it before anything long."""
    for path in paths:
        if path.suffix.lower() in DOCUMENTS:
            for _ in document(skeleton, path.suffix.lower(), {}):
                pass


def write_all(
    ranking: Ranking, table: Table, paths: Sequence[Path], thumbnails: Thumbnails, top: int | None
) -> list[Path]:
    """Write every file, the first one last; an incomplete ranking goes beside a complete one, never over it.

    Args:
        top: rows of the flagged list; by default those called memorized, else the undecided ones.

    Raises:
        UsageError, EnvironmentFault: as `report.write_all`.
    """
    from memaudit.report import reading
    from memaudit.report.table import write_parquet
    from memaudit.system import files

    beside = [p.with_name(f"{p.stem}.incomplete{p.suffix}") for p in paths]
    complete = ranking.status == "complete"
    targets = list(paths) if complete or not reading.is_complete(paths[0]) else beside
    for path in (path for path in targets if path.suffix.lower() == ".parquet"):
        write_parquet(table, path)
    texts = [(p, _text(ranking, table, p, thumbnails, top)) for p in targets if p.suffix.lower() != ".parquet"]
    files.replace_all(texts)
    if complete:
        for path in beside:
            if not path.is_dir():
                path.unlink(missing_ok=True)
    return targets


def show(ranking: Ranking, paths: Sequence[Path], following: str = "") -> None:
    """Print it on stdout, in colour on a terminal; `following` is the command that goes on from here."""
    from memaudit.report.ranking import console

    console.show(ranking, paths, following)


def render(ranking: Ranking, format_: str) -> str:
    """The text of `ranking` as json, markdown or github says it."""
    from memaudit.report.ranking import text

    if format_ == "github":
        return text.github(ranking)
    return "".join(document(ranking, ".json" if format_ == "json" else ".md", {}))


def pictured(ranking: Ranking) -> set[str]:
    """The content ids of the examples that the page shows."""
    from memaudit.report.ranking import html

    return html.pictured(ranking)


def _text(ranking: Ranking, table: Table, path: Path, thumbnails: Thumbnails, top: int | None) -> Iterable[str]:
    from memaudit.report import table as tables
    from memaudit.report.ranking import text

    if path.suffix.lower() != ".csv":
        return document(ranking, path.suffix.lower(), thumbnails)
    return tables.parts(text.flagged(table, top) if path.name.lower().startswith("flagged") else table)
