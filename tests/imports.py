"""Which file of a package imports which, wherever in the file: at the top, or inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def imports(root: Path) -> dict[str, set[str]]:
    """By module of the package in folder `root`, the modules of it that its file imports when it is run.

    What stands under `if TYPE_CHECKING` is never run, except by a face that loads its names when they are first used
    (`__getattr__`): there it says what is loaded. `from package import name` is an import of the module `name`
    where there is one, else of the package's face.
    """
    files = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }
    return {name: {m for m in _imported(path, files) if m != name} for name, path in files.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules each of which leads back to itself (Tarjan 1972), sorted."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return sorted(found)


def _imported(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text("utf-8"))
    face = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    for node in ast.walk(tree) if face else _run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            for alias in node.names:
                own = f"{node.module}.{alias.name}"
                yield own if own in files else node.module


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is below it, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        checked = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        for part in child.orelse if isinstance(child, ast.If) and checked else [child]:
            yield part
            yield from _run(part)
