"""From findings to a verdict: the policy a team sets, applied without torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from memaudit.errors import DataRejected, UsageError
from memaudit.findings import Finding, Gate, Outcome, ReportWarning
from memaudit.gate import waivers
from memaudit.text import clean, closest

if TYPE_CHECKING:
    from datetime import date

    from memaudit.gate.waivers import Waiver
    from memaudit.report.document import Report

RULES = ("max_memorized", "max_localized", "min_reference_accuracy")
# Warnings of the gate itself: written anew each time it is applied.
CODES = ("MEM801", "MEM802", "MEM803")


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

    def judge(
        self, findings: Sequence[Finding], reference_accuracy: float | None, accepted: Collection[str] = ()
    ) -> Gate:
        """Hold the findings against the policy; `Gate.failed` lists each rule that is not met, in words.

        Args:
            accepted: ids of findings that do not count: waived, or known from a baseline.
        """
        policy = {"max_memorized": str(self.max_memorized)}
        failed: list[str] = []
        active = [f for f in findings if f.memorized and f.id not in accepted]
        total = f"of {len(findings)} flagged examples are memorized"
        beside = ", neither waived nor in the baseline" if accepted else ""
        if not self.max_memorized.allows(len(active), len(findings)):
            failed.append(f"max_memorized: {len(active)} {total}{beside}; allowed: {self.max_memorized}")
        if self.max_localized is not None:
            policy["max_localized"] = str(self.max_localized)
            localized = sum(f.outcome is Outcome.LOCALIZED for f in active)
            if not self.max_localized.allows(localized, len(findings)):
                failed.append(
                    f"max_localized: {localized} {total} and localized{beside}; allowed: {self.max_localized}"
                )
        if self.min_reference_accuracy is not None:
            policy["min_reference_accuracy"] = f"{self.min_reference_accuracy:g}"
            if reference_accuracy is None or not reference_accuracy >= self.min_reference_accuracy:
                found = "unknown" if reference_accuracy is None else f"{reference_accuracy:.4f}"
                failed.append(
                    f"min_reference_accuracy: reference accuracy is {found}; required: {self.min_reference_accuracy:g}"
                )
        return Gate(policy=policy, failed=failed)

    def with_limits(
        self, max_memorized: str | None, max_localized: str | None, min_reference_accuracy: float | None
    ) -> Policy:
        """The same policy with those rules replaced that are given.

        Raises:
            UsageError: a limit cannot be read.
        """
        changed = self
        if max_memorized is not None:
            changed = replace(changed, max_memorized=Limit.parse(max_memorized, "--max-memorized"))
        if max_localized is not None:
            changed = replace(changed, max_localized=Limit.parse(max_localized, "--max-localized"))
        if min_reference_accuracy is not None:
            if not 0 <= min_reference_accuracy <= 1:
                raise UsageError(f"--min-reference-accuracy {min_reference_accuracy:g} is not a share between 0 and 1")
            changed = replace(changed, min_reference_accuracy=min_reference_accuracy)
        return changed

    @classmethod
    def of(cls, gate: Gate) -> Policy:
        """The policy a report was judged by.

        Raises:
            DataRejected: it holds a rule that this version does not know, or a limit that is none.
        """
        rules = gate.policy
        for name in rules:
            if name not in RULES:
                raise DataRejected(f"the report's policy has the unknown rule {clean(name)!r}{closest(name, RULES)}")
        try:
            least = rules.get("min_reference_accuracy")
            return cls().with_limits(
                rules.get("max_memorized"), rules.get("max_localized"), None if least is None else _share(least)
            )
        except (UsageError, ValueError) as error:
            raise DataRejected(f"the report's policy cannot be read: {clean(error)}") from None


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


@dataclass(frozen=True)
class Accepted:
    """What a team has accepted: its waivers, and an older report whose findings are known.

    Attributes:
        name: of the older report, for the new one.
    """

    waivers: Sequence[Waiver] = ()
    baseline: Report | None = None
    name: str = ""


def apply(report: Report, policy: Policy, accepted: Accepted, today: date | None = None) -> Report:
    """The report as this policy judges it; what an earlier judgement left in it is replaced.

    A finding is known when the baseline has it too, memorized there as well: whatever units held it. An incomplete
    audit never passes.

    Args:
        today: the day on which waivers must not have expired; by default the date in UTC.
    """
    memorized = [f.id for f in report.findings if f.memorized]
    waived = waivers.in_force(accepted.waivers, memorized, today)
    warnings = [w for w in report.warnings if w.code not in CODES]
    warnings += waived.warnings
    known: list[str] = []
    if accepted.baseline is not None:
        old = {f.id for f in accepted.baseline.findings if f.memorized}
        known = [identity for identity in memorized if identity in old]
        if accepted.baseline.status != "complete":
            message = f"the baseline {accepted.name} is incomplete: what it did not see counts as new"
            warnings.append(ReportWarning(code="MEM803", message=message))
    gate = policy.judge(report.findings, report.data.reference.accuracy, {*waived.reasons, *known})
    gate = gate.model_copy(
        update={
            "waived": list(waived.reasons),
            "reasons": waived.reasons,
            "known": known,
            "baseline": accepted.name if accepted.baseline is not None else None,
        }
    )
    failed = bool(gate.failed) or report.status != "complete"
    changes = {"gate": gate, "verdict": "fail" if failed else "pass", "warnings": warnings}
    return report.model_copy(update=changes)
