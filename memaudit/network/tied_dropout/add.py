"""Example-tied dropout into any network: which layers can be tied, and which are."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence

from torch import Tensor, nn

from memaudit.errors import UsageError
from memaudit.network.sites import find_sites
from memaudit.network.tied_dropout.ids import signed
from memaudit.network.tied_dropout.layer import ExampleTiedDropout
from memaudit.network.tied_dropout.modes import bypassed, evaluating
from memaudit.network.tied_dropout.probe import probe_of
from memaudit.network.tied_dropout.tie import layers_of, tie
from memaudit.network.trace import record
from memaudit.network.units import Site
from memaudit.text import clean, closest


def add_tied_dropout(
    model: nn.Module,
    layers: str | Sequence[str] = "auto",
    p_gen: float = 0.3,
    p_mem: float = 0.1,
    seed: int = 0,
    *,
    input_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Tie layers of any network, in place: their outputs go through an `ExampleTiedDropout`. Names stay as they are.

    Train with `with memaudit.example_ids(ids): loss = criterion(model(images), labels)`.

    Args:
        layers: `auto`: the deeper half of the layers that can be tied; `all`; a shell pattern (comma separates
            several); or paths of modules.
        p_gen, p_mem, seed: as of `ExampleTiedDropout`; each layer draws from a seed of its own.
        input_size: `(C, H, W)`, where the network does not declare it and small images do not run.

    Returns:
        `model` itself.

    Raises:
        UsageError: a layer does not exist or cannot be tied, or no input is known that runs.
    """
    if layers_of(model):
        raise UsageError("the network has example-tied dropout already", hint="Take it out with strip_tied_dropout.")
    probe = probe_of(model, input_size)
    sites = _tieable(model, probe)
    for site in _chosen(sites, layers):
        layer = ExampleTiedDropout(site.width * site.span, p_gen, p_mem, _seed_of(seed, site.layer), axis=site.axis)
        tie(model.get_submodule(site.layer), layer)
    return model


def _seed_of(seed: int, layer: str) -> int:
    return signed(int.from_bytes(hashlib.sha256(f"{seed}:{layer}".encode()).digest()[:16], "big"))


def _chosen(sites: Sequence[Site], layers: str | Sequence[str]) -> list[Site]:
    if not sites:
        raise UsageError("the network has no layer that can be tied: none where a mask equals a weight edit")
    if layers == "auto":
        return list(sites[len(sites) // 2 :])
    patterns = ["*"] if layers == "all" else layers.split(",") if isinstance(layers, str) else list(layers)
    known = [s.layer for s in sites]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise UsageError(
                f"no layer {clean(pattern)!r} that can be tied{closest(pattern, known)}",
                hint=f"These can: {clean(', '.join(known), 400)}",
            )
    return [s for s in sites if any(fnmatch.fnmatchcase(s.layer, p) for p in patterns)]


def _tieable(model: nn.Module, probe: Tensor) -> list[Site]:
    """Sites whose output is scaled by scaling weights, with the examples on axis 0, one row each."""
    with evaluating(model), bypassed(model):
        sites = find_sites(model, model, probe)
        seen = record(model, model, probe)
    rows = {op.outputs[0]: op.shape[0] for op in seen.ops if op.shape}
    outputs = [s for s in sites if s.side == "output" and s.batch_axis == 0 and s.copies == 1]
    return [s for s in outputs if rows.get(seen.outputs.get(s.layer, -1)) == len(probe)]
