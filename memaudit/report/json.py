"""`report.json`: the only source every other view is drawn from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memaudit.report.document import Report

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


def finite(value: Any) -> Any:
    """`value` with null for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unicode_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
