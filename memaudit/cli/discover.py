"""`memaudit discover`: a whole training set ranked by memorization, from files to files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli import options as opt
from memaudit.cli import outputs
from memaudit.cli.config import Config
from memaudit.cli.engines import running, workers_of
from memaudit.cli.grouped import grouped
from memaudit.cli.loaded import Loaded, load
from memaudit.cli.outputs import RANKED
from memaudit.cli.provenance import MAX_COMMAND, portable
from memaudit.cli.sources import Sources
from memaudit.cli.values import choice, positive
from memaudit.errors import ExitCode
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.cli.progress import Stages
    from memaudit.data import ExampleSet
    from memaudit.engine.ray import Workers
    from memaudit.pipeline.discover import Discovery
    from memaudit.report.ranked import Ranking
    from memaudit.settings import Provenance, Settings

# The list that a scan takes.
FLAGGED = "flagged.csv"


@dataclass(frozen=True)
class Training:
    """Where the training set is."""

    data: Annotated[
        Path | None, typer.Option(help="Training set: folder, manifest or .npz; default: the run's training data.")
    ] = None
    class_order: Annotated[
        str | None, typer.Option(help="natural, lexical, or a file of class names; default: the run's, or natural.")
    ] = None


@dataclass(frozen=True)
class RankOptions:
    """How the ranking is made, and what is done with it."""

    profile: Annotated[str, typer.Option(help="How much is measured: fast, standard or deep.")] = "standard"
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples in flagged.csv; default: those called memorized, else the undecided ones.",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Rank only N rows, evenly spread; incomplete.")] = None
    seed: opt.Seed = 0
    time_limit: Annotated[float | None, typer.Option(help="Seconds; then the ranking is incomplete.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything, print the plan, rank nothing.")] = False
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, whatever an interrupted run has kept.")] = False
    quiet: opt.Quiet = False

    def __post_init__(self) -> None:
        from memaudit.settings import PROFILES

        choice(self.profile, tuple(PROFILES), "--profile")


@dataclass(frozen=True)
class Written:
    """Where it goes, and what is printed."""

    out: Annotated[Path | None, typer.Option(help="Directory; by default reports/<model>/discovery.")] = None
    output: Annotated[
        list[Path],
        typer.Option("-o", "--output", help="Further file: .json .html .md, flagged*.csv, ranking*.csv or .parquet."),
    ] = field(default_factory=list)
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table, json, markdown or github.")] = "table"
    images: Annotated[str | None, typer.Option(help="thumbs or none; none by default when CI is set.")] = None

    def __post_init__(self) -> None:
        choice(self.format_, opt.FORMATS, "--format")
        choice(self.images, ("thumbs", "none"), "--images")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A ranking as it was asked for, to be written to `folder`."""

    folder: Path
    context: typer.Context
    model: str
    training: Training
    network: opt.Network
    ranked: RankOptions
    compute: opt.Compute

    def loaded(self, progress: Stages) -> tuple[Sources, Loaded, Discovery]:
        """Where the data are, the model with them, and the ranking to make of both."""
        sources = Sources.training(self.model, self.training.data, self.training.class_order)
        loaded = load(self.model, self.network, sources, self.compute, progress)

        from memaudit.pipeline.discover import Discovery

        discovery = Discovery(
            loaded.settled.adapter,
            loaded.flagged,
            _settings(self.ranked, self.compute),
            provenance=_provenance(self.context, loaded, self.network, sources, self.folder),
            class_names=loaded.class_names,
            progress=progress,
        )
        return sources, loaded, discovery

    def write(
        self, written: Written, progress: Stages, workers: Workers | None, *, keep: bool
    ) -> tuple[Ranking, list[Path], str]:
        """Rank the training set into the folder, which the caller has locked.

        Returns:
            The document, the files written, and the command that goes on from here, as it is typed on this machine.

        Args:
            keep: leave the journal, for a command that goes on from here and may have to be run again.
        """
        from memaudit.report import ranking as views

        own = (self.folder / name for name in ("ranking.json", "ranking.html", FLAGGED))
        targets = list(dict.fromkeys([*own, *written.output]))
        views.check(targets)
        sources, loaded, discovery = self.loaded(progress)
        views.rehearse(discovery.skeleton(), targets)
        with discovery.journalled(self.folder, fresh=self.ranked.fresh) as journal:
            if journal.recorded:
                progress.stage(f"resume after {journal.recorded} batches")
            with running(workers, self.model, loaded, self.network, "float32", progress) as discovery.engine:
                found, table = discovery.run()
            ranking = found.model_copy(update={"following": self._following(sources, portable)})
            progress.stage("write ranking")
            pictures = _thumbnails("none" if self.network.redact else written.images, ranking, discovery.examples)
            paths = views.write_all(ranking, table, targets, pictures, self.ranked.top)
            if not (discovery.late or keep):
                journal.discard()
        return ranking, paths, self._following(sources, str)

    def _following(self, sources: Sources, word: Callable[[str], str]) -> str:
        """The scan of what is flagged, with the options that said which network and data these are."""
        words = ["memaudit", "scan", word(self.model), "--data", word(str(sources.reference))]
        words += ["--flagged", word(str(self.folder / FLAGGED))]
        for one in fields(self.network):
            value = getattr(self.network, one.name)
            for single in value if isinstance(value, list) else [value]:
                if single not in (None, False):
                    words += [f"--{one.name.replace('_', '-')}", *([] if single is True else [word(str(single))])]
        if sources.class_order != "natural":
            words += ["--class-order", word(sources.class_order)]
        return clean(shlex.join(words), MAX_COMMAND)


@grouped
def discover(
    context: typer.Context,
    model: opt.Model,
    training: Training,
    network: opt.Network,
    ranked: RankOptions,
    compute: opt.Compute,
    engines: opt.Engines,
    written: Written,
    config: Config = None,
) -> int:
    """Rank a whole training set by how much a checkpoint memorized each example.

    Needs neither flagged nor reference examples. Writes ranking.json, ranking.html and flagged.csv.
    """
    folder = written.out or outputs.default_folder(Path(model)) / RANKED
    workers = workers_of(engines, compute)
    asked = Asked(
        folder=folder, context=context, model=model, training=training, network=network, ranked=ranked, compute=compute
    )

    from memaudit.cli.progress import Stages

    if ranked.dry_run:
        with Stages(ranked.quiet) as progress:
            _, _, discovery = asked.loaded(progress)
            typer.echo(discovery.plan())
        return int(ExitCode.INCOMPLETE if discovery.incomplete else ExitCode.OK)
    with Stages(ranked.quiet) as progress, outputs.locked(folder):
        ranking, paths, following = asked.write(written, progress, workers, keep=False)
    _show(ranking, paths, following, written.format_)
    return int(ExitCode.OK if ranking.status == "complete" else ExitCode.INCOMPLETE)


def _settings(ranked: RankOptions, compute: opt.Compute) -> Settings:
    from memaudit.settings import Settings

    return Settings(
        profile=ranked.profile,
        device=compute.device,
        batch_size=compute.batch,
        threads=compute.wanted_threads,
        seed=ranked.seed,
        limit=ranked.limit,
        time_limit=positive(ranked.time_limit, "--time-limit"),
    )


def _provenance(
    context: typer.Context, loaded: Loaded, network: opt.Network, sources: Sources, folder: Path
) -> Provenance:
    from memaudit.cli.provenance import provenance, size_warning

    settled = loaded.settled
    warnings = (*sources.warnings, *settled.warnings, *size_warning(settled.adapter))
    found = provenance(context, loaded, network, sources, folder, warnings)
    inputs = dict(found.inputs)
    inputs["data"] = inputs.pop("reference")
    inputs.pop("flagged")
    return replace(found, inputs=inputs)


def _thumbnails(images: str | None, ranking: Ranking, examples: ExampleSet) -> dict[str, bytes]:
    """Pictures of the examples the page shows, where they are asked for, or where nobody said and this is no CI."""
    from memaudit import data
    from memaudit.report import ranking as views

    if not (images == "thumbs" or (images is None and not os.environ.get("CI"))):
        return {}
    wanted = views.pictured(ranking)
    rows = [row for row, identity in enumerate(examples.ids()) if identity in wanted]
    return dict(data.thumbnails(examples.subset(rows)))


def _show(ranking: Ranking, paths: Sequence[Path], following: str, format_: str) -> None:
    from memaudit.report import ranking as views

    if format_ == "table":
        views.show(ranking, paths, following)
    else:
        typer.echo(views.render(ranking, format_), nl=False)
