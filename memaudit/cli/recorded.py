"""What a report holds of the command that made it, as data, so that a later one reads the same model and examples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memaudit.cli.options import Network, Places
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.cli.sources import Sources
    from memaudit.findings import Inputs

Group = TypeVar("Group", Places, Network)

# Options that name files; an adapter may be `file.py:factory`, a class order a file of names.
PATHS = frozenset({"flagged", "reference", "test", "data", "class_order", "adapter"})


def recorded(network: Network, sources: Sources, folder: Path, config: Path | None) -> Inputs:
    """The options of a scan by which its model and examples are read again, those that say nothing left out.

    Args:
        sources: where the examples were in the end, whatever said so.
        folder: of the report: paths are written relative to it.
        config: the file of settings in use; what lies beside it is written as a relative path as well.
    """
    roots = [Path.cwd(), *([] if config is None else [config.resolve().parent])]
    found: dict[str, Any] = asdict(network)
    found |= {one.name: getattr(sources, one.name) for one in fields(Places)}
    return {
        name: _portable(value, folder, roots) if name in PATHS else value if isinstance(value, int) else _text(value)
        for name, value in found.items()
        if value not in (None, [])
    }


def restored(inputs: Inputs, report: Path, given: Group) -> Group:
    """`given`, with what it leaves out as the report at `report` recorded it."""
    missing = {
        one.name: _found(inputs[one.name], one.name, report)
        for one in fields(given)
        if getattr(given, one.name) in (None, []) and one.name in inputs
    }
    return replace(given, **missing)


def _text(value: Any) -> str | list[str]:
    return [clean(v) for v in value] if isinstance(value, list) else clean(value)


def _portable(value: str | Path, folder: Path, roots: Sequence[Path]) -> str:
    """A path relative to `folder` where both lie under one of `roots`, else its last part; no file: as it is."""
    file, colon, factory = _split(value)
    path = Path(file)
    if not path.exists():
        return clean(path.name if path.is_absolute() else value)
    whole, here = path.resolve(), folder.resolve()
    inside = any(whole.is_relative_to(root) and here.is_relative_to(root) for root in roots)
    return clean((os.path.relpath(whole, here) if inside else whole.name) + colon + factory)


def _found(value: str | int | list[str], name: str, report: Path) -> Any:
    """A recorded path where it exists: from the report's folder, from here, or from a folder above the report.

    A copy of the report may lie higher or deeper than the report did, so that it is also looked for without the `..`
    that lead from there.
    """
    if name not in PATHS or not isinstance(value, str):
        return value
    file, colon, factory = _split(value)
    above = report.resolve().parents
    folders = (above[0], Path(), *above[1:4])
    below = Path(*(part for part in Path(file).parts if part != ".."))
    for rest, folder in product((Path(file), *([below] if below.parts else [])), folders):
        if (folder / rest).exists():
            value = f"{folder / rest}{colon}{factory}"
            break
    return value if name in ("class_order", "adapter") else Path(value)


def _split(value: str | Path) -> tuple[str, str, str]:
    """A file, and after it the colon and the factory that an adapter's value may have."""
    file, code, factory = str(value).partition(".py:")
    return (f"{file}.py", ":", factory) if code else (str(value), "", "")
