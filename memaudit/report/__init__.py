"""Every view of a report, each drawn from the plain data of a `Report` and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.report.formats import SUFFIXES, Renderer, Thumbnails, render, renderer, write, write_all
from memaudit.report.names import format_of

if TYPE_CHECKING:
    from memaudit.report.document import Report

__all__ = [
    "SUFFIXES",
    "Renderer",
    "Thumbnails",
    "embed",
    "format_of",
    "read",
    "render",
    "renderer",
    "write",
    "write_all",
]


def read(path: str | Path) -> Report:
    """The report in a `report.json`.

    Raises:
        DataRejected: if it is missing, too large, not JSON, or not a report of a schema this version reads.
    """
    from memaudit.report import reading  # pydantic, which no view needs

    return reading.read(Path(path))


def embed(report: Report) -> str:
    """The HTML page in a frame of its own, as a notebook shows it."""
    from memaudit.report import html

    return html.embed(report)
