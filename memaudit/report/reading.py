"""A report read back from `report.json`: strictly, and only of a schema that this version knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from memaudit.errors import DataRejected
from memaudit.findings import Erasure
from memaudit.report.document import SCHEMA_VERSION, Report
from memaudit.text import clean

# A report of 100,000 findings is about 100 MB; past this it is not one of ours.
MAX_BYTES = 256 * 2**20


def read(path: Path) -> Report:
    """The report in a file, validated by the schema.

    Raises:
        DataRejected: if it is missing, too large, not JSON, of another schema version or of another shape.
    """
    data = load(path)
    _check_version(path, data)
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        raise DataRejected(
            f"{clean(path)} is not a memaudit report: {error.error_count()} fields do not fit the schema",
            hint="Compare it with: memaudit schema report",
            details=_lines(error),
        ) from None


def edit(path: Path) -> Erasure:
    """The edit in a `NAME.erase.json`.

    Raises:
        DataRejected: it is missing, not JSON, or no edit that this version reads.
    """
    try:
        if path.is_file():
            return Erasure.model_validate(load(path))
    except ValidationError:
        pass
    what = "is not the record of an edit" if path.exists() else "does not exist"
    raise DataRejected(f"{clean(path)} {what}", hint="memaudit erase writes one: NAME.erase.json")


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file, read strictly.

    Raises:
        DataRejected: if it is missing, too large or not a JSON object.
    """
    return _parse(path, _load(path))


def is_complete(path: Path) -> bool:
    """Whether a document of any kind stands there already, and is complete: one that is not never replaces it."""
    try:
        return path.exists() and load(path).get("status") == "complete"
    except DataRejected:
        return False


def _load(path: Path) -> bytes:
    name = clean(path)
    try:
        if path.is_dir():
            raise DataRejected(f"{name} is a folder, not a report", hint=f"Name the file: {name}/report.json")
        if path.exists() and not path.is_file():
            raise DataRejected(f"{name} is not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "Write one with: memaudit scan"
        raise DataRejected(f"cannot read report {name}: {error.strerror}", hint=hint) from None
    if len(raw) > MAX_BYTES:
        raise DataRejected(f"{name} is too large for a report: more than {MAX_BYTES // 2**20} MB")
    if raw.startswith(b"version https://git-lfs"):
        raise DataRejected(f"{name} is a Git-LFS pointer, not the report", hint="Fetch it with: git lfs pull")
    return raw


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        found = "nested too deeply" if isinstance(error, RecursionError) else clean(error)
        raise DataRejected(f"{clean(path)} is not JSON: {found}") from None
    if not isinstance(data, dict):
        raise DataRejected(f"{clean(path)} is not a memaudit report: it holds a {type(data).__name__}, not an object")
    return data


def _check_version(path: Path, data: dict[str, Any]) -> None:
    if data.get("kind") == "ranking":
        raise DataRejected(
            f"{clean(path)} is a ranking of a training set, not an audit's report",
            hint="Audit what it flags: memaudit scan MODEL --data DATA --flagged flagged.csv",
        )
    version = data.get("schema_version")
    if version == SCHEMA_VERSION and type(version) is int:
        return
    if version is None:
        raise DataRejected(f"{clean(path)} is not a memaudit report: it has no schema_version")
    newer = type(version) is int and version > SCHEMA_VERSION
    hint = "Upgrade memaudit." if newer else "Run the scan again with this version."
    raise DataRejected(
        f"{clean(path)} has schema version {clean(version)}; this memaudit reads {SCHEMA_VERSION}", hint=hint
    )


def _lines(error: ValidationError) -> list[str]:
    return [f"{clean('.'.join(map(str, e['loc'])))}: {clean(e['msg'])}" for e in error.errors(include_url=False)]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is given twice")
        found[key] = value
    return found
