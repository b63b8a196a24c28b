"""Example-tied dropout out of a network again: weights that compute what one of its modes computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from memaudit.errors import ModelRejected, UsageError
from memaudit.network.sites import arrives, find_sites
from memaudit.network.tied_dropout.layer import Mode
from memaudit.network.tied_dropout.modes import bypassed, evaluating, set_mode
from memaudit.network.tied_dropout.probe import probe_of
from memaudit.network.tied_dropout.tie import layers_of, untie
from memaudit.network.trace import record
from memaudit.network.units import Site
from memaudit.text import clean


def strip_tied_dropout(
    model: nn.Module, mode: Literal["test", "drop"] = "drop", *, input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """A copy of the network without example-tied dropout, whose weights compute what `mode` computes.

    Its state dict has the names and shapes of the network before dropout was added.

    Args:
        mode: `drop`: the memorizing channels are zero. `test`: at their expected value.
        input_size: as in `add_tied_dropout`.

    Raises:
        UsageError: no such mode, nothing to strip, or no input is known that runs.
        ModelRejected: weights cannot do what a dropout layer does where it stands.
    """
    if mode not in ("test", "drop"):
        raise UsageError(f"mode {clean(mode)!r} is not one of: test, drop")
    layers = layers_of(model)
    if not layers:
        raise UsageError("the network has no example-tied dropout")
    probe = probe_of(model, input_size)
    wanted = _logits(model, probe, mode)
    plain = copy.deepcopy(model)
    sites = feeding(plain, plain, probe)
    for path in layers:
        if path not in sites:
            raise ModelRejected(
                f"no convolution, norm or linear layer alone feeds the example-tied dropout at {clean(path)!r}",
                hint="Place it directly behind one, or tie layers with add_tied_dropout.",
            )
    for path, site in sites.items():
        factor = layers[path].factors(mode)
        owner = plain.get_submodule(site.layer)
        with torch.no_grad():
            for name, axis in site.edits:
                value = owner.get_parameter(name)
                shape = [1] * value.dim()
                shape[axis] = -1
                value.mul_(factor.to(value.device, value.dtype).reshape(shape))
    for path in layers:
        untie(plain, path)
    got = _logits(plain, probe, None)
    if not torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * float(1 + wanted.abs().max())):
        raise ModelRejected(
            f"no weights do what example-tied dropout does here in mode {mode!r}",
            hint="Mode drop, and dropout directly behind a convolution, norm or linear layer, always work.",
        )
    return plain


def _logits(model: nn.Module, probe: Tensor, mode: Mode | None) -> Tensor:
    with evaluating(model), set_mode(model, mode), torch.no_grad():
        result = model(probe)
    return result[0] if isinstance(result, tuple | list) else result  # type: ignore[no-any-return]


def feeding(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Site]:
    """By path of the dropout layer, the site whose weights scale what goes through it; none where there is none."""
    with evaluating(model), bypassed(model):
        sites = find_sites(model, forward, images)
        seen = record(model, forward, images)
    found, outputs = {}, seen.outputs
    for path, layer in layers_of(model).items():
        for site in sites:
            known = site.layer in outputs and path in outputs
            feeds = site.layer == path or (known and arrives(seen, outputs[site.layer], outputs[path]))
            if feeds and site.side == "output" and site.size == layer.channels:
                found[path] = site
    return found
