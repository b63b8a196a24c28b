"""Further columns of a user's manifest (`site`, `device`, `sex`): read as text, and examples grouped by them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from memaudit.data.images import RowError
from memaudit.errors import DataRejected
from memaudit.findings import Example
from memaudit.text import clean, closest

# A manifest is no data base: more columns, or longer names, are an accident.
MOST, LONGEST = 50, 60
# A column whose name is as near to a known one is a misspelling of it.
NEAR = 0.8
# Values that make a group each; of more numbers, quarters are made, and more texts are names.
VALUES, TEXTS = 12, 50
QUARTERS = 4


@dataclass(frozen=True)
class Group:
    """Examples that have one thing in common.

    Attributes:
        by: the column.
        value: what it holds, in words.
        holds: whether an example belongs.
    """

    by: str
    value: str
    holds: Callable[[Example], bool]


def refuse_misspelt(header: Sequence[str], known: Sequence[str], where: str, hint: str) -> None:
    """Raise for a column that is no further one: without a name, there twice, or nearly called as a known one.

    Raises:
        DataRejected: says which.
    """
    further = [name for name in header if name not in known]
    for name in further:
        if not name.strip() or len(name) > LONGEST:
            raise DataRejected(f"{where}: a column is called '{clean(name, LONGEST)}'", hint=hint)
        if near := misspelt(name, known):
            raise DataRejected(f"{where}: unknown column '{clean(name)}'; closest: '{near}'", hint=hint)
    for name in header:
        if header.count(name) > 1:
            raise DataRejected(f"{where}: column '{clean(name)}' is there twice", hint=hint)
    if len(further) > MOST:
        raise DataRejected(f"{where}: {len(further)} further columns, the limit is {MOST}", hint=hint)


def misspelt(name: str, known: Sequence[str]) -> str:
    """The known name that `name` was probably meant to be; else an empty string."""
    near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=NEAR)
    return near[0] if near else ""


def further(cells: Mapping[str, object], known: Sequence[str]) -> dict[str, str]:
    """The cells of `cells` that are in no `known` column, as printable text; empty ones are left out.

    Raises:
        RowError: a key is a misspelling of a known one, or a value is no text, number, truth value or null.
    """
    found = {}
    for name, value in cells.items():
        if name in known or value is None or value == "":
            continue
        if near := misspelt(name, known):
            raise RowError(f"unknown key '{clean(name)}'; closest: '{near}'")
        if not isinstance(value, str | int | float) or len(name) > LONGEST:
            raise RowError(f"'{clean(name, LONGEST)}' is not a column of text{closest(name, known)}")
        found[clean(name)] = clean(value)
    if len(found) > MOST:
        raise RowError(f"{len(found)} further columns, the limit is {MOST}")
    return found


def groups(examples: Sequence[Example]) -> Iterator[Group]:
    """Examples by each further column: by its values, by quarters where they are many numbers; names make none."""
    for column in dict.fromkeys(name for example in examples for name in example.columns):
        values = [example.columns[column] for example in examples if column in example.columns]
        different = sorted(set(values))
        numbers = [number for value in values if (number := _number(value)) is not None]
        if len(different) <= VALUES or (len(different) <= TEXTS and len(numbers) < len(values)):
            yield from (Group(column, value, _equal(column, value)) for value in different)
        elif len(numbers) == len(values):
            yield from _quarters(column, sorted(numbers))


def _quarters(column: str, numbers: Sequence[float]) -> Iterator[Group]:
    cuts = [numbers[part * (len(numbers) - 1) // QUARTERS] for part in range(QUARTERS + 1)]
    for part, (low, high) in enumerate(pairwise(cuts)):
        if high > low or part == 0:
            yield Group(column, f"{low:g} to {high:g}", _between(column, low, high, first=part == 0))


def _equal(column: str, value: str) -> Callable[[Example], bool]:
    return lambda example: example.columns.get(column) == value


def _between(column: str, low: float, high: float, *, first: bool) -> Callable[[Example], bool]:
    def holds(example: Example) -> bool:
        number = _number(example.columns.get(column, ""))
        return number is not None and (low < number <= high or (first and number == low))

    return holds


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None
