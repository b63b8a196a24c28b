"""`report.json`: the only source every other view is drawn from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from memaudit.errors import DataRejected
from memaudit.text import clean

if TYPE_CHECKING:
    from pydantic import ValidationError

    from memaudit.report.document import Report

# A report of 100,000 findings is about 100 MB; past this it is not one of ours.
MAX_BYTES = 256 * 2**20
# Legal in JSON, but they steer a terminal, reorder a line or are not encodable: C1 controls, zero-width and bidi
# characters, line separators, lone surrogates. Written as \uXXXX, so the value that is read back is the same.
_INVISIBLE = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb]")
_HTML_ACTIVE = re.compile("[<>&]")


def render(report: Report) -> str:
    """Sorted keys, two-space indent, one newline at the end; equal reports give equal bytes."""
    return "".join(parts(report))


def parts(report: Report) -> Iterator[str]:
    """What `render` gives, a finding at a time: of many findings no copy is held."""
    yield from _object(report, 2, inline=False)
    yield "\n"


def compact(report: Report, *, inline: bool = False) -> Iterator[str]:
    """The same data without blanks, a finding at a time; `inline` as for `encode`."""
    return _object(report, None, inline=inline)


def _object(report: Report, indent: int | None, *, inline: bool) -> Iterator[str]:
    """Only `volatile` can hold a non-finite number; it becomes null."""
    data = report.model_dump(mode="json", exclude={"findings"})
    data["volatile"] = finite(data["volatile"])
    line, colon = ("\n" + " " * indent, ": ") if indent else ("", ":")

    def deeper(value: object) -> str:
        return encode(value, indent=indent, inline=inline).replace("\n", line)

    before = "{"
    for name in sorted([*data, "findings"]):
        yield f'{before}{line}"{name}"{colon}'
        before = ","
        if name != "findings":
            yield deeper(data[name])
            continue
        opening = "["
        for finding in report.findings:
            yield opening + (line + deeper(finding.model_dump(mode="json"))).replace("\n", line)
            opening = ","
        yield line + "]" if report.findings else "[]"
    yield "\n}" if indent else "}"


def encode(data: object, *, indent: int | None = None, inline: bool = False) -> str:
    """JSON text that is safe to print.

    Floats are the shortest text that reads back as the same number.

    Args:
        data: JSON-ready data.
        indent: spaces per level; compact without.
        inline: also escape `<`, `>` and `&`, so that the text can stand in a `<script>` element.

    Raises:
        ValueError: for NaN or an infinity.
    """
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=indent, separators=separators)
    text = _INVISIBLE.sub(_unicode_escape, text)
    return _HTML_ACTIVE.sub(_unicode_escape, text) if inline else text


def read(path: Path) -> Report:
    """The report in a file, validated by the schema.

    Raises:
        DataRejected: if it is missing, too large, not JSON, of another schema version or of another shape.
    """
    from pydantic import ValidationError

    from memaudit.report.document import Report

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


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file, read strictly.

    Raises:
        DataRejected: if it is missing, too large or not a JSON object.
    """
    return _parse(path, _load(path))


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
    from memaudit.report.document import SCHEMA_VERSION

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


def finite(value: Any) -> Any:
    """`value` with null for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unicode_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
