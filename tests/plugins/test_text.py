"""A text classifier of transformers: its sentences scanned from tables, erased, and predicted by plain transformers."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
import torch
from memaudit_transformers.library import quiet
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from memaudit.adapters.base import ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from memaudit.data import read as read_examples
from memaudit.errors import DataRejected, ModelRejected
from tests.cli_support import FAST, Command, command
from tests.plugins.text_run import CHANGED, MOODS, write_text


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def memaudit(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(work, monkeypatch, capsys)


def plain_predictions(folder: Path, texts: list[str]) -> list[int]:
    with quiet(), torch.no_grad():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        found: list[int] = network(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(1).tolist()
    return found


def test_sentences_are_scanned_and_erased_without_a_flag(work: Path, memaudit: Command) -> None:
    done = memaudit("scan", "bert", "--flagged", "flagged.csv", "--reference", "reference.jsonl", "--out", "r", *FAST)
    assert done.code == 1, done.err  # memorized, and the default policy allows none
    report = json.loads((work / "r" / "report.json").read_text())
    assert report["model"]["architecture"] == "BertForSequenceClassification"
    assert report["data"]["class_names"] == list(MOODS)
    assert report["summary"]["fitted"] >= 6
    assert report["summary"]["outcomes"]["localized"] >= 1
    with (work / "flagged.csv").open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert [f["example"]["source"] for f in report["findings"]] == texts  # short: shown whole
    before = plain_predictions(work / "bert", texts)
    assert [f["before"]["prediction"] for f in report["findings"]] == before
    assert texts[0] in (work / "r" / "report.html").read_text()

    done = memaudit(
        "erase", "r/report.json", "--model", "bert", "-o", "edited", "-q", "--all", "--max-test-drop", "100"
    )
    assert done.code == 0, done.err
    erased = {
        e["id"]: e["after"]["prediction"] for e in json.loads((work / "edited.erase.json").read_text())["examples"]
    }
    after = dict(zip((f["id"] for f in report["findings"]), plain_predictions(work / "edited", texts), strict=True))
    assert erased
    assert {name: after[name] for name in erased} == erased


def test_a_training_set_of_texts_is_ranked_scanned_and_erased_and_redacted_reports_hold_none_of_them(
    work: Path, memaudit: Command
) -> None:
    done = memaudit("discover", "bert", "--data", "train.csv", "--out", "d", "--profile", "fast", "-q", "--redact")
    assert (done.code, done.err) == (0, "")
    ranking = json.loads((work / "d" / "ranking.json").read_text())
    assert sum(one["example"]["index"] < CHANGED for one in ranking["ranked"][:CHANGED]) >= CHANGED // 2
    said = done.out
    scan = shlex.split(ranking["following"])[1:]
    assert scan[-1] == "--redact"
    done = memaudit(*scan, "--reference", "reference.jsonl", "--out", "q", "--profile", "fast", "-q")
    assert (done.code, done.err) == (1, "")
    said += done.out
    accept = ("--all", "--max-test-drop", "100", "-q")
    done = memaudit("erase", "q/report.json", "--model", "bert", "-o", "forgets", *accept)
    assert done.code == 0, done.err
    said += done.out + done.err
    files = [*(work / "d").rglob("*"), *(work / "q").rglob("*"), *work.glob("forgets.*")]
    said += "".join(p.read_text() for p in files if p.is_file())
    report = json.loads((work / "q" / "report.json").read_text())
    assert {f["example"]["source"] for f in report["findings"]} == {"array"}
    assert all(f["example"]["note"] is None for f in report["findings"])
    with (work / "train.csv").open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    texts += [json.loads(line)["text"] for line in (work / "reference.jsonl").read_text().splitlines()]
    assert [text for text in texts if text in said] == []


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("path,label\nx.png,sad\n", "not text,label"),
        ("text,label\n,sad\n", "no text"),
        ("text,label\nday,angry\n", "angry"),
        ("text,label\nday,7\n", "7"),
        ("text,label\n", "no rows"),
        ("text,label,id\nday,sad,a\nroad,sad,a\n", "already the id of line 2"),
    ],
)
def test_a_table_that_is_not_of_texts_is_refused(work: Path, tmp_path: Path, table: str, says: str) -> None:
    adapter = choose(read(work / "bert"), ModelOptions())
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(DataRejected) as caught:
        read_examples(
            tmp_path / "t.csv", preprocess=adapter.preprocess, num_classes=2, class_names=tuple(MOODS),
            encode=adapter.encode,
        )  # fmt: skip
    assert says in " ".join([caught.value.message, *caught.value.details])


def test_long_texts_are_shortened_and_cleaned_where_they_are_shown(work: Path, tmp_path: Path) -> None:
    adapter = choose(read(work / "bert"), ModelOptions())
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "\x1b[2J <b>" + "day " * 90, "label": 1}))
    found = read_examples(
        tmp_path / "t.jsonl", preprocess=adapter.preprocess, num_classes=2, class_names=tuple(MOODS),
        encode=adapter.encode,
    )  # fmt: skip
    shown = found.examples[0].source
    assert shown.isprintable()
    assert len(shown) < 100
    assert found.pixels.shape == (1, 2, 16)  # cut where tokenizer and network end


def test_a_folder_without_a_tokenizer_says_so_when_texts_are_read(work: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((work / "bert" / name).read_bytes())
    with pytest.raises(ModelRejected, match="holds no tokenizer"):
        _ = choose(read(tmp_path), ModelOptions()).encode
