"""Settings in a file and in the environment: which goes first, what is refused, and that paths belong to the file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from memaudit import report
from memaudit.cli import config
from memaudit.cli.init import settings_file as written
from tests import report_samples as samples
from tests.cli_support import Command, command


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    report.write(samples.small(), tmp_path / "report.json")
    (tmp_path / ".git").mkdir()
    return command(tmp_path, monkeypatch, capsys)


def check(cli: Command, *arguments: str) -> int:
    return cli("check", "report.json", *arguments).code


def test_flags_go_before_the_environment_and_that_before_the_file(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(cli) == 1
    (tmp_path / "memaudit.toml").write_text("max-memorized = 2\n")
    assert check(cli) == 0
    monkeypatch.setenv("MEMAUDIT_MAX_MEMORIZED", "0")
    assert check(cli) == 1
    assert check(cli, "--max-memorized", "50%") == 0


def test_the_nearest_file_above_the_working_directory_is_used_and_no_other(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.memaudit]\nmax-memorized = 2\n[tool.other]\nx = 1\n")
    monkeypatch.chdir(inner)
    assert cli("check", "../../report.json").code == 0
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert cli("check", "../../report.json").code == 0
    (tmp_path / "a" / "memaudit.toml").write_text("max-memorized = 1\n")
    assert cli("check", "../../report.json").code == 1
    (inner / "pyproject.toml").write_text("[tool.memaudit]\nmax-memorized = 1\n")
    (inner / "memaudit.toml").write_text("max-memorized = 2\n")
    assert cli("check", "../../report.json").code == 0


def test_a_file_beside_the_model_or_the_report_is_never_read(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "memaudit.toml").write_text("max-memorized = '100%'\nnonsense = true\n")
    report.write(samples.small(), tmp_path / "theirs" / "report.json")
    ran = cli("check", "theirs/report.json")
    assert (ran.code, ran.err) == (1, "")


def test_a_named_file_is_used_instead(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memaudit.toml").write_text("nonsense = true\n")
    (tmp_path / "mine.toml").write_text("max-memorized = 2\n")
    assert check(cli, "--config", "mine.toml") == 0
    monkeypatch.setenv("MEMAUDIT_CONFIG", "mine.toml")
    assert check(cli) == 0
    assert check(cli, "--config", "gone.toml") == 2


def test_paths_are_relative_to_the_file(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "memaudit.toml").write_text('baseline = "accepted.json"\n')
    report.write(samples.small(), tmp_path / "accepted.json")
    monkeypatch.chdir(tmp_path / "deep")
    assert cli("check", "../report.json").code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_memorized = 2", "memaudit.toml: unknown key 'max_memorized'; closest: 'max-memorized'"),
        ("max-unit = 2", "unknown key 'max-unit'; closest: 'max-units'"),
        ("quiet = true", "unknown key 'quiet'"),
        ("[scan]\nmax-units = 2", "unknown key 'scan'"),
        ("seed = 1\nseed = 2", "memaudit.toml is not valid TOML"),
        ("seed = '1'", "memaudit.toml: seed is '1', not a whole number"),
        ("seed = true", "seed is 'True', not a whole number"),
        ("max-units = 0", "memaudit.toml: max-units is 0, not at least 1"),
        ("min-reference-accuracy = 2.0", "min-reference-accuracy is 2.0, not from 0 to 1"),
        ("min-reference-accuracy = nan", "min-reference-accuracy is nan"),
        ("flagged = 3", "flagged is '3', not a path"),
        ("flagged = ['a']", "flagged is"),
        ("arch = { a = 1 }", "arch is"),
        ("max-memorized = 'many'", "--max-memorized 'many' is not a limit"),
    ],
)
def test_a_mistake_in_the_file_is_a_usage_error_that_names_it(
    cli: Command, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "memaudit.toml").write_text(text)
    ran = cli("check", "report.json")
    assert ran.code == 2
    assert says in ran.err
    assert cli("check", "--help").code == 0


def test_a_variable_that_names_no_option_is_refused(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMAUDIT_MAX_MEMORISED", "3")
    ran = cli("check", "report.json")
    assert ran.code == 2
    assert "closest: 'MEMAUDIT_MAX_MEMORIZED'" in ran.err


def test_settings_of_other_commands_may_stand_in_file_and_environment(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memaudit.toml").write_text("max-units = 3\nmean = [0.5, 0.5]\nmodel-kwargs = { drop_rate = 0.1 }\n")
    monkeypatch.setenv("MEMAUDIT_BATCH_SIZE", "8")
    assert check(cli) == 1


def test_values_become_what_the_command_line_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "memaudit.toml"
    file.write_text(
        "mean = [0.5, 0.25]\ninput-size = [3, 32, 32]\naudit = ['localize', 'rewind']\n"
        "model-kwargs = {a = 1, b = 'x'}\ncheckpoints = ['run/*.pt', '/else/x.pt']\n"
        "adapter = 'net.py:build'\nclass-order = 'lexical'\nmax-memorized = 3\n"
    )
    assert config.load(file).values == {
        "mean": "0.5,0.25",
        "input_size": "3,32,32",
        "audit": "localize,rewind",
        "model_kwargs": ["a=1", 'b="x"'],
        "checkpoints": ["run/*.pt", "/else/x.pt"],
        "adapter": "net.py:build",
        "class_order": "lexical",
        "max_memorized": "3",
    }
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert config.load(file).values["adapter"] == "../net.py:build"
    assert config.load(file).values["checkpoints"][0] == "../run/*.pt"


def test_every_setting_is_in_the_schema_and_in_what_init_writes(cli: Command) -> None:
    schema = json.loads(cli("schema", "config").out)
    keys = {p.key for p in config.parameters().values()}
    assert set(schema["properties"]) == keys
    assert {"flagged", "reference", "max-units", "format", "waivers"} <= keys
    assert not {"quiet", "dry-run", "exit-zero", "config", "model"} & keys
    # every line that is commented out is a setting that can be used as it stands
    lines = [line.removeprefix("# ") for line in written().splitlines() if " = " in line and "MEMAUDIT_" not in line]
    table = tomllib.loads("\n".join(line for line in lines if line.split(" = ")[0] in keys))
    assert set(table) == keys
    assert schema["properties"]["max-units"] == {
        "default": 10, "description": "Most units one example may take.", "minimum": 1, "type": "integer",
    }  # fmt: skip


def test_what_init_writes_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {p.key for p in config.parameters().values()}
    text = "\n".join(
        line.removeprefix("# ") if line.removeprefix("# ").split(" = ")[0] in keys else line
        for line in written().splitlines()
    )
    (tmp_path / "memaudit.toml").write_text(text)
    assert set(config.load(tmp_path / "memaudit.toml").values) == set(config.parameters())


def test_init_replaces_nothing(cli: Command, tmp_path: Path) -> None:
    assert cli("init").code == 0
    before = (tmp_path / "memaudit.toml").read_bytes()
    ran = cli("init")
    assert (ran.code, "exists already" in ran.err) == (2, True)
    added = cli("init", "--ci", "gitlab")
    assert (added.code, "kept memaudit.toml" in added.out) == (0, True)
    assert (tmp_path / "memaudit.gitlab-ci.yml").exists()
    assert cli("init", "--ci", "gitlab").code == 2
    assert (tmp_path / "memaudit.toml").read_bytes() == before
    assert cli("init", "other", "--ci", "none").code == 0
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["memaudit.toml"]
