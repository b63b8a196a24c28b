"""`memaudit erase`: an edited copy of the checkpoint, measured again from disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memaudit.cli import options as opt
from memaudit.errors import ExitCode, ModelRejected, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.cli.progress import Stages
    from memaudit.cli.scan import Loaded
    from memaudit.findings import Erasure
    from memaudit.report.document import Report

METHODS = ("units", "curvature")
# Options of the audit that the edit needs as well; where they are left out, the report's own command says them.
RECORDED = (
    *("flagged", "reference", "test", "data", "class_order", "adapter", "arch", "model_kwargs", "num_classes"),
    *("weights", "mean", "std", "input_size"),
)


def erase(
    context: typer.Context,
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="The report.json of the audit.")],
    model: Annotated[str, typer.Option(help="The audited checkpoint; it stays as it is.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The edited copy, a .safetensors file.")],
    examples: Annotated[
        list[str], typer.Option(help="Finding ids, comma separated; repeatable. Default: all localized.")
    ] = [],  # noqa: B006 - typer copies it
    method: Annotated[str, typer.Option(help="units: silence what was found. curvature: for groups.")] = "units",
    max_test_drop: Annotated[
        float, typer.Option(min=0, max=100, help="Points of accuracy that curvature may cost on validation.")
    ] = 1.0,
    clean_steps: Annotated[
        int, typer.Option(min=0, help="Training steps on the reference after a curvature edit; 0: none.")
    ] = 150,
    flagged: Annotated[Path | None, typer.Option(help="As in scan; by default as the report was made.")] = None,
    reference: Annotated[Path | None, typer.Option(help="As in scan; by default as the report was made.")] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out examples, to choose by and for final figures.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set that the other options list rows of.")] = None,
    class_order: Annotated[str | None, typer.Option(help="As in scan; by default as the report was made.")] = None,
    adapter: opt.AdapterName = None,
    arch: opt.Arch = None,
    model_kwargs: opt.ModelKwargs = [],  # noqa: B006 - typer copies it
    num_classes: opt.NumClasses = None,
    weights: opt.Weights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    input_size: opt.InputSize = None,
    device: opt.Device = "auto",
    batch_size: Annotated[str, typer.Option(help="auto, or examples per pass.")] = "auto",
    seed: Annotated[int, typer.Option(help="For every random draw.")] = 0,
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table or json.")] = "table",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> int:
    """Write an edited copy that suppresses what was found, and measure it.

    Writes the checkpoint, erase.json beside it, and the report again with a section on it.
    """
    opt.choice(method, METHODS, "--method")
    opt.choice(format_, ("table", "json"), "--format")
    opt.choice(weights, ("raw", "ema"), "--weights")
    from memaudit import report as reports
    from memaudit.cli.progress import Stages

    targets = _targets(output, model)
    audited = reports.read(report)
    given = {name: context.params[name] for name in RECORDED if context.params[name] not in (None, [])}
    with Stages(quiet) as progress:
        loaded = _load(model, audited, report, given, device, progress)
        erasure = _erase(
            loaded, audited, targets[0], method, examples, max_test_drop / 100, clean_steps, device,
            opt.batch_size(batch_size), seed, progress,
        )  # fmt: skip
        progress.stage("write report")
        _write(erasure, audited, targets)
    from memaudit.report import erasure as view
    from memaudit.report.json import encode

    typer.echo(encode(erasure.model_dump(mode="json"), indent=2) if format_ == "json" else view.text(erasure))
    for path in targets:
        typer.echo(f"wrote {path}", err=True)
    return int(ExitCode.OK)


def _targets(output: Path, model: str) -> list[Path]:
    """The edited file, `erase.json` beside it, and the new report; refused now if they cannot be written.

    Raises:
        UsageError: another suffix, a place that cannot be written, or the model itself.
    """
    from memaudit.system.files import check_target

    if output.suffix != ".safetensors":
        raise UsageError(f"-o {clean(output)} is no .safetensors file", hint="The copy is written in that format.")
    stem = output.name.removesuffix(".safetensors")
    named = [f"{stem}.report.json", f"{stem}.report.html"]
    targets = [output, output.with_name("erase.json"), *(output.with_name(n) for n in named)]
    for path in targets:
        check_target(path)
    source = Path(model)
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if source.exists() and (inside or (output.exists() and output.samefile(source))):
        raise UsageError(f"-o {clean(output)} is the audited model or in its folder", hint="Name another place.")
    return targets


def _load(model: str, audited: Report, report: Path, given: Mapping[str, Any], device: str, progress: Stages) -> Loaded:
    """Model and examples as the audit read them, but for what was said otherwise.

    Raises:
        UsageError: nobody says where the examples are.
        ModelRejected: the checkpoint is not the one that was audited.
    """
    from memaudit.cli.scan import load
    from memaudit.cli.sources import Sources

    use = {**_recorded(audited, report), **given}
    model_options = opt.model_options(
        use.get("arch"), use.get("model_kwargs") or [], use.get("num_classes"), use.get("mean"), use.get("std"),
        use.get("input_size"), use.get("adapter"),
    )  # fmt: skip
    places = [use.get(name) for name in ("flagged", "reference", "test", "data", "class_order")]
    sources = Sources.of(model, *places)
    loaded = load(model, use.get("weights"), use.get("adapter"), model_options, sources, device, progress)
    if audited.model.sha256 and loaded.checkpoint.sha256 != audited.model.sha256:
        raise ModelRejected(
            f"{clean(Path(model).name)} is not the model of this report (sha256 {loaded.checkpoint.sha256[:12]}, "
            f"audited {audited.model.sha256[:12]})",
            hint="Give the audited checkpoint, or scan this one.",
        )
    return loaded


def _recorded(audited: Report, report: Path) -> dict[str, Any]:
    """The options of the scan that made the report, from its command; its paths looked for near the report too."""
    import shlex

    import typer.main

    from memaudit.cli import program

    try:
        words = shlex.split(audited.command)
    except ValueError:
        return {}
    if words[:2] != ["memaudit", "scan"]:
        return {}
    command: Any = typer.main.get_command(program("scan"))
    params = command.commands["scan"].make_context("scan", words[2:], resilient_parsing=True).params
    found = {name: params.get(name) for name in RECORDED}
    for name in ("flagged", "reference", "test", "data", "class_order", "adapter"):
        if found[name] is not None:
            found[name] = _near(found[name], report)
    return {name: value for name, value in found.items() if value not in (None, [], ())}


def _near(value: Any, report: Path) -> Any:
    """A recorded path where it exists: from here, else from a folder above the report. Anything else as it is."""
    file, code, factory = str(value).partition(".py:")
    file += ".py" if code else ""
    for folder in (Path(), *report.resolve().parents[:4]):
        if (folder / file).exists():
            found = folder / file
            return found if isinstance(value, Path) else f"{found}:{factory}" if code else str(found)
    return value


def _erase(
    loaded: Loaded,
    audited: Report,
    output: Path,
    method: str,
    examples: list[str],
    max_test_drop: float,
    clean_steps: int,
    device: str,
    batch_size: int | None,
    seed: int,
    progress: Stages,
) -> Erasure:
    from memaudit.erase.group import by_curvature
    from memaudit.erase.proof import Request
    from memaudit.erase.units import by_units, choose_findings

    names = [part for text in examples for part in text.split(",") if part]
    if method == "curvature" and names:
        raise UsageError(
            "--examples goes with --method units", hint="Curvature erases a group; name it with --flagged."
        )
    request = Request(
        adapter=loaded.settled.adapter,
        flagged=loaded.flagged,
        reference=loaded.settled.reference,
        test=loaded.test,
        output=output,
        source_sha256=loaded.checkpoint.sha256,
        device=device,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    if method == "curvature":
        return by_curvature(request, max_test_drop, clean_steps)
    return by_units(request, choose_findings(audited.findings, names))


def _write(erasure: Erasure, audited: Report, targets: list[Path]) -> None:
    from memaudit import report as reports
    from memaudit.report.json import encode
    from memaudit.system.files import replace as put

    put(targets[1], encode(erasure.model_dump(mode="json"), indent=2) + "\n")
    told = audited.model_copy(update={"erasure": erasure})
    for path in targets[2:]:
        reports.write(told, path)
