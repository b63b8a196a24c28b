"""README and reference say what is so: commands parse, options are those of --help, examples run, links lead somewhere.

`UPDATE_README=1 python -m pytest tests/test_docs.py` writes the generated parts of docs/reference.md anew.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from safetensors.torch import load_file

from memaudit.adapters.base import Adapter
from memaudit.audits.localize.work import RANDOM_BUDGET, REFERENCE_BUDGET
from memaudit.audits.memorization.verdict import FALSE_DISCOVERIES, LEVEL
from memaudit.cli import program
from memaudit.data import Preprocess
from memaudit.errors import ExitCode
from tests.cli_support import NETWORK, command, write_work
from tests.conftest import Trained
from tests.networks import DigitsNet

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
PLUGINS = sorted((ROOT / "plugins").glob("*/README.md"))
PROOF = ROOT / "docs" / "proof.md"
PAGES = [PAGE, REFERENCE, PROOF, *PLUGINS]
UPDATE = "UPDATE_README=1 python -m pytest tests/test_docs.py"
ROOT_COMMAND: Any = typer.main.get_command(program())


def text(page: Path = PAGE) -> str:
    return page.read_text("utf-8")


def after(marker: str, page: Path = PAGE) -> str:
    """The code block or table that follows `<!-- marker -->`."""
    rest = text(page).split(f"<!-- {marker} -->\n", 1)[1]
    return rest.split("```\n", 2)[0].split("\n", 1)[1] if rest.startswith("```") else rest.split("\n\n", 1)[0]


def commands(parent: Any = ROOT_COMMAND, name: str = "memaudit") -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups left out."""
    for part, child in parent.commands.items():
        if hasattr(child, "commands"):
            yield from commands(child, f"{name} {part}")
        else:
            yield f"{name} {part}", child


def reference() -> str:
    """The options of every command, from the parser itself: the same for every release of typer."""
    blocks = []
    for name, found in commands():
        rows = [row for parameter in found.params if (row := _row(parameter))]
        arguments = [p for p in found.params if p.param_type_name == "argument"]
        usage = " ".join([name, *(p.metavar if p.required else f"[{p.metavar}]" for p in arguments)])
        head = "| option | default | |\n|---|---|---|\n" if rows else ""
        blocks.append(f"### `{usage}`\n\n{_first(found.help)}\n\n{head}{''.join(rows)}".rstrip())
    return "\n\n".join(blocks)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument" or "--help" in parameter.opts:
        return ""
    default = "required" if parameter.required else parameter.default
    if isinstance(default, bool) or not isinstance(default, str | int):
        shown = ""
    else:
        shown = default if default == "required" else f"`{default}`"
    return f"| `{', '.join(parameter.opts)}` | {shown} | {parameter.help.replace('<', '&lt;')} |\n"


def _first(help_text: str) -> str:
    return " ".join(help_text.split("\n\n")[0].split())


def words(page: Path) -> Iterator[list[str]]:
    """Every `memaudit ...` command line in the page's code blocks, continued lines joined."""
    blocks = re.findall(r"```(?:console|text|bash|yaml)\n(.*?)```", page.read_text("utf-8"), re.S)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if re.match(r"(\$ )?memaudit ", line):
            yield shlex.split(line.removeprefix("$ "), comments=True)


def parse(arguments: list[str]) -> None:
    """Parse without running; an unknown command or option raises."""
    parent, rest = ROOT_COMMAND, arguments[1:]
    while rest and hasattr(parent, "commands") and not rest[0].startswith("-"):
        assert rest[0] in parent.commands, f"no command {rest[0]!r}"
        parent, rest = parent.commands[rest[0]], rest[1:]
    if rest != ["--help"]:
        parent.make_context(" ".join(arguments), rest)


def test_the_generated_parts_are_up_to_date(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = command(tmp_path, monkeypatch, capsys)("--help").out.strip("\n")
    page = re.sub(
        r"(<!-- options -->\n).*(<!-- end of options -->)",
        lambda m: f"{m[1]}\n{reference()}\n\n{m[2]}",
        text(REFERENCE),
        flags=re.S,
    )
    page = with_block("help", shown, page)
    if os.environ.get("UPDATE_README"):
        REFERENCE.write_text(page, "utf-8")
    assert page == text(REFERENCE), f"run: {UPDATE}"


def with_block(marker: str, shown: str, page: str) -> str:
    """`page` with `shown` in the text block behind `<!-- marker -->`."""
    block = rf"(<!-- {marker} -->\n```text\n).*?(```\n)"
    return re.sub(block, lambda m: f"{m[1]}{shown}\n{m[2]}", page, flags=re.S)


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_option_that_help_shows_is_in_the_reference(
    tmp_path: Path, monkeypatch: Any, capsys: Any, name: str
) -> None:
    shown = command(tmp_path, monkeypatch, capsys)(*name.split()[1:], "--help").out
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", shown)) - {"--help"}
    section = text(REFERENCE).split(f"### `{name}", 1)[1].split("\n### ")[0]
    assert {o for o in options if f"{o}`" not in section and f"{o}," not in section} == set()


@pytest.mark.parametrize("page", [PAGE, *PLUGINS], ids=lambda page: page.parent.name)
def test_every_command_line_parses(page: Path) -> None:
    lines = list(words(page))
    assert len(lines) >= 3
    for line in lines:
        parse(line)


def test_a_command_line_that_does_not_exist_would_be_noticed() -> None:
    for wrong in (["memaudit", "forget", "x"], ["memaudit", "render", "x"], ["memaudit", "inspect", "x", "--nope"]):
        with pytest.raises((AssertionError, typer.BadParameter.__mro__[2])):
            parse(wrong)


def test_commands_and_options_in_the_text_exist() -> None:
    """In sentences, such as the one on how a report is drawn again."""
    prose = re.sub(r"```.*?```", "", text() + text(REFERENCE), flags=re.S)
    known = {option for _, found in commands() for p in found.params for option in p.opts} | {"--help", "--error-json"}
    for span in re.findall(r"`([^`\n]+)`", prose):
        if re.match(r"memaudit [a-z]", span):
            assert span.split()[1] in {name.split()[1] for name, _ in commands()}, span
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)) <= known, span


def test_the_exit_codes_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", after("exit codes"), re.M)
    assert [int(code) for row in rows for code in row.split(",")] == [int(code) for code in ExitCode]


def test_the_warnings_are_those_of_the_program() -> None:
    source = "".join(p.read_text("utf-8") for p in (ROOT / "memaudit").rglob("*.py"))
    listed = re.findall(r"^\| (MEM\d{3}) \|", after("warnings", REFERENCE), re.M)
    assert listed == sorted(set(re.findall(r"MEM\d{3}", source)))


def test_the_limits_are_those_of_the_program() -> None:
    page = " ".join(text().split())
    assert f"where at most {LEVEL * 100:g} % of comparable clean examples score as high" in page
    assert f"of those called at most {FALSE_DISCOVERIES * 100:g} % are expected to be clean" in page
    assert f"falls by more than {REFERENCE_BUDGET * 100:g} points" in page
    assert f"more than 1 random draw in {1 / RANDOM_BUDGET:g} does it too" in page


def test_how_it_works_has_a_paragraph_for_each_row_of_packages() -> None:
    """The rows, their order and their names are those that `lint-imports` checks."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0]
    rows = [row.split(" | ") for row in contract["layers"]]
    paragraphs = re.findall(r"^\*\*(`[a-z_]+`(?:, `[a-z_]+`)*)\.\*\*", walk(), re.M)
    assert [re.findall(r"[a-z_]+", paragraph) for paragraph in paragraphs] == rows


def test_every_file_that_how_it_works_names_exists() -> None:
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", walk())
    assert len(named) >= 16
    assert [n for n in named if not (ROOT / "memaudit" / n).exists()] == []


def walk() -> str:
    return text().split("## How it works\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files exist, and so does the heading behind a `#`."""
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        path, _, heading = target.partition("#")
        place = page.parent / path if path else page
        assert target.startswith("https://") or place.exists(), target
        assert not heading or target.startswith("https://") or heading in headings(place), target


def headings(page: Path) -> set[str]:
    """What GitHub calls the page's headings in links."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_page_is_short() -> None:
    assert len(text().splitlines()) <= 450


def test_the_library_example_runs(trained: Trained, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    write_work(tmp_path, trained)
    (tmp_path / "my_model.py").write_text(
        NETWORK + "\ndef trained_network():\n    from safetensors.torch import load_file\n    network = build()\n"
        "    network.load_state_dict(load_file('digits.safetensors'))\n    return network\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = after("library")
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert (tmp_path / "report.html").exists()


def test_the_tied_dropout_example_runs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = DigitsNet()
    batch = (torch.arange(4), torch.rand(4, 1, 8, 8), torch.arange(4))
    names: dict[str, Any] = {
        "model": model, "loader": [batch], "epochs": 1, "criterion": torch.nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
    }  # fmt: skip
    exec(compile(after("tied"), "README.md", "exec"), names)
    assert set(load_file("tied.safetensors")) > set(load_file("dropped.safetensors"))
    DigitsNet().load_state_dict(load_file("dropped.safetensors"))


def test_the_factory_builds_a_network_with_units() -> None:
    names: dict[str, Any] = {}
    exec(text().split("```python\n# my_model.py\n")[1].split("```")[0], names)
    sites = Adapter(names["build"](), architecture="x", preprocess=Preprocess((3, 32, 32))).sites(
        torch.rand(3, 3, 32, 32)
    )
    assert [site.layer for site in sites] == ["1"]


@pytest.mark.timeout(900)  # every audit, on whatever machine
def test_the_demo_prints_what_the_reference_shows(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    ran = command(tmp_path, monkeypatch, capsys)("demo", "demo", "-q")
    assert ran.code == 0
    if os.environ.get("UPDATE_README") and shape(ran.out) != shape(after("demo", REFERENCE)):
        REFERENCE.write_text(with_block("demo", ran.out.strip("\n"), text(REFERENCE)), "utf-8")
    assert shape(ran.out) == shape(after("demo", REFERENCE))


# What depends on the machine: numbers, what they make of words, and the layers' verdicts.
MACHINE = re.compile(
    r"[<>]?\d+(\.\d+)?|All(?= of them)|units?(?=: cutting)|(?<=cutting )(it|them)|[●○◐] (critical|redundant|undecided)"
)


def shape(printed: str) -> list[str]:
    """The words, without what depends on the machine, where lines break, and how wide columns are."""
    return re.sub("─+", "─", MACHINE.sub("0", printed)).split()


def test_the_changes_begin_with_this_version() -> None:
    assert text().split("## Changes\n\n")[1].startswith(f"**{version('memaudit')}**")
