"""What teams put into their CI, run for real: the action's steps as `action.yml` has them, and the pre-commit hook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from memaudit import report
from memaudit.report.document import Report
from tests import report_samples as samples
from tests import torch_free
from tests.cli_support import command

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass(frozen=True)
class Job:
    """What the action left behind."""

    code: int
    out: str
    outputs: dict[str, str]
    summary: str


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runner's temporary folder after the first step: memaudit is installed in it, without torch."""
    folder = tmp_path_factory.mktemp("runner")
    torch_free.make(folder / "memaudit")
    return folder


def run_action(installed: Path, work: Path, **inputs: str) -> Job:
    """The second step as it stands in action.yml, with the environment that a runner makes for it."""
    given = {name: inputs.get(name.replace("-", "_"), i.get("default", "")) for name, i in ACTION["inputs"].items()}
    step = STEPS[1]
    values = {f"inputs.{name}": value for name, value in given.items()}
    environment = {name: values[EXPRESSION.fullmatch(text)[1]] for name, text in step["env"].items()}  # type: ignore[index]
    runner = {"RUNNER_TEMP": str(installed), "GITHUB_OUTPUT": str(work / "out"), "PATH": os.environ["PATH"]}
    runner |= {"GITHUB_STEP_SUMMARY": str(work / "summary"), "CI": "true"}
    ran = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=work, env={**runner, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = (work / "out").read_text("utf-8").splitlines()
    summary = (work / "summary").read_text("utf-8") if (work / "summary").exists() else ""
    return Job(ran.returncode, ran.stdout, dict(line.split("=", 1) for line in lines), summary)


def write(work: Path, found: Report) -> None:
    report.write(found, work / "report.json")


def test_the_action_says_no_and_why(installed: Path, tmp_path: Path) -> None:
    write(tmp_path, samples.small())
    job = run_action(installed, tmp_path, report="report.json")
    assert job.code == 1
    assert job.out.startswith("::error title=memaudit%3A Policy not met::")
    counted = {k: job.outputs[k] for k in ("verdict", "exit-code", "flagged", "memorized", "active")}
    assert counted == {"verdict": "fail", "exit-code": "1", "flagged": "4", "memorized": "2", "active": "2"}
    assert job.summary.startswith("# ❌ Policy not met")
    assert json.loads(Path(job.outputs["sarif"]).read_text())["version"] == "2.1.0"
    assert report.read(job.outputs["report"]).verdict == "fail"
    assert Path(job.outputs["html"]).read_text("utf-8").startswith("<!doctype html>")


def test_the_action_takes_policy_baseline_and_waivers(installed: Path, tmp_path: Path) -> None:
    write(tmp_path, samples.small())
    assert run_action(installed, tmp_path, report="report.json", max_memorized="2").code == 0
    assert run_action(installed, tmp_path, report="report.json", max_memorized="2", max_localized="0").code == 1
    job = run_action(installed, tmp_path, report="report.json", baseline="report.json", min_reference_accuracy="0.5")
    assert (job.code, job.outputs["verdict"], job.outputs["active"]) == (0, "pass", "0")
    assert run_action(installed, tmp_path, report="report.json", waivers="gone.toml").code == 2


def test_the_action_ends_with_the_tools_own_code(installed: Path, tmp_path: Path) -> None:
    write(tmp_path, samples.incomplete())
    job = run_action(installed, tmp_path, report="report.json")
    assert (job.code, job.outputs["verdict"]) == (4, "incomplete")
    (tmp_path / "out").unlink()
    job = run_action(installed, tmp_path, report="gone.json")
    assert (job.code, job.outputs) == (3, {"exit-code": "3", "verdict": "error"})


@pytest.mark.parametrize("evil", ["$(touch pwned)", '"; touch pwned; "', "--exit-zero"])
def test_an_input_is_never_a_command_or_an_option(installed: Path, tmp_path: Path, evil: str) -> None:
    write(tmp_path, samples.small())
    for name in ("report", "max_memorized"):
        job = run_action(installed, tmp_path, **{"report": "report.json", name: evil})
        assert job.code in (2, 3)
    assert not (tmp_path / "pwned").exists()


def test_a_hostile_report_sets_no_output_of_its_own(installed: Path, tmp_path: Path) -> None:
    found = samples.hostile()
    write(tmp_path, found.model_copy(update={"gate": found.gate.model_copy(update={"policy": {"max_memorized": "0"}})}))
    job = run_action(installed, tmp_path, report="report.json")
    assert set(job.outputs) == set(ACTION["outputs"])
    assert (job.code, job.outputs["verdict"]) == (1, "fail")
    assert all(line.startswith("::") for line in job.out.splitlines())


def test_a_large_report_fits_the_step_summary(installed: Path, tmp_path: Path) -> None:
    write(tmp_path, samples.large(2000))
    job = run_action(installed, tmp_path, report="report.json")
    assert 0 < len(job.summary.encode()) < 1 << 20
    assert job.summary.rstrip().endswith("`")


def test_inputs_reach_scripts_through_the_environment_alone() -> None:
    for step in STEPS:
        assert step["shell"] == "bash"
        assert EXPRESSION.findall(step["run"]) == []
        for text in step.get("env", {}).values():
            assert EXPRESSION.fullmatch(text), text
    assert all(EXPRESSION.fullmatch(o["value"])[1] == f"steps.check.outputs.{n}" for n, o in ACTION["outputs"].items())  # type: ignore[index]


def test_hook_and_action_install_the_same_packages() -> None:
    """The first step is pip with this file, which a test cannot run without a network; its parts are checked."""
    lines = [line for line in (ROOT / "ci/check-requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert lines == torch_free.hook()["additional_dependencies"][1:]  # type: ignore[index]
    assert '--no-deps \\\n  -r "$ACTION/ci/check-requirements.txt" "$ACTION"' in STEPS[0]["run"]
    assert subprocess.run(["bash", "-n", "-c", STEPS[0]["run"]], check=False).returncode == 0


# ---- pre-commit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local clone's worth of this repository: its hook, committed."""
    folder = tmp_path_factory.mktemp("hooks")
    shutil.copy(torch_free.HOOKS, folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "hooks")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def pre_commit(installed: Path, hooks: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """pre-commit's own run over the committed files.

    `language: system` in the user's file stands for the environment that pre-commit would fetch: the memaudit it finds
    is the one without torch.
    """
    config = {"repo": str(hooks), "rev": git(hooks, "rev-parse", "HEAD").strip()}
    hook = {"id": "memaudit-check", "language": "system", "additional_dependencies": []}
    (work / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{**config, "hooks": [hook]}]}))
    git(work, "init", "--quiet")
    git(work, "add", ".")
    path = f"{installed / 'memaudit' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    home = str(work.parent)
    environment = {"PATH": path, "HOME": home, "PRE_COMMIT_HOME": home + "/cache"}
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose"],
        cwd=work, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("waived", "code"), [(False, 1), (True, 0)])
def test_the_hook_checks_committed_reports(
    installed: Path, hooks: Path, tmp_path: Path, waived: bool, code: int
) -> None:
    work = tmp_path / "work"
    (work / "reports" / "model").mkdir(parents=True)
    report.write(samples.small(), work / "reports" / "model" / "report.json")
    (work / "package.json").write_text("{}")
    if waived:
        entry = '[[waiver]]\nid = "{}"\nreason = "r"\nowner = "o"\nexpires = 2999-01-01\n'
        text = "".join(entry.format(samples.identity(name)) for name in "ac")
        (work / "memaudit-waivers.toml").write_text(text)
    ran = pre_commit(installed, hooks, work)
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert ("Failed" if code else "Passed") in ran.stdout
    assert ("Policy not met" if code else "2 waived") in ran.stdout
    assert "package.json" not in ran.stdout


# ---- what init writes ---------------------------------------------------------------------------------------------


def test_the_github_job_uses_inputs_the_action_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, monkeypatch, capsys)("init")
    text = (tmp_path / ".github/workflows/memaudit.yml").read_text("utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    (step,) = [s for s in job["steps"] if "memaudit@" in s["uses"]]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert set(re.findall(r"# (\w+): model", text)) <= set(ACTION["inputs"])


def test_the_gitlab_job_runs_as_written(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, monkeypatch, capsys)("init", "--ci", "gitlab")
    job = yaml.safe_load((tmp_path / "memaudit.gitlab-ci.yml").read_text("utf-8"))["memaudit"]
    report.write(samples.small(), tmp_path / "reports" / "model" / "report.json")
    (tmp_path / "memaudit.toml").unlink()
    path = f"{installed / 'memaudit' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**job["variables"], "PATH": path, "CI": "true"}
    script = ["bash", "-ec", "\n".join(job["script"])]
    ran = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ran.returncode == 1
    assert (tmp_path / job["artifacts"]["reports"]["junit"]).exists()
    assert (tmp_path / job["artifacts"]["paths"][0]).exists()
