"""`memaudit discover`, from files to files: what it finds, writes, refuses and goes on with."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memaudit.engine.loop import BACKWARD
from memaudit.errors import ExitCode
from memaudit.report.ranked import Ranking
from memaudit.report.reading import load
from tests.cli_support import MODEL, NETWORK, Command, command
from tests.conftest import Trained, digits

FAST = ("--profile", "fast", "--images", "none", "-q")
DISCOVER = ("discover", *MODEL, "--data", "train.npz", *FAST)
CHANGED = 50


def read(path: Path) -> Ranking:
    return Ranking.model_validate(load(path))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """The network, and all that it was trained on: 50 of 1,000 labels were changed."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "network.py").write_text(NETWORK)
    save_file(trained.module.state_dict(), folder / "digits.safetensors")
    x, truth = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1000]
    labels = truth[order].clone()
    labels[:CHANGED] = trained.flagged.labels
    np.savez(folder / "train.npz", x=x[order].numpy(), y=labels.numpy(), true_label=truth[order].numpy())
    return folder


@pytest.fixture
def memaudit(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(work, monkeypatch, capsys)


@pytest.fixture(scope="module")
def found(work: Path) -> Ranking:
    """One ranking that several tests look at, with every further file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("CI", "1")
        from memaudit.__main__ import run

        assert run((*DISCOVER, "-o", "ranking.csv", "-o", "ranking.parquet", "-o", "out.md")) == ExitCode.OK
    return read(work / "reports/digits/discovery/ranking.json")


def test_changed_labels_come_first_without_being_named(found: Ranking) -> None:
    shares = found.shares
    assert (shares.known, shares.known_wrong) == (1000, CHANGED)
    assert shares.auroc is not None
    assert shares.auroc >= 0.99
    assert shares.wrong_low <= CHANGED / 1000 <= shares.wrong_high
    first = found.ranked[:CHANGED]
    assert sum(one.example.true_label != one.example.label for one in first) >= 0.9 * CHANGED
    assert sum(one.suggested_label == one.example.true_label for one in first) >= 0.8 * CHANGED


def test_a_dry_run_prints_the_plan_and_writes_nothing(memaudit: Command, work: Path, found: Ranking) -> None:
    before = sorted(work.rglob("*"))
    ran = memaudit(*DISCOVER, "--dry-run", "--out", "elsewhere")
    assert (ran.code, sorted(work.rglob("*"))) == (ExitCode.OK, before)
    assert "data       1,000 examples" in ran.out
    assert "neighbours among 1,000" in ran.out
    assert "workers    --engine ray --workers N: 2 in " in ran.out
    foretold = int(re.search(r"passes     about ([\d,]+)", ran.out)[1].replace(",", ""))  # type: ignore[index]
    took = sum(n * (BACKWARD if stage.endswith(" backward") else 1) for stage, n in found.passes.items())
    assert 0.9 <= took / foretold <= 1.1
    assert memaudit(*DISCOVER, "--dry-run", "--limit", "100").code == ExitCode.INCOMPLETE


def test_the_precision_that_is_foretold_is_the_one_that_is_found(found: Ranking) -> None:
    for cut in found.cut_offs:
        assert cut.known_wrong is not None
        assert cut.low - 0.02 <= cut.known_wrong <= cut.high + 0.02


def test_nearest_examples_are_others_with_trusted_labels(found: Ranking) -> None:
    for one in found.ranked[:CHANGED]:
        assert all(similar.example.index != one.example.index for similar in one.nearest)
    near = [similar.example for one in found.ranked[:CHANGED] for similar in one.nearest]
    assert sum(example.label == example.true_label for example in near) >= 0.95 * len(near)


def test_the_table_holds_every_row_once_and_the_two_formats_agree(work: Path, found: Ranking) -> None:
    import pyarrow.parquet

    with (work / "ranking.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["index"]) for row in rows) == list(range(1000))
    needed = {"index", "id", "declared_id", "source", "label", "prediction", "estimate", "p_value", "suggested_label"}
    assert needed <= set(rows[0])
    for row in rows:
        assert 0 <= float(row["estimate"]) <= 1
        given = row["prediction"] == row["label"]  # and what is learned by heart is what nothing else supports
        assert float(row["estimate"]) == (pytest.approx(float(row["unsupported"]), abs=1e-5) if given else 0)
    assert [int(row["index"]) for row in rows[:50]] == [one.example.index for one in found.ranked[:50]]
    columns = pyarrow.parquet.read_table(work / "ranking.parquet").to_pydict()
    assert columns["index"] == [int(row["index"]) for row in rows]


def test_what_is_flagged_is_what_a_scan_takes(work: Path, found: Ranking, memaudit: Command) -> None:
    with (work / "reports/digits/discovery/flagged.csv").open(newline="") as file:
        listed = [int(row["index"]) for row in csv.DictReader(file)]
    with (work / "ranking.csv").open(newline="") as file:
        standings: dict[str, list[int]] = {kind: [] for kind in ("memorized", "undecided", "learned", "resisted")}
        for row in csv.DictReader(file):
            standings[row["standing"]].append(int(row["index"]))
    assert listed == (standings["memorized"] or standings["undecided"])
    words = found.following.split()
    assert words[:2] == ["memaudit", "scan"]
    ran = memaudit(*words[1:], *FAST, "--limit", "3")
    assert ran.code == ExitCode.INCOMPLETE, ran.err
    report = json.loads((work / "reports/digits/report.json").read_text())
    assert [f["example"]["index"] for f in report["findings"]] == [one.example.index for one in found.ranked[:3]]


def test_the_next_command_is_one_that_works_here(work: Path, memaudit: Command) -> None:
    """Documents hold no absolute path; what is printed leads to the files all the same."""
    data, out = str(work / "train.npz"), str(work / "elsewhere")
    words = ("--data", data, "--out", out, "--profile", "fast", "--limit", "60", "--images", "none")
    ran = memaudit("discover", *MODEL, *words)
    assert ran.code == ExitCode.INCOMPLETE, ran.err
    printed = "".join(ran.out.split("next: ")[1].split())  # a long line is folded
    assert printed.startswith(f"memauditscandigits.safetensors--data{data}--flagged{out}/flagged.csv--adapter")
    document = json.loads((work / "elsewhere/ranking.json").read_text())
    assert str(work) not in json.dumps(document)


def test_a_scan_without_a_list_finds_its_own(work: Path, memaudit: Command) -> None:
    ran = memaudit("scan", *MODEL, "--data", "train.npz", "--top", "4", "--out", "own", *FAST, "--exit-zero")
    assert ran.code == ExitCode.OK, ran.err
    assert len(json.loads((work / "own/report.json").read_text())["findings"]) == 4
    assert not list((work / "own").rglob("journal*"))


def test_a_scan_that_knows_no_data_says_what_to_name(memaudit: Command) -> None:
    ran = memaudit("scan", *MODEL, *FAST)
    assert ran.code == ExitCode.USAGE
    assert "no flagged examples" in ran.err
    assert "--data" in ran.err


def test_a_limit_makes_it_incomplete_beside_the_complete_one(work: Path, found: Ranking, memaudit: Command) -> None:
    before = (work / "reports/digits/discovery/ranking.json").read_bytes()
    ran = memaudit(*DISCOVER, "--limit", "60")
    assert ran.code == ExitCode.INCOMPLETE, ran.err
    assert (work / "reports/digits/discovery/ranking.json").read_bytes() == before
    beside = read(work / "reports/digits/discovery/ranking.incomplete.json")
    assert (beside.status, beside.shares.examples) == ("incomplete", 60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "list.csv"), "could be two things"),
        (("-o", "ranking.xlsx"), "no ranking format"),
        (("--data", "absent"), "absent"),
        (("--top", "0"), "--top"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_long(
    memaudit: Command, arguments: tuple[str, ...], said: str
) -> None:
    ran = memaudit(*DISCOVER, "--out", "refused", *arguments)
    assert ran.code in (ExitCode.USAGE, ExitCode.REJECTED)
    assert said in ran.err


def test_an_auditor_of_reports_says_that_it_is_a_ranking(work: Path, found: Ranking, memaudit: Command) -> None:
    ran = memaudit("check", "reports/digits/discovery/ranking.json")
    assert ran.code == ExitCode.REJECTED
    assert "is a ranking" in ran.err


def test_cut_short_the_same_command_ends_with_the_same(work: Path, memaudit: Command) -> None:
    """Interrupted after a few batches, again and again: the last run says what one that was left alone does."""
    from memaudit.engine.journal import Journal

    few = (*DISCOVER, "--limit", "60")
    assert memaudit(*few, "--out", "whole").code == ExitCode.INCOMPLETE
    runs = 0
    with pytest.MonkeyPatch.context() as patch:
        add = Journal.add
        for budget in (3, 20, 60):
            left = [budget]

            def counted(journal: Journal, *values: object, left: list[int] = left, **named: object) -> None:
                add(journal, *values, **named)  # type: ignore[arg-type]
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt

            patch.setattr(Journal, "add", counted)
            assert memaudit(*few, "--out", "cut").code == ExitCode.INTERRUPTED
            runs += 1
    assert runs == 3
    assert memaudit(*few, "--out", "cut").code == ExitCode.INCOMPLETE
    ended, found = (read(work / folder / "ranking.json") for folder in ("cut", "whole"))
    assert ended.volatile["resumed_batches"] > 20
    same = {"volatile": {}, "command": "", "following": ""}
    assert ended.model_copy(update=same) == found.model_copy(update=same)
