"""`memaudit erase`: an edited copy of the checkpoint, measured again from disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli import options as opt
from memaudit.cli.grouped import grouped
from memaudit.cli.recorded import restored
from memaudit.cli.values import choice
from memaudit.erase import METHODS, Choice
from memaudit.errors import ExitCode, ModelRejected, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.cli.loaded import Loaded
    from memaudit.cli.progress import Stages
    from memaudit.erase.request import Request
    from memaudit.findings import Erasure
    from memaudit.report.document import Report

# What a folder is never called.
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".tar")


@dataclass(frozen=True)
class Edit:
    """What is taken out, and how."""

    examples: Annotated[
        list[str], typer.Option(help="Finding ids, comma separated; repeatable. This or --all for --method units.")
    ] = field(default_factory=list)
    all_: Annotated[
        bool, typer.Option("--all", help="All localized findings at once, which costs far more than one alone.")
    ] = False
    method: Annotated[str, typer.Option(help=" ".join(f"{m.name}: {m.hint}." for m in METHODS.values()))] = "units"
    max_test_drop: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Points of accuracy that the edit may cost; default: 5 for units, else 1."),
    ] = None
    clean_steps: Annotated[
        int, typer.Option(min=0, help="Training steps on the reference that an edit of a group may take; 0: none.")
    ] = 150
    wrong_labels: Annotated[
        bool,
        typer.Option("--wrong-labels", help="The flagged labels are known to be wrong: clean steps learn that, too."),
    ] = False
    target: Annotated[
        float,
        typer.Option(min=0, max=100, help="Percent of flagged labels left at which --method auto stops; default: 5."),
    ] = 5.0

    def __post_init__(self) -> None:
        choice(self.method, tuple(METHODS), "--method")
        if self.named and not METHODS[self.method].singles:
            single = " or ".join(m.name for m in METHODS.values() if m.singles)
            raise UsageError(
                f"--examples goes with --method {single}",
                hint=f"{self.method.capitalize()} erases a group; name it with --flagged.",
            )
        if METHODS[self.method].trains and not self.clean_steps:
            raise UsageError(
                f"--method {self.method} trains, and --clean-steps is 0", hint="Give --clean-steps 150 or more."
            )
        if self.wrong_labels and not (METHODS[self.method].learns and self.clean_steps):
            without = "--clean-steps is 0" if METHODS[self.method].learns else f"--method {self.method} has none"
            raise UsageError(
                f"--wrong-labels is learned in clean steps, and {without}",
                hint="Give --method finetune or relearn, and --clean-steps 150 or more.",
            )
        if METHODS[self.method].singles and bool(self.named) == self.all_:
            raise UsageError(
                "--examples and --all exclude each other" if self.all_ else "which findings are to be erased?",
                hint="Name them with --examples ID,ID, or take all localized ones with --all.",
            )

    @property
    def allowed(self) -> float:
        """The share of accuracy that the edit may cost."""
        return METHODS[self.method].budget if self.max_test_drop is None else self.max_test_drop / 100

    @property
    def named(self) -> list[str]:
        """The findings that were named, one by one."""
        return [part for text in self.examples for part in text.split(",") if part]


@grouped
def erase(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="The report.json of the audit.")],
    model: Annotated[str, typer.Option(help="The audited checkpoint; it stays as it is.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The edited copy: a .safetensors file, or a new folder.")
    ],
    edit: Edit,
    places: opt.Places,
    network: opt.Network,
    compute: opt.Compute,
    seed: opt.Seed = 0,
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table or json.")] = "table",
    quiet: opt.Quiet = False,
) -> int:
    """Write an edited copy that suppresses what was found, and measure it.

    What it will cost is predicted first, and refused beyond --max-test-drop. Writes the checkpoint, and beside it its
    NAME.erase.json and the report again with a section on it.
    """
    choice(format_, ("table", "json"), "--format")
    from memaudit import report as reports
    from memaudit.cli.progress import Stages
    from memaudit.engine.threads import settle_threads, threads_kept
    from memaudit.erase.request import Request, rows_of
    from memaudit.findings import LayerVerdict

    targets = _targets(output, model)
    audited = reports.read(report)
    critical = [one.layer for one in audited.layers if one.verdict == LayerVerdict.CRITICAL]
    wanted = Choice(
        audited.findings, edit.named, edit.allowed, edit.clean_steps, edit.target / 100, critical, edit.wrong_labels
    )
    if METHODS[edit.method].singles:
        wanted.chosen()
    with Stages(quiet) as progress:
        said = places.flagged is not None
        places, network = restored(audited.inputs, report, places), restored(audited.inputs, report, network)
        loaded = _load(model, audited, places, network, compute, progress)
        if not said:  # another list is somebody's choice, what is found under an old name is not
            rows_of(audited.findings, loaded.flagged)
        _check_form(targets[0], loaded)
        request = Request(
            adapter=loaded.settled.adapter,
            flagged=loaded.flagged,
            reference=loaded.settled.reference,
            test=loaded.test,
            output=targets[0],
            source_sha256=loaded.checkpoint.sha256,
            device=compute.device,
            batch_size=compute.batch,
            seed=seed,
            progress=progress,
        )
        with threads_kept():
            settle_threads(request.evaluator(), loaded.flagged, compute.wanted_threads)
            erasure = METHODS[edit.method].run(request, wanted)
            if request.test is not None:
                erasure = _verified(erasure, request, loaded)
        progress.stage("write report")
        _write(erasure, audited, targets, report)
    from memaudit.report import erasure as view
    from memaudit.report.json import encode

    typer.echo(encode(erasure.model_dump(mode="json"), indent=2) if format_ == "json" else view.text(erasure))
    for path in targets:
        typer.echo(f"wrote {path}", err=True)
    return int(ExitCode.OK)


def _verified(erasure: Erasure, request: Request, loaded: Loaded) -> Erasure:
    """`erasure` with what `verify` says of the original and of the written file, the test examples as unseen ones."""
    from memaudit.erase.proof import reread
    from memaudit.errors import MemauditError
    from memaudit.pipeline.verify import Verifier
    from memaudit.settings import Settings

    assert request.test is not None  # noqa: S101 - asked before
    settings = Settings(profile="fast", device=request.device, batch_size=request.batch_size, seed=request.seed)
    found = {}
    try:
        for name, adapter, of in (
            ("membership_before", request.adapter, "original"),
            ("membership", reread(request.output, request.adapter)[0], "edited copy"),
        ):
            request.progress.stage(f"membership, {of}")
            said = Verifier(
                adapter,
                request.flagged,
                request.reference,
                request.test,
                settings,
                class_names=loaded.class_names,
                progress=request.progress,
            ).run()
            found[name] = said.membership.model_copy(update={"examples": []})
    except MemauditError as error:
        return erasure.model_copy(update={"notes": [*erasure.notes, f"Membership was not measured: {error.message}"]})
    return erasure.model_copy(update=found)


def _targets(output: Path, model: str) -> list[Path]:
    """The edited file, `NAME.erase.json` beside it, and the new report; refused now if they cannot be written.

    Raises:
        UsageError: another suffix, a place that cannot be written, or the model itself.
    """
    from memaudit.system.files import check_target

    folder = output.suffix != ".safetensors"
    if folder and (not Path(model).is_dir() or output.suffix in WEIGHTS):
        raise UsageError(f"-o {clean(output)} is no .safetensors file", hint="The copy is written in that format.")
    if folder and output.is_dir() and any(output.iterdir()):
        raise UsageError(f"-o {clean(output)} is not empty", hint="Name a folder that does not exist yet.")
    stem = output.name.removesuffix(".safetensors")
    named = [f"{stem}.erase.json", f"{stem}.report.json", f"{stem}.report.html"]
    targets = [output, *(output.with_name(n) for n in named)]
    for path in targets[folder:]:
        check_target(path)
    source = Path(model)
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if source.exists() and (inside or (output.exists() and output.samefile(source))):
        raise UsageError(f"-o {clean(output)} is the audited model or in its folder", hint="Name another place.")
    return targets


def _check_form(output: Path, loaded: Loaded) -> None:
    """Raise where a folder is wanted of a model that is written as one file."""
    adapter = loaded.settled.adapter
    if output.suffix != ".safetensors" and not adapter.folders:
        raise UsageError(
            f"-o {clean(output)} is no .safetensors file, and a model of {clean(adapter.name)} is written as one",
            hint="Name a .safetensors file.",
        )


def _load(
    model: str, audited: Report, places: opt.Places, network: opt.Network, compute: opt.Compute, progress: Stages
) -> Loaded:
    """Model and examples as the audit read them, but for what was said otherwise.

    Raises:
        UsageError: nobody says where the examples are.
        ModelRejected: the checkpoint is not the one that was audited.
    """
    from memaudit.cli.loaded import load
    from memaudit.cli.sources import Sources

    loaded = load(model, network, Sources.of(model, places), compute, progress)
    if audited.model.sha256 and loaded.checkpoint.sha256 != audited.model.sha256:
        raise ModelRejected(
            f"{clean(Path(model).name)} is not the model of this report (sha256 {loaded.checkpoint.sha256[:12]}, "
            f"audited {audited.model.sha256[:12]})",
            hint="Give the audited checkpoint, or scan this one.",
        )
    return loaded


def _write(erasure: Erasure, audited: Report, targets: list[Path], path: Path) -> None:
    """The edit as JSON, and the report at `path` again with a section on it; its page keeps the pictures."""
    from memaudit import report as reports
    from memaudit.report import pictures
    from memaudit.report.json import encode
    from memaudit.system.files import replace as put

    put(targets[1], encode(erasure.model_dump(mode="json"), indent=2) + "\n")
    amended = audited.model_copy(update={"erasure": erasure})
    for target in targets[2:]:
        reports.write(amended, target, pictures.beside(path, audited))
