"""`memaudit.toml`, `[tool.memaudit]` and `MEMAUDIT_*`: what a team writes down once instead of on every command line.

Its keys are the long options of `memaudit scan`, so there is one list of settings and one place that checks them. A
value is taken from the first of: the command line, the environment, the file, what the checkpoint says, the default.
Only the working directory and the folders above it are looked at, never the folder of a model.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import OptionInfo

from memaudit.cli.grouped import flattened
from memaudit.cli.options import SCAN, Verified
from memaudit.errors import UsageError
from memaudit.system import toml
from memaudit.text import clean, closest

NAME = "memaudit.toml"
PYPROJECT = "pyproject.toml"
PREFIX = "MEMAUDIT"
# Switches of a single call, which a file that is forgotten must not set.
NOT_IN_FILES = frozenset({"config", "dry_run", "quiet", "exit_zero", "fresh", "error_json", "help"})
# Options that are lists written with commas on the command line; a file may hold a list.
COMMAS = frozenset({"mean", "std", "input_size", "audit", "layers"})
# Texts that may name files.
FILES = frozenset({"class_order", "adapter", "checkpoints"})

CALLED: Mapping[type, str] = {
    Path: "a path", str: "a text", int: "a whole number", float: "a number", bool: "true or false"
}  # fmt: skip
# What the parser calls a value's source, and what reports do.
ORIGINS = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "config"}


@dataclass(frozen=True)
class Parameter:
    """One option of `scan`: what its declaration in the code says.

    Attributes:
        name: of the argument that it becomes.
        key: its long option, without dashes: what files call it.
        kind: Path, str, int, float or bool.
        multiple: it may be given several times.
    """

    name: str
    key: str
    kind: type
    multiple: bool
    default: Any
    help: str
    least: float | None
    most: float | None


@dataclass(frozen=True)
class File:
    """What a file says: values by parameter name, as the parser takes them."""

    path: Path | None
    values: Mapping[str, Any]


def parameters() -> dict[str, Parameter]:
    """The settings that a file may hold, by parameter name: those of `scan`, then those of `verify` alone."""
    found = (_parameter(p, p.annotation) for group in (*SCAN, Verified) for p in flattened(group))
    return {p.name: p for p in found if p is not None and p.name not in NOT_IN_FILES}


def _parameter(declared: inspect.Parameter, hint: Any) -> Parameter | None:
    option = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, OptionInfo)), None)
    if option is None:
        return None
    bare = hint.__origin__
    multiple = get_origin(bare) is list
    kinds = [k for k in get_args(bare) or (bare,) if k is not type(None)]
    long = next((d for d in option.param_decls or () if d.startswith("--")), "--" + declared.name.replace("_", "-"))
    default = None if declared.default is inspect.Parameter.empty else declared.default
    return Parameter(
        declared.name, long.removeprefix("--"), kinds[0], multiple, default, option.help or "", option.min, option.max
    )


def fill_in(context: typer.Context, given: Path | None) -> Path | None:
    """Callback of `--config`, before any other option: put the file's values below flags and environment.

    Raises:
        UsageError: the file is broken or has an unknown key, or a `MEMAUDIT_` variable names no option.
    """
    if context.resilient_parsing:
        return given
    _check_environment(context)
    found = load(given)
    context.default_map = dict(found.values)
    return found.path


def load(given: Path | None = None) -> File:
    """The file that was named, or the nearest above the working directory; an empty config where there is none.

    Raises:
        UsageError: it cannot be read, or a key or a value in it cannot be used.
    """
    if given is not None:
        table = toml.read(given)
        found = given, (table.get("tool", {}).get("memaudit", {}) if given.name == PYPROJECT else table)
    elif (nearest := _nearest()) is not None:
        found = nearest
    else:
        return File(None, {})
    path, table = found
    known = {p.key: p for p in parameters().values()}
    where = toml.shown(path) + (" [tool.memaudit]" if path.name == PYPROJECT else "")
    toml.refuse_unknown(table, tuple(known), where)
    return File(path, {known[k].name: _value(known[k], v, path, f"{where}: {k}") for k, v in table.items()})


def _nearest() -> tuple[Path, dict[str, Any]] | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / NAME).exists():
            return folder / NAME, toml.read(folder / NAME)
        if (folder / PYPROJECT).is_file():
            table = toml.read(folder / PYPROJECT).get("tool", {}).get("memaudit")
            if table is not None:
                return folder / PYPROJECT, table
    return None


def _value(parameter: Parameter, raw: object, path: Path, where: str) -> Any:
    """`raw` as the parser takes it, paths relative to the file made so to the working directory."""
    value = _plain(parameter, raw, where)
    if parameter.kind is Path or parameter.name in FILES:
        value = [_path(v, path.parent) for v in value] if parameter.multiple else _path(value, path.parent)
    return value


def _plain(parameter: Parameter, raw: object, where: str) -> Any:
    if isinstance(raw, dict) and parameter.name == "model_kwargs":
        return [f"{key}={json.dumps(value)}" for key, value in raw.items()]
    if isinstance(raw, list) and all(_scalar(item) for item in raw):
        if parameter.multiple:
            return [str(item) for item in raw]
        if parameter.name in COMMAS:
            return ",".join(map(str, raw))
    wanted = CALLED[parameter.kind]
    fits = {
        bool: isinstance(raw, bool),
        int: isinstance(raw, int) and not isinstance(raw, bool),
        float: isinstance(raw, int | float) and not isinstance(raw, bool),
        Path: isinstance(raw, str),
        str: _scalar(raw),
    }
    if not fits[parameter.kind]:
        raise UsageError(f"{where} is {clean(raw)!r}, not {wanted}")
    if isinstance(raw, int | float) and not isinstance(raw, bool) and parameter.kind is not str:
        low, high = parameter.least, parameter.most
        if not ((low is None or raw >= low) and (high is None or raw <= high)):
            raise UsageError(f"{where} is {raw}, not {_range(low, high)}")
        return raw
    if isinstance(raw, bool):
        return raw
    return [str(raw)] if parameter.multiple else str(raw)


def _range(low: float | None, high: float | None) -> str:
    return f"from {low} to {high}" if high is not None and low is not None else f"at least {low}"


def _scalar(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _path(value: str, base: Path) -> str:
    """A path, pattern or `file.py:factory` relative to `base`; other words stay what they are."""
    name, colon, factory = value.partition(":")
    if colon and name.endswith(".py"):
        return f"{_path(name, base)}{colon}{factory}"
    if os.path.isabs(value) or value in ("natural", "lexical"):
        return value
    joined = base / value
    return os.path.relpath(joined)


def _check_environment(context: typer.Context) -> None:
    """Raise for a variable that looks like ours and names no option: it would silently do nothing."""
    ours = sorted(name for name in os.environ if name.startswith(f"{PREFIX}_"))
    if not ours:
        return
    known = {_variable(p.name or "") for p in context.command.params}
    known |= {_variable(name) for name in (*parameters(), *NOT_IN_FILES)}
    for name in ours:
        if name not in known:
            raise UsageError(
                f"the environment variable {clean(name)} names no option{closest(name, known)}",
                hint="Unset it, or correct its name.",
            )


def _variable(name: str) -> str:
    """What the parser looks an option up by in the environment."""
    return f"{PREFIX}_{name.upper()}"


def schema() -> dict[str, Any]:
    """JSON Schema of `memaudit.toml`, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": NAME,
        "type": "object",
        "additionalProperties": False,
        "properties": {p.key: _property(p) for p in parameters().values()},
    }


def _property(parameter: Parameter) -> dict[str, Any]:
    if parameter.name == "model_kwargs":
        return {"description": parameter.help, "type": "object"}
    types: dict[type, Any] = {bool: "boolean", int: "integer", float: "number", Path: "string"}
    base: dict[str, Any] = {"type": types.get(parameter.kind, ["string", "number"])}
    limits = {"minimum": parameter.least, "maximum": parameter.most}
    base |= {name: limit for name, limit in limits.items() if limit is not None}
    if parameter.multiple or parameter.name in COMMAS:
        base = {"anyOf": [base, {"type": "array", "items": {"type": ["string", "number"]}}]}
    shown = {} if parameter.default in (None, []) else {"default": parameter.default}
    return {"description": parameter.help, **base, **shown}


@dataclass(frozen=True)
class Setting:
    """One setting as `inspect` shows it; `origin` is flag, environment, config or default."""

    key: str
    value: Any
    origin: str


def settings(context: typer.Context) -> Iterator[Setting]:
    """Every setting with the value that a scan from here would use, and where it comes from."""
    below = context.default_map or {}
    for name, parameter in parameters().items():
        source = context.get_parameter_source(name)
        variable = os.environ.get(_variable(name))
        if source is not None and source.name in ORIGINS:
            yield Setting(parameter.key, context.params.get(name), ORIGINS[source.name])
        elif source is None and variable:
            yield Setting(parameter.key, variable, "environment")
        elif source is None and name in below:
            yield Setting(parameter.key, below[name], "config")
        else:
            yield Setting(parameter.key, parameter.default, "default")


# The option itself: before all others, for it fills in what the command line and the environment leave out.
Config = Annotated[
    Path | None,
    typer.Option(
        callback=fill_in, is_eager=True, help="Settings; default: the nearest memaudit.toml or pyproject.toml."
    ),
]
