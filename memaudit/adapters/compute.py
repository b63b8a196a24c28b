"""Whether two networks compute the same: every module of one, its class and its settings, against the other's.

Networks of equal names and shapes may still differ in padding, epsilon, activation or where they pool. Two count as
the same only if nothing that could matter in eval mode differs; an attribute this file does not know counts.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Attributes without effect on the output in eval mode.
IRRELEVANT = frozenset(
    {
        # what training does
        *(
            "training",
            "drop_rate",
            "drop_prob",
            "drop_path_rate",
            "drop_block_rate",
            "attn_drop_rate",
            "grad_checkpointing",
        ),
        *("momentum", "scale_by_keep", "init_values"),
        # descriptions of the network, for those who ask it
        *(
            "default_cfg",
            "pretrained_cfg",
            "feature_info",
            "num_classes",
            "num_features",
            "head_hidden_size",
            "_model_args",
        ),
    }
)
_INTERNAL = frozenset(nn.Module().__dict__)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
_NOTHING_NAMES = frozenset({"DropPath", "DropBlock2d", "PatchDropout"})  # timm's; each returns its input in eval mode


def signature(module: nn.Module) -> str:
    """A hash that is equal only for networks that compute the same from the same tensors. Works on `meta`."""
    digest = hashlib.sha256()
    for line in description(module):
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def description(module: nn.Module) -> list[str]:
    """One line per module that does something in eval mode, and one per tensor that several of them share."""
    lines = []
    for name, part in module.named_modules():
        if not _does_nothing(part):
            lines.append(f"{name} {_qualified(type(part))} {_settings(part)} {_buffers(part)}")
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return lines + [f"tied {group}" for group in names.values() if len(group) > 1]


def _does_nothing(module: nn.Module) -> bool:
    """Whether the module returns its input in eval mode; then it does not matter whether it is there."""
    return type(module) in _NOTHING or type(module).__name__ in _NOTHING_NAMES


def _settings(module: nn.Module) -> dict[str, Any]:
    """What the module's constructor left on it, by name, as plain values; tensors and submodules are not among it."""
    attributes = {n: v for n, v in vars(module).items() if n not in _INTERNAL and n not in IRRELEVANT}
    return {n: _plain(attributes[n]) for n in sorted(attributes)}


def _buffers(module: nn.Module) -> list[tuple[str, tuple[int, ...], str]]:
    """Buffers that no checkpoint holds: their values follow from the settings."""
    hidden = module._non_persistent_buffers_set
    buffers = sorted((n, b) for n, b in module._buffers.items() if n in hidden and b is not None)
    return [(n, tuple(b.shape), str(b.dtype)) for n, b in buffers]


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as something whose `repr` is equal for equal meaning, across two builds."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value
    if depth > 6:
        return type(value).__name__
    below = functools.partial(_plain, depth=depth + 1)
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), str(value.dtype)
    if isinstance(value, list | tuple | torch.Size):
        return [below(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(below(v)) for v in value)
    if isinstance(value, Mapping):
        return {str(k): below(v) for k, v in value.items()}
    if isinstance(value, functools.partial):
        return "partial", below(value.func), below(value.args), below(value.keywords)
    if isinstance(value, nn.Module):
        return _qualified(type(value)), _settings(value)
    if isinstance(value, type):
        return _qualified(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return _function(value, below)
    return _qualified(type(value)), below(getattr(value, "__dict__", {}))


def _function(value: Callable[..., object], below: Callable[[Any], Any]) -> tuple[Any, ...]:
    """A function by name, with the defaults and captured variables that make two of one name differ."""
    cells = getattr(value, "__closure__", None) or ()
    return _qualified(value), below(getattr(value, "__defaults__", None)), [below(c.cell_contents) for c in cells]


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
