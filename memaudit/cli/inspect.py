"""`memaudit inspect`: what a checkpoint was recognised as; no data needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memaudit.cli import options as opt
from memaudit.cli.config import Config
from memaudit.cli.grouped import grouped
from memaudit.cli.values import choice, listed
from memaudit.errors import UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.adapters.base import Adapter
    from memaudit.checkpoints import Run, Series
    from memaudit.checkpoints.series import Point
    from memaudit.cli.config import Setting
    from memaudit.data import Preprocess

LAYERS_SHOWN = 12
# Side of the images that a network of any size is looked at with.
SMALL = 64


@grouped
def inspect(
    context: typer.Context,
    model: opt.Model,
    network: opt.Network,
    checkpoints: opt.Checkpoints = [],  # noqa: B006 - typer copies it
    unit: opt.Unit = "auto",
    layers: opt.Layers = None,
    config: Config = None,
    format_: Annotated[str, typer.Option("-f", "--format", help="table or json.")] = "table",
) -> None:
    """Show what a checkpoint was recognised as; needs no data.

    Architecture, classes, preprocessing and units, or the candidates where the architecture is undecided.
    """
    choice(format_, ("table", "json"), "--format")
    from memaudit.checkpoints import Run, find_run, find_series, read
    from memaudit.cli.config import settings
    from memaudit.findings import LayerUnits, ModelInfo, Units
    from memaudit.system.toml import shown

    options = network.options()
    checkpoint = read(model, weights=network.weights)  # type: ignore[arg-type]

    import torch  # not before: a pickle's child imports it at the same time as this process

    from memaudit.adapters.registry import choose
    from memaudit.data import from_tensors
    from memaudit.data.paths import display
    from memaudit.engine.device import exact_arithmetic
    from memaudit.engine.evaluator import Evaluator
    from memaudit.network.units import select
    from memaudit.pipeline.premises import check_network, uncuttable

    torch.set_num_threads(1)  # a few small images: threads would only wait for each other
    chosen = choose(checkpoint, options, network.adapter)
    several = len(chosen.alternatives) > 1
    with exact_arithmetic(), _small(chosen):
        images = chosen.noise(3, torch.Generator().manual_seed(0))
        sites = chosen.sites(images)
        few = from_tensors(images, torch.zeros(3).long(), preprocess=chosen.preprocess, num_classes=None)
        check_network(Evaluator(chosen, len(few)), few)
        classes = chosen.num_classes
    if not sites:
        raise uncuttable(chosen.architecture)
    searched = select(sites, unit, layers).sites
    info = ModelInfo(
        path=display(checkpoint.path),
        sha256=checkpoint.sha256,
        md5=checkpoint.md5,
        architecture=None if several and not chosen.variants else chosen.architecture,
        adapter=chosen.name or "module",
        num_classes=classes,
        parameters=chosen.parameters,
        weights=checkpoint.weights,
        stripped_prefix=checkpoint.stripped_prefix,
        dtype="float32",
        candidates=list(chosen.alternatives) if several else [],
    )
    units = Units(
        total=sum(s.width for s in searched),
        dead=0,
        by_layer=[LayerUnits(layer=s.layer, kind=s.kind, width=s.width) for s in searched],
    )
    series = find_series(Path(model), checkpoints)
    try:
        run = find_run(Path(model))
    except UsageError as unnamed:  # a class map that is not here: nothing that is shown depends on it
        run = Run(None, None, problem=unnamed.message)
    if format_ == "json":
        import json

        from memaudit.report.json import encode

        data: dict[str, Any] = {"model": info.model_dump(mode="json"), "units": units.model_dump(mode="json")}
        data["series"] = [_point(point) for point in series.points]
        data["series_notes"] = [clean(note, 400) for note in series.notes]
        data["preprocess"] = _preprocess(chosen)
        data["config"] = {s.key: {"value": _shown(s.value), "origin": s.origin} for s in settings(context)}
        data["config_file"] = None if config is None else shown(config)
        data["run"] = None if run is None else _run(run)
        typer.echo(encode(json.loads(json.dumps(data)), indent=2))
        return
    for line in [
        *_lines(chosen, info, units, sites),
        *_series_lines(series),
        *_run_lines(run),
        *_settings_lines(list(settings(context)), config),
    ]:
        typer.echo(line)


@contextmanager
def _small(adapter: Adapter) -> Iterator[None]:
    """Images of a smaller side while the body runs, where the network takes them: units do not depend on it.

    Passes of 224 pixels took half of the time on a ResNet-50.
    """
    from memaudit.errors import MemauditError

    own = adapter.preprocess
    if own.image and min(own.input_size[1:]) > SMALL:
        adapter.preprocess = replace(own, input_size=(own.input_size[0], SMALL, SMALL))
        try:
            adapter.attempt(adapter.blank(2))
        except MemauditError:
            adapter.preprocess = own
    try:
        yield
    finally:
        adapter.preprocess = own


def _point(point: Point) -> dict[str, Any]:
    """One checkpoint in the report's own shape, without what only an audit measures."""
    from memaudit.findings import SeriesPoint

    mark = point.mark
    found = SeriesPoint(checkpoint=point.label, file=clean(point.name), epoch=mark.epoch, step=mark.step)
    return found.model_dump(mode="json", include={"checkpoint", "file", "epoch", "step"})


def _series_lines(series: Series) -> list[str]:
    points = series.points
    if not points:
        text = "no other checkpoint of this run beside it (name some with --checkpoints)"
    elif len(points) == 1:
        text = f"1 checkpoint: {clean(points[0].name)} ({points[0].label})"
    else:
        text = f"{len(points)} checkpoints, {points[0].label} ({clean(points[0].name)}) to "
        text += f"{points[-1].label} ({clean(points[-1].name)})"
    return [f"series         {text}", *(f"                 {clean(note, 400)}" for note in series.notes)]


def _run(run: Run) -> dict[str, Any]:
    names = {"train": run.train, "validation": run.validation}
    found: dict[str, Any] = {name: None if path is None else clean(path.name) for name, path in names.items()}
    order = run.class_order if run.class_order in ("natural", "lexical") else clean(Path(run.class_order).name)
    return {**found, "class_order": order, "problem": run.problem}


def _run_lines(run: Run | None) -> list[str]:
    """What a scan of this run directory would read with no option."""
    if run is None:
        return []
    said = _run(run)
    if run.train is None:
        return [f"data           not found: {clean(run.problem)} (args.yaml)"]
    where = f"training {said['train']}, reference {said['validation'] or 'the training data that is not flagged'}"
    return [f"data           {where}; classes in {said['class_order']} order (args.yaml)"]


def _shown(value: Any) -> Any:
    return [clean(v) for v in value] if isinstance(value, list | tuple) else clean(value) if _text(value) else value


def _text(value: Any) -> bool:
    return value is not None and not isinstance(value, bool | int | float)


def _settings_lines(found: list[Setting], config: Path | None) -> list[str]:
    """The settings that somebody made, each with who made it; how many are left at their defaults."""
    from memaudit.system.toml import shown

    made = [s for s in found if s.origin != "default"]
    where = "no memaudit.toml here or above" if config is None else shown(config)
    lines = [f"settings       {where}; {len(found) - len(made)} at their defaults (all with -f json)"]
    for setting in made:
        value = _shown(setting.value)
        text = ", ".join(value) if isinstance(value, list) else str(value)
        lines.append(f"                 {setting.key:<24} {text:<28} {setting.origin}")
    return lines


def _preprocess(adapter: Any) -> dict[str, Any]:
    p = adapter.preprocess
    return {
        "input_size": list(p.input_size), "mean": list(p.mean), "std": list(p.std), "crop_pct": p.crop_pct,
        "interpolation": p.interpolation, "origin": p.origin, "origins": dict(p.origins), "guessed": _guessed(adapter),
    }  # fmt: skip


def _guessed(adapter: Any) -> dict[str, str]:
    from memaudit.adapters.preprocessing import guessed

    return guessed(adapter.preprocess, transform=getattr(adapter, "transform", None) is not None)


def _guesses(adapter: Any) -> list[str]:
    """What of the preprocessing is nobody's word: the flags that settle it."""
    found = _guessed(adapter)
    if not found:
        return []
    tried = "; scan tries usual ones on the reference" if {"mean", "std", "input_size"} & set(found) else ""
    return [f"                 guessed, until you say it: {' '.join(found.values())}{tried}"]


def _origins(preprocess: Preprocess) -> list[str]:
    """Who said which part of the preprocessing, where it was not one and the same."""
    if len({origin for _, origin in preprocess.origins}) < 2:
        return []
    said = "; ".join(f"{name} from {clean(origin)}" for name, origin in preprocess.origins)
    return [f"                 {said}"]


def _lines(adapter: Any, info: Any, units: Any, sites: Any) -> list[str]:
    p = adapter.preprocess
    kinds: dict[str, int] = {}
    for site in sites:
        kinds[site.kind] = kinds.get(site.kind, 0) + site.width
    lines = [
        f"file           {clean(info.path)}",
        f"sha256         {info.sha256}",
        f"adapter        {info.adapter}: {clean(adapter.reason)}",
    ]
    if info.architecture is None:
        lines.append("architecture   undecided; these fit the tensors equally and compute differently:")
        lines += [f"                 --arch {clean(c)}" for c in info.candidates]
    else:
        lines.append(f"architecture   {clean(info.architecture)}")
        if info.candidates:
            lines.append("variants       the same modules with other settings; scan decides, or --arch does:")
            lines += [f"                 {clean(c)}" for c in info.candidates]
    size, mean, std = "x".join(map(str, p.input_size)), listed(p.mean), listed(p.std)
    found = ", ".join(f"{n:,} of kind {k}" for k, n in kinds.items())
    searched = f"{found}; searched: {units.total:,} {units.by_layer[0].kind}s in {len(units.by_layer)} layers"
    geometry = f"{size}, crop {p.crop_pct:g}, {p.interpolation}" if p.image else f"({size}) as it is"
    lines += [
        f"classes        {info.num_classes}",
        f"parameters     {info.parameters:,}",
        f"preprocessing  {geometry}, mean {mean}, std {std} ({clean(p.origin)})",
        *_origins(p),
        *_guesses(adapter),
        f"units          {searched}",
    ]
    shown = units.by_layer if len(units.by_layer) <= LAYERS_SHOWN else units.by_layer[: LAYERS_SHOWN - 1]
    lines += [f"                 {clean(u.layer):<40} {u.width:>6}" for u in shown]
    if len(shown) < len(units.by_layer):
        lines.append(f"                 ... and {len(units.by_layer) - len(shown)} more layers (all with -f json)")
    return lines
