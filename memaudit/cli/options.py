"""Option texts and parsers that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memaudit.cli.values import auto_or_number, choice, numbers, pair, size

if TYPE_CHECKING:
    from memaudit.adapters.options import ModelOptions
    from memaudit.data.kept import Kept
    from memaudit.gate.policy import Accepted, Policy

FORMATS = ("table", "json", "markdown", "github")
UNITS = ("auto", "channel", "neuron", "head")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint: .safetensors .pt .pth .pth.tar .ckpt .bin, or a directory.")
]
Checkpoints = Annotated[
    list[str], typer.Option(help="Earlier checkpoints: folder, pattern or file; repeatable. Default: beside MODEL.")
]
Unit = Annotated[str, typer.Option(help="channel, neuron, head, or auto: the kind at the most layers.")]
Layers = Annotated[str | None, typer.Option(help="Only layers matching this pattern, e.g. 'layer3.*'.")]
Weights = Annotated[str | None, typer.Option(help="raw or ema, where the checkpoint holds both.")]
Seed = Annotated[int, typer.Option(help="For every random draw.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
By = Annotated[str, typer.Option(help="Who runs it, for the report.")]
Log = Annotated[
    str | None, typer.Option(help="mlflow or wandb: also log figures and files there, by its own settings.")
]
Without = Annotated[
    list[Path], typer.Option(help="A model trained without the flagged examples; repeatable. Several give intervals.")
]
Output = Annotated[
    list[Path], typer.Option("-o", "--output", help="Further file; the suffix is the format. Repeatable.")
]


@dataclass(frozen=True)
class Places:
    """Where the examples are."""

    flagged: Annotated[
        Path | None, typer.Option(help="Flagged examples with trained labels: folder, manifest or .npz.")
    ] = None
    reference: Annotated[
        Path | None, typer.Option(help="Clean examples: folder, manifest or .npz; default: the run's validation data.")
    ] = None
    reference_size: Annotated[
        int | None,
        typer.Option(min=0, help="Reference examples drawn, by class, from more: 10000 by default; 0: all."),
    ] = None
    test: Annotated[Path | None, typer.Option(help="Held-out examples, for final figures.")] = None
    data: Annotated[Path | None, typer.Option(help="Data set that the other options list rows of.")] = None
    row_order: Annotated[
        str | None, typer.Option(help="Whose numbers an image folder's rows have: torchvision or timm.")
    ] = None
    class_order: Annotated[
        str | None, typer.Option(help="natural, lexical, or a file of class names; default: the run's, or natural.")
    ] = None

    def __post_init__(self) -> None:
        choice(self.row_order, ("torchvision", "timm"), "--row-order")


@dataclass(frozen=True)
class Network:
    """Which network the checkpoint holds, what its images go through before it, and what is shown of them."""

    adapter: Annotated[str | None, typer.Option(help="Installed adapter, or your own file: ./my_model.py:factory.")] = (
        None
    )
    arch: Annotated[
        str | None, typer.Option(help="timm's name, or torchvision:NAME; default: the checkpoint's own, or identified.")
    ] = None
    model_kwargs: Annotated[list[str], typer.Option(help="Argument for the architecture, key=value; repeatable.")] = (
        field(default_factory=list)
    )
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, where the checkpoint leaves it open.")
    ] = None
    weights: Weights = None
    mean: Annotated[str | None, typer.Option(help="Per-channel mean, comma separated, of images in [0, 1].")] = None
    std: Annotated[str | None, typer.Option(help="Per-channel standard deviation, comma separated.")] = None
    input_size: Annotated[
        str | None, typer.Option(help="Network input, C,H,W or H,W or one number; '(C,T)' for what is no image.")
    ] = None
    crop_pct: Annotated[
        float | None, typer.Option(min=0.01, max=2, help="Share of the resized image that the centre crop keeps.")
    ] = None
    crop_mode: Annotated[str | None, typer.Option(help="center, squash or border, as timm calls them.")] = None
    interpolation: Annotated[str | None, typer.Option(help="bicubic, bilinear or nearest.")] = None
    exif: Annotated[str | None, typer.Option(help="Photographs' orientation tag: ignore (as loaders do) or apply.")] = (
        None
    )
    bit_depth: Annotated[
        str | None, typer.Option(help="Bits of 16-bit image files (12, 16), or clip: cut at 255, as loaders do.")
    ] = None
    channel_order: Annotated[str | None, typer.Option(help="rgb, or bgr as OpenCV reads.")] = None
    multi_label: Annotated[
        bool | None, typer.Option("--multi-label", help="Labels do not exclude each other: one logit each.")
    ] = None
    redact: Annotated[
        bool | None,
        typer.Option("--redact", help="No texts, file names, notes or pictures in reports: rows and ids instead."),
    ] = None

    def __post_init__(self) -> None:
        choice(self.weights, ("raw", "ema"), "--weights")
        choice(self.crop_mode, ("center", "squash", "border"), "--crop-mode")
        choice(self.interpolation, ("bicubic", "bilinear", "nearest"), "--interpolation")
        choice(self.exif, ("ignore", "apply"), "--exif")
        choice(self.bit_depth, ("clip", *map(str, range(9, 17))), "--bit-depth")
        choice(self.channel_order, ("rgb", "bgr"), "--channel-order")

    def options(self) -> ModelOptions:
        """The flags as the library takes them.

        Raises:
            UsageError: a value cannot be read.
        """
        from memaudit.adapters.options import ModelOptions

        return ModelOptions(
            arch=self.arch,
            model_kwargs=dict(pair(k) for k in self.model_kwargs),
            num_classes=self.num_classes,
            mean=numbers(self.mean, "--mean"),
            std=numbers(self.std, "--std"),
            input_size=size(self.input_size),
            user_file=self.adapter if self.adapter and ":" in self.adapter else None,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            exif=self.exif,
            bit_depth=int(self.bit_depth) if self.bit_depth and self.bit_depth.isdecimal() else self.bit_depth,
            channel_order=self.channel_order,
            multi_label=bool(self.multi_label),
        )


@dataclass(frozen=True)
class AuditOptions:
    """What is measured, and how much of it."""

    max_units: Annotated[int, typer.Option(min=1, help="Most units one example may take.")] = 10
    unit: Unit = "auto"
    layers: Layers = None
    checkpoints: Checkpoints = field(default_factory=list)
    audit: Annotated[
        str | None,
        typer.Option(help="localize (default), gradients, rewind, retrain, comma separated, or all."),
    ] = None
    group_depth: Annotated[int | None, typer.Option(min=1, help="Parts of a layer group's path.")] = None
    ablation: Annotated[str, typer.Option(help="Ablated units become zero, or their reference mean.")] = "zero"
    profile: Annotated[str, typer.Option(help="How much is measured: fast, standard or deep.")] = "standard"
    limit: Annotated[int | None, typer.Option(min=1, help="Audit only the first N; the report is incomplete.")] = None
    without: Without = field(default_factory=list)
    top: Annotated[int, typer.Option(min=1, help="Without --flagged: audit the N most memorized of the data.")] = 100

    def __post_init__(self) -> None:
        from memaudit.settings import PROFILES

        choice(self.unit, UNITS, "--unit")
        choice(self.ablation, ("zero", "mean"), "--ablation")
        choice(self.profile, tuple(PROFILES), "--profile")


@dataclass(frozen=True)
class Compute:
    """Where it runs and in what portions."""

    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    batch_size: Annotated[str, typer.Option(help="auto, or examples per pass.")] = "auto"
    threads: Annotated[str, typer.Option(help="auto, or cores of the processor: each runs a copy of the network.")] = (
        "auto"
    )
    image_cache: Annotated[Path | None, typer.Option(help="Folder that keeps decoded images for later commands.")] = (
        None
    )
    image_cache_gib: Annotated[
        float | None, typer.Option(min=0, help="What --image-cache may take; default: half of what is free.")
    ] = None

    @property
    def kept(self) -> Kept | None:
        """Where decoded images are kept; None: nowhere."""
        from memaudit.data.kept import Kept

        most = None if self.image_cache_gib is None else int(self.image_cache_gib * 2**30)
        return None if self.image_cache is None else Kept(self.image_cache, most)

    @property
    def batch(self) -> int | None:
        """Examples a pass; None for auto.

        Raises:
            UsageError: neither auto nor a number of examples.
        """
        return auto_or_number(self.batch_size, "--batch-size", 65536)

    @property
    def wanted_threads(self) -> int | None:
        """Threads of the processor; None for auto.

        Raises:
            UsageError: neither auto nor a number of threads.
        """
        return auto_or_number(self.threads, "--threads", 1024)


@dataclass(frozen=True)
class Engines:
    """Who runs the network."""

    engine: Annotated[
        str | None, typer.Option(help="process, or ray (pip install 'memaudit[ray]'); default: ray if RAY_ADDRESS.")
    ] = None
    workers: Annotated[int | None, typer.Option(min=1, help="Ray: how many; default: as there is room for.")] = None
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="Ray: of each; default: 1 where --device is a GPU, else 0.")
    ] = None

    def __post_init__(self) -> None:
        choice(self.engine, ("process", "ray"), "--engine")


@dataclass(frozen=True)
class Limits:
    """The policy, and what is accepted whatever it says."""

    max_memorized: Annotated[str | None, typer.Option(help="Policy: most memorized examples, N or P%.")] = None
    max_localized: Annotated[
        str | None, typer.Option(help="Policy: most memorized and localized examples, N or P%.")
    ] = None
    min_reference_accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Policy: a share.")] = None
    baseline: Annotated[Path | None, typer.Option(help="An older report.json: findings it has too do not count.")] = (
        None
    )
    waivers: Annotated[
        Path | None, typer.Option(help="Accepted findings; default: the nearest memaudit-waivers.toml.")
    ] = None
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 although the policy is not met.")] = False

    def policy(self, base: Policy) -> Policy:
        """`base` with the limits that were given in place of its own."""
        return base.with_limits(self.max_memorized, self.max_localized, self.min_reference_accuracy)

    def accepted(self) -> Accepted:
        """The baseline and the waivers that were named, or the `memaudit-waivers.toml` nearest above here.

        Raises:
            UsageError: the waivers cannot be used.
            DataRejected: the baseline is no report.
        """
        from memaudit import report as reports
        from memaudit.gate import waivers as files
        from memaudit.gate.policy import Accepted
        from memaudit.system.toml import nearest, shown

        path = self.waivers or nearest(files.NAME)
        found = files.read(path) if path is not None else ()
        if self.baseline is None:
            return Accepted(found)
        return Accepted(found, reports.read(self.baseline), shown(self.baseline))


@dataclass(frozen=True)
class Destination:
    """Where the report goes, and what is printed."""

    out: Annotated[Path | None, typer.Option(help="Directory of the report; by default reports/<model>.")] = None
    output: Output = field(default_factory=list)
    format_: Annotated[str, typer.Option("-f", "--format", help="stdout: table, json, markdown or github.")] = "table"
    images: Annotated[str | None, typer.Option(help="thumbs or none; none by default when CI is set.")] = None

    def __post_init__(self) -> None:
        choice(self.format_, FORMATS, "--format")
        choice(self.images, ("thumbs", "none"), "--images")


@dataclass(frozen=True)
class RunOptions:
    """How this one run goes; none of it shapes a number but the seed and the precision of the search."""

    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16 for the search alone: what it finds is measured in float32.")
    ] = "float32"
    seed: Seed = 0
    time_limit: Annotated[float | None, typer.Option(help="Seconds; then the report is incomplete.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything, print the plan, audit nothing.")] = False
    by: By = ""
    log: Log = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, whatever an interrupted run has kept.")] = False
    quiet: Quiet = False


@dataclass(frozen=True)
class Verified:
    """What `memaudit verify` compares with and is judged by, beside what it shares with a scan."""

    unseen: Annotated[
        Path | None, typer.Option(help="Examples the model was certainly not trained on, of the flagged ones' kind.")
    ] = None
    max_tpr_at_fpr: Annotated[
        str | None, typer.Option(help="Policy: FPR:TPR, as 0.1%:1%; without it, no evidence of membership at all.")
    ] = None
    erased: Annotated[
        Path | None,
        typer.Option(help="NAME.erase.json of the edit that made MODEL, for the officer's page."),
    ] = None
    by: By = ""
    log: Log = None


# The options of `memaudit scan`, in the order of its help.
SCAN = (Places, Network, AuditOptions, Compute, Engines, Destination, Limits, RunOptions)
