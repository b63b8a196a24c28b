"""The gate: policy, baseline and waivers on a report alone, what changed between two, and all of it without torch."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from memaudit import report
from memaudit.errors import DataRejected, ModelRejected, UsageError
from memaudit.gate import policy as gate
from memaudit.gate import waivers
from memaudit.report.compare import compare
from memaudit.report.document import Report
from tests import report_samples as samples
from tests import torch_free
from tests.cli_support import Command, command

FIRST, SECOND = samples.identity("a"), samples.identity("c")  # the sample's memorized findings
NOW = date(2026, 11, 21)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    report.write(samples.small(), tmp_path / "report.json")
    return command(tmp_path, monkeypatch, capsys)


def waiver(identity: str, expires: str = "2999-12-31", **changes: str) -> str:
    keys = {"id": f'"{identity}"', "reason": '"a canary"', "owner": '"ann"', "expires": expires, **changes}
    return "[[waiver]]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items() if v)


def fewer(*keep: str) -> Report:
    """The sample as if only these findings had been memorized."""
    sample = samples.small()
    return sample.model_copy(
        update={"findings": [f.model_copy(update={"memorized": f.id in keep}) for f in sample.findings]}
    )


# ---- policy -----------------------------------------------------------------------------------------------------


def test_the_reports_own_policy_holds_where_nobody_names_another(cli: Command) -> None:
    ran = cli("check", "report.json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("✗ Policy not met  model.safetensors\n")
    assert "✓ min reference accuracy: 0.9 (met)" in ran.out
    assert FIRST in ran.out
    assert SECOND in ran.out


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (("--max-memorized", "2"), 0),
        (("--max-memorized", "50%"), 0),
        (("--max-memorized", "49%"), 1),
        (("--max-memorized", "2", "--min-reference-accuracy", "0.95"), 1),
        (("--max-memorized", "2", "--max-localized", "0"), 1),
        (("--exit-zero",), 0),
        (("--max-memorized", "many"), 2),
        (("--min-reference-accuracy", "1.5"), 2),
    ],
)
def test_rules_that_are_named_replace_the_reports(cli: Command, policy: tuple[str, ...], code: int) -> None:
    assert cli("check", "report.json", *policy).code == code


def test_a_verdict_written_into_a_report_is_not_believed(cli: Command, tmp_path: Path) -> None:
    forged = samples.small(verdict="pass", gate=samples.small().gate.model_copy(update={"failed": []}))
    report.write(forged, tmp_path / "report.json")
    assert cli("check", "report.json").code == 1


def test_an_incomplete_report_never_passes(cli: Command, tmp_path: Path) -> None:
    report.write(samples.incomplete(), tmp_path / "report.json")
    ran = cli("check", "report.json", "--exit-zero", "--max-memorized", "100%")
    assert ran.code == 4
    assert "no verdict" in ran.out


def test_a_policy_this_version_does_not_know_is_no_policy(cli: Command, tmp_path: Path) -> None:
    odd = samples.small(gate=samples.small().gate.model_copy(update={"policy": {"max_memorised": "3"}}))
    report.write(odd, tmp_path / "report.json")
    ran = cli("check", "report.json")
    assert ran.code == 3
    assert "unknown rule 'max_memorised'; closest: 'max_memorized'" in ran.err


def test_several_reports_end_with_the_worst(cli: Command, tmp_path: Path) -> None:
    report.write(fewer(), tmp_path / "good.json")
    report.write(samples.incomplete(), tmp_path / "open.json")
    assert cli("check", "good.json", "good.json").code == 0
    assert cli("check", "good.json", "report.json").code == 1
    assert cli("check", "good.json", "report.json", "open.json").code == 4
    assert cli("check", "good.json", "gone.json").code == 3
    assert cli("check", "good.json", "report.json", "-o", "x.md").code == 2


def test_what_check_decided_is_in_every_output(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(waiver(FIRST) + waiver(SECOND))
    ran = cli("check", "report.json", "--waivers", "w.toml", "-f", "json", *(x for n in ("j", "h") for x in _out(n)))
    assert ran.code == 0
    assert json.loads(ran.out)["gate"]["waived"] == [FIRST, SECOND]
    assert json.loads(ran.out)["verdict"] == "pass"
    assert (tmp_path / "x.json").read_text("utf-8") == ran.out
    assert "a canary (ann, until 2999-12-31)" in (tmp_path / "x.html").read_text("utf-8")


def _out(name: str) -> tuple[str, str]:
    return "-o", {"j": "x.json", "h": "x.html"}[name]


# ---- baseline ---------------------------------------------------------------------------------------------------


def test_a_baseline_suppresses_what_it_has_and_fails_on_one_new_finding(cli: Command, tmp_path: Path) -> None:
    report.write(samples.small(), tmp_path / "old.json")
    ran = cli("check", "report.json", "--baseline", "old.json")
    assert ran.code == 0
    assert "Of the memorized examples, 2 known from the baseline old.json; 0 left." in " ".join(ran.out.split())
    report.write(fewer(FIRST), tmp_path / "old.json")
    ran = cli("check", "report.json", "--baseline", "old.json")
    assert ran.code == 1
    assert "1 of 4 flagged examples are memorized, neither waived nor in the baseline; allowed: 0" in _line(ran.out)
    assert FIRST not in ran.out
    assert SECOND in ran.out


def test_an_example_that_was_flagged_and_not_memorized_is_new() -> None:
    judged = gate.apply(samples.small(), gate.Policy(), gate.Accepted(baseline=fewer()))
    assert judged.gate.known == []
    assert judged.verdict == "fail"


def test_an_incomplete_baseline_is_told_and_a_missing_one_refused(cli: Command, tmp_path: Path) -> None:
    report.write(samples.incomplete(), tmp_path / "old.json")
    assert "the baseline old.json is incomplete" in _line(cli("check", "report.json", "--baseline", "old.json").out)
    assert cli("check", "report.json", "--baseline", "gone.json").code == 3


def test_applying_the_gate_again_changes_nothing_but_what_is_asked(tmp_path: Path) -> None:
    accepted = gate.Accepted(baseline=fewer(FIRST), name="old.json")
    once = gate.apply(samples.small(), gate.Policy(), accepted, NOW)
    assert gate.apply(once, gate.Policy(), accepted, NOW) == once
    assert gate.apply(once, gate.Policy.of(samples.small().gate), gate.Accepted(), NOW).gate.known == []


# ---- waivers ----------------------------------------------------------------------------------------------------


def test_a_waiver_holds_through_its_last_day_and_is_active_again_after_it(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(waiver(FIRST, "2026-11-21") + waiver(SECOND[:10], "2026-11-20"))
    accepted = gate.Accepted(waivers.read(tmp_path / "w.toml"))
    judged = gate.apply(samples.small(), gate.Policy(), accepted, NOW)
    assert judged.gate.waived == [FIRST]
    assert judged.verdict == "fail"
    assert [(w.code, "expired on 2026-11-20: active again" in w.message) for w in judged.warnings[-1:]] == [
        ("MEM801", True)
    ]
    later = gate.apply(samples.small(), gate.Policy(gate.Limit(1)), accepted, NOW)
    assert later.verdict == "pass"


def test_a_waiver_of_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(waiver("0" * 16))
    judged = gate.apply(samples.small(), gate.Policy(), gate.Accepted(waivers.read(tmp_path / "w.toml")), NOW)
    assert judged.warnings[-1].code == "MEM802"


def test_a_waiver_in_a_file_above_is_found_and_a_named_one_goes_first(cli: Command, tmp_path: Path) -> None:
    (tmp_path / waivers.NAME).write_text(waiver(FIRST) + waiver(SECOND))
    (tmp_path / "none.toml").write_text("")
    assert cli("check", "report.json").code == 0
    assert cli("check", "report.json", "--waivers", "none.toml").code == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (waiver(FIRST, reason=""), "has no reason"),
        (waiver(FIRST, owner='""'), "owner is not a text"),
        (waiver("abc"), "too short"),
        (waiver(FIRST, expires='"soon"'), "is not a date"),
        (waiver(FIRST, expires="2026-01-01T00:00:00Z"), "is not a date"),
        (waiver(FIRST) + 'expiry = "x"\n', "unknown key 'expiry'; closest: 'expires'"),
        (waiver(FIRST) + waiver(FIRST[:12]), "two waivers are about"),
        ("[waiver]\nid = 3\n", "as a table of its own"),
        ("[[waivers]]\n", "unknown key 'waivers'; closest: 'waiver'"),
        ("waiver = 3\n", "as a table of its own"),
        ("a = 1\na = 2\n", "not valid TOML"),
        ("\0", "not valid TOML"),
    ],
)
def test_a_waiver_file_with_a_mistake_is_a_usage_error(cli: Command, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "w.toml").write_text(text)
    ran = cli("check", "report.json", "--waivers", "w.toml")
    assert ran.code == 2
    assert says in ran.err
    assert "w.toml" in ran.err


def test_a_waiver_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "gone", tmp_path, tmp_path / "binary", Path("/dev/null\0")):
        with pytest.raises(UsageError):
            waivers.read(path)


# ---- which model a report is of -----------------------------------------------------------------------------------


def of_model(tmp_path: Path, content: bytes = b"weights") -> Report:
    (tmp_path / "model.safetensors").write_bytes(content)
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "md5": hashlib.md5(content).hexdigest()}
    found = samples.small(model=samples.small().model.model_copy(update=digests))
    report.write(found, tmp_path / "report.json")
    return found


def lfs(digest: str) -> str:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 3\n"


def dvc(digest: str) -> str:
    return f"outs:\n- md5: {digest}\n  size: 7\n  hash: md5\n  path: model.safetensors\n"


POINTERS: dict[str, Callable[[Report], tuple[str, str]]] = {
    "git-lfs": lambda r: ("model.safetensors", lfs(r.model.sha256)),
    "dvc": lambda r: ("model.safetensors.dvc", dvc(r.model.md5)),
}


@pytest.mark.parametrize("kind", POINTERS)
def test_the_file_and_its_pointers_prove_the_report(cli: Command, tmp_path: Path, kind: str) -> None:
    found = of_model(tmp_path)
    ran = cli("check", "report.json", "--model", "model.safetensors", "--exit-zero")
    assert (ran.code, "the report is of this checkpoint (sha256 " in ran.err) == (0, True)
    name, text = POINTERS[kind](found)
    (tmp_path / name).write_text(text)
    assert cli("check", "report.json", "--model", name, "--exit-zero").code == 0


WRONG: dict[str, tuple[str, str]] = {
    "another file": ("model.safetensors", "other weights"),
    "another file's git-lfs pointer": ("model.safetensors", lfs("0" * 64)),
    "another file's dvc pointer": ("model.dvc", dvc("0" * 32)),
    "dvc of a folder": ("model.dvc", dvc("0" * 32 + ".dir")),
    "dvc of two files": ("model.dvc", dvc("0" * 32) + dvc("1" * 32).removeprefix("outs:\n")),
    "no dvc file": ("model.dvc", "outs"),
    "a dvc file of nested lists": ("model.dvc", "[" * 5000),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_prove_the_report_is_refused(cli: Command, tmp_path: Path, case: str) -> None:
    of_model(tmp_path)
    name, text = WRONG[case]
    (tmp_path / name).write_text(text)
    ran = cli("check", "report.json", "--model", name, "--exit-zero")
    assert (ran.code, ran.out) == (3, "")
    assert name in ran.err


def test_a_report_without_a_digest_proves_nothing(tmp_path: Path) -> None:
    from memaudit.checkpoints import prove

    (tmp_path / "m.dvc").write_text(dvc("0" * 32))
    with pytest.raises(ModelRejected, match="holds no md5"):
        prove(tmp_path / "m.dvc", samples.small().model)


# ---- two reports --------------------------------------------------------------------------------------------------


def test_what_is_new_gone_and_unchanged() -> None:
    old, new = fewer(FIRST), samples.small(findings=[f for f in fewer(SECOND).findings if f.id != FIRST])
    found = compare(old, new)
    assert found.counts == {"new": 1, "gone": 1, "unchanged": 0}
    assert [(c.status, c.id, c.reason) for c in found.changes] == [
        ("new", SECOND, "was flagged, not memorized"),
        ("gone", FIRST, "no longer flagged"),
    ]
    assert compare(old, old).counts == {"new": 0, "gone": 0, "unchanged": 1}


def test_diff_prints_text_json_and_markdown(cli: Command, tmp_path: Path) -> None:
    report.write(fewer(FIRST), tmp_path / "old.json")
    ran = cli("diff", "old.json", "report.json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == "memorized examples: 1 new, 0 gone, 1 unchanged"
    assert f"+ {SECOND[:10]}  train/c.png  diffuse; was flagged, not memorized" in ran.out
    data = json.loads(cli("diff", "old.json", "report.json", "-f", "json").out)
    assert data["counts"] == {"gone": 0, "new": 1, "unchanged": 1}
    assert f"| + | `{SECOND[:10]}` |" in cli("diff", "old.json", "report.json", "-f", "markdown").out
    assert cli("diff", "report.json", "report.json").out.startswith("unchanged: 2 memorized examples")
    assert cli("diff", "report.json", "report.json", "-f", "html").code == 2
    assert cli("diff", "report.json", "gone.json").code == 3


def test_an_incomplete_audit_makes_no_clean_comparison(cli: Command, tmp_path: Path) -> None:
    report.write(samples.incomplete(), tmp_path / "new.json")
    ran = cli("diff", "report.json", "new.json")
    assert ran.code == 4
    assert "what is gone may only not have been looked at" in ran.out


def test_a_comparison_of_hostile_reports_is_harmless(cli: Command, tmp_path: Path) -> None:
    report.write(samples.hostile(), tmp_path / "evil.json")
    for format_ in ("table", "markdown"):
        for pair in (("report.json", "evil.json"), ("evil.json", "report.json")):
            out = cli("diff", *pair, "-f", format_).out
            assert not any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 for c in out)
            assert not any(line.startswith("::") for line in out.splitlines())


# ---- without torch ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment without torch."""
    return torch_free.make(tmp_path_factory.mktemp("bare") / "env")


def ran_bare(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-P", "-m", "memaudit", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_hook_installs_all_that_the_gate_needs() -> None:
    assert torch_free.missing() == set()
    assert not set(torch_free.listed()) & set(torch_free.ABSENT)


def test_the_environment_has_no_torch(bare: Path) -> None:
    code = f"import importlib.util as u, sys; sys.exit([n for n in {torch_free.ABSENT!r} if u.find_spec(n)] != [])"
    assert subprocess.run([bare, "-c", code], check=False).returncode == 0


CASES: list[tuple[tuple[str, ...], int, str]] = [
    (("check", "report.json"), 1, "Policy not met"),
    (("check", "report.json", "--baseline", "report.json", "-f", "github"), 0, "::notice"),
    (("check", "report.json", "--model", "model.safetensors", "--exit-zero"), 0, "Policy not met"),
    (("check", "report.json", "--model", "model.dvc", "--exit-zero"), 0, "Policy not met"),
    (("diff", "report.json", "report.json"), 0, "unchanged"),
    (("render", "report.json", *(x for s in ("html", "md", "sarif", "xml", "json") for x in ("-o", f"x.{s}"))), 0, ""),
    (("schema",), 0, "schema_version"),
    (("--help",), 0, "Usage"),
    (("adapters",), 0, "timm"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), CASES, ids=[" ".join(c[0][:3]) for c in CASES])
def test_these_commands_run_where_torch_is_not_installed(
    bare: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    found = of_model(tmp_path)
    (tmp_path / "model.dvc").write_text(dvc(found.model.md5))
    ran = ran_bare(bare, tmp_path, *arguments)
    assert (ran.returncode, ran.stderr.replace("the report is of", "")[:5] in ("", " this", "x.htm", "the p")) == (
        code,
        True,
    )
    assert says in ran.stdout


def test_the_gate_starts_quickly(bare: Path, tmp_path: Path) -> None:
    """Counted in function calls, which no load changes: 406,000 and 164,000, most by the libraries."""
    report.write(samples.large(200), tmp_path / "report.json")

    def calls(*arguments: str) -> int:
        command = [bare, "-P", "-m", "cProfile", "-m", "memaudit", *arguments]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
        return int(re.search(r"(\d+) function calls", said)[1])  # type: ignore[index]

    assert 100_000 < calls("check", "report.json") < 600_000
    assert 50_000 < calls("--help") < 250_000


def test_scanning_without_torch_says_what_is_missing(bare: Path, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    ran = ran_bare(bare, tmp_path, "inspect", "model.safetensors")
    assert ran.returncode == 5
    assert "torch is not installed" in ran.stderr


def _line(text: str) -> str:
    return " ".join(text.split())


def test_a_report_that_is_none_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataRejected):
        report.read(tmp_path / "gone.json")
