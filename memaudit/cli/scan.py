"""`memaudit scan`: the audit, from files to files."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memaudit.cli import options as opt
from memaudit.errors import EnvironmentFault, ExitCode, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import ConfigValue, Report

FORMATS = ("table", "json", "markdown", "github")
# Flags that say where results go or how fast they come: they shape no number.
NOT_NUMBERS = {"model", "flagged", "reference", "test", "data", "out", "output", "format_", "images", "quiet", "verbose",
               "exit_zero", "dry_run", "device", "batch_size", "time_limit", "model_kwargs"}  # fmt: skip


def scan(
    context: typer.Context,
    model: opt.Model,
    flagged: Annotated[Path, typer.Option(help="Flagged examples with their trained labels: folder, manifest or .npz.")],
    reference: Annotated[Path, typer.Option(help="Clean examples: folder, manifest or .npz.")],
    test: Annotated[Path | None, typer.Option(help="Held-out examples, for the accuracy figure.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set that the other options list rows of.")] = None,
    class_order: Annotated[str, typer.Option(help="natural, lexical, or a file of class names.")] = "natural",
    adapter: opt.AdapterName = None,
    arch: opt.Arch = None,
    model_kwargs: opt.ModelKwargs = [],  # noqa: B006 - typer copies it
    num_classes: opt.NumClasses = None,
    weights: opt.Weights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    input_size: opt.InputSize = None,
    max_units: Annotated[int, typer.Option(min=1, help="Most units one example may take.")] = 10,
    unit: Annotated[str, typer.Option(help="channel, neuron, head, or auto: the finest there is.")] = "auto",
    layers: Annotated[str | None, typer.Option(help="Only layers matching this pattern, e.g. 'layer3.*'.")] = None,
    ablation: Annotated[str, typer.Option(help="Ablated units become: zero, or their mean over the reference.")] = "zero",
    profile: Annotated[str, typer.Option(help="How much is measured: fast, standard or deep.")] = "standard",
    limit: Annotated[int | None, typer.Option(min=1, help="Audit only the first N; the report is incomplete.")] = None,
    device: opt.Device = "auto",
    batch_size: Annotated[str, typer.Option(help="auto, or examples per pass.")] = "auto",
    seed: Annotated[int, typer.Option(help="For every random draw.")] = 0,
    time_limit: Annotated[float | None, typer.Option(min=0, help="Seconds; then the report is incomplete.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the report; by default reports/<model>.")] = None,
    output: Annotated[list[Path], typer.Option("-o", "--output", help="Further file; the suffix is the format.")] = [],  # noqa: B006
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table, json, markdown or github.")] = "table",
    images: Annotated[str | None, typer.Option(help="thumbs or none; none by default when CI is set.")] = None,
    max_memorized: Annotated[str, typer.Option(help="Policy: most memorized examples, N or P%.")] = "0",
    max_localized: Annotated[str | None, typer.Option(help="Policy: most localized examples, N or P%.")] = None,
    min_reference_accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Policy: a share.")] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 although the policy is not met.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve everything, print the plan, audit nothing.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> int:
    """Audit a checkpoint: which flagged examples it memorized, in which units, and what erasing them costs."""
    opt.choice(unit, ("auto", "channel", "neuron", "head"), "--unit")
    opt.choice(ablation, ("zero", "mean"), "--ablation")
    opt.choice(profile, ("fast", "standard", "deep"), "--profile")
    opt.choice(format_, FORMATS, "--format")
    opt.choice(images, ("thumbs", "none"), "--images")
    opt.choice(weights, ("raw", "ema"), "--weights")
    from memaudit import report as reports
    from memaudit.gate import Limit, Policy

    policy = Policy(
        Limit.parse(max_memorized, "--max-memorized"),
        None if max_localized is None else Limit.parse(max_localized, "--max-localized"),
        min_reference_accuracy,
    )
    if batch_size != "auto" and not (batch_size.isdecimal() and 1 <= int(batch_size) <= 65536):
        raise UsageError(f"--batch-size {clean(batch_size)!r} is neither auto nor a positive number")
    folder = out or Path("reports") / _stem(Path(model))
    for path in output:
        reports.renderer(path.suffix)
    from memaudit.report.files import check_target

    targets = [folder / "report.json", folder / "report.html", *output]
    for path in targets:
        check_target(path)

    from memaudit import checkpoints
    from memaudit import data as datasets
    from memaudit.auditor import Auditor
    from memaudit.cli.progress import Stages
    from memaudit.data.paths import display
    from memaudit.loading import settle
    from memaudit.settings import Provenance, Settings

    settings = Settings(
        max_units=max_units,
        unit=unit,
        layers=layers,
        ablation=ablation,
        profile=profile,
        device=device,
        batch_size=None if batch_size == "auto" else int(batch_size),
        seed=seed,
        limit=limit,
        time_limit=time_limit,
        policy=policy,
    )
    model_options = opt.model_options(arch, model_kwargs, num_classes, mean, std, input_size, adapter)
    with Stages(quiet) as progress:
        progress.stage("load model")
        checkpoint = checkpoints.read(model, weights=weights)  # type: ignore[arg-type]
        names = checkpoint.facts.class_names
        if not names and class_order not in ("natural", "lexical"):
            names = datasets.class_names_of(data or reference, class_order)
        names = names or datasets.class_names_of(data or reference, class_order) if (data or reference).is_dir() else names

        def load(source: Path, what: str, used: Any) -> Any:
            progress.stage(f"read {what}")
            return datasets.read(
                source,
                preprocess=used.preprocess,
                num_classes=used.num_classes,
                class_names=names,
                class_order=class_order,
                data=data,
            )

        settled = settle(checkpoint, model_options, adapter, lambda used: load(reference, "reference", used), device)
        chosen = settled.adapter
        loaded = load(flagged, "flagged", chosen)
        tested = None if test is None else load(test, "test", chosen)
        if dry_run:
            typer.echo(_plan(chosen, loaded, settled.reference, settings))
            return int(ExitCode.OK)
        config = _config(context)
        config["preprocess"] = _preprocess(chosen)
        provenance = Provenance(
            command=_command(),
            model_path=display(checkpoint.path),
            model_sha256=checkpoint.sha256,
            weights=checkpoint.weights,
            stripped_prefix=checkpoint.stripped_prefix,
            config=config,
            class_order=class_order if class_order in ("natural", "lexical") else "file",
            warnings=settled.warnings,
        )
        auditor = Auditor(
            chosen, loaded, settled.reference, settings,
            provenance=provenance, class_names=tuple(names), progress=progress, test=tested,
        )  # fmt: skip
        with _locked(folder):
            report = auditor.run()
            progress.stage("write report")
            thumbs = images != "none" and (images == "thumbs" or not os.environ.get("CI"))
            pictures = datasets.thumbnails(loaded) if thumbs else {}
            folder_targets = _beside(targets, report)
            for path in folder_targets:
                reports.write(report, path, thumbnails=pictures)
    _print(report, folder_targets, format_)
    if report.status == "incomplete":
        return int(ExitCode.INCOMPLETE)
    return int(ExitCode.POLICY if report.verdict == "fail" and not exit_zero else ExitCode.OK)


def _stem(model: Path) -> str:
    name = model.resolve().name
    for suffix in (".pth.tar", ".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name or "model"


def _beside(targets: list[Path], report: Report) -> list[Path]:
    """An incomplete report never replaces a complete one: it is written beside it."""
    if report.status == "complete":
        return targets
    from memaudit import report as reports
    from memaudit.errors import MemauditError

    try:
        blocked = targets[0].exists() and reports.read(targets[0]).status == "complete"
    except MemauditError:
        blocked = False
    return [p.with_name(f"{p.stem}.incomplete{p.suffix}") for p in targets] if blocked else targets


def _locked(folder: Path) -> Any:
    """One audit per output directory at a time.

    Raises:
        EnvironmentFault: another process holds it.
    """
    from contextlib import contextmanager

    from filelock import FileLock, Timeout

    @contextmanager
    def hold() -> Any:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", blocking=False)
            lock.acquire()
        except Timeout:
            raise EnvironmentFault(
                f"another memaudit is writing to {clean(folder)}", hint="Wait for it, or choose another --out."
            ) from None
        except OSError as error:
            raise EnvironmentFault(f"cannot write to {clean(folder)}: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()
            (folder / ".lock").unlink(missing_ok=True)

    return hold()


def _config(context: typer.Context) -> dict[str, ConfigValue]:
    """Every option that shaped the numbers, with where its value came from."""
    from memaudit.findings import ConfigValue

    values: dict[str, ConfigValue] = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name not in NOT_NUMBERS:
            shown = clean(value) if isinstance(value, str | Path) else value
            origin = "default" if source is None or source.name == "DEFAULT" else "flag"
            values[name] = ConfigValue(value=shown, origin=origin)
    return values


def _preprocess(adapter: Any) -> ConfigValue:
    from memaudit.findings import ConfigValue

    p = adapter.preprocess
    size = "x".join(map(str, p.input_size))
    norm = f"mean {_list(p.mean)} std {_list(p.std)}" if p.mean else "not normalised"
    if getattr(adapter, "transform", None) is not None:
        norm = "normalised by the adapter's own transform"
    return ConfigValue(value=f"{size}, crop {p.crop_pct:g}, {p.interpolation}, {norm}", origin=p.origin)


def _list(values: Any) -> str:
    return ",".join(f"{v:g}" for v in values)


def _command() -> str:
    """The command line as typed, with every absolute path reduced to its last part."""
    words = [Path(w).name if Path(w).is_absolute() else w for w in sys.argv[1:]]
    return clean("memaudit " + shlex.join(words), 2000)


def _plan(adapter: Any, flagged: Any, reference: Any, settings: Any) -> str:
    from memaudit.evaluate import Evaluator, automatic_batch_size, resolve_device
    from memaudit.planning import plan

    device = resolve_device(settings.device)
    adapter.module.to(device)
    batch = settings.batch_size or automatic_batch_size(reference.pixels[:1], device)
    return plan(Evaluator(adapter, batch), flagged, reference, settings)


def _print(report: Report, paths: list[Path], format_: str) -> None:
    """What stdout gets; machine formats never pass through rich."""
    from memaudit import report as reports
    from memaudit.report import console, github

    if format_ == "table":
        console.show(report, paths)
        return
    if format_ == "github":
        typer.echo(github.render(report), nl=False)
        return
    typer.echo(reports.render(report, ".json" if format_ == "json" else ".md"), nl=False)
