"""Options that several commands share, as frozen dataclasses: a command names the group, its users see the options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with each parameter that is a dataclass replaced by one parameter for each of its fields.

    A field is declared as typer wants an argument: `Annotated[type, typer.Option(...)]`, with its default. The
    dataclasses are built when the command is called, so their `__post_init__` may refuse values.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    annotations: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))
            annotations[parameter.name] = hints[parameter.name]
            continue
        for own in flattened(groups[parameter.name]):
            parameters.append(own)
            annotations[own.name] = own.annotation

    @functools.wraps(command)
    def flat(**values: Any) -> Any:
        built = {
            name: group(**{one.name: values.pop(one.name) for one in fields(group)}) for name, group in groups.items()
        }
        return command(**values, **built)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = annotations
    del flat.__wrapped__
    return flat


def flattened(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass of options as parameters, annotations resolved."""
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=types[one.name])
        for one in fields(group)
    ]


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return inspect.Parameter.empty if one.default is MISSING else one.default
