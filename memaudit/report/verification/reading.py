"""A verification read back from `verification.json`: strictly, and only of a schema that this version knows."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from memaudit.errors import DataRejected
from memaudit.report import reading
from memaudit.report.verified import SCHEMA_VERSION, Verification
from memaudit.text import clean


def read(path: Path) -> Verification:
    """The verification in a `verification.json`.

    Raises:
        DataRejected: it is missing, not JSON, or not a verification of a schema this version reads.
    """
    return parsed(reading.load(path), path)


def parsed(data: dict[str, object], path: Path) -> Verification:
    """The verification in `data`, which was read from `path`.

    Raises:
        DataRejected: it is none, or of another version.
    """
    if data.get("kind") != "verification" or data.get("schema_version") != SCHEMA_VERSION:
        raise DataRejected(f"{clean(path)} is not a verification that this version reads; memaudit verify makes one")
    try:
        return Verification.model_validate(data)
    except ValidationError as error:
        raise DataRejected(f"{clean(path)} is not a verification: {error.error_count()} fields do not fit") from None
