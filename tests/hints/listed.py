"""Every hint in the source, as its text with `{}` where a value goes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import memaudit

NO_ERRORS = ("Method",)  # their hint is a line of help
ROOT = Path(memaudit.__file__).parent


def hints() -> set[tuple[str, str]]:
    """`(package, text)` of every `hint=` with words of its own; one that is passed on stands where it was written."""
    return {*_passed(), *_returned()}


def _passed() -> Iterator[tuple[str, str]]:
    yield from {
        (path.relative_to(ROOT).parts[0].removesuffix(".py"), text)
        for path in sorted(ROOT.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and not (isinstance(call.func, ast.Name) and call.func.id in NO_ERRORS)
        for node in call.keywords
        if node.arg == "hint"
        for text in texts(node.value)
        if any(c.isalpha() for c in text)
    }


def _returned() -> Iterator[tuple[str, str]]:
    """The hints that a function gives with the words of the error: `(message, hint)`."""
    for name in ("misfit", "sniff"):
        tree = ast.parse((ROOT / "checkpoints" / f"{name}.py").read_text("utf-8"))
        for function in (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in ("diagnose", "_refusal")):
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                    yield from (("checkpoints", text) for text in texts(node.value.elts[1]))


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
