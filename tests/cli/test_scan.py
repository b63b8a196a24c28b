"""The command itself: what it prints, what it writes, and the code it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from memaudit.__main__ import main, run
from memaudit.data import ondemand, spill
from memaudit.errors import ExitCode
from memaudit.findings import Outcome
from memaudit.report import formats
from memaudit.report.document import Report
from tests.cli_support import (
    FAST,
    FLAGGED,
    MODEL,
    NPZ,
    REFERENCE,
    Command,
    Ran,
    command,
    copied,
    tree,
    write_table,
    write_timm,
    write_work,
)
from tests.conftest import Trained
from tests.quick import in_fork

SCAN = ("scan", *MODEL, *NPZ, *FAST)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A working directory with one complete report in it. Tests get copies."""
    folder = write_work(tmp_path_factory.mktemp("finished"), trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run([*SCAN, "--out", "report"]) == ExitCode.POLICY
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    return copied(finished, tmp_path / "work")


@pytest.fixture
def cli(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(work, monkeypatch, capsys)


def read(path: Path) -> Report:
    return Report.model_validate_json(path.read_text("utf-8"))


def outcomes(report: Report) -> dict[str, int]:
    return {outcome.value: n for outcome, n in report.summary.outcomes.items() if n}


# ---- what a scan takes and gives --------------------------------------------------------------------------------

# the same twelve flagged images, in every form they can have
FORMS: dict[str, tuple[str, ...]] = {
    "class folders": ("--flagged", "flagged", "--reference", "reference"),
    "manifest": ("--flagged", "flagged.csv", "--reference", "reference"),
    "arrays": NPZ,
    "rows of arrays": ("--data", "all.npz", "--flagged", "flagged.txt", "--reference", "reference.npy"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_examples_gives_the_same_findings(
    cli: Command, work: Path, finished: Path, form: str
) -> None:
    ran = cli("scan", *MODEL, *FORMS[form], *FAST, "--out", "again", "--max-memorized", "100%")
    assert (ran.code, ran.err) == (ExitCode.OK, "")
    report, arrays = read(work / "again/report.json"), read(finished / "report/report.json")
    assert (len(report.findings), report.data.reference.count) == (FLAGGED, REFERENCE)
    assert report.data.reference.accuracy == arrays.data.reference.accuracy
    assert sorted(f.example.label for f in report.findings) == sorted(f.example.label for f in arrays.findings)
    assert sum(f.fitted for f in report.findings) == sum(f.fitted for f in arrays.findings) == FLAGGED
    assert report.summary.outcomes[Outcome.LOCALIZED] >= FLAGGED // 2


def test_sets_that_do_not_stay_in_memory_give_the_same_report(
    cli: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for room, disk in ((ondemand.KEPT, 0), (5 * 64, 9 * 64)):  # all of both sets; of each, five images and nine on disk
        monkeypatch.setattr(ondemand, "KEPT", room)
        monkeypatch.setattr(spill, "SPILLED", disk)
        assert cli("scan", *MODEL, *FORMS["class folders"], *FAST, "--out", "again", "--exit-zero", "--fresh").code == 0
        found.append(json.loads((work / "again/report.json").read_text("utf-8")) | {"volatile": None})
    assert found[0] == found[1]


def test_a_large_reference_is_drawn_from_and_the_report_says_so(cli: Command, work: Path) -> None:
    sets = FORMS["class folders"]
    ran = cli("scan", *MODEL, *sets, *FAST, "--out", "drawn", "--exit-zero", "--reference-size", "60", "-o", "drawn.md")
    assert ran.code == 0, ran.err
    report = read(work / "drawn/report.json")
    assert (report.data.reference.count, report.data.reference.drawn_from) == (60, REFERENCE)
    assert report.inputs["reference_size"] == 60, "what erases from it reads the same examples"
    assert f"(60 of {REFERENCE}, drawn by label)" in (work / "drawn.md").read_text("utf-8")
    assert f"60 examples of {REFERENCE}, drawn by label" in (work / "drawn/report.html").read_text("utf-8")
    assert report.status == "complete"


def test_the_table_says_what_the_report_holds(cli: Command, work: Path) -> None:
    ran = cli(*SCAN, "--out", "report")
    report = read(work / "report/report.json")
    assert ran.code == ExitCode.POLICY
    assert ran.out.startswith("✗ Policy not met  digits.safetensors\n")
    assert f"{report.summary.memorized} of the {FLAGGED} flagged examples are memorized" in ran.out
    assert ran.out.endswith("wrote report/report.json\nwrote report/report.html\n")
    assert (work / "report/report.html").read_text("utf-8").startswith("<!doctype html>")


def test_two_runs_differ_in_the_volatile_block_alone(cli: Command, work: Path, finished: Path) -> None:
    cli(*SCAN, "--out", "report")
    before, after = (json.loads((f / "report/report.json").read_text()) for f in (finished, work))
    assert before.pop("volatile").keys() == after.pop("volatile").keys()
    assert before == after


def test_json_alone_is_on_stdout_and_is_the_report(cli: Command, work: Path) -> None:
    ran = cli("scan", *MODEL, *NPZ, "--profile", "fast", "-f", "json", "--out", "report")  # not quiet
    assert ran.out == (work / "report/report.json").read_text("utf-8")
    assert "memaudit: localize (12)\n" in ran.err


def test_markdown_and_github_are_on_stdout(cli: Command) -> None:
    assert cli(*SCAN, "-f", "markdown", "--out", "report").out.startswith("# ❌ Policy not met: `digits.safetensors`\n")
    lines = cli(*SCAN, "-f", "github", "--out", "report").out.splitlines()
    assert lines[0].startswith("::error title=memaudit%3A Policy not met::")
    assert all(line.startswith("::") for line in lines)


def test_further_outputs_are_written_by_suffix(cli: Command, work: Path) -> None:
    ran = cli(*SCAN, "--out", "report", "-o", "x.html", "-o", "deep/x.sarif", "-o", "x.xml", "-o", "x.html")
    assert ran.code == ExitCode.POLICY
    assert (work / "x.html").read_text("utf-8").startswith("<!doctype html>")
    assert json.loads((work / "deep/x.sarif").read_text())["version"] == "2.1.0"
    assert "<testsuite" in (work / "x.xml").read_text("utf-8")
    assert ran.out.count("wrote ") == 5


def test_a_dry_run_prints_the_plan_and_writes_nothing(cli: Command, work: Path) -> None:
    before = tree(work)
    ran = cli(*SCAN, "--dry-run", "--out", "elsewhere")
    assert (ran.code, tree(work)) == (ExitCode.OK, before)
    assert "flagged    12, about 12 fitted" in ran.out
    assert "units      80 in 3 layers (channel)" in ran.out
    assert "workers    --engine ray --workers N: 2 in " in ran.out


def test_a_dry_run_of_examples_that_cannot_all_be_read_is_incomplete_as_the_scan_is(cli: Command, work: Path) -> None:
    rows = [f"flagged/{p.relative_to(work / 'flagged')},{p.parent.name}" for p in sorted(work.glob("flagged/*/*.png"))]
    (work / "broken.png").write_bytes(b"")
    (work / "some.csv").write_text("\n".join(["path,label", *rows[:4], "broken.png,1"]))
    before = tree(work)
    words = ("scan", *MODEL, "--flagged", "some.csv", "--reference", "reference.npz", "--out", "elsewhere", *FAST)
    ran = cli(*words, "--dry-run")
    assert (ran.code, tree(work)) == (ExitCode.INCOMPLETE, before)
    assert "incomplete 1 flagged examples could not be read: line 6: broken.png" in ran.out
    assert cli(*words).code == ExitCode.INCOMPLETE


def test_thumbnails_are_on_the_page_when_asked_for(cli: Command, work: Path) -> None:
    plain = (work / "report/report.html").read_text("utf-8")
    cli(*SCAN, "--out", "report", "--images", "thumbs")
    assert "data:image/png" not in plain
    page = (work / "report/report.html").read_text("utf-8")
    assert page.count('width="44"') == FLAGGED
    assert page.count('alt="clean example ') >= 3 * min(10, FLAGGED)
    again = cli("render", "report/report.json", "-o", "again.html")
    assert (again.code, (work / "again.html").read_text("utf-8")) == (0, page)
    (work / "report/report.html").rename(work / "kept.html")
    lost = cli("render", "report/report.json", "-o", "again.html")
    assert "the page has no pictures" in lost.err
    assert "--images PAGE" in lost.err
    cli("render", "report/report.json", "-o", "again.html", "--images", "kept.html")
    assert (work / "again.html").read_text("utf-8") == page


def test_the_report_names_the_command_but_no_place_on_this_machine(cli: Command, work: Path) -> None:
    far = ("--adapter", f"{work}/network.py:build", f"--out={work}/report", "--flagged", f"{work}/flagged.npz")
    cli("scan", f"{work}/digits.safetensors", *far, "--reference", "reference.npz", "--input-size", "1,8,8", *FAST)
    text = (work / "report/report.json").read_text("utf-8")
    assert str(work) not in text
    assert read(work / "report/report.json").command == (
        "memaudit scan digits.safetensors --adapter network.py:build --out=report --flagged flagged.npz "
        "--reference reference.npz --input-size 1,8,8 --profile fast --images none -q"
    )


def test_flags_and_defaults_are_told_apart_in_the_report(cli: Command, work: Path) -> None:
    cli(*SCAN, "--out", "report", "--max-units", "4", "--layers", "t*", "--ablation", "mean", "--test", "reference.npz")
    report = read(work / "report/report.json")
    config = {name: (value.value, value.origin) for name, value in report.config.items()}
    assert config["max_units"] == (4, "flag")
    assert config["ablation"] == ("mean", "flag")
    assert config["unit"] == ("auto", "default")
    assert {u.layer for u in report.units.by_layer} == {"two.1", "three.1"}
    assert all(len(f.units) <= 4 for f in report.findings)
    assert report.data.test is not None
    assert report.data.test.accuracy == report.data.reference.accuracy


# ---- exit codes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ((), 1),
        (("--exit-zero",), 0),
        (("--max-memorized", "100%"), 0),
        (("--max-memorized", "12", "--max-localized", "0"), 1),
        (("--max-memorized", "12", "--min-reference-accuracy", "1"), 1),
        (("--max-memorized", "12", "--min-reference-accuracy", "0.5"), 0),
    ],
)
def test_the_policy_decides_between_0_and_1(cli: Command, work: Path, policy: tuple[str, ...], code: int) -> None:
    assert cli(*SCAN, "--limit", "12", *policy, "--out", "report").code == code
    assert read(work / "report/report.json").verdict == ("fail" if code or "--exit-zero" in policy else "pass")


def test_an_example_the_model_does_not_fit_is_no_finding_of_memorization(cli: Command, work: Path) -> None:
    with np.load(work / "reference.npz") as arrays:
        x, y = arrays["x"][:1], (arrays["y"][:1] + 1) % 10
    np.savez(work / "unfitted.npz", x=x, y=y)
    ran = cli("scan", *MODEL, "--flagged", "unfitted.npz", "--reference", "reference.npz", *FAST, "--out", "other")
    report = read(work / "other/report.json")
    assert (ran.code, report.verdict, outcomes(report)) == (0, "pass", {"not_fitted": 1})
    assert {w.code for w in report.warnings} >= {"MEM101", "MEM102"}  # it is also in the reference; nothing to erase


def test_an_incomplete_report_stands_beside_a_complete_one(cli: Command, work: Path) -> None:
    before = tree(work)
    ran = cli(*SCAN, "--limit", "3", "--out", "report", "-o", "x.md")
    after = tree(work)
    assert ran.code == ExitCode.INCOMPLETE
    assert {n for n in after if before.get(n) != after[n]} == {
        "report/report.incomplete.json",
        "report/report.incomplete.html",
        "x.incomplete.md",
    }
    report = read(work / "report/report.incomplete.json")
    assert (report.status, len(report.findings)) == ("incomplete", 3)
    assert "! " in ran.out.splitlines()[0]
    assert "--limit 3: 9 flagged examples not audited" in ran.out


def test_an_incomplete_report_is_replaced_by_the_next(cli: Command, work: Path) -> None:
    for limit, code, status in (("3", 4, "incomplete"), ("5", 4, "incomplete"), ("12", 1, "complete")):
        assert cli(*SCAN, "--limit", limit, "--out", "new").code == code
        report = read(work / "new/report.json")
        assert (report.status, len(report.findings)) == (status, int(limit))


def test_an_image_that_cannot_be_read_makes_the_audit_incomplete(cli: Command, work: Path) -> None:
    whole = next((work / "flagged").rglob("*.png"))
    half = whole.read_bytes()[:60]
    whole.unlink()
    whole.write_bytes(half)
    ran = cli("scan", *MODEL, "--flagged", "flagged.csv", "--reference", "reference", *FAST, "--out", "other")
    assert ran.code == ExitCode.INCOMPLETE
    assert whole.name in ran.out
    assert read(work / "other/report.json").status == "incomplete"


Change = Callable[[Path], object]


def nothing(_: Path) -> None:
    return None


def table(*rows: list[object]) -> Change:
    return lambda work: write_table(work / "bad.csv", rows)


def arrays(change: Callable[[Any, Any], tuple[Any, Any]]) -> Change:
    def write(work: Path) -> None:
        with np.load(work / "reference.npz") as given:
            x, y = change(given["x"], given["y"])
        np.savez(work / "bad.npz", x=x, y=y)

    return write


def source(text: str) -> Change:
    return lambda work: (work / "bad.py").write_text((work / "network.py").read_text() + text)


BAD_FLAGGED = ("--flagged", "bad.csv", "--reference", "reference.npz")
BAD_REFERENCE = ("--flagged", "flagged.npz", "--reference", "bad.npz")
BAD_CODE = ("digits.safetensors", "--adapter", "bad.py:build", "--input-size", "1,8,8", *NPZ)
TRAINS = """
def build():
    net = DigitsNet()
    net.one.train = lambda mode=True: net.one
    return net
"""
COUNTS = """
class Counting(DigitsNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return super().forward(x)

build = Counting
"""
DROPS = """
class Dropping(DigitsNet):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)

build = Dropping
"""
MIXES = """
class Mixing(DigitsNet):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)

build = Mixing
"""


EXITS = """
class Exits(DigitsNet):
    calls = 0

    def forward(self, x):
        Exits.calls += 1
        if Exits.calls == 40:
            raise SystemExit(0)
        return super().forward(x)

build = Exits
"""


def forward(body: str) -> Change:
    """The network with another forward, of one line."""
    return source(f"\nclass Odd(DigitsNet):\n    def forward(self, x):\n        {body}\n\nbuild = Odd\n")


# what is wrong, how to make it so, arguments after `scan`, exit code, what stderr says
REFUSED: list[tuple[str, Change, tuple[str, ...], int, str]] = [
    ("unknown option", nothing, (*MODEL, *NPZ, "--max-unit", "3"), 2, "No such option: --max-unit"),
    ("no flagged", nothing, (*MODEL, "--reference", "reference.npz"), 2, "error: no flagged examples"),
    ("no such choice", nothing, (*MODEL, *NPZ, "--profile", "quick"), 2, "--profile 'quick' is not one of: fast,"),
    ("no such format", nothing, (*MODEL, *NPZ, "-f", "yaml"), 2, "--format 'yaml' is not one of: table, json"),
    ("no such suffix", nothing, (*MODEL, *NPZ, "-o", "x.htm"), 2, "no report format '.htm'; closest: '.html'"),
    ("a folder as output", nothing, (*MODEL, *NPZ, "-o", "flagged.html"), 2, "output flagged.html is a folder"),
    ("no number", nothing, (*MODEL, *NPZ, "--limit", "many"), 2, "Invalid value for '--limit'"),
    ("no units at all", nothing, (*MODEL, *NPZ, "--max-units", "0"), 2, "Invalid value for '--max-units'"),
    ("no time", nothing, (*MODEL, *NPZ, "--time-limit", "0"), 2, "--time-limit 0 is not a positive number"),
    ("no accuracy", nothing, (*MODEL, *NPZ, "--min-reference-accuracy", "nan"), 2, "--min-reference-accuracy"),
    ("no limit", nothing, (*MODEL, *NPZ, "--max-memorized", "some"), 2, "--max-memorized 'some' is not a limit"),
    ("no batch", nothing, (*MODEL, *NPZ, "--batch-size", "0"), 2, "--batch-size '0' is neither auto"),
    ("no mean", nothing, (*MODEL, *NPZ, "--mean", "a"), 2, "--mean 'a' is no list of numbers"),
    ("no such device", nothing, (*MODEL, *NPZ, "--device", "tpu9"), 2, "no device is called 'tpu9'"),
    ("no such layer", nothing, (*MODEL, *NPZ, "--layers", "four.*"), 2, "no layer matches 'four.*'"),
    ("no such kind", nothing, (*MODEL, *NPZ, "--unit", "head"), 2, "no unit of kind 'head'; it has: channel (80)"),
    ("no such architecture", nothing, (MODEL[0], "--arch", "resnet0", *NPZ), 2, "no architecture 'resnet0'"),
    (
        "no such adapter",
        nothing,
        (MODEL[0], "--adapter", "tim", *NPZ),
        2,
        "no adapter 'tim' is installed; closest: 'timm'",
    ),
    (
        "no such factory",
        nothing,
        (MODEL[0], "--adapter", "network.py:make", *NPZ),
        2,
        "no factory 'make' in network.py",
    ),
    ("missing model", nothing, ("gone.safetensors", *NPZ), 3, "cannot open gone.safetensors"),
    ("wrong architecture", nothing, (MODEL[0], "--arch", "test_vit", *NPZ), 3, "digits.safetensors is not test_vit"),
    ("no architecture fits", nothing, (MODEL[0], *NPZ), 3, "no architecture of timm"),
    ("missing flagged", nothing, (*MODEL, *BAD_FLAGGED), 3, "bad.csv does not exist"),
    ("empty table", table(), (*MODEL, *BAD_FLAGGED), 3, "bad.csv has no rows"),
    ("label out of range", table(["flagged/0/000.png", 10]), (*MODEL, *BAD_FLAGGED), 3, "line 2"),
    ("no such image", table(["flagged/none.png", 1]), (*MODEL, *BAD_FLAGGED), 3, "line 2"),
    ("no images", arrays(lambda x, y: (x[:0], y[:0])), (*MODEL, *BAD_REFERENCE), 3, "bad.npz"),
    ("one image", arrays(lambda x, y: (x[:1], y[:1])), (*MODEL, *BAD_REFERENCE), 3, "too few"),
    ("shifted labels", arrays(lambda x, y: (x, (y + 1) % 10)), (*MODEL, *BAD_REFERENCE), 3, "MEM902"),
    ("other image size", arrays(lambda x, y: (x[:, :, :6], y)), (*MODEL, *BAD_REFERENCE), 3, "bad.npz"),
    ("adapter raises", source("\n1 / 0\n"), BAD_CODE, 3, "(1 / 0) raised ZeroDivisionError"),
    ("training mode", source(TRAINS), BAD_CODE, 3, "modules are in training mode, first one"),
    ("not repeatable", source(DROPS), BAD_CODE, 3, "two passes over the same images differ"),
    ("depends on the batch", source(MIXES), BAD_CODE, 3, "depend on the other images of its batch"),
    (
        "forward raises",
        forward("return self.nothing"),
        BAD_CODE,
        3,
        "(return self.nothing): AttributeError: 'Odd' object",
    ),
    ("forward exits", forward("raise SystemExit(0)"), BAD_CODE, 3, "the network fails on a batch (2, 1, 8, 8) on cpu"),
    ("one batch size", forward("return super().forward(x.view(1, 1, 8, 8))"), BAD_CODE, 3, "batch (2, 1, 8, 8) on cpu"),
    ("no logits", forward("return {'a': super().forward(x), 'b': x}"), BAD_CODE, 3, "dict with a, b, not logits"),
    ("one number", forward("return super().forward(x).sum()"), BAD_CODE, 3, "returned shape () (float32) for"),
    ("other input size", nothing, (*MODEL[:-1], "1,16,16", *NPZ), 3, "batch (2, 1, 16, 16) on cpu, network.py line"),
    ("device that is not there", nothing, (*MODEL, *NPZ, "--device", "cuda:99"), 5, "this machine has no device"),
    ("buffers change", source(COUNTS), BAD_CODE, 70, "changed the buffer calls"),
]


def test_a_network_that_exits_half_way_is_no_verdict(cli: Command, work: Path) -> None:
    source(EXITS)(work)
    ran = cli("scan", *BAD_CODE, "--out", "none", *FAST)
    assert ran.code == 3
    assert "code that was run for the audit ended the program (SystemExit: 0)" in ran.err
    assert not (work / "none" / "report.json").exists()


@pytest.mark.parametrize(("change", "arguments", "code", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_refused_scan_says_why_and_leaves_every_file_as_it_was(
    cli: Command, work: Path, change: Change, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (work / "flagged.html").mkdir()
    change(work)
    before = tree(work)
    ran = cli("scan", *FAST, *arguments, "--out", "report")
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert tree(work) == before
    cli("scan", *FAST, *arguments, "--out", "a/new/folder")
    assert tree(work) == before


def test_a_locked_report_is_left_alone(cli: Command, work: Path) -> None:
    with FileLock(work / "report/.lock"):
        before = tree(work)
        ran = cli(*SCAN, "--out", "report")
        assert (ran.code, tree(work)) == (ExitCode.ENVIRONMENT, before)
    assert "another memaudit is writing to report" in ran.err


# ---- real processes ---------------------------------------------------------------------------------------------


def process(work: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
    base = [sys.executable, "-m", "memaudit", *arguments]
    return subprocess.run(base, cwd=work, env=environment, text=True, check=False, **options)


def test_the_installed_command_ends_with_the_code(work: Path) -> None:
    tool = Path(sys.executable).with_name("memaudit")
    done = subprocess.run([tool, "scan", "gone.pt", *NPZ], cwd=work, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot open gone.pt" in done.stderr


def test_a_reader_that_leaves_and_a_full_disk_are_no_bugs(work: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    gone = process(work, "schema", stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    with Path("/dev/full").open("w") as full:
        no_space = process(work, "schema", stdout=full, stderr=subprocess.PIPE)
    assert (gone.returncode, gone.stderr) == (5, "")
    assert no_space.returncode == 5
    assert no_space.stderr == "error: cannot write to standard output: No space left on device\n"


SECONDS = "float(__import__('os').environ.get('SLEEP', '0'))"


def started() -> subprocess.Popen[str]:
    """A scan in a process of its own, which sleeps as `SECONDS` says; its standard error is read."""

    def scan() -> int:
        os.environ["SLEEP"] = "0.03"
        sys.stderr = os.fdopen(2, "w", buffering=1)
        main(["scan", *MODEL, *NPZ, "--profile", "fast", "--out", "report"])
        return 0

    return in_fork(scan, ["scan"], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_scan_keeps_what_it_measured_and_goes_on(
    cli: Command, work: Path, finished: Path, number: int, code: int
) -> None:
    network = (work / "network.py").read_text()
    wait = (
        "        if not self.head.weight.requires_grad:  # as while wrong labels are planted\n"
        f"            __import__('time').sleep({SECONDS})\n"
    )
    head = "def forward(self, x: Tensor) -> Tensor:\n"
    (work / "network.py").write_text(network.replace(head, head + wait))
    before = tree(work)
    with started() as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "localize" in line:
                running.send_signal(number)
                break
        rest = running.stderr.read()
    assert running.returncode == code
    how = "interrupted" if code == 130 else "terminated"
    assert re.search(rf"error: {how}; \d+ batches are kept in report/journal.jsonl\n  fix: Run the same", rest)
    after = tree(work)
    assert after.pop("report/journal.jsonl")
    assert after == before
    assert cli(*SCAN, "--out", "report").code == ExitCode.POLICY
    assert set(tree(work)) == set(before)
    report = read(work / "report/report.json")
    assert report.volatile["resumed_batches"] > 0
    assert report.findings == read(finished / "report/report.json").findings


def test_a_second_interrupt_leaves_at_once_and_the_run_can_go_on(cli: Command, work: Path, finished: Path) -> None:
    network = (work / "network.py").read_text()
    hang = f"        __import__('time').sleep(60 if __import__('os').path.exists('hang') else {SECONDS})\n"
    head = "def forward(self, x: Tensor) -> Tensor:\n"
    (work / "network.py").write_text(network.replace(head, head + hang))
    with started() as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "localize" in line:
                (work / "hang").touch()
                time.sleep(1)  # it now is in a batch that does not end
                running.send_signal(signal.SIGINT)
            if "finishing this batch; interrupt again to leave at once" in line:
                start = time.monotonic()
                running.send_signal(signal.SIGINT)
                break
        assert running.wait(30) == 130
    assert time.monotonic() - start < 30
    (work / "hang").unlink()
    assert cli(*SCAN, "--out", "report").code == ExitCode.POLICY
    report = read(work / "report/report.json")
    assert report.volatile["resumed_batches"] > 0
    assert report.findings == read(finished / "report/report.json").findings


def test_help_render_and_schema_load_no_torch(work: Path) -> None:
    code = (
        "import sys; from memaudit.__main__ import run; "
        "codes = [run(c.split()) for c in ('--help', 'scan --help', 'schema', 'render report/report.json -o x.md')]; "
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, check=False).returncode == 0


# ---- the other commands -----------------------------------------------------------------------------------------

HELP = [
    *("", "scan", "inspect", "check", "diff", "render", "convert", "init", "schema", "demo"),
    *("adapters", "adapters list", "adapters test"),
]


@pytest.mark.parametrize("name", HELP)
def test_every_command_explains_itself(cli: Command, name: str) -> None:
    ran = cli(*name.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: memaudit {name}".rstrip() in ran.out
    assert cli(*name.split(), "-h").out == ran.out


def test_nothing_asked_is_a_usage_error_with_the_help(cli: Command) -> None:
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: memaudit")


def test_the_version_is_the_packages(cli: Command) -> None:
    assert re.fullmatch(r"memaudit \d+\.\d+\.\d+\n", cli("--version").out)


def test_render_draws_what_scan_wrote(cli: Command, work: Path) -> None:
    page = (work / "report/report.html").read_bytes()
    ran = cli(
        "render", "report/report.json", "-o", "x.html", "-o", "x.json", "-o", "x.sarif", "-o", "x.xml", "-o", "x.md"
    )
    assert (ran.code, ran.out) == (0, "")
    assert (work / "x.html").read_bytes() == page
    assert (work / "x.json").read_bytes() == (work / "report/report.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("gone.json", "-o", "x.md"), 3, "gone.json"),
        (("flagged.csv", "-o", "x.md"), 3, "flagged.csv"),
        (("report/report.json", "-o", "x.md", "-o", "x.doc"), 2, "no report format '.doc'"),
        (("report/report.json", "-o", "x.md", "-o", "network.py/x.md"), 2, "is a file, not a folder"),
        (("report/report.json",), 2, "Missing option '-o'"),
    ],
)
def test_render_writes_all_outputs_or_none(cli: Command, work: Path, arguments: Any, code: int, says: str) -> None:
    before = tree(work)
    ran = cli("render", *arguments)
    assert (ran.code, tree(work)) == (code, before)
    assert says in ran.err


def test_the_report_follows_the_schema(cli: Command, work: Path) -> None:
    schema = json.loads(cli("schema").out)
    written = json.loads((work / "report/report.json").read_text())
    assert set(schema["required"]) <= set(written) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    Report.model_validate_json(json.dumps(written), strict=True)
    assert cli("schema", "report").out == json.dumps(schema, indent=2, sort_keys=True) + "\n"
    assert cli("schema", "nothing").code == 2


def test_inspect_shows_what_would_be_audited(cli: Command) -> None:
    ran = cli("inspect", *MODEL)
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in ran.out.splitlines() if line[0] != " "}
    assert rows["adapter"] == "user: factory in network.py"
    assert rows["architecture"] == "DigitsNet"
    assert rows["classes"] == "10"
    assert rows["preprocessing"] == "1x8x8, crop 1, bicubic, mean none, std none (flags)"
    assert rows["units"] == "80 of kind channel; searched: 80 channels in 3 layers"
    assert "guessed, until you say it: --mean --std --crop-pct --interpolation --crop-mode; scan tries" in ran.out
    said = ("--mean", "0.5", "--std", "0.5", "--crop-pct", "1", "--interpolation", "bicubic", "--crop-mode", "center")
    assert "guessed" not in cli("inspect", *MODEL, *said).out


def test_inspect_prints_json_in_the_reports_shapes(cli: Command, work: Path) -> None:
    shown = json.loads(cli("inspect", *MODEL, "-f", "json").out)
    report = read(work / "report/report.json")
    assert shown["model"] == {**report.model.model_dump(mode="json"), "candidates": []}
    assert [u["layer"] for u in shown["units"]["by_layer"]] == [u.layer for u in report.units.by_layer]
    assert shown["preprocess"]["input_size"] == [1, 8, 8]
    assert shown["preprocess"]["guessed"]["mean"] == "--mean"
    assert "input_size" not in shown["preprocess"]["guessed"]


def test_inspect_refuses_a_network_that_has_no_units_as_scan_would(cli: Command, work: Path) -> None:
    (work / "flat.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    save_file({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, work / "flat.safetensors")
    flat = ("flat.safetensors", "--adapter", "flat.py:build", "--input-size", "1,8,8")
    ran = cli("inspect", *flat)
    assert (ran.code, ran.out) == (3, "")
    assert "no layer of torch.nn.modules.container.Sequential can be cut" in ran.err


def test_the_demo_will_not_write_among_other_files(cli: Command, work: Path) -> None:
    before = tree(work)
    ran = cli("demo", "report")
    assert (ran.code, tree(work)) == (2, before)
    assert "report exists and is no demo directory" in ran.err


# ---- timm checkpoints that nobody named -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained as test_efficientnet_gn; the same tensors are a test_efficientnet_ln."""
    return write_timm(tmp_path_factory.mktemp("twin"), "test_efficientnet_gn")


def in_folder(folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    return command(folder, patch, capsys)(*arguments)


SMALL = ("--input-size", "3,32,32")


def test_a_bare_timm_file_is_audited_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = command(write_timm(tmp_path, "test_resnet"), monkeypatch, capsys)
    ran = cli("scan", "test_resnet.safetensors", *SMALL, *NPZ, *FAST)
    report = read(tmp_path / "reports/test_resnet/report.json")
    assert (ran.code in (0, 1), ran.err) == (True, "")
    assert (report.model.architecture, report.model.num_classes, report.model.adapter) == ("test_resnet", 3, "timm")
    assert report.data.reference.accuracy is not None
    assert report.data.reference.accuracy > 0.9
    assert report.summary.fitted >= 1
    assert report.config["preprocess"].origin == "flags, timm's training values for test_resnet"


def test_a_model_tested_at_another_size_is_a_warning_until_the_user_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_timm(tmp_path, "test_resnet")
    (tmp_path / "model").mkdir()
    (tmp_path / "test_resnet.safetensors").rename(tmp_path / "model/model.safetensors")
    sizes = {"input_size": [3, 32, 32], "test_input_size": [3, 48, 48]}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": sizes}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    cli = command(tmp_path, monkeypatch, capsys)
    assert cli("scan", "model", *NPZ, *FAST).code in (0, 1)
    (warning,) = [w for w in read(tmp_path / "reports/model/report.json").warnings if w.code == "MEM903"]
    assert warning.message == (
        "images are prepared at 32 x 32, the size of training; the model is tested at 48 x 48 (--input-size 3,48,48)"
    )
    assert cli("scan", "model", *NPZ, *FAST, *SMALL).code in (0, 1)
    assert not [w for w in read(tmp_path / "reports/model/report.json").warnings if w.code == "MEM903"]


def test_what_would_stop_the_report_at_the_end_stops_it_before_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every name is in the rehearsed report; a renderer that trips over one ends the scan before it has measured."""
    cli = command(write_timm(tmp_path, "test_resnet"), monkeypatch, capsys)
    seen: list[Report] = []

    def trip(skeleton: Report, *_: object) -> Iterable[str]:
        seen.append(skeleton)
        raise RuntimeError("a name no renderer has met")

    monkeypatch.setitem(formats._RENDERERS, ".json", trip)
    assert cli("scan", "test_resnet.safetensors", *SMALL, *NPZ, *FAST).code == ExitCode.BUG
    (skeleton,) = seen
    assert [f.example.index for f in skeleton.findings] == list(range(6))
    assert {"conv1", "layer1.0.bn1"} <= {layer.layer for layer in skeleton.units.by_layer}
    assert (skeleton.status, skeleton.passes) == ("incomplete", {})
    assert not (tmp_path / "reports").exists()


def test_twins_are_told_apart_by_the_reference(
    twin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = in_folder(twin, monkeypatch, capsys, "scan", "test_efficientnet_gn.safetensors", *SMALL, *NPZ, *FAST)
    report = read(twin / "reports/test_efficientnet_gn/report.json")
    assert ran.code in (0, 1)
    assert report.model.architecture == "test_efficientnet_gn"
    assert set(report.model.candidates) == {"test_efficientnet_gn", "test_efficientnet_ln"}
    (warning,) = [w for w in report.warnings if w.code == "MEM901"]
    assert warning.message.startswith("taken as test_efficientnet_gn because it fits the reference best (")
    assert "MEM901" not in ran.out
    assert "taken as test_efficientnet_gn" in ran.out


def test_twins_that_few_images_do_not_tell_apart_are_a_question_to_the_user(
    twin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--flagged", "flagged.npz", "--reference", "few.npz")
    model = ("test_efficientnet_gn.safetensors", *SMALL, *few, *FAST, "--out", "undecided")
    ran = in_folder(twin, monkeypatch, capsys, "scan", *model)
    assert (ran.code, ran.out) == (2, "")
    assert "fits 2 architectures that compute differently" in ran.err
    assert re.search(r"^  test_efficientnet_gn: reference accuracy \d\.\d+$", ran.err, re.M)
    assert re.search(r"^  test_efficientnet_ln: reference accuracy \d\.\d+$", ran.err, re.M)
    assert "fix: Name the one it was trained as, for example: --arch test_efficientnet_" in ran.err
    assert not (twin / "undecided").exists()
    named = in_folder(twin, monkeypatch, capsys, "scan", *model, "--arch", "test_efficientnet_gn", "--dry-run")
    assert named.code == 0
    assert named.out.startswith("model      test_efficientnet_gn (")


def test_inspect_lists_twins_and_decides_nothing(
    twin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = command(twin, monkeypatch, capsys)
    ran = cli("inspect", "test_efficientnet_gn.safetensors")
    assert ran.code == 0
    assert "architecture   undecided; these fit the tensors equally and compute differently:" in ran.out
    assert re.search(r"^ +--arch test_efficientnet_ln$", ran.out, re.M)
    model = json.loads(cli("inspect", "test_efficientnet_gn.safetensors", "-f", "json").out)["model"]
    assert model["architecture"] is None
    assert sorted(model["candidates"]) == ["test_efficientnet_gn", "test_efficientnet_ln"]


def test_the_names_of_two_manifests_are_the_models_classes(cli: Command, work: Path) -> None:
    """In natural order, held against the reference as a folder's are; a name too few, and nobody knows the labels."""
    for name in ("flagged", "reference"):
        files = sorted((work / name).rglob("*.png"))
        rows = [(p.relative_to(work).as_posix(), f"class {p.parent.name}") for p in files]
        write_table(work / f"named-{name}.csv", rows)
        write_table(work / f"fewer-{name}.csv", [row for row in rows if row[1] != "class 3"])
    ran = cli(
        "scan", *MODEL, "--flagged", "named-flagged.csv", "--reference", "named-reference.csv", *FAST, "--out", "n"
    )
    assert ran.code in (0, 1), ran.err
    found = read(work / "n/report.json")
    assert cli("scan", *MODEL, "--flagged", "flagged", "--reference", "reference", *FAST, "--out", "f").code in (0, 1)
    assert found.data.class_names == [f"class {n}" for n in range(10)]
    assert found.data.class_order == "natural"
    by_pixels = {f.example.id: f.example.label for f in read(work / "f/report.json").findings}
    assert {f.example.id: f.example.label for f in found.findings} == by_pixels
    ran = cli("scan", *MODEL, "--flagged", "named-flagged.csv", "--reference", "fewer-reference.csv", *FAST)
    assert ran.code == ExitCode.REJECTED
    assert "fewer-reference.csv names 9 classes, the model has 10" in ran.err
    # A flagged list alone names no classes: its few names would stand for the first labels.
    ran = cli("scan", *MODEL, "--flagged", "named-flagged.csv", "--reference", "reference.npz", *FAST)
    assert ran.code == ExitCode.REJECTED
    assert "is neither an index nor a class name" in ran.err
