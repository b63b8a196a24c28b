"""What a report says of the command that made it: the options that shaped the numbers, without this machine's paths."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from memaudit.cli.config import ORIGINS
from memaudit.cli.values import listed
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.adapters.base import Adapter
    from memaudit.checkpoints import Checkpoint
    from memaudit.cli.loaded import Loaded
    from memaudit.cli.options import Network
    from memaudit.cli.sources import Sources
    from memaudit.findings import ConfigValue, ReportWarning
    from memaudit.settings import Provenance

# Flags that say where things are, where results go or how fast they come: they shape no number.
NOT_NUMBERS = frozenset(
    {
        *("model", "flagged", "reference", "test", "data", "out", "output", "format_", "images", "quiet"),
        *(
            "exit_zero",
            "erased",
            "dry_run",
            "without",
            "unseen",
            "by",
            "log",
            "device",
            "batch_size",
            "threads",
            *("engine", "workers", "gpus_per_worker", "image_cache", "image_cache_gib"),
            "time_limit",
            "checkpoints",
        ),
        *("config", "baseline", "waivers"),
    }
)
MAX_COMMAND = 2000


def provenance(
    context: typer.Context,
    loaded: Loaded,
    network: Network,
    sources: Sources,
    folder: Path,
    warnings: tuple[ReportWarning, ...],
) -> Provenance:
    """Where the report of this command comes from.

    Args:
        folder: of the report.
    """
    from memaudit.cli.recorded import recorded
    from memaudit.data.paths import display
    from memaudit.findings import ConfigValue
    from memaudit.settings import Provenance

    checkpoint, class_order = loaded.checkpoint, loaded.class_order
    said = {"class_order": ConfigValue(value=class_order, origin=sources.said)}
    order = {} if context.params.get("class_order") else said
    return Provenance(
        command=_command(context.obj if isinstance(context.obj, list) else sys.argv[1:]),
        inputs=recorded(network, sources, folder, context.params.get("config")),
        model_path=display(checkpoint.path),
        model_sha256=checkpoint.sha256,
        model_md5=checkpoint.md5,
        weights=checkpoint.weights,
        stripped_prefix=checkpoint.stripped_prefix,
        config={
            **_options(context),
            **order,
            **_row_order(context, loaded, sources),
            "preprocess": _preprocess(loaded.settled.adapter),
        },
        class_order=class_order,
        by=clean(context.params.get("by") or ""),
        warnings=warnings,
    )


def beside_warning(checkpoint: Checkpoint) -> tuple[ReportWarning, ...]:
    """Which of the file's tensors were left out, being no part of the network."""
    from memaudit.checkpoints.beside import AVERAGED
    from memaudit.findings import ReportWarning

    names = [n for n in checkpoint.beside if not n.endswith(AVERAGED)]
    if not names:
        return ()
    shown = ", ".join(clean(n, 60) for n in names[:3]) + (", ..." if len(names) > 3 else "")
    message = f"{len(names)} tensors of the file are no part of the network and were left out: {shown}"
    return (ReportWarning(code="MEM908", message=message),)


def size_warning(adapter: Adapter) -> tuple[ReportWarning, ...]:
    """That the model is tested at another size than it was trained at, where nobody chose between them."""
    from memaudit.findings import ReportWarning

    used, tested = adapter.preprocess.input_size, adapter.test_size
    if tested is None or tested == used:
        return ()
    shown, other = (f"{height} x {width}" for _, height, width in (used, tested))
    flag = f"--input-size {','.join(map(str, tested))}"
    message = f"images are prepared at {shown}, the size of training; the model is tested at {other} ({flag})"
    return (ReportWarning(code="MEM903", message=message),)


def _command(arguments: list[str]) -> str:
    return clean("memaudit " + shlex.join(portable(word) for word in arguments), MAX_COMMAND)


def portable(word: str) -> str:
    """A word of a command line, an absolute path in it (`--out=/home/me/x` too) reduced to its last part."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def _options(context: typer.Context) -> dict[str, ConfigValue]:
    """Every option that shaped the numbers, with where its value came from."""
    from memaudit.findings import ConfigValue

    values: dict[str, ConfigValue] = {}
    for name, value in context.params.items():
        if name in NOT_NUMBERS:
            continue
        source = context.get_parameter_source(name)
        origin = "default" if source is None else ORIGINS.get(source.name, "default")
        shown = [clean(v) for v in value] if isinstance(value, list | tuple) else value
        if isinstance(value, str | Path):
            shown = clean(portable(str(value)))
        values[name] = ConfigValue(value=shown, origin=origin)
    return values


def _row_order(context: typer.Context, loaded: Loaded, sources: Sources) -> dict[str, ConfigValue]:
    """Whose numbers the rows have, where no option says it: the run does, or what the lists themselves allow."""
    from memaudit.findings import ConfigValue

    if context.params.get("row_order"):
        return {}
    found = {loaded.flagged.row_order, loaded.settled.reference.row_order} - {None}
    value = ", ".join(sorted(str(v) for v in found)) or None
    return {"row_order": ConfigValue(value=value, origin="checkpoint" if sources.row_order else "measured")}


def _preprocess(adapter: Adapter) -> ConfigValue:
    from memaudit.findings import ConfigValue

    p = adapter.preprocess
    size = "x".join(map(str, p.input_size))
    norm = f"mean {listed(p.mean)} std {listed(p.std)}" if p.mean else "not normalised"
    if getattr(adapter, "transform", None) is not None:
        norm = "normalised by the adapter's own transform"
    geometry = f"{size}, crop {p.crop_pct:g}, {p.interpolation}" if p.image else f"({size}) as it is"
    more = [f"crop mode {p.crop_mode}"] if p.crop_mode != "center" else []
    more += ["orientation tags applied"] if p.exif == "apply" else []
    more += [f"{p.bit_depth} bits"] if p.bit_depth else []
    more += ["blue, green, red"] if p.bgr else []
    text = ", ".join((geometry, norm, *more))
    return ConfigValue(value=text, origin=p.origin)
