"""`memaudit scan`: the audit, from files to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from memaudit.cli import logged, outputs
from memaudit.cli import options as opt
from memaudit.cli.config import Config
from memaudit.cli.engines import running, workers_of
from memaudit.cli.grouped import grouped
from memaudit.cli.loaded import Loaded, load, load_others
from memaudit.cli.sources import Sources
from memaudit.cli.values import audits, choice, positive
from memaudit.errors import ExitCode

if TYPE_CHECKING:
    from memaudit.cli.progress import Stages
    from memaudit.engine.ray import Workers
    from memaudit.findings import ReportWarning
    from memaudit.network.states import State
    from memaudit.pipeline.auditor import Auditor
    from memaudit.report.document import Report
    from memaudit.settings import Settings


@grouped
def scan(
    context: typer.Context,
    model: opt.Model,
    places: opt.Places,
    network: opt.Network,
    audit: opt.AuditOptions,
    compute: opt.Compute,
    engines: opt.Engines,
    destination: opt.Destination,
    limits: opt.Limits,
    run: opt.RunOptions,
    config: Config = None,
) -> int:
    """Audit which flagged examples a checkpoint memorized, and where.

    Writes report.json and report.html, prints the verdict, and ends with 0 (policy met) or 1 (not met).
    """
    return scanned(context, model, places, network, audit, compute, destination, limits, run, engines)


def scanned(
    context: typer.Context,
    model: str,
    places: opt.Places,
    network: opt.Network,
    audit: opt.AuditOptions,
    compute: opt.Compute,
    destination: opt.Destination,
    limits: opt.Limits,
    run: opt.RunOptions,
    engines: opt.Engines | None = None,
    *,
    ask_only: bool = False,
) -> int:
    """The audit and its report; the exit code.

    Args:
        ask_only: no units are looked for.
    """
    from memaudit.gate import policy as gate

    settings = _settings(audit, compute, limits, run)
    settings = replace(settings, audits=()) if ask_only else settings
    workers = workers_of(engines or opt.Engines("process"), compute)
    logged.check(run.log)
    accepted = limits.accepted()
    folder = destination.out or outputs.default_folder(Path(model))
    targets = outputs.targets(folder, destination.output)

    from memaudit.cli.progress import Stages

    with Stages(run.quiet) as progress, nullcontext() if run.dry_run else outputs.locked(folder):
        if places.flagged is None and not run.dry_run and Sources.trains(model, places):
            places = _discovered(context, model, folder, places, network, audit, compute, run, progress, workers)
        sources = Sources.of(model, places)
        loaded = load(model, network, sources, compute, progress)
        if destination.out is None:
            outputs.check_model(folder, loaded.checkpoint.path, loaded.checkpoint.sha256)
        states, notes = _series(model, audit.checkpoints, loaded, settings, progress)
        from memaudit.cli.provenance import beside_warning, provenance, size_warning
        from memaudit.pipeline.auditor import Auditor
        from memaudit.pipeline.plan import left_out

        settled = loaded.settled
        warnings = (*sources.warnings, *loaded.warnings, *size_warning(settled.adapter))
        warnings += (*beside_warning(loaded.checkpoint), *notes)
        auditor = Auditor(
            settled.adapter,
            loaded.flagged,
            settled.reference,
            settings,
            provenance=provenance(context, loaded, network, sources, folder, warnings),
            class_names=loaded.class_names,
            progress=progress,
            test=loaded.test,
            states=states,
            without=load_others(audit.without, loaded, network, sources, compute, progress),
        )
        outputs.rehearse(auditor.skeleton(), targets)
        if run.dry_run:
            text, code = _plan(auditor)
            typer.echo(text)
            return int(code)
        with auditor.journalled(folder, fresh=run.fresh) as journal:
            if journal.recorded:
                progress.stage(f"resume after {journal.recorded} batches")
            with running(workers, model, loaded, network, run.dtype, progress) as auditor.engine:
                report = gate.apply(auditor.run(), settings.policy, accepted)
            progress.stage("write report")
            shown = "none" if network.redact else destination.images
            written = outputs.write(report, targets, _thumbnails(shown, report, auditor))
            logged.log(run.log, report, written)
            if not auditor.late:
                journal.discard()
                outputs.forget(folder / outputs.RANKED)
    outputs.show(report, written, destination.format_)
    for line in left_out(auditor.observed.context, auditor.audits, float(report.volatile["seconds"])):
        typer.echo(line, err=True)
    return int(outputs.exit_code(report, limits.exit_zero))


def _discovered(
    context: typer.Context,
    model: str,
    folder: Path,
    places: opt.Places,
    network: opt.Network,
    audit: opt.AuditOptions,
    compute: opt.Compute,
    run: opt.RunOptions,
    progress: Stages,
    workers: Workers | None,
) -> opt.Places:
    """`places` with the most memorized examples of the training data as the flagged ones.

    Its journal stays until the scan is done: when the scan has to be run again, the ranking is there at once.

    Raises:
        Incomplete: the time limit was reached before the ranking was complete.
    """
    from memaudit.cli import discover as discovery
    from memaudit.errors import Incomplete

    training = discovery.Training(places.data, places.class_order)
    ranked = discovery.RankOptions(
        profile=audit.profile, top=audit.top, seed=run.seed, time_limit=run.time_limit, fresh=run.fresh, quiet=run.quiet
    )
    below = folder / outputs.RANKED
    asked = discovery.Asked(
        folder=below, context=context, model=model, training=training, network=network, ranked=ranked, compute=compute
    )
    with outputs.locked(below):
        found, _, _ = asked.write(discovery.Written(images="none"), progress, workers, keep=True)
    if found.status != "complete":
        raise Incomplete(
            "the ranking of the training data is incomplete, so nothing was audited",
            hint="Run the same command again with a longer --time-limit, or name examples with --flagged.",
        )
    return replace(places, flagged=below / discovery.FLAGGED)


def _settings(audit: opt.AuditOptions, compute: opt.Compute, limits: opt.Limits, run: opt.RunOptions) -> Settings:
    from memaudit.gate.policy import Policy
    from memaudit.settings import DTYPES, Settings

    choice(run.dtype, DTYPES, "--dtype")
    return Settings(
        max_units=audit.max_units,
        unit=audit.unit,
        layers=audit.layers,
        ablation=audit.ablation,
        profile=audit.profile,
        device=compute.device,
        batch_size=compute.batch,
        threads=compute.wanted_threads,
        dtype=run.dtype,
        seed=run.seed,
        limit=audit.limit,
        time_limit=positive(run.time_limit, "--time-limit"),
        audits=audits(audit.audit),
        group_depth=audit.group_depth,
        policy=limits.policy(Policy()),
    )


def _series(
    model: str, named: list[str], loaded: Loaded, settings: Settings, progress: Stages
) -> tuple[Sequence[State], tuple[ReportWarning, ...]]:
    """The checkpoints of the run, if the audits that were asked for need them; and what to tell the reader of them."""
    from memaudit.checkpoints import find_series
    from memaudit.findings import ReportWarning
    from memaudit.pipeline.load import losses
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
    settled = loaded.settled
    exclusive = not settled.adapter.multi_label
    states, notes = read_states(
        settled.adapter,
        series,
        weights=loaded.checkpoint.weights,
        most=most,
        tick=progress.advance,
        losses=(lambda: losses(settled.adapter, (loaded.flagged, settled.reference), settings.device))
        if exclusive
        else None,
    )
    return states, tuple(ReportWarning(code="MEM106", message=note) for note in notes)


def _plan(auditor: Auditor) -> tuple[str, ExitCode]:
    """What the audit would do, after the checks that it makes first, and how it would end if every limit is met."""
    from memaudit.engine.threads import threads_kept
    from memaudit.pipeline.plan import plan

    with threads_kept():
        seen = auditor.look().context
        lines = plan(auditor.evaluator, seen.flagged, seen.reference, auditor.settings, len(auditor.states))
    return "\n".join([lines, *auditor.doubts()]), ExitCode.INCOMPLETE if auditor.incomplete else ExitCode.OK


def _thumbnails(images: str | None, report: Report, auditor: Auditor) -> dict[str, bytes]:
    """Pictures for the page: where they are asked for, or where nobody said and this is no CI machine."""
    from memaudit.pipeline.pictures import pictures_of

    wanted = images == "thumbs" or (images is None and not os.environ.get("CI"))
    return pictures_of(report, auditor.admitted.flagged, auditor.admitted.reference) if wanted else {}
