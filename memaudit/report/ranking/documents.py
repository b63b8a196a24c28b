"""What a ranking is written as, besides tables: JSON, a page, Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import UsageError
from memaudit.report.formats import Thumbnails
from memaudit.system import files
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.ranked import Ranking

DOCUMENTS = (".json", ".html", ".md")


def write(ranking: Ranking, path: Path, thumbnails: Thumbnails) -> Path:
    """Render one document and replace the file.

    Raises:
        UsageError: the suffix is none of `.json`, `.html` and `.md`.
    """
    suffix = path.suffix.lower()
    if suffix not in DOCUMENTS:
        raise UsageError(f"no format {clean(suffix)!r} for a ranking", hint=f"Choose among: {', '.join(DOCUMENTS)}")
    return files.replace_all([(path, document(ranking, suffix, thumbnails))])[0]


def document(ranking: Ranking, suffix: str, thumbnails: Thumbnails) -> Iterable[str]:
    """The content of `ranking` in the format of a suffix of `DOCUMENTS`, in pieces."""
    from memaudit.report import json
    from memaudit.report.ranking import html, text

    if suffix == ".json":
        return [json.encode(json.finite(ranking.model_dump(mode="json")), indent=2), "\n"]
    if suffix == ".html":
        return html.parts(ranking, thumbnails)
    return [text.markdown(ranking)]
