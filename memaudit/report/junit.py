"""The report as JUnit XML: every rule of the policy and every flagged example is a test case."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from memaudit.numbers import count
from memaudit.report import story
from memaudit.report.words import ACCEPTED, OUTCOMES, accepted, label
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Finding
    from memaudit.report.document import Report


def render(report: Report) -> str:
    """One test suite. Memorized examples fail it only where the policy fails; allowed or waived ones are skipped."""
    suites = Element("testsuites")
    suite = SubElement(suites, "testsuite", name="memaudit")
    if report.status == "incomplete":
        _incomplete(suite, report)
    for rule in story.rules(report):
        case = _case(suite, "policy", f"{rule.name}: {rule.limit}" if rule.limit else rule.name)
        if rule.met is False:
            SubElement(case, "failure", type="policy", message=clean(rule.word, 1000))
        elif rule.met is None:
            SubElement(case, "skipped", message=clean(rule.word))
    settled = accepted(report)
    for finding in report.findings:
        _example(suite, report, finding, settled.get(finding.id, ""))
    _count(suite)
    for name in ("tests", "failures", "errors", "skipped"):
        suites.set(name, suite.get(name, "0"))
    indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(suites, encoding="unicode")}\n'


def _case(suite: Element, group: str, name: str) -> Element:
    return SubElement(suite, "testcase", classname=f"memaudit.{group}", name=clean(name))


def _incomplete(suite: Element, report: Report) -> None:
    reasons = "; ".join(clean(w.message) for w in report.warnings[:5])
    message = clean(f"audit incomplete: {reasons}" if reasons else "audit incomplete", 1000)
    SubElement(_case(suite, "audit", "complete"), "error", type="incomplete", message=message)


def _example(suite: Element, report: Report, finding: Finding, settled: str) -> None:
    case = _case(suite, "example", f"{finding.example.source} [{finding.id}]")
    if not finding.memorized:
        return
    if settled:
        reason = clean(report.gate.reasons.get(finding.id, ""), 600)
        word = f"memorized, {ACCEPTED[settled]}"
        SubElement(case, "skipped", message=f"{word}: {reason}" if reason else word)
    elif report.verdict == "pass":
        allowed = "allowed by the policy" if report.status == "complete" else "verdict open"
        SubElement(case, "skipped", message=f"memorized, {allowed}")
    else:
        word, meaning = OUTCOMES[finding.outcome]
        message = f"memorized with label {label(report, finding.example.label)}, {word}"
        failure = SubElement(case, "failure", type=f"memorized-{finding.outcome.value}", message=message)
        cut = ", ".join(clean(unit) for unit in finding.units)
        failure.text = f"{meaning}. {count(len(finding.units), 'unit')}: {cut}" if cut else f"{meaning}."


def _count(suite: Element) -> None:
    suite.set("tests", str(len(suite)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(tag) is not None for case in suite)))
