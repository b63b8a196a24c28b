"""The policy of a verification: how much of the flagged examples a model may still give away."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.errors import UsageError
from memaudit.findings import Gate
from memaudit.numbers import percent
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Membership, Rule

RULE = "max_tpr_at_fpr"
# False-positive rates that are measured.
LEVELS = (0.001, 0.01, 0.05)


@dataclass(frozen=True)
class MembershipPolicy:
    """Largest true-positive rates by false-positive rate; without any, no evidence of membership at all."""

    limits: tuple[tuple[float, float], ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> MembershipPolicy:
        """Read `"0.1%:1%"`, several separated by commas.

        Raises:
            UsageError: it cannot be read, or names a rate that is not measured.
        """
        if text is None:
            return cls()
        limits = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*:\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*", part)
            if match is None or float(match[2]) > 100:
                raise UsageError(
                    f"--max-tpr-at-fpr {clean(text)!r} is no limit",
                    hint="FPR:TPR, such as 0.1%:1%; several with commas.",
                )
            level = next((one for one in LEVELS if abs(one - float(match[1]) / 100) < 1e-9), None)
            if level is None:
                raise UsageError(
                    f"--max-tpr-at-fpr {clean(text)!r}: no false-positive rate of {clean(match[1])}% is measured",
                    hint="Choose 0.1%, 1% or 5% before the colon.",
                )
            limits.append((level, float(match[2]) / 100))
        return cls(tuple(limits))

    def __str__(self) -> str:
        return ",".join(f"{100 * level:g}%:{100 * most:g}%" for level, most in self.limits)

    def judge(self, found: Membership) -> Gate:
        """Hold the strongest test against the limits: one is exceeded where the interval of its rate lies above it.

        With several tests the strongest is the luckiest, so without limits it is the adjusted p-value that decides.
        Either way a comparison that could not show a trace is no pass.
        """
        unlike = (
            [f"unlike: flagged examples rank too low beside unseen ones for a trace to show (p {found.p_below:.2g})"]
            if found.unlike
            else []
        )
        if not self.limits:
            said = f"no_evidence: the model tells flagged from unseen examples (p {found.p_value:.2g})"
            return Gate(policy={"no_evidence": "p > 0.05"}, failed=[said] if found.found else unlike)
        strongest = next(attack for attack in found.attacks if attack.name == found.strongest)
        rules: dict[float, Rule] = {rule.level: rule for rule in strongest.rules}
        failed = [
            f"{RULE}: at a false-positive rate of {percent(level)}, {percent(rules[level].rate)} of the flagged "
            f"examples are found (at least {percent(rules[level].low)}); allowed: {percent(most)}"
            for level, most in self.limits
            if found.found and not rules[level].low <= most
        ]
        return Gate(policy={RULE: str(self)}, failed=failed + unlike)
