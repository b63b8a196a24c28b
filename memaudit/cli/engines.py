"""`--engine`: this process, or workers on Ray that load the same checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import UsageError

if TYPE_CHECKING:
    from memaudit.cli.loaded import Loaded
    from memaudit.cli.options import Compute, Engines, Network
    from memaudit.cli.progress import Stages
    from memaudit.engine.engines import Engine
    from memaudit.engine.ray import Workers


def workers_of(engines: Engines, compute: Compute) -> Workers | None:
    """The workers that were asked for, by `--engine ray` or a cluster's RAY_ADDRESS; None: this process alone.

    Raises:
        UsageError: Ray is not installed, or workers would compute on another kind of device than this process.
    """
    if engines.engine == "process" or (engines.engine is None and not os.environ.get("RAY_ADDRESS")):
        return None
    from memaudit.engine.device import resolve_device
    from memaudit.engine.ray import Workers, imported

    imported()
    here = resolve_device(compute.device).type
    gpus = engines.gpus_per_worker
    gpus = float(here == "cuda") if gpus is None else gpus
    if ("cuda" if gpus else "cpu") != here:
        raise UsageError(
            f"workers with {gpus:g} GPUs compute on another kind of device than this process, which is on {here}",
            hint="Let both be of one kind: change --gpus-per-worker, or --device.",
        )
    return Workers(engines.workers, gpus, compute.wanted_threads or 1)


@contextmanager
def running(
    workers: Workers | None, model: str, loaded: Loaded, network: Network, dtype: str, progress: Stages
) -> Iterator[Engine]:
    """The engine, while the body runs."""
    from memaudit.engine.engines import InProcess

    if workers is None:
        yield InProcess()
        return
    import torch

    from memaudit.engine.ray import RayEngine
    from memaudit.engine.worker import Recipe, probed

    adapter, options, name = loaded.settled.adapter, loaded.options, network.adapter
    if len(adapter.alternatives) > 1:
        options = replace(options, arch=adapter.architecture)
    if name and ":" in name:
        file, _, factory = name.rpartition(":")
        name = f"{Path(file).absolute()}:{factory}"
        options = replace(options, user_file=name)
    recipe = Recipe(
        path=str(Path(model).absolute()),
        sha256=loaded.checkpoint.sha256,
        weights=network.weights,  # type: ignore[arg-type]
        options=options,
        adapter=name,
        preprocess=adapter.preprocess,
        multi_label=adapter.multi_label,
        device="cuda" if workers.gpus else "cpu",
        threads=workers.cpus,
        dtype=getattr(torch, dtype),
        expected=probed(adapter),
    )
    sets = (loaded.flagged, loaded.settled.reference, loaded.test)
    room = sum(int(getattr(one.pixels, "nbytes", 0)) for one in sets if one is not None)
    progress.stage("start workers")
    with RayEngine(recipe, workers, room) as engine:
        yield engine
