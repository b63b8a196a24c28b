"""What each text view says, word for word, for a report small enough to read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from memaudit import numbers, report
from memaudit.findings import Gate, Groups, MatchedControls, Outcome
from memaudit.report import charts, console, figures, github, rows, story
from memaudit.report.document import Report
from tests import report_samples as samples

CONSOLE = """\
✗ Policy not met  model.safetensors
2 of the 4 flagged examples are memorized. 1 of them sits in 2 units: cutting them suppresses the
label.
With the units of one example cut, the model keeps 97.1% (96.1–98.3%) of its right answers on the
reference. Cutting the 4 most shared units together changes the accuracy by −16.1 points.
  ✗ max memorized: 0 (not met: 2 of 4 flagged examples are memorized)
  ✓ min reference accuracy: 90% (met)

outcome        examples   share   meaning
────────────────────────────────────────────────────────────────────────────────────────────────────
● localized           1   25.0%   a few units hold it: cutting them suppresses the label, random
                                  units do not
◐ entangled           1   25.0%   the label can be suppressed, but the reference pays or random
                                  units do it too
○ diffuse             1   25.0%   not suppressed within the allowed number of units
· not fitted          1   25.0%   the model does not predict the flagged label

top units          kind      examples   accuracy without it
───────────────────────────────────────────────────────────
layer4.0.bn1:200   channel          2              −0.4 pts
layer3.0.bn2:17    channel          1              −0.2 pts
layer4.0.bn2:7     channel          1              −2.4 pts
conv1.bn:3         channel          1                     –

Not run: gradient accounting; layer rewinding; layer retraining; accuracy on held-out test data.

wrote reports/model/report.html
"""

MARKDOWN_START = """\
# ❌ Policy not met: `model.safetensors`

**Asked.** Which of 4 flagged examples (`flagged.csv`) has the model memorized with the label it was trained with, and \
in which units does each sit?

**Found.** 2 of the 4 flagged examples are memorized. 1 of them sits in 2 units: cutting them suppresses the label. \
The worst: `train/a.png`, trained as `cat`. 1 more is fitted, but clean examples like it support the label; the model \
does not predict the label of 1.

**How sure.** The score behind the word memorized is higher for a flagged than for a clean example in 91.0% of pairs. \
As many random units, cut instead, suppress the label in 3.3% (0.6–16.7%) of draws.

**What it does not say.** All is inferred from how the model behaves; it is no proof of what was in the training data.

**What it costs.** With the units of one example cut, the model keeps 97.1% (96.1–98.3%) of its right answers on the \
reference. Cutting the 4 most shared units together changes the accuracy by −16.1 points.

**What to do next.** Look at the worst examples below. Then train again without them and compare (memaudit diff), edit \
a copy of the checkpoint (memaudit erase), or accept them by name in a waiver file.

|  |  |
| --- | --- |
| Date | `2026-01-05 10:00:00 UTC` |
| Model | `model.safetensors: resnet18, 11,173,962 parameters` |
| Accuracy, intact model | `91.2% of all 2,000 reference examples; no test data given` |
| Data | `flagged.csv (flagged), val (reference)` |
| Flagged examples | `4: 3 fitted, 2 memorized, 1 localized` |

- ❌ `max memorized: 0` not met: `2 of 4 flagged examples are memorized`
- ✅ `min reference accuracy: 90%` met

| figure | value |  |
| --- | --- | --- |
| Memorized | **2** of 4 | 50.0% |
| Localized | **1** of 3 fitted | 33.3% |
| Median units per example | **2.5** | clean examples: 7 |
| Reference kept | **97.1%** | 95% interval 96.1–98.3% |
| Random units suppress | **3.3%** | 95% interval 0.6–16.7% |

The same search on 20 clean examples of the same labels and similar margins needs a median of 7 units; flagged \
examples need 2.5. A clean example needs more units than a flagged one in 87.0% of pairs (95% interval 79.0–93.0%).

## Examples

| example | source | label | outcome | before → after | units | reference | controls |
| --- | --- | --- | --- | --- | --- | --- | --- |
| `ca978112ca` | `train/a.png` | `cat` | localized, memorized | `cat` → `dog` | \
`layer3.0.bn2:17`, `layer4.0.bn1:200` | −0.4 pts −1.6 to +0.5 | random 0/10, copies 7/8, others 1/2 |
"""

JUNIT = """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="6" failures="3" errors="0" skipped="0">
  <testsuite name="memaudit" tests="6" failures="3" errors="0" skipped="0">
    <testcase classname="memaudit.policy" name="max memorized: 0">
      <failure type="policy" message="not met: 2 of 4 flagged examples are memorized" />
    </testcase>
    <testcase classname="memaudit.policy" name="min reference accuracy: 90%" />
    <testcase classname="memaudit.example" name="train/a.png [ca978112ca1bbdca]">
      <failure type="memorized-localized" message="memorized with label cat, localized">a few units hold it: cutting \
them suppresses the label, random units do not. 2 units: layer3.0.bn2:17, layer4.0.bn1:200</failure>
    </testcase>
    <testcase classname="memaudit.example" name="train/b.png [3e23e8160039594a]" />
    <testcase classname="memaudit.example" name="train/c.png [2e7d2c03a9507ae2]">
      <failure type="memorized-diffuse" message="memorized with label airplane, diffuse">not suppressed within the \
allowed number of units.</failure>
    </testcase>
    <testcase classname="memaudit.example" name="train/d.png [18ac3e7343f01689]" />
  </testsuite>
</testsuites>
"""

GITHUB = """\
::error title=memaudit%3A Policy not met::2 of the 4 flagged examples are memorized. 1 of them sits in 2 units: \
cutting them suppresses the label.
::error file=flagged.csv,line=2,title=memaudit%3A memorized example::train/a.png is memorized with label cat (localized)
::error file=flagged.csv,line=4,title=memaudit%3A memorized example::train/c.png is memorized with label airplane \
(diffuse)
"""


def test_console_text() -> None:
    assert console.render(samples.small(), [Path("reports/model/report.html")]) == CONSOLE


def test_console_fits_a_narrow_terminal() -> None:
    text = console.render(samples.small(), width=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert "● localized" in text


def test_console_is_plain_in_a_pipe_and_survives_a_poor_encoding() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console.show(samples.small(), file=stream)
    assert raw.getvalue().startswith(b"? Policy not met  model.safetensors\n")
    assert b"\x1b" not in raw.getvalue()


@pytest.mark.parametrize(("ci", "colored"), [("", True), ("true", False)])
def test_console_has_colour_on_a_terminal_only_outside_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, colored: bool
) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("CI", ci)
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console.show(samples.small(), file=stream)
    assert ("\x1b[" in stream.getvalue()) is colored


def test_markdown_text() -> None:
    assert report.render(samples.small(), ".md").startswith(MARKDOWN_START)


def test_markdown_of_a_large_report_fits_a_step_summary() -> None:
    text = report.render(samples.large(), ".md")
    assert len(text.encode()) < 2**20
    assert "1,500 further examples in `report.json`." in text


def test_junit_text() -> None:
    assert report.render(samples.small(), ".xml") == JUNIT


def test_junit_fails_nothing_under_a_policy_that_is_met() -> None:
    gate = Gate(policy={"max_memorized": "5"}, waived=[samples.identity("a")])
    suite = ElementTree.fromstring(report.render(samples.small(verdict="pass", gate=gate), ".xml"))[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    messages = [skipped.get("message") for skipped in suite.iter("skipped")]
    assert messages == ["memorized, waived", "memorized, allowed by the policy"]


def test_junit_counts_an_incomplete_audit_as_an_error() -> None:
    suite = ElementTree.fromstring(report.render(samples.incomplete(), ".xml"))[0]
    error = suite.find("testcase/error")
    assert error is not None
    assert suite.get("errors") == "1"
    assert "only 1 of 4 flagged examples was audited" in error.get("message", "")


def test_workflow_commands_text() -> None:
    assert github.render(samples.small()) == GITHUB


def test_workflow_commands_stay_within_what_a_runner_shows() -> None:
    lines = github.render(samples.large()).splitlines()
    assert len(lines) == 2 + github.MAX_ANNOTATIONS
    assert lines[-1].endswith("further memorized examples in the report")


def _sarif(sample: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.render(sample, ".sarif"))
    assert found["version"] == "2.1.0"
    run: dict[str, Any] = found["runs"][0]
    return run


def test_sarif_points_at_the_manifest_line_and_names_the_units() -> None:
    result = _sarif(samples.small())["results"][0]
    location = result["locations"][0]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "flagged.csv"},
        "region": {"startLine": 2},
    }
    assert [unit["name"] for unit in location["logicalLocations"]] == ["layer3.0.bn2:17", "layer4.0.bn1:200"]
    assert result["partialFingerprints"] == {"memauditFinding/v1": samples.identity("a")}
    assert result["message"]["text"] == (
        "Example train/a.png is memorized with label cat; cutting 2 units suppresses it: cat → dog."
    )


def test_sarif_holds_memorized_examples_only_and_its_rules_resolve() -> None:
    run = _sarif(samples.small())
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [result["ruleId"] for result in run["results"]] == ["memorized-localized", "memorized-diffuse"]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    assert [result["level"] for result in run["results"]] == ["error", "error"]


def test_sarif_suppresses_what_was_waived() -> None:
    gate = Gate(policy={"max_memorized": "0"}, failed=["max_memorized"], waived=[samples.identity("a")])
    first, second = _sarif(samples.small(gate=gate))["results"]
    assert first["suppressions"] == [{"kind": "external", "status": "accepted"}]
    assert (first["level"], second["level"]) == ("warning", "error")
    assert "suppressions" not in second


def test_what_a_team_accepted_is_told_apart_in_every_view() -> None:
    sample = samples.settled()
    words_ = "Of the memorized examples, 1 waived and 1 known from the baseline accepted.json; 0 left."
    for text in (console.render(sample), report.render(sample, ".md"), report.render(sample, ".html")):
        assert words_ in " ".join(text.split())
    waived, known = json.loads(report.render(sample, ".sarif"))["runs"][0]["results"]
    assert [r["suppressions"][0]["justification"] for r in (waived, known)] == [
        "a canary (ann, until 2027-01-31)",
        "known from the baseline",
    ]
    assert [r["baselineState"] for r in (waived, known)] == ["new", "unchanged"]
    cases = ElementTree.fromstring(report.render(sample, ".xml")).iter("skipped")
    assert [case.get("message") for case in cases] == [
        "memorized, waived: a canary (ann, until 2027-01-31)",
        "memorized, known from the baseline",
    ]
    assert github.render(sample).count("::") == 2
    page = report.render(sample, ".html")
    assert '<option value="known">known from the baseline (1)</option>' in page
    assert '<option value="active">memorized, not accepted (0)</option>' in page


def test_sarif_without_a_manifest_points_at_the_example() -> None:
    small = samples.small()
    example = small.findings[0].example.model_copy(update={"line": None, "source": "cat/a b%.png"})
    data = small.data.model_copy(update={"flagged": small.data.flagged.model_copy(update={"source": "flagged"})})
    finding = small.findings[0].model_copy(update={"example": example})
    place = _sarif(samples.small(findings=[finding], data=data))["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "flagged/cat/a%20b%25.png"}}


def test_an_incomplete_audit_is_no_verdict_in_any_view() -> None:
    sample = samples.incomplete()
    for text in (console.render(sample), *(report.render(sample, suffix) for suffix in (".md", ".html"))):
        assert "Audit incomplete: no verdict" in text
        assert "Policy met" not in text
    assert github.render(sample).startswith("::error title=memaudit%3A Audit incomplete")
    assert not _sarif(sample)["invocations"][0]["executionSuccessful"]


def _summary(**counts: Any) -> str:
    empty = {"memorized": 0, "fitted": 0, "flagged": 0, "outcomes": {}}
    small = samples.small()
    return story.summary(samples.small(summary=small.summary.model_copy(update=empty | counts)))


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, "No flagged example was audited."),
        ({"flagged": 1}, "The model does not predict the flagged label of the one flagged example."),
        ({"flagged": 9}, "The model does not predict the flagged label of any of the 9 flagged examples."),
        ({"flagged": 1, "fitted": 1}, "The one flagged example is not memorized, though the model fits it."),
        (
            {"flagged": 2000, "fitted": 1999},
            "None of the 2,000 flagged examples is memorized, though the model fits 1,999 of them.",
        ),
    ],
)
def test_the_summary_when_nothing_is_memorized(counts: dict[str, int], sentence: str) -> None:
    assert _summary(**counts) == sentence


def test_the_summary_when_nothing_is_localized() -> None:
    findings = [f for f in samples.small().findings if f.outcome is Outcome.DIFFUSE]
    summary = samples.small().summary.model_copy(update={"flagged": 1, "fitted": 1, "memorized": 1})
    assert story.summary(samples.small(findings=findings, summary=summary)) == (
        "The one flagged example is memorized. "
        "No small set of units was found that suppresses the label and spares the reference."
    )


def test_the_summary_where_nobody_asked_for_units() -> None:
    """As after `memaudit compare`, and a scan of other audits alone."""
    changed = {"outcome": Outcome.NOT_SEARCHED, "units": [], "memorized": True}
    findings = [samples.small().findings[0].model_copy(update=changed)]
    summary = samples.small().summary.model_copy(update={"flagged": 1, "fitted": 1, "memorized": 1})
    assert story.summary(samples.small(findings=findings, summary=summary)) == (
        "The one flagged example is memorized. Which units hold it was not asked for."
    )


@pytest.mark.parametrize(("median", "words_"), [(1.0, "a median of 1 unit;"), (1.5, "a median of 1.5 units;")])
def test_one_unit_is_a_unit(median: float, words_: str) -> None:
    matched = MatchedControls(examples=3, median_units=median, auc=None, low=None, high=None)
    assert words_ in figures.same_search(samples.small(groups=Groups(matched_controls=matched)))


@pytest.mark.parametrize(
    ("failed", "met"),
    [
        ([], [True, True]),
        (["min-b"], [True, False]),
        (["max_a: 3 found"], [False, True]),
        (["3 found"], [False, None, None]),
        (["max_a: 3 found", "odd"], [False, False, None]),
    ],
)
def test_a_rule_is_met_only_if_every_failure_is_accounted_for(failed: list[str], met: list[bool | None]) -> None:
    gate = Gate(policy={"max_a": "0", "min_b": "90%"}, failed=failed)
    assert [rule.met for rule in story.rules(samples.small(gate=gate))] == met


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, "–"), (0.0, "0.0%"), (0.0001, "<0.1%"), (0.98614, "98.6%"), (0.99999, ">99.9%"), (1.0, "100.0%")],
)
def test_only_exact_rates_print_as_nothing_or_all(rate: float | None, text: str) -> None:
    assert numbers.percent(rate) == text


@pytest.mark.parametrize(("after", "text"), [(0.9, "±0.0"), (0.8, "−10.0"), (0.95, "+5.0"), (0.89999, "±0.0")])
def test_changes_are_signed(after: float, text: str) -> None:
    assert numbers.points(0.9, after) == text


def test_layers_show_cuts_against_width() -> None:
    found = {row.layer: row for row in rows.layer_rows(samples.small())}
    shared = found["layer4.0.bn1"]
    assert (shared.cuts, shared.used, shared.share, shared.expected) == (2, 1, 0.4, 512 / 1984)
    assert sum(row.share for row in found.values()) == pytest.approx(1)


@pytest.mark.parametrize(("most", "ticks"), [(1, [0, 1]), (7, [0, 2, 4, 6]), (120, [0, 20, 40, 60, 80, 100, 120])])
def test_axis_ticks_are_few_and_round(most: float, ticks: list[float]) -> None:
    assert charts._ticks(most) == ticks
