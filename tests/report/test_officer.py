"""The officer's page and the model card: what they say is the report's, harmless, whole, and on one or two sheets."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memaudit import report as reports
from memaudit.errors import UsageError
from memaudit.findings import Erasure
from memaudit.report.columns import MARK
from memaudit.report.document import Report
from memaudit.report.officer import scanned, verified, views
from memaudit.report.officer.sheet import Sheet
from memaudit.report.verification import writing as verifications
from memaudit.report.verified import Verification
from tests import report_samples as samples
from tests.report.test_columns import FORMULAS

TERMS = ("atypical", "margin", "ablat", "LiRA", "RMIA", "logit", "AUC", "TPR", "epsilon", "softmax", "q-value", "MEM")


def verification(**changes: object) -> Verification:
    """A small verification; its names are harmless unless `changes` say otherwise."""
    from memaudit.findings import Attack, DataSource, Gate, Membership, Rule

    small = samples.small()
    rules = [
        Rule(level=level, threshold=1.0, hits=3, rate=0.06, low=0.01, high=0.17, alarms=0, alarms_high=0.02,
             resolved=level > 0.001, detectable=0.1)
        for level in (0.001, 0.01, 0.05)
    ]  # fmt: skip
    attack = Attack(
        name="loss", auc=0.52, auc_low=0.43, auc_high=0.61, advantage=0.1, advantage_low=0.0, advantage_high=0.3,
        epsilon=0.0, p_value=0.4, rules=rules,
    )  # fmt: skip
    said = Membership(
        members=50, others=200, kinds=10, found=False, p_value=0.4, strongest="loss", clear=7, attacks=[attack]
    )
    source = DataSource(source="flagged.csv", count=50, sha256="ab" * 32, accuracy=0.5, low=0.4, high=0.6)
    values = {
        "status": "complete", "verdict": "pass", "tool": small.tool, "command": "memaudit verify m.pt", "config": {},
        "environment": {}, "volatile": {"started": "2026-11-28T10:00:00Z"}, "model": small.model, "flagged": source,
        "reference": source, "unseen": source, "class_names": list(samples.CLASSES), "class_order": "given",
        "membership": said, "gate": Gate(policy={"no_evidence": "p > 0.05"}),
    }  # fmt: skip
    return Verification.model_validate(values | changes)


SMALL: list[Report | Verification] = [samples.small(), verification()]


def sheet_of(found: Report | Verification) -> Sheet:
    return verified.of_verification(found) if isinstance(found, Verification) else scanned.of_report(found)


class Text(HTMLParser):
    """The words of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.inside = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self.inside else data


@pytest.mark.parametrize("found", SMALL, ids=["scan", "verify"])
def test_everything_an_officer_asks_is_there(found: Report | Verification) -> None:
    for text in (Text(views.html(sheet_of(found))).words, views.markdown(sheet_of(found))):
        for title in ("asked", "examined", "found", "sure", "does not show", "done", "remains", "requirements"):
            assert title in text
        for name in ("EDPB", "Opinion 28/2024", "42001", "annex IV", "no legal advice", "Signature"):
            assert name in text
        assert "not given" in text, "nobody said who ran it"


@pytest.mark.parametrize("found", SMALL, ids=["scan", "verify"])
def test_no_term_of_the_trade_is_in_the_sentences(found: Report | Verification) -> None:
    sheet = sheet_of(found)
    own = [*sheet.asked, *sheet.found, *sheet.sure, *sheet.done, *sheet.remains, sheet.headline]
    for sentence in own:
        assert not [term for term in TERMS if term in sentence], sentence


def test_who_ran_it_and_the_hashes_are_those_of_the_report() -> None:
    sample = samples.small(by="A. Auditor")
    values = dict(sheet_of(sample).examined)
    assert values["Run by"] == "A. Auditor"
    assert values["its SHA-256 (fingerprint)"] == sample.model.sha256
    assert sample.data.flagged.sha256 in values["Examined examples"]


def test_the_verdict_is_that_of_the_report() -> None:
    for sample in (samples.small(), samples.settled()):
        sheet = sheet_of(sample)
        expected = None if sample.status == "incomplete" else sample.verdict == "pass"
        assert sheet.good is expected
        assert sheet.headline.startswith(f"{sample.summary.memorized:,} of ")


def test_outside_strings_are_harmless_on_page_markdown_and_card(tmp_path: Path) -> None:
    sample = samples.hostile()
    page, text = views.html(sheet_of(sample)), views.markdown(sheet_of(sample))
    harmless = re.findall(r"<[a-z]+", views.html(sheet_of(samples.small())))
    assert set(re.findall(r"<[a-z]+", page)) <= set(harmless)
    card = tmp_path / "model-card.md"
    reports.write(sample, card)
    for written in (page, text, card.read_text("utf-8")):
        assert not [c for c in written if c != "\n" and not c.isprintable()]
    for written in (text, card.read_text("utf-8")):
        outside = re.sub(r"`+[^\n]*?`+", "", written)
        assert not re.search(r"(?<!\\)<(script|img|b)\b", outside)
        assert not any(line.lstrip().startswith("::") for line in written.splitlines())


def edit(**changes: Any) -> Erasure:
    """An edit with every proof."""
    from memaudit.findings import ErasureScores, InputPoint, RandomEdit, RelearnPoint

    def scores(used: float, reference: float) -> ErasureScores:
        return ErasureScores(used=used, unused=0.5, true_label=None, reference=reference, test=None, by_class=[])

    said = verification().membership
    values = {
        "method": "units", "done": "3 units silenced", "file": "edited.safetensors", "sha256": "0" * 64,
        "source_sha256": "1" * 64, "counts": {"used": 2, "reference": 2000}, "before": scores(1.0, 0.912),
        "after": scores(0.25, 0.9), "random": RandomEdit(draws=5, units=3, used=0.98, reference=0.91),
        "inputs": [InputPoint(radius=0.2, examples=40, flagged=0.8, control=0.1)],
        "relearning": [RelearnPoint(steps=20, rest=0.4, control=0.05)],
        "membership_before": said.model_copy(update={"found": True}), "membership": said,
    }  # fmt: skip
    return Erasure.model_validate(values | changes)


@pytest.mark.parametrize("kind", ["scan", "verify"])
def test_what_was_done_about_it_is_the_edits_own_record(kind: str) -> None:
    sheet = sheet_of(samples.small(erasure=edit()) if kind == "scan" else verification(erasure=edit()))
    done, left = " ".join(sheet.done), " ".join(sheet.remains)
    for words in (
        "3 units silenced", "0" * 64, "1" * 64, "91.2% before, 90.0% after", "100.0% before, 25.0% after",
        "3 units of the network, 5 times", "98.0% of the labels are still given", "80.0%, and for 10.0% of ordinary",
        "40.0% of the labels are given again (5.0%", "Before the edit they do, after it no sign was found",
    ):  # fmt: skip
        assert words in done
    assert "25.0% of the labels that the edit was made for are still given" in left
    assert "in place of" in left
    assert not [term for term in TERMS if term in done + left]


def hostile() -> Verification:
    """Every outside string of a verification is hostile, the user's own columns and the edit's record, too."""
    from memaudit.findings import DataSource, MembershipSlice, Prediction, Scored

    texts = [*samples.HOSTILE, *FORMULAS]
    examples = [
        Scored(
            id=text, share=0.5, scores={"loss": 0.0}, traced=True,
            example=samples.small().findings[0].example.model_copy(
                update={"id": text, "source": text, "note": text, "declared_id": text, "columns": {text or "x": text}}
            ),
            before=Prediction(prediction=0, margin=1.0, confidence=0.9),
        )
        for text in texts
    ]  # fmt: skip
    slices = [
        MembershipSlice(by=text, value=text, members=5, others=9, auc=0.5, auc_low=0.3, auc_high=0.7, hits=1, rate=0.2,
                        low=0.0, high=0.7, small=True)
        for text in texts
    ]  # fmt: skip
    bad = "<script>alert(1)</script>\u202e=1+1"
    said = verification().membership.model_copy(update={"examples": examples, "slices": slices})
    source = DataSource(source=bad, count=16, sha256=bad, accuracy=0.9, low=0.8, high=1.0)
    return verification(
        membership=said, flagged=source, reference=source, unseen=source, by=bad, command=bad,
        class_names=[bad] * 10, erasure=edit(file=bad, sha256=bad, source_sha256=bad, done=bad),
        warnings=[{"code": bad, "message": text} for text in texts],
    )  # fmt: skip


def test_outside_strings_of_a_verification_are_harmless_everywhere(tmp_path: Path) -> None:
    names = ("v.html", "v.md", "officer.html", "officer.md", "model-card.md", "v.csv")
    mild = {
        p.name: p.read_text("utf-8") for p in verifications.write_all(verification(), [tmp_path / n for n in names])
    }
    paths = verifications.write_all(hostile(), [tmp_path / name for name in (*names, "v.parquet")])
    texts = {path.name: path.read_text("utf-8").removeprefix(MARK) for path in paths[:-1]}
    for name, text in texts.items():
        assert not [c for c in text if c not in "\r\n" and not c.isprintable()], name
        if name.endswith(".html"):
            tags = set(re.findall(r"<[a-z0-9]+", text)) - {"<table", "<tr", "<td", "<th", "<details", "<summary"}
            assert tags <= set(re.findall(r"<[a-z0-9]+", mild[name])) | {"<b", "<code", "<h2", "<thead", "<tbody"}
            assert "<script" not in text
        if name.endswith(".md"):
            outside = re.sub(r"`+[^\n]*?`+", "", text)
            assert not re.search(r"(?<!\\)<(script|img|b)\b", outside), name
    cells = [cell for row in csv.reader(io.StringIO(texts["v.csv"])) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+@\t") or re.match(r"-[^\d.]", cell)]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(paths[-1])
    assert len(frame) == len(hostile().membership.examples)
    assert all(value.isprintable() for value in frame["source"])


@pytest.mark.parametrize("name", ["officer.html", "Officer-2026.html", "officer.md", "model-card.md"])
def test_the_name_chooses(name: str, tmp_path: Path) -> None:
    text = reports.write(samples.small(), tmp_path / name).read_text("utf-8")
    assert ("summary for the file" in text) is name.lower().startswith("officer")
    written = verifications.write_all(verification(), [tmp_path / f"v-{name}", tmp_path / name])
    assert ("summary for the file" in written[1].read_text("utf-8")) is name.lower().startswith("officer")


def test_other_suffixes_are_what_they_were(tmp_path: Path) -> None:
    assert reports.format_of(Path("officer.json")) == ".json"
    with pytest.raises(UsageError):
        reports.write(samples.small(), tmp_path / "officer.txt")


def test_the_card_has_the_sections_of_the_template() -> None:
    from memaudit.report import card

    for text in (card.of_report(samples.small()), card.of_verification(verification())):
        for title in ("## Evaluation", "### Testing Data, Factors & Metrics", "#### Testing Data", "#### Metrics"):
            assert f"{title}" in text
        assert "### Results" in text
        assert text.endswith("\n")


@pytest.mark.browser
def test_it_prints_on_two_sheets(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    for number, found in enumerate(SMALL):
        page = tmp_path / f"{number}.html"
        page.write_text(views.html(sheet_of(found)), "utf-8")
        made = tmp_path / f"{number}.pdf"
        line = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--no-pdf-header-footer",
            f"--print-to-pdf={made}",
            page.as_uri(),
        ]
        subprocess.run(line, check=True, capture_output=True, timeout=120)
        assert 1 <= len(re.findall(rb"/Type\s*/Page\b", made.read_bytes())) <= 2
