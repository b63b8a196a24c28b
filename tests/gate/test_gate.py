"""The gate: limits, exactly at them too, and what a policy says of findings."""

from __future__ import annotations

import pytest

from memaudit.errors import UsageError
from memaudit.findings import Example, Finding, Outcome, Prediction
from memaudit.gate.policy import Limit, Policy


@pytest.mark.parametrize(
    ("text", "amount", "share", "shown"),
    [
        ("0", 0, False, "0"),
        ("3", 3, False, "3"),
        (" 12 ", 12, False, "12"),
        ("1234567", 1234567, False, "1234567"),
        ("0%", 0, True, "0%"),
        ("2.5%", 2.5, True, "2.5%"),
        ("2.50 %", 2.5, True, "2.5%"),
        ("12.345678%", 12.345678, True, "12.345678%"),
        ("100%", 100, True, "100%"),
    ],
)
def test_a_limit_is_a_count_or_a_share(text: str, amount: float, share: bool, shown: str) -> None:
    limit = Limit.parse(text, "--max-memorized")
    assert limit == Limit(amount, share)
    assert str(limit) == shown
    assert Limit.parse(shown, "again") == limit


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "101%", "100.000001%", "nan", "inf", "3 of 4", "%", "1e3", "5%%", "0x3", "1,5%", "9" * 10]
)
def test_what_is_no_limit_is_refused_with_the_option_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--max-memorized '.*' is not a limit$") as caught:
        Limit.parse(text, "--max-memorized")
    assert "3" in caught.value.hint
    assert "2%" in caught.value.hint


@pytest.mark.parametrize(
    ("limit", "total", "most"),
    [
        (Limit(0), 10, 0),
        (Limit(3), 10, 3),
        (Limit(3), 2, 3),
        (Limit(0, share=True), 10, 0),
        (Limit(2.5, share=True), 40, 1),
        (Limit(2.5, share=True), 79, 1),
        (Limit(2.5, share=True), 80, 2),
        (Limit(2.3, share=True), 3000, 69),  # 2.3 * 3000 < 6900 in floats
        (Limit(4.1, share=True), 3000, 123),
        (Limit(100, share=True), 7, 7),
        (Limit(0, share=True), 0, 0),
    ],
)
def test_exactly_at_the_limit_is_allowed_and_one_more_is_not(limit: Limit, total: int, most: int) -> None:
    assert limit.allows(most, total)
    assert not limit.allows(most + 1, total)


def finding(number: int, memorized: bool, outcome: Outcome = Outcome.LOCALIZED) -> Finding:
    return Finding(
        id=str(number),
        example=Example(id=str(number), source="x", label=0, index=number),
        outcome=outcome,
        fitted=memorized,
        memorized=memorized,
        atypicality=None,
        before=Prediction(prediction=0, margin=1, confidence=1),
    )


MIXED = [
    *(finding(n, True) for n in range(2)),
    finding(2, True, Outcome.ENTANGLED),
    finding(3, True, Outcome.DIFFUSE),
    *(finding(n, False) for n in range(4, 8)),  # localized but not memorized: no policy counts them
]


@pytest.mark.parametrize(
    ("policy", "accuracy", "failed"),
    [
        (Policy(), 0.9, ["max_memorized: 4 of 8 flagged examples are memorized; allowed: 0"]),
        (Policy(Limit(4)), None, []),
        (Policy(Limit(3)), None, ["max_memorized: 4 of 8 flagged examples are memorized; allowed: 3"]),
        (Policy(Limit(50, share=True)), None, []),
        (
            Policy(Limit(49.9, share=True)),
            None,
            ["max_memorized: 4 of 8 flagged examples are memorized; allowed: 49.9%"],
        ),
        (Policy(Limit(4), max_localized=Limit(2)), None, []),
        (
            Policy(Limit(4), max_localized=Limit(1)),
            None,
            ["max_localized: 2 of 8 flagged examples are memorized and localized; allowed: 1"],
        ),
        (Policy(Limit(4), min_reference_accuracy=0.9), 0.9, []),
        (
            Policy(Limit(4), min_reference_accuracy=0.9),
            0.8999,
            ["min_reference_accuracy: reference accuracy is 0.8999; required: 0.9"],
        ),
        (
            Policy(Limit(4), min_reference_accuracy=0.9),
            None,
            ["min_reference_accuracy: reference accuracy is unknown; required: 0.9"],
        ),
        (
            Policy(Limit(4), min_reference_accuracy=0.0),
            float("nan"),
            ["min_reference_accuracy: reference accuracy is nan; required: 0"],
        ),
    ],
)
def test_every_rule_that_is_not_met_is_named(policy: Policy, accuracy: float | None, failed: list[str]) -> None:
    assert policy.judge(MIXED, accuracy).failed == failed


def test_several_rules_may_fail_at_once_and_the_policy_is_written_down() -> None:
    gate = Policy(Limit(0), Limit(1, share=True), 0.95).judge(MIXED, 0.5)
    assert [f.split(":")[0] for f in gate.failed] == ["max_memorized", "max_localized", "min_reference_accuracy"]
    assert gate.policy == {"max_memorized": "0", "max_localized": "1%", "min_reference_accuracy": "0.95"}


def test_the_default_lets_nothing_memorized_through_and_nothing_else() -> None:
    assert Policy().judge([finding(0, False)], None).failed == []
    assert Policy().judge([finding(0, True, Outcome.DIFFUSE)], None).failed
