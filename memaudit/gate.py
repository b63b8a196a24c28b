"""From findings to a verdict: the policy a team sets, applied without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from memaudit.errors import UsageError
from memaudit.findings import Finding, Gate, Outcome
from memaudit.text import clean


@dataclass(frozen=True)
class Limit:
    """A count (`3`) or a share of the flagged examples (`2.5%`)."""

    amount: float
    share: bool = False

    @classmethod
    def parse(cls, text: str, option: str) -> Limit:
        """Read `N` or `P%`.

        Raises:
            UsageError: it is neither, or a share above 100 %.
        """
        match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(%?)\s*", text)
        if match is None or (not match[2] and "." in match[1]) or (match[2] and float(match[1]) > 100):
            raise UsageError(
                f"{option} {clean(text)!r} is not a limit", hint="Give a count such as 3, or a share such as 2%."
            )
        return cls(float(match[1]), share=bool(match[2]))

    def allows(self, count: int, total: int) -> bool:
        """Whether `count` of `total` is within the limit; exactly at the limit is."""
        limit = Fraction(repr(self.amount))  # as written: in floats, 2.3 % of 3,000 is less than 69
        return count * 100 <= limit * total if self.share else count <= limit

    def __str__(self) -> str:
        return f"{self.amount:.6f}".rstrip("0").rstrip(".") + ("%" if self.share else "")


@dataclass(frozen=True)
class Policy:
    """What a release may ship with. The default lets nothing memorized through."""

    max_memorized: Limit = Limit(0)
    max_localized: Limit | None = None
    min_reference_accuracy: float | None = None

    def judge(self, findings: Sequence[Finding], reference_accuracy: float | None) -> Gate:
        """Hold the findings against the policy; `Gate.failed` lists each rule that is not met, in words."""
        policy = {"max_memorized": str(self.max_memorized)}
        failed: list[str] = []
        memorized = sum(f.memorized for f in findings)
        if not self.max_memorized.allows(memorized, len(findings)):
            failed.append(
                f"max_memorized: {memorized} of {len(findings)} flagged examples are memorized; "
                f"allowed: {self.max_memorized}"
            )
        if self.max_localized is not None:
            policy["max_localized"] = str(self.max_localized)
            localized = sum(f.memorized and f.outcome is Outcome.LOCALIZED for f in findings)
            if not self.max_localized.allows(localized, len(findings)):
                failed.append(
                    f"max_localized: {localized} of {len(findings)} flagged examples are memorized and localized; "
                    f"allowed: {self.max_localized}"
                )
        if self.min_reference_accuracy is not None:
            policy["min_reference_accuracy"] = f"{self.min_reference_accuracy:g}"
            if reference_accuracy is None or not reference_accuracy >= self.min_reference_accuracy:
                found = "unknown" if reference_accuracy is None else f"{reference_accuracy:.4f}"
                failed.append(
                    f"min_reference_accuracy: reference accuracy is {found}; required: {self.min_reference_accuracy:g}"
                )
        return Gate(policy=policy, failed=failed)
