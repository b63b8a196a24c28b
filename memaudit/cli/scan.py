"""`memaudit scan`: the audit, from files to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli import options as opt
from memaudit.cli import outputs
from memaudit.cli.sources import Sources
from memaudit.errors import ExitCode

if TYPE_CHECKING:
    from memaudit.adapters.base import Adapter, ModelOptions
    from memaudit.checkpoints import Checkpoint
    from memaudit.cli.progress import Stages
    from memaudit.data import ExampleSet
    from memaudit.findings import ReportWarning
    from memaudit.network.states import State
    from memaudit.pipeline.load import Settled
    from memaudit.settings import Settings


def scan(
    context: typer.Context,
    model: opt.Model,
    flagged: Annotated[
        Path | None, typer.Option(help="Flagged examples with trained labels: folder, manifest or .npz. Required.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Clean examples: folder, manifest or .npz; default: the run's validation data.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out examples, for the accuracy figure.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set that the other options list rows of.")] = None,
    class_order: Annotated[
        str | None, typer.Option(help="natural, lexical, or a file of class names; default: the run's, or natural.")
    ] = None,
    adapter: opt.AdapterName = None,
    arch: opt.Arch = None,
    model_kwargs: opt.ModelKwargs = [],  # noqa: B006 - typer copies it
    num_classes: opt.NumClasses = None,
    weights: opt.Weights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    input_size: opt.InputSize = None,
    max_units: Annotated[int, typer.Option(min=1, help="Most units one example may take.")] = 10,
    unit: Annotated[str, typer.Option(help="channel, neuron, head, or auto: the kind at the most layers.")] = "auto",
    layers: Annotated[str | None, typer.Option(help="Only layers matching this pattern, e.g. 'layer3.*'.")] = None,
    checkpoints: opt.Checkpoints = [],  # noqa: B006 - typer copies it
    audit: Annotated[
        str | None,
        typer.Option(help="localize,gradients,rewind,retrain; by default localize, and all where there is a series."),
    ] = None,
    group_depth: Annotated[int | None, typer.Option(min=1, help="Parts of a layer group's path.")] = None,
    ablation: Annotated[str, typer.Option(help="Ablated units become zero, or their reference mean.")] = "zero",
    profile: Annotated[str, typer.Option(help="How much is measured: fast, standard or deep.")] = "standard",
    limit: Annotated[int | None, typer.Option(min=1, help="Audit only the first N; the report is incomplete.")] = None,
    device: opt.Device = "auto",
    batch_size: Annotated[str, typer.Option(help="auto, or examples per pass.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16 for the search alone: what it finds is measured in float32.")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="For every random draw.")] = 0,
    time_limit: Annotated[float | None, typer.Option(help="Seconds; then the report is incomplete.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the report; by default reports/<model>.")] = None,
    output: opt.Output = [],  # noqa: B006
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table, json, markdown or github.")] = "table",
    images: Annotated[str | None, typer.Option(help="thumbs or none; none by default when CI is set.")] = None,
    max_memorized: opt.MaxMemorized = "0",
    max_localized: opt.MaxLocalized = None,
    min_reference_accuracy: opt.MinReferenceAccuracy = None,
    baseline: opt.Baseline = None,
    waivers: opt.Waivers = None,
    exit_zero: opt.ExitZero = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything, print the plan, audit nothing.")] = False,
    config: opt.Config = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, whatever an interrupted run has kept.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> int:
    """Audit which flagged examples a checkpoint memorized, and where.

    Writes report.json and report.html, prints the verdict, and ends with 0 (policy met) or 1 (not met).
    """
    from memaudit.gate import policy as gate
    from memaudit.settings import DTYPES, PROFILES, Settings

    opt.choice(unit, ("auto", "channel", "neuron", "head"), "--unit")
    opt.choice(ablation, ("zero", "mean"), "--ablation")
    opt.choice(profile, tuple(PROFILES), "--profile")
    opt.choice(dtype, DTYPES, "--dtype")
    opt.choice(format_, outputs.FORMATS, "--format")
    opt.choice(images, ("thumbs", "none"), "--images")
    opt.choice(weights, ("raw", "ema"), "--weights")
    settings = Settings(
        max_units=max_units,
        unit=unit,
        layers=layers,
        ablation=ablation,
        profile=profile,
        device=device,
        batch_size=opt.batch_size(batch_size),
        dtype=dtype,
        seed=seed,
        limit=limit,
        time_limit=opt.positive(time_limit, "--time-limit"),
        audits=opt.audits(audit),
        group_depth=group_depth,
        policy=gate.Policy().with_limits(max_memorized, max_localized, min_reference_accuracy),
    )
    accepted = opt.accepted(baseline, waivers)
    folder = out or outputs.default_folder(Path(model))
    targets = outputs.targets(folder, output)

    from memaudit.cli.progress import Stages
    from memaudit.cli.provenance import provenance, size_warning

    model_options = opt.model_options(arch, model_kwargs, num_classes, mean, std, input_size, adapter)
    with Stages(quiet) as progress, nullcontext() if dry_run else outputs.locked(folder):
        sources = Sources.of(model, flagged, reference, test, data, class_order)
        loaded = load(model, weights, adapter, model_options, sources, device, progress)
        settled = loaded.settled
        states, notes = _series(model, checkpoints, loaded, settings, progress)
        if dry_run:
            typer.echo(_plan(loaded, settings, len(states)))
            return int(ExitCode.OK)
        from memaudit.pipeline.auditor import Auditor

        auditor = Auditor(
            settled.adapter,
            loaded.flagged,
            settled.reference,
            settings,
            provenance=provenance(
                context,
                loaded.checkpoint,
                settled.adapter,
                loaded.class_order,
                sources.said,
                (*sources.warnings, *settled.warnings, *size_warning(settled.adapter), *notes),
            ),
            class_names=loaded.class_names,
            progress=progress,
            test=loaded.test,
            states=states,
        )
        outputs.rehearse(auditor.skeleton(), targets)
        with auditor.journalled(folder, fresh=fresh) as journal:
            if journal.recorded:
                progress.stage(f"resume after {journal.recorded} batches")
            report = gate.apply(auditor.run(), settings.policy, accepted)
            progress.stage("write report")
            written = outputs.write(report, targets, _thumbnails(images, loaded.flagged))
            if not auditor.late:
                journal.discard()
    outputs.show(report, written, format_)
    return int(outputs.exit_code(report, exit_zero))


@dataclass(frozen=True)
class Loaded:
    """Everything an audit needs, read and checked."""

    checkpoint: Checkpoint
    settled: Settled
    flagged: ExampleSet
    test: ExampleSet | None
    class_names: tuple[str, ...]
    class_order: str


def load(
    model: str,
    weights: str | None,
    adapter: str | None,
    options: ModelOptions,
    sources: Sources,
    device: str,
    progress: Stages,
) -> Loaded:
    """Read the checkpoint and the examples, and settle which architecture it is."""
    from memaudit import checkpoints

    progress.stage("load model")
    checkpoint = checkpoints.read(model, weights=weights)  # type: ignore[arg-type]

    from memaudit.pipeline.load import (
        settle,  # not before: a pickle's child imports torch at the same time as this process
    )

    names, order = sources.class_names(checkpoint)
    read = _reader(sources, names, progress)
    settled = settle(checkpoint, options, adapter, lambda used: read("reference", sources.reference, used), device)
    flagged = read("flagged", sources.flagged, settled.adapter)
    test = None if sources.test is None else read("test", sources.test, settled.adapter)
    return Loaded(checkpoint, settled, flagged, test, names, order)


def _reader(sources: Sources, names: tuple[str, ...], progress: Stages) -> Callable[[str, Path, Adapter], ExampleSet]:
    from memaudit import data

    def read(what: str, source: Path, adapter: Adapter) -> ExampleSet:
        progress.stage(f"read {what}")
        return data.read(
            source,
            preprocess=adapter.preprocess,
            num_classes=adapter.num_classes,
            class_names=names,
            class_order=sources.class_order,
            data=sources.data,
        )

    return read


def _series(
    model: str, named: list[str], loaded: Loaded, settings: Settings, progress: Stages
) -> tuple[Sequence[State], tuple[ReportWarning, ...]]:
    """The checkpoints of the run, if the audits that were asked for need them; and what to tell the reader of them."""
    from memaudit.checkpoints import find_series
    from memaudit.findings import ReportWarning
    from memaudit.pipeline.series import read_states
    from memaudit.settings import OVER_TIME, PROFILES

    if settings.audits is not None and not set(settings.audits) & set(OVER_TIME):
        return (), ()
    series = find_series(Path(model), named)
    most = PROFILES[settings.profile].checkpoints
    if series.points:
        progress.stage("read checkpoints", min(most, len(series.points)))
    elif not series.notes:
        return (), ()
    states, notes = read_states(
        loaded.settled.adapter, series, weights=loaded.checkpoint.weights, most=most, tick=progress.advance
    )
    return states, tuple(ReportWarning(code="MEM106", message=note) for note in notes)


def _plan(loaded: Loaded, settings: Settings, states: int) -> str:
    from memaudit.engine.device import automatic_batch_size, resolve_device
    from memaudit.engine.evaluator import Evaluator
    from memaudit.pipeline.plan import plan

    adapter, reference = loaded.settled.adapter, loaded.settled.reference
    device = resolve_device(settings.device)
    adapter.module.to(device)
    batch = settings.batch_size or automatic_batch_size(reference.pixels[:1], device)
    return plan(Evaluator(adapter, batch), loaded.flagged, reference, settings, states)


def _thumbnails(images: str | None, flagged: ExampleSet) -> dict[str, bytes]:
    """Pictures for the page: where they are asked for, or where nobody said and this is no CI machine."""
    from memaudit import data

    wanted = images == "thumbs" or (images is None and not os.environ.get("CI"))
    return dict(data.thumbnails(flagged)) if wanted else {}
