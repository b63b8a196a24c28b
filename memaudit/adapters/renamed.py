"""Checkpoints that name a timm architecture's tensors as an older release did, by timm's own table of what they became.

timm keeps, beside many architectures, a function that turns older checkpoints into today's. It is used as a renaming
alone: where it would leave out, resize or compute a weight, the checkpoint stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from timm.models import model_entrypoint
from torch import Tensor

from memaudit.adapters.building import build, exists, library_of

# What the functions are called, module by module.
FILTERS = ("checkpoint_filter_fn", "_checkpoint_filter_fn", "_filter_fn")
# Tables that follow from the architecture: older releases saved them, newer ones make them.
DERIVED = ("relative_position_index", "attn_mask", "num_batches_tracked")


def in_current_names(architecture: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`tensors`, of any shapes, by the names that the installed timm gives them in `architecture`.

    Where timm knows no other names for them they are returned as they are.
    """
    name = architecture.split(".")[0]
    if not exists(architecture) or library_of(architecture) != "timm":
        return tensors
    module = sys.modules[model_entrypoint(name).__module__]
    convert = next((f for f in (getattr(module, n, None) for n in FILTERS) if f is not None), None)
    if convert is None:
        return tensors
    try:
        network = build(name, {}, device="meta")
        wanted = network.state_dict().keys()
        if wanted == tensors.keys():
            return tensors
        found = convert(dict(tensors), network)
    except Exception:  # it expects an older checkpoint, and this is none
        return tensors
    if not isinstance(found, dict) or found.keys() != wanted or not _renames(tensors, found):
        return tensors
    return found


def _renames(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether `after` holds each tensor of `before` once, its numbers the same, but for those that are derived."""
    rest: dict[tuple[int, float], list[str]] = {}
    for name, tensor in before.items():
        rest.setdefault(_mark(tensor), []).append(name)
    for tensor in after.values():
        names = rest.get(_mark(tensor), [])
        same = next((n for n in names if _numbers(before[n], tensor)), None)
        if same is None:
            return False
        names.remove(same)
    return all(n.endswith(DERIVED) for names in rest.values() for n in names)


def _mark(tensor: Tensor) -> tuple[int, float]:
    """Equal for equal numbers in any order; few others share it."""
    return tensor.numel(), float(tensor.double().abs().max()) if tensor.numel() else 0.0


def _numbers(first: Tensor, second: Tensor) -> bool:
    """Whether the two hold the same numbers, perhaps in another order of axes."""
    if first.dtype != second.dtype:
        return False
    flat, other = first.flatten(), second.flatten()
    return torch.equal(flat, other) or torch.equal(flat.sort().values, other.sort().values)
