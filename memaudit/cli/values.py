"""What a user writes after an option, read as what it means."""

from __future__ import annotations

from memaudit.errors import UsageError
from memaudit.text import clean


def choice(value: str | None, allowed: tuple[str, ...], option: str) -> str | None:
    """`value`, if it is one of `allowed` or None.

    Raises:
        UsageError: it is something else.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {clean(value)!r} is not one of: {', '.join(allowed)}")
    return value


def audits(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated names of audits; `all` is each of them.

    Raises:
        UsageError: there is no such audit.
    """
    from memaudit.settings import AUDITS
    from memaudit.text import closest

    if text is None:
        return None
    if text.strip() == "all":
        return tuple(AUDITS)
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names or ("",):
        if name not in AUDITS:
            raise UsageError(
                f"--audit {clean(name)!r} is no audit{closest(name, AUDITS)}",
                hint=f"Choose among: {', '.join((*AUDITS, 'all'))}",
            )
    return names


def numbers(text: str | None, option: str, example: str = "0.5,0.5,0.5") -> tuple[float, ...] | None:
    """Comma-separated numbers.

    Raises:
        UsageError: one of them is no finite number.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        values = (float("nan"),)
    if not all(abs(v) < 1e6 for v in values):
        raise UsageError(f"{option} {clean(text)!r} is no list of numbers", hint=f"For example: {option} {example}")
    return values


def listed(values: tuple[float, ...]) -> str:
    """`0.5,0.25`, as `numbers` reads it; `none` where there is none."""
    return ",".join(f"{v:g}" for v in values) or "none"


def positive(value: float | None, option: str) -> float | None:
    """`value`, if it is a finite number above zero or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{option} {value:g} is not a positive number")
    return value


def auto_or_number(text: str, option: str, most: int) -> int | None:
    """A number from 1 to `most`; None for auto.

    Raises:
        UsageError: it is neither.
    """
    if text == "auto":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= most):
        raise UsageError(f"{option} {clean(text)!r} is neither auto nor a number from 1 to {most}")
    return int(text)


def size(text: str | None) -> tuple[int, ...] | None:
    """`C,H,W`, `H,W` or one number as `(C, H, W)`; in parentheses, as it is.

    Raises:
        UsageError: it is none of these.
    """
    if text is not None and text.startswith("(") and text.endswith(")"):
        exact = numbers(text[1:-1].rstrip(", "), "--input-size", "3,224,224")
        if exact and all(v == int(v) and v >= 1 for v in exact):
            return tuple(int(v) for v in exact)
    size = numbers(text, "--input-size", "3,224,224")
    if size is None:
        return None
    if any(v != int(v) or not 1 <= v <= 8192 for v in size) or len(size) > 3:
        raise UsageError(f"--input-size {clean(text)!r} is not a size", hint="For example: --input-size 3,224,224")
    whole = [int(v) for v in size]
    return (whole[0] if len(whole) == 3 else 3), (whole[-2] if len(whole) > 1 else whole[0]), whole[-1]


def pair(text: str) -> tuple[str, object]:
    """Name and value of `key=value`, where the value is JSON, Python's True, False or None, or else text.

    Raises:
        UsageError: it is not of that form.
    """
    import json

    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise UsageError(f"--model-kwargs {clean(text)!r} is not of the form key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, {"True": True, "False": False, "None": None}.get(value, value)
