"""The report as SARIF 2.1.0, for code-scanning pages: one result per memorized example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from memaudit.numbers import count
from memaudit.report import figures, json
from memaudit.report.words import ACCEPTED, MAX_MESSAGE, OUTCOMES, accepted, label
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Finding, Outcome
    from memaudit.report.document import Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# Consumers match results across runs by this name; it changes only if the finding id is computed differently.
FINGERPRINT = "memauditFinding/v1"
_RULES = tuple(OUTCOMES)


def render(report: Report) -> str:
    """A SARIF log with one run. Results are errors under a failed policy, else warnings; waived ones are suppressed."""
    settled, known = accepted(report), frozenset(report.gate.known)
    run = {
        "tool": {"driver": _driver(report)},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(report)],
        "results": [_result(report, f, settled.get(f.id, ""), known) for f in report.findings if f.memorized],
        "properties": {
            "status": report.status,
            "verdict": report.verdict,
            "modelSha256": clean(report.model.sha256),
            "summary": report.summary.model_dump(mode="json"),
        },
    }
    return json.encode({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _driver(report: Report) -> dict[str, Any]:
    return {
        "name": clean(report.tool.name),
        "semanticVersion": clean(report.tool.version),
        "rules": [
            {
                "id": _rule_id(outcome),
                "name": f"Memorized{word.title()}",
                "shortDescription": {"text": f"Memorized training example, {word}"},
                "fullDescription": {"text": f"The model fits this example although its neighbours do not: {meaning}."},
                "defaultConfiguration": {"level": "warning"},
                "properties": {"tags": ["privacy", "memorization"]},
            }
            for outcome, (word, meaning) in OUTCOMES.items()
        ],
    }


def _rule_id(outcome: Outcome) -> str:
    return f"memorized-{outcome.value}"


def _invocation(report: Report) -> dict[str, Any]:
    notes = [
        {"level": "warning", "descriptor": {"id": clean(w.code)}, "message": {"text": clean(w.message, MAX_MESSAGE)}}
        for w in report.warnings
    ]
    return {"executionSuccessful": report.status == "complete", "toolExecutionNotifications": notes}


def _result(report: Report, finding: Finding, settled: str, known: frozenset[str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": _rule_id(finding.outcome),
        "ruleIndex": _RULES.index(finding.outcome),
        "level": "error" if report.verdict == "fail" and not settled else "warning",
        "message": {"text": _message(report, finding)},
        "locations": [_location(report, finding)],
        "partialFingerprints": {FINGERPRINT: clean(finding.id)},
    }
    if report.gate.baseline is not None:
        result["baselineState"] = "unchanged" if finding.id in known else "new"
    if settled:
        suppression = {"kind": "external", "status": "accepted"}
        reason = ACCEPTED["known"] if settled == "known" else report.gate.reasons.get(finding.id, "")
        if reason:
            suppression["justification"] = clean(reason, MAX_MESSAGE)
        result["suppressions"] = [suppression]
    return result


def _message(report: Report, finding: Finding) -> str:
    what = f"Example {clean(finding.example.source)} is memorized with label {label(report, finding.example.label)}"
    if not finding.units:
        return f"{what}; {OUTCOMES[finding.outcome][1]}."
    units = f"cutting {count(len(finding.units), 'unit')} suppresses it"
    return f"{what}; {units}: {figures.before_and_after(report, finding)}."


def _location(report: Report, finding: Finding) -> dict[str, Any]:
    """The line that flagged the example, or the example's own file where no manifest did."""
    flagged, example = report.data.flagged.source, finding.example
    uri = flagged if example.line else f"{flagged}/{example.source}" if example.source != "array" else flagged
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(uri, errors="replace")}}
    if example.line:
        place["region"] = {"startLine": example.line}
    location: dict[str, Any] = {"physicalLocation": place}
    if finding.units:
        location["logicalLocations"] = [
            {"name": clean(unit), "fullyQualifiedName": clean(unit), "kind": "member"} for unit in finding.units
        ]
    return location
