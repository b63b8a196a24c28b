"""Every hint in the source, as its text with `{}` where a value goes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import memaudit

ROOT = Path(memaudit.__file__).parent


def hints() -> set[tuple[str, str]]:
    """`(package, text)` of every `hint=` with words of its own; one that is passed on stands where it was written."""
    return {
        (path.relative_to(ROOT).parts[0].removesuffix(".py"), text)
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "hint"
        for text in texts(node.value)
        if any(c.isalpha() for c in text)
    }


def texts(node: ast.expr) -> Iterator[str]:
    """What an expression can give: both arms of a condition, a joined text in one piece."""
    match node:
        case ast.Constant(value=str(value)):
            yield value
        case ast.JoinedStr(values=values):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in values)  # type: ignore[misc]
        case ast.IfExp(body=body, orelse=other):
            yield from texts(body)
            yield from texts(other)
        case ast.BinOp(left=left, right=right):
            yield "".join((*texts(left), *texts(right)))
        case _:
            return
