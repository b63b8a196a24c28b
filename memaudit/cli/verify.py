"""`memaudit verify`: does a model still tell the flagged examples from others that it never saw?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli import logged, outputs
from memaudit.cli import options as opt
from memaudit.cli.config import Config
from memaudit.cli.grouped import grouped
from memaudit.cli.loaded import load, load_others
from memaudit.cli.sources import Sources
from memaudit.cli.values import choice
from memaudit.errors import ExitCode, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.cli.loaded import Loaded
    from memaudit.findings import Erasure
    from memaudit.report.verified import Verification
    from memaudit.settings import Provenance


@dataclass(frozen=True)
class Asked:
    """Where the examples are, and the models that never saw the flagged ones."""

    flagged: Annotated[Path | None, typer.Option(help="Examples that should be gone, with the labels they had.")] = None
    reference: Annotated[
        Path | None, typer.Option(help="Clean examples: folder, manifest or .npz; default: the run's validation data.")
    ] = None
    without: opt.Without = field(default_factory=list)
    data: Annotated[Path | None, typer.Option(help="Data set that the other options list rows of.")] = None
    row_order: Annotated[
        str | None, typer.Option(help="Whose numbers an image folder's rows have: torchvision or timm.")
    ] = None
    class_order: Annotated[
        str | None, typer.Option(help="natural, lexical, or a file of class names; default: the run's, or natural.")
    ] = None


@dataclass(frozen=True)
class Judged:
    """How it is measured and judged."""

    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 although the policy is not met.")] = False
    profile: Annotated[str, typer.Option(help="How much our own estimate measures: fast, standard, deep.")] = "standard"
    seed: opt.Seed = 0
    quiet: opt.Quiet = False

    def __post_init__(self) -> None:
        from memaudit.settings import PROFILES

        choice(self.profile, tuple(PROFILES), "--profile")


@dataclass(frozen=True)
class Written:
    """Where it goes, and what is printed."""

    out: Annotated[Path | None, typer.Option(help="Directory; by default reports/<model>.")] = None
    output: Annotated[
        list[Path], typer.Option("-o", "--output", help="Further file: .json .html .md .csv .parquet. Repeatable.")
    ] = field(default_factory=list)
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table, json, markdown or github.")] = "table"

    def __post_init__(self) -> None:
        choice(self.format_, opt.FORMATS, "--format")


@grouped
def verify(
    context: typer.Context,
    model: opt.Model,
    asked: Asked,
    verified: opt.Verified,
    network: opt.Network,
    judged: Judged,
    compute: opt.Compute,
    written: Written,
    config: Config = None,
) -> int:
    """Ask a retrained, edited or unlearned model whether it still holds the flagged examples.

    Compares them with unseen examples of the same kind. Writes verification.json and verification.html, and ends with 0
    (no evidence, or the policy met) or 1 (evidence, or a comparison in which none could show).
    """
    from memaudit.cli.progress import Stages
    from memaudit.gate.membership import MembershipPolicy
    from memaudit.report.verification import writing as views

    logged.check(verified.log)
    policy = MembershipPolicy.parse(verified.max_tpr_at_fpr)
    folder = written.out or outputs.default_folder(Path(model))
    targets = list(dict.fromkeys([folder / "verification.json", folder / "verification.html", *written.output]))
    views.check(targets)
    with Stages(judged.quiet) as progress, outputs.locked(folder):
        sources = Sources.of(model, _places(asked, verified))
        loaded = load(model, network, sources, compute, progress)
        edit = _edit(verified.erased, loaded)
        others = load_others(asked.without, loaded, network, sources, compute, progress)

        from memaudit.cli.provenance import beside_warning, provenance, size_warning
        from memaudit.pipeline.verify import Verifier
        from memaudit.settings import Settings

        adapter = loaded.settled.adapter
        warnings = (*sources.warnings, *loaded.warnings, *size_warning(adapter), *beside_warning(loaded.checkpoint))
        assert loaded.test is not None  # noqa: S101 - `_places` names them
        found = Verifier(
            adapter,
            loaded.flagged,
            loaded.settled.reference,
            loaded.test,
            Settings(
                profile=judged.profile,
                device=compute.device,
                batch_size=compute.batch,
                threads=compute.wanted_threads,
                seed=judged.seed,
            ),
            others=others,
            policy=policy,
            provenance=_renamed(provenance(context, loaded, network, sources, folder, warnings)),
            class_names=loaded.class_names,
            progress=progress,
        ).run()
        found = found.model_copy(update={"erasure": edit})
        progress.stage("write verification")
        paths = views.write_all(found, targets)
        logged.log(verified.log, found, paths)
    _show(found, paths, written.format_)
    if found.status == "incomplete":
        return int(ExitCode.INCOMPLETE)
    return int(ExitCode.POLICY if found.verdict == "fail" and not judged.exit_zero else ExitCode.OK)


def _places(asked: Asked, verified: opt.Verified) -> opt.Places:
    """Where the examples are, the unseen ones in the place of held-out ones.

    Raises:
        UsageError: no unseen examples are named.
    """
    if verified.unseen is None:
        raise UsageError(
            "no unseen examples to compare with",
            hint="--unseen FOLDER, manifest or .npz: held out, of the same source as the flagged ones",
        )
    return opt.Places(
        flagged=asked.flagged,
        reference=asked.reference,
        test=verified.unseen,
        data=asked.data,
        row_order=asked.row_order,
        class_order=asked.class_order,
    )


def _edit(path: Path | None, loaded: Loaded) -> Erasure | None:
    """What `memaudit erase` recorded of the edit that made the model.

    Raises:
        DataRejected: the file is no such record, or of another model.
    """
    from memaudit.errors import DataRejected
    from memaudit.report import reading

    if path is None:
        return None
    found = reading.edit(path)
    if found.sha256 != loaded.checkpoint.sha256:
        raise DataRejected(
            f"--erased {clean(path.name)} is of another model: it made {clean(found.file)}, sha256 {found.sha256[:12]}",
            hint="Verify the edited copy, or name the NAME.erase.json that was written with this one.",
        )
    return found


def _renamed(found: Provenance) -> Provenance:
    """What a scan calls held-out examples are the unseen ones here."""
    return replace(found, inputs={"unseen" if name == "test" else name: v for name, v in found.inputs.items()})


def _show(found: Verification, paths: Sequence[Path], format_: str) -> None:
    from memaudit.report.verification import text
    from memaudit.report.verification import writing as views

    if format_ == "table":
        text.show(found, paths)
    else:
        typer.echo(views.render(found, format_), nl=False)
