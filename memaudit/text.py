"""The one sanitiser: outside strings (file names, labels, tensor keys) become harmless before they go anywhere."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

# Longer names are cut: a 4 kB label is an attack or an accident, never something a person reads.
MAX_LENGTH = 200


def clean(value: object, limit: int = MAX_LENGTH) -> str:
    """`value` as one printable line: control, format (bidi), surrogate and line-breaking characters are escaped.

    Args:
        value: anything; converted with `str`.
        limit: the most characters returned; a longer text ends in an ellipsis.
    """
    text = str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


# Cc control, Cf format (bidi overrides, zero width), Cs surrogate, Co private, Cn unassigned, Zl / Zp line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def closest(wanted: str, known: Iterable[str]) -> str:
    """`; closest: 'x', 'y'` for an error message, or an empty string where nothing is near."""
    near = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.5)
    return "; closest: " + ", ".join(repr(clean(n)) for n in near) if near else ""
