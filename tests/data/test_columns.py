"""Groups by columns of the user's own: values, quarters of numbers, and no group for names."""

from __future__ import annotations

import pytest

from memaudit.data.columns import groups
from memaudit.findings import Example


def made(values: list[str | None]) -> list[Example]:
    return [
        Example(id=str(n), source="x", label=0, index=n, columns={} if value is None else {"c": value})
        for n, value in enumerate(values)
    ]


def counts(values: list[str | None]) -> dict[str, int]:
    examples = made(values)
    return {group.value: sum(group.holds(e) for e in examples) for group in groups(examples)}


def test_each_value_is_a_group_and_what_has_none_is_in_none() -> None:
    assert counts(["north", "south", "north", None]) == {"north": 2, "south": 1}


def test_many_numbers_are_quarters_that_hold_each_once() -> None:
    found = counts([str(age) for age in range(20, 100)])
    assert len(found) == 4
    assert sum(found.values()) == 80
    assert max(found.values()) - min(found.values()) <= 2


@pytest.mark.parametrize("values", [["7"] * 60 + [str(n) for n in range(20)], [str(n / 7) for n in range(100)]])
def test_quarters_hold_every_number_once_with_ties_too(values: list[str | None]) -> None:
    assert sum(counts(values).values()) == len(values)


def test_names_are_no_groups() -> None:
    assert counts([f"patient {n}" for n in range(60)]) == {}


def test_not_a_number_is_no_number() -> None:
    assert counts(["nan", "inf", *(f"{n}" for n in range(60))]) == {}
