"""Option texts and parsers that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.errors import UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.adapters.options import ModelOptions
    from memaudit.gate.policy import Accepted

MAX_BATCH_SIZE = 65536

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint: .safetensors .pt .pth .pth.tar .ckpt .bin, or a directory.")
]
AdapterName = Annotated[str | None, typer.Option(help="Installed adapter, or your own file: ./my_model.py:factory.")]
Arch = Annotated[str | None, typer.Option(help="timm architecture; by default the checkpoint's own, or identified.")]
ModelKwargs = Annotated[list[str], typer.Option(help="Argument for the architecture, key=value; repeatable.")]
NumClasses = Annotated[int | None, typer.Option(min=1, help="Number of classes, where the checkpoint leaves it open.")]
Weights = Annotated[str | None, typer.Option(help="raw or ema, where the checkpoint holds both.")]
Mean = Annotated[str | None, typer.Option(help="Per-channel mean, comma separated, of images in [0, 1].")]
Std = Annotated[str | None, typer.Option(help="Per-channel standard deviation, comma separated.")]
InputSize = Annotated[str | None, typer.Option(help="Network input, C,H,W or H,W or one number.")]
Checkpoints = Annotated[
    list[str], typer.Option(help="Earlier checkpoints: folder, pattern or file; repeatable. Default: beside MODEL.")
]


def _config(context: typer.Context, given: Path | None) -> Path | None:
    from memaudit.cli import config

    return config.apply(context, given)


# Before all others: it fills in what the command line and the environment leave out.
Config = Annotated[
    Path | None,
    typer.Option(
        callback=_config, is_eager=True, help="Settings; default: the nearest memaudit.toml or pyproject.toml."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]

MaxMemorized = Annotated[str | None, typer.Option(help="Policy: most memorized examples, N or P%.")]
MaxLocalized = Annotated[str | None, typer.Option(help="Policy: most memorized and localized examples, N or P%.")]
MinReferenceAccuracy = Annotated[float | None, typer.Option(min=0, max=1, help="Policy: a share.")]
Baseline = Annotated[Path | None, typer.Option(help="An older report.json: findings it has too do not count.")]
Waivers = Annotated[Path | None, typer.Option(help="Accepted findings; default: the nearest memaudit-waivers.toml.")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit 0 although the policy is not met.")]

Output = Annotated[
    list[Path], typer.Option("-o", "--output", help="Further file; the suffix is the format. Repeatable.")
]


def choice(value: str | None, allowed: tuple[str, ...], option: str) -> str | None:
    """`value`, if it is one of `allowed` or None.

    Raises:
        UsageError: it is something else.
    """
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {clean(value)!r} is not one of: {', '.join(allowed)}")
    return value


def audits(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated names of audits.

    Raises:
        UsageError: there is no such audit.
    """
    from memaudit.settings import AUDITS
    from memaudit.text import closest

    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names or ("",):
        if name not in AUDITS:
            raise UsageError(
                f"--audit {clean(name)!r} is no audit{closest(name, AUDITS)}", hint=f"Choose among: {', '.join(AUDITS)}"
            )
    return names


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Comma-separated numbers.

    Raises:
        UsageError: one of them is no finite number.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        values = (float("nan"),)
    if not all(abs(v) < 1e6 for v in values):
        raise UsageError(f"{option} {clean(text)!r} is no list of numbers", hint=f"For example: {option} 0.5,0.5,0.5")
    return values


def listed(values: tuple[float, ...]) -> str:
    """`0.5,0.25`, as `numbers` reads it; `none` where there is none."""
    return ",".join(f"{v:g}" for v in values) or "none"


def positive(value: float | None, option: str) -> float | None:
    """`value`, if it is a finite number above zero or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{option} {value:g} is not a positive number")
    return value


def batch_size(text: str) -> int | None:
    """`None` for auto.

    Raises:
        UsageError: neither auto nor a number of examples.
    """
    if text == "auto":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= MAX_BATCH_SIZE):
        raise UsageError(f"--batch-size {clean(text)!r} is neither auto nor a number from 1 to {MAX_BATCH_SIZE}")
    return int(text)


def accepted(baseline: Path | None, waivers: Path | None) -> Accepted:
    """The baseline and the waivers that were named, or the `memaudit-waivers.toml` nearest above here.

    Raises:
        UsageError: the waivers cannot be used.
        DataRejected: the baseline is no report.
    """
    from memaudit import report as reports
    from memaudit.gate import waivers as files
    from memaudit.gate.policy import Accepted
    from memaudit.system.toml import nearest, shown

    path = waivers or nearest(files.NAME)
    found = files.read(path) if path is not None else ()
    if baseline is None:
        return Accepted(found)
    return Accepted(found, reports.read(baseline), shown(baseline))


def model_options(
    arch: str | None,
    kwargs: list[str],
    num_classes: int | None,
    mean: str | None,
    std: str | None,
    input_size: str | None,
    adapter: str | None,
) -> ModelOptions:
    """The model flags as the library takes them.

    Raises:
        UsageError: a value cannot be read.
    """
    from memaudit.adapters.options import ModelOptions

    size = numbers(input_size, "--input-size")
    if size is not None:
        if any(v != int(v) or not 1 <= v <= 8192 for v in size) or len(size) > 3:
            raise UsageError(
                f"--input-size {clean(input_size)!r} is not a size", hint="For example: --input-size 3,224,224"
            )
        whole = [int(v) for v in size]
        channels = whole[0] if len(whole) == 3 else 3
        size = (channels, whole[-2] if len(whole) > 1 else whole[0], whole[-1])
    user_file = adapter if adapter and ":" in adapter else None
    return ModelOptions(
        arch=arch,
        model_kwargs=dict(_pair(k) for k in kwargs),
        num_classes=num_classes,
        mean=numbers(mean, "--mean"),
        std=numbers(std, "--std"),
        input_size=(int(size[0]), int(size[1]), int(size[2])) if size else None,
        user_file=user_file,
    )


def _pair(text: str) -> tuple[str, object]:
    import json

    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise UsageError(f"--model-kwargs {clean(text)!r} is not of the form key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, {"True": True, "False": False, "None": None}.get(value, value)
