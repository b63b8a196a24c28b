"""`memaudit init`: the two files a project starts with: its settings, and the gate in its CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memaudit.cli.values import choice
from memaudit.errors import UsageError
from memaudit.text import clean

HEAD = """\
# Settings of memaudit for this project: `memaudit scan MODEL` alone then audits the right data.
# A value is taken from the first of: the command line, the environment (MEMAUDIT_MAX_UNITS=5), this file, what the
# checkpoint says, the default. Paths are relative to this file. All of it: memaudit schema config

# The examples under audit, with the labels they were trained with: a folder of class folders, a manifest
# (path,label) or an .npz.
flagged = "flagged.csv"
# Clean examples, whose accuracy must survive; the same forms.
reference = "reference"

"""
GITHUB = """\
# Judges committed audit reports on every push; needs neither torch nor a GPU.
name: memaudit
on: [push, pull_request]
permissions:
  contents: read
jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - uses: OWNER/memaudit@v{version}  # OWNER: where your copy of memaudit lives
        with:
          report: reports/model/report.json  # what memaudit scan wrote
          # model: model.safetensors         # proves that the report is of this checkpoint; a Git-LFS pointer serves
"""
GITLAB = """\
# Judges committed audit reports on every push; needs neither torch nor a GPU. In .gitlab-ci.yml:
#   include: {{local: memaudit.gitlab-ci.yml}}
memaudit:
  image: python:3.12-slim
  variables:
    GATE_SOURCE: "https://example.org/memaudit.git"  # where your copy of memaudit lives
  before_script:
    - apt-get update -qq && apt-get install -y -qq --no-install-recommends git >/dev/null
    - git clone --quiet --depth 1 --branch v{version} "$GATE_SOURCE" /opt/memaudit
    - pip install --quiet --no-deps -r /opt/memaudit/ci/check-requirements.txt /opt/memaudit
  script:
    - memaudit check reports/model/report.json -o memaudit.xml -o memaudit.html
  artifacts:
    when: always
    reports:
      junit: memaudit.xml
    paths: [memaudit.html]
"""
WORKFLOWS = {
    "github": (".github/workflows/memaudit.yml", GITHUB),
    "gitlab": ("memaudit.gitlab-ci.yml", GITLAB),
}
CHOSEN = ("flagged", "reference")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder.")] = Path("."),
    ci: Annotated[str, typer.Option(help="github, gitlab or none: for which CI to write a job.")] = "github",
) -> None:
    """Write a commented memaudit.toml and a CI job; replaces nothing.

    Run again with another --ci, it adds that job and leaves the settings as they are.
    """
    from memaudit.system.files import check_target, replace
    from memaudit.version import __version__

    choice(ci, (*WORKFLOWS, "none"), "--ci")
    files = {folder / "memaudit.toml": settings_file()}
    if ci in WORKFLOWS:
        name, text = WORKFLOWS[ci]
        files[folder / name] = text.format(version=__version__)
    kept = folder / "memaudit.toml"
    if ci in WORKFLOWS and kept.exists() and not (folder / WORKFLOWS[ci][0]).exists():
        del files[kept]
        typer.echo(f"kept {clean(kept)}")
    for path in files:
        check_target(path)
        if path.exists():
            raise UsageError(f"{clean(path)} exists already", hint="Move it away, or choose another folder.")
    for path, text in files.items():
        typer.echo(f"wrote {clean(replace(path, text))}")
    typer.echo("next: name your data in memaudit.toml, then: memaudit scan MODEL")


def settings_file() -> str:
    """A `memaudit.toml` with every setting, those with a default commented out."""
    from memaudit.cli.config import parameters

    lines = [HEAD]
    for name, parameter in parameters().items():
        if name in CHOSEN:
            continue
        lines.append(f"# {parameter.help}\n# {parameter.key} = {_toml(parameter)}\n\n")
    return "".join(lines).rstrip("\n") + "\n"


# What to show for an option that has no default.
EXAMPLES: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "input_size": [3, 224, 224],
    "num_classes": 10,
    "audit": ["localize", "rewind"],
    "layers": "layer3.*",
    "checkpoints": ["checkpoints"],
    "group_depth": 2,
    "limit": 100,
    "time_limit": 3600,
    "output": ["report.sarif"],
    "max_localized": "2%",
    "min_reference_accuracy": 0.8,
    "class_order": "natural",
    "weights": "ema",
    "images": "none",
    "arch": "resnet18",
    "adapter": "my_model.py:build",
    "multi_label": True,
    "redact": True,
    "row_order": "torchvision",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "exif": "ignore",
    "bit_depth": "clip",
    "channel_order": "rgb",
    "max_memorized": 0,
    "reference_size": 10000,
    "threads": 1,
    "engine": "ray",
    "workers": 8,
    "gpus_per_worker": 1,
    "image_cache": "images",
    "image_cache_gib": 100,
    "log": "mlflow",
}


def _toml(parameter: Any) -> str:
    if parameter.name == "model_kwargs":
        return "{ drop_rate = 0.1 }"
    value = EXAMPLES.get(parameter.name) if parameter.default in (None, []) else parameter.default
    return _literal(parameter.key if value is None else value)


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
