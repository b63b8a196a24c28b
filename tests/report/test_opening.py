"""The first screen: plain words, one figure one subset, the verdict only where somebody set a policy."""

from __future__ import annotations

import re

import pytest

from memaudit import report
from memaudit.findings import (
    ConfigValue,
    ErasedExample,
    Erasure,
    ErasureScores,
    Estimate,
    Gate,
    Groups,
    MatchedControls,
    Memorization,
    Prediction,
)
from memaudit.report import erasure as erasure_view
from memaudit.report import glossary, opening, story, words
from memaudit.report.document import Report
from tests import report_samples as samples

DEFAULT = Gate(policy={"max_memorized": "0"}, failed=["max_memorized: 2 of 4 flagged examples are memorized"])


def text_of(sample: Report) -> str:
    """What the page says, without its style, script and data."""
    page = re.sub(r"<(script|style).*?</\1>", "", report.render(sample, ".html"), flags=re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", page).split())


@pytest.mark.parametrize(
    ("changes", "somebody"),
    [
        ({"gate": DEFAULT}, False),
        ({"gate": DEFAULT, "config": {"max_memorized": ConfigValue(value="0", origin="default")}}, False),
        ({"gate": DEFAULT, "config": {"max_memorized": ConfigValue(value="0", origin="config")}}, True),
        ({"gate": Gate(policy={"max_memorized": "3"})}, True),
        ({"gate": DEFAULT.model_copy(update={"waived": [samples.identity("a")]})}, True),
        ({"gate": DEFAULT.model_copy(update={"baseline": "old.json"})}, True),
    ],
)
def test_the_verdict_stands_only_where_somebody_set_a_policy(changes: dict[str, object], somebody: bool) -> None:
    sample = samples.small(**changes)
    assert opening.policy_set(sample) is somebody
    page = report.render(sample, ".html")
    assert ("Policy not met" in page or 'aria-label="Policy"' in page) is somebody
    assert ('class="verdict fail"' in page) is (somebody and sample.verdict == "fail")


def test_the_answers_come_in_the_order_a_reader_asks() -> None:
    asked = [answer.question for answer in opening.answers(samples.small())]
    assert asked == ["Asked", "Found", "How sure", "What it does not say", "What it costs", "What to do next"]


def test_accuracy_is_said_once_of_all_examples_with_its_interval() -> None:
    data = samples.small().data
    reference = data.reference.model_copy(update={"low": 0.899, "high": 0.924})
    sample = samples.small(data=data.model_copy(update={"reference": reference}))
    assert dict(opening.facts(sample))["Accuracy, intact model"] == (
        "91.2% (89.9–92.4%) of all 2,000 reference examples; no test data given"
    )
    assert set(re.findall(r"accuracy (\d+\.\d%)", text_of(sample))) <= {"91.2%"}


def matched(median: float, low: float | None) -> Report:
    found = MatchedControls(examples=20, median_units=median, auc=0.6, low=low, high=0.9)
    return samples.small(groups=Groups(matched_controls=found))


@pytest.mark.parametrize(
    ("median", "low", "warned"),
    [(7.0, 0.79, False), (2.5, 0.45, True), (7.0, 0.5, True), (2.0, None, True), (7.0, None, False)],
)
def test_clean_examples_that_need_as_few_units_reach_the_headline(
    median: float, low: float | None, warned: bool
) -> None:
    sample = matched(median, low)
    words_ = "few units are no evidence that a label was memorized"
    for view in (text_of(sample), report.render(sample, ".md"), str(sample)):
        assert (words_ in view) is warned


@pytest.mark.parametrize(
    ("p", "reference", "text"),
    [
        (0.0, 2000, "p < 0.001"),
        (0.0004, 2000, "p < 0.001"),
        (0.0, 300, "p < 0.004"),
        (0.012, 2000, "p 0.012"),
        (0.0, 9000, "p < 0.001"),
    ],
)
def test_no_p_value_is_printed_as_nothing(p: float, reference: int, text: str) -> None:
    data = samples.small().data
    few = data.model_copy(update={"reference": data.reference.model_copy(update={"count": reference})})
    assert words.p_value(samples.small(data=few), p) == text


def test_every_term_links_to_its_line_where_it_first_stands() -> None:
    page = report.render(samples.whole(40), ".html")
    links = re.findall(r'class="term" href="#(term-[a-z-]+)"', page)
    assert len(links) == len(set(links)) > 10
    assert set(links) <= set(re.findall(r'<div id="(term-[a-z-]+)"', page))
    assert page.index('href="#term-memorized"') < page.index('id="examples"')


def test_a_term_is_linked_once_and_outside_strings_are_escaped() -> None:
    linked = glossary.Glossary()
    first, second = linked.link("<b> fitted"), linked.link("fitted and memorized")
    assert str(first).startswith("&lt;b&gt; <a class")
    assert str(second).count("<a ") == 1


def test_printing_a_report_gives_ten_lines_at_most() -> None:
    for sample in (samples.small(), samples.whole(40), samples.incomplete(), matched(2.0, 0.4)):
        lines = str(sample).splitlines()
        assert 5 <= len(lines) <= 10
        assert lines[0].startswith("memaudit: ")


def edited(after: int) -> Report:
    """Both memorized examples were measured on the edited file; the second gets the class `after`."""

    def scores(rate: float, accuracy: float) -> ErasureScores:
        return ErasureScores(used=rate, unused=None, true_label=None, reference=accuracy, test=None, by_class=[])

    first, _, second, _ = samples.small().findings
    examples = [
        ErasedExample(
            id=f.id, before=f.before, after=Prediction(prediction=n, margin=-1.0, confidence=0.1), as_reported=True
        )
        for f, n in ((first, 9), (second, after))
    ]
    erasure = Erasure(
        method="units", file="edited.safetensors", sha256="0" * 64, source_sha256="1" * 64, examples=examples,
        counts={"used": 2, "reference": 2000}, before=scores(1.0, 0.912), after=scores(0.0, 0.9),
    )  # fmt: skip
    return samples.small(erasure=erasure)


@pytest.mark.parametrize(("after", "left"), [(9, 0), (0, 1)])
def test_the_page_of_an_edited_model_opens_with_the_edit(after: int, left: int) -> None:
    sample = edited(after)
    page = report.render(sample, ".html")
    assert '<h1 id="headline">Edited copy: 0 of 2 fitted flagged labels still predicted</h1>' in page
    assert page.index('id="erased"') < page.index('id="examples"')
    said = {answer.question: answer.text for answer in opening.answers(sample)}["Edited"]
    assert "reference accuracy 91.2% → 90.0% (of 2,000)" in said
    assert f"Of 2 memorized examples, {left} still get their label from it." in said


@pytest.mark.parametrize(
    ("after", "said"), [([0.8, 0.6], "class 1, which loses most"), ([0.95, 0.92], "class 0, which gains least")]
)
def test_the_class_that_an_edit_serves_worst(after: list[float], said: str) -> None:
    erasure = edited(9).erasure
    assert erasure is not None
    before, copy = (
        one.model_copy(update={"by_class": rates, "true_label": 0.5})
        for one, rates in ((erasure.before, [0.9, 0.8]), (erasure.after, after))
    )
    table = erasure_view.rows(erasure.model_copy(update={"before": before, "after": copy, "counts": {"true": 1}}))
    assert table[-1][0] == said
    assert next(row for row in table if row[0].startswith("true"))[:2] == ("true label of flagged", "1")


def test_examples_stand_worst_first() -> None:
    page = report.render(samples.settled(), ".html")
    places = [page.index(f'<tr id="ex-{f.id}"') for f in samples.settled().findings]
    a, b, c, d = places
    assert max(a, c) < b < d  # memorized, fitted, not fitted


def test_called_examples_above_the_usual_level_are_accounted_for() -> None:
    sample = samples.small()
    said = Memorization(
        called=4, reached=3, expected=0.2, beyond=2.9, beyond_low=2, beyond_high=3, chance=1e-4, calibration=400,
        power=0.9, power_low=0.8, power_high=0.95, false_alarms=0.05, false_alarms_low=0.04, false_alarms_high=0.06,
        false_alarms_hard=0.07, parts=["neighbours"],
    )  # fmt: skip
    values = {0: (0.01, 0.001), 1: (0.02, 0.001), 2: (0.05, 0.002), 3: (0.083, 0.007)}
    findings = [
        f.model_copy(update={"memorized": True, "estimate": Estimate(score=0.9, p_value=p, q_value=q, parts=[])})
        for f, (p, q) in zip(sample.findings, values.values(), strict=False)
    ]
    summary = sample.summary.model_copy(update={"memorization": said})
    sure = story.how_sure(samples.small(findings=findings, summary=summary))
    assert "3 examples have a p-value of at most 5.0%; of a clean list as long, 0.2 would." in sure
    assert "1 more, of up to 8.3%, is called: at most 0.7% of all as low are clean in this list." in sure
    assert "more" not in story.how_sure(samples.small(findings=findings[:3], summary=summary))
