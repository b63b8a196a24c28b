"""Finding the table of weights in what a torch checkpoint holds. Runs in the child, on content nobody vouches for."""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memaudit.checkpoints.header import MAX_TENSORS, check_name
from memaudit.checkpoints.recognise import ZERO, refuse_partial
from memaudit.checkpoints.sniff import SAVE_AGAIN
from memaudit.checkpoints.types import Weights
from memaudit.errors import ModelRejected, UsageError
from memaudit.text import clean

RAW = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
EMA = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema"),
    *("swa", "swa_state_dict", "swa_model", "swa_model_state_dict"),
)
SHADOW = "shadow_params"  # torch_ema
UNTRAINED = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's, which are no parameters
OPTIMIZERS = ("param_groups", "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict")
MAX_NAMES = 100_000
MAX_DEPTH = 3  # wrappers around wrappers
# `about` of timm's training arguments: what shapes the model or its input. The rest stays behind.
ARGUMENTS = (
    *("model", "num_classes", "in_chans", "img_size", "input_size", "gp", "model_kwargs"),
    *("mean", "std", "crop_pct", "crop_mode", "interpolation"),
)


@dataclass(frozen=True)
class Unwrapped:
    """The weights, which ones they are, and what the checkpoint says beside them (JSON-able, unchecked)."""

    tensors: Mapping[str, Tensor]
    weights: Weights
    about: Mapping[str, object]


def unwrap(content: object, weights: Weights | None, where: str) -> Unwrapped:
    """The one table of tensors in `content`.

    Args:
        content: what `torch.load(weights_only=True)` returned.
        weights: `raw`, `ema`, or `None`: take the only ones, refuse to choose between two that differ.
        where: the file's name, for messages.

    Raises:
        ModelRejected: no table of weights, several networks, or entries that are not named tensors.
        UsageError: raw and averaged weights are there and differ, or the chosen ones are not there.
    """
    table = _table(content, where)
    if instantiator := _instantiator(table):
        raise ModelRejected(
            f"{where} is refused: its hyper_parameters name code to be run (_instantiator: {clean(instantiator)!r})",
            hint=SAVE_AGAIN,
        )
    _refuse_zero(table, where)
    raw, ema = _pick(table, RAW, where), _pick(table, EMA, where)
    raw = raw if raw is not None or ema is not None else _only_network(table, where)
    if raw is None and ema is None:
        if weights == "ema":
            raise _absent("ema", where)
        return Unwrapped(_tensors(table, where), "raw", {})
    raw_tensors = None if raw is None else _innermost(raw, where)
    ema_tensors = None if ema is None else _averaged(ema, raw_tensors, where)
    if weights is None and raw_tensors is not None and ema is not None and not _equal(raw_tensors, ema_tensors):
        raise UsageError(
            f"{where} holds raw and averaged (EMA) weights, and they differ",
            hint="choose the ones you deploy: --weights raw or --weights ema",
        )
    chosen: Weights = weights or ("raw" if raw_tensors is not None else "ema")
    if chosen == "ema" and ema is not None and ema_tensors is None:
        raise ModelRejected(
            f"{where} holds its averaged weights as a list without names ({SHADOW}), which does not fit its network",
            hint="where it was trained: ema.copy_to(model.parameters()), then save model.state_dict() alone",
        )
    tensors = raw_tensors if chosen == "raw" else ema_tensors
    if tensors is None:
        raise _absent(chosen, where)
    return Unwrapped(tensors, chosen, _about(table))


def _refuse_zero(table: dict[Any, Any], where: str) -> None:
    """Raise where DeepSpeed's ZeRO 3 left placeholders: the values are with the optimizer, spread over processes."""
    module = table.get("module")
    if "param_shapes" in table and type(module) in (dict, OrderedDict):
        empty = [k for k, v in dict.items(module) if isinstance(v, Tensor) and not Tensor.numel(v)]  # type: ignore[arg-type]
        if empty:
            raise ModelRejected(
                f"{where} is one process's part of a DeepSpeed checkpoint: {clean(empty[0])!r} is empty", hint=ZERO
            )


def _table(content: object, where: str) -> dict[Any, Any]:
    """`content` if it is a plain dict; its methods are never asked, they could be replaced."""
    if type(content) in (dict, OrderedDict):
        return content  # type: ignore[return-value]
    raise ModelRejected(
        f"{where} holds a {clean(type(content).__name__)}, not a table of named tensors", hint=SAVE_AGAIN
    )


def _pick(table: dict[Any, Any], keys: Iterable[str], where: str) -> object:
    """The one network under any of `keys`, or `None`; two of them would be a guess."""
    return _one({k: table[k] for k in keys if k in table and _holds_weights(table[k])}, where)


def _only_network(table: dict[Any, Any], where: str) -> object:
    """The one network under whatever name, or `None` where the table itself is one, with a table among its tensors."""
    found = {k: v for k, v in dict.items(table) if type(k) is str and _holds_weights(v)}
    own = sum(isinstance(v, Tensor) for v in dict.values(table))
    return _one({k: v for k, v in found.items() if dict.__len__(v) > own}, where)


def _one(found: Mapping[str, object], where: str) -> object:
    if len(found) > 1:
        raise ModelRejected(
            f"{where} holds several networks ({', '.join(clean(k, 40) for k in found)})",
            hint="save the one to audit in a file of its own",
        )
    return next(iter(found.values()), None)


def _holds_weights(value: object, depth: int = 1) -> bool:
    """Whether `value` is a table of tensors, one around such a table, or an average's list of them.

    Settings and an optimizer's state are none.
    """
    if type(value) not in (dict, OrderedDict):
        return False
    table: dict[Any, Any] = value  # type: ignore[assignment]
    if any(k in OPTIMIZERS for k in dict.keys(table) if type(k) is str):
        return False
    if any(isinstance(v, Tensor) for v in dict.values(table)) or SHADOW in dict.keys(table):
        return True
    inner = [dict.get(table, key) for key in RAW]
    return depth < MAX_DEPTH and any(_holds_weights(v, depth + 1) for v in inner)


def _averaged(content: object, raw: Mapping[str, Tensor] | None, where: str) -> Mapping[str, Tensor] | None:
    """The averaged weights by name; `None` where they are a list that does not fit the raw ones.

    torch_ema keeps the averages of `model.parameters()` in order, without names; statistics are not averaged.
    """
    table = _table(content, where)
    values: Any = dict.get(table, SHADOW)
    if type(values) not in (list, tuple):
        return _innermost(table, where)
    if raw is None:
        return None
    names = [n for n in raw if not n.endswith(UNTRAINED)]
    if len(names) != len(values) or not all(isinstance(v, Tensor) for v in values):
        return None
    if any(raw[n].shape != v.shape for n, v in zip(names, values, strict=True)):
        return None
    return {**raw, **dict(zip(names, values, strict=True))}


def _innermost(content: object, where: str, depth: int = 1) -> dict[str, Tensor]:
    """The tensors of a table, through further wrappers around it; the depth is limited, a table may hold itself."""
    table = _table(content, where)
    inner = _pick(table, RAW, where)
    if inner is not None and depth < MAX_DEPTH:
        return _innermost(inner, where, depth + 1)
    return _tensors(table, where)


def _tensors(table: dict[Any, Any], where: str) -> dict[str, Tensor]:
    """The table with every key a usable name and every value a tensor."""
    if not any(isinstance(value, Tensor) for value in dict.values(table)):
        keys = [k for k in dict.keys(table) if isinstance(k, str)]
        if any(k in OPTIMIZERS for k in keys):
            raise ModelRejected(
                f"{where} holds an optimizer's state and no weights",
                hint="give the checkpoint with the model's own state_dict",
            )
        shown = ", ".join(clean(k, 40) for k in keys[:8]) or "none"
        raise ModelRejected(f"{where} holds no tensors by name (its keys: {shown})", hint=SAVE_AGAIN)
    if dict.__len__(table) > MAX_TENSORS:
        raise ModelRejected(f"{where} holds more than {MAX_TENSORS:,} tensors", hint=SAVE_AGAIN)
    for key, value in dict.items(table):
        if type(key) is not str:
            raise ModelRejected(f"{where}: the key {clean(key)} is a {type(key).__name__}, no name", hint=SAVE_AGAIN)
        check_name(key, where)
        if not isinstance(value, Tensor | nn.Parameter):
            raise ModelRejected(
                f"{where}: the entry {clean(key)!r} is a {clean(type(value).__name__)}, no tensor", hint=SAVE_AGAIN
            )
    refuse_partial(dict.keys(table), where)
    return table


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None) -> bool:
    """Whether two tables hold the same values under the same names."""
    if second is None or first.keys() != second.keys():
        return False
    return all(torch.equal(first[k], second[k]) for k in first)


def _instantiator(table: dict[Any, Any]) -> object:
    """What Lightning's command line would import and call when this checkpoint is loaded its way, or `None`."""
    hyper = table.get("hyper_parameters")
    return dict.get(hyper, "_instantiator") if isinstance(hyper, dict) else None


def _about(table: dict[Any, Any]) -> dict[str, object]:
    """The few plain values beside the weights that say which model they belong to."""
    args = table.get("args")
    given = vars(args) if type(args) is argparse.Namespace else args if type(args) is dict else {}
    about = {
        "arch": table.get("arch"),
        "epoch": table.get("epoch"),
        "args": {k: given[k] for k in ARGUMENTS if k in given},
    }
    if (names := _class_names(table)) is not None:
        about["class_names"] = names
    return {k: kept for k, v in about.items() if (kept := v if k == "class_names" else _json(v)) is not None}


def _class_names(table: dict[Any, Any]) -> list[str] | None:
    """Names of the classes by label: `class_to_idx` as torchvision's data sets have it, or a list of names."""
    for key in ("class_to_idx", "classes", "class_names"):
        found: Any = dict.get(table, key)
        if type(found) is dict and all(type(k) is str and type(v) is int for k, v in dict.items(found)):
            by_label = {label: name for name, label in dict.items(found)}
            if found and sorted(by_label) == list(range(len(found))):
                found = [by_label[label] for label in range(len(found))]
        if type(found) not in (list, tuple) or not 0 < len(found) <= MAX_NAMES:
            continue
        if all(type(name) is str and len(name) <= 200 for name in found):
            return list(found)
    return None


def _json(value: object, depth: int = 0) -> Any:
    """`value` cut down to short plain data; what is not is dropped."""
    if isinstance(value, bool | int) and abs(value) < 1 << 31:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= 200:
        return value
    if type(value) in (list, tuple) and len(value) <= 16 and depth < 2:  # type: ignore[arg-type]
        return [_json(v, depth + 1) for v in value]  # type: ignore[attr-defined]
    if type(value) is dict and len(value) <= 64 and depth < 2:
        return {k: _json(v, depth + 1) for k, v in value.items() if type(k) is str}
    return None


def _absent(weights: Weights, where: str) -> UsageError:
    """The error for `--weights` that are not there."""
    other = "ema" if weights == "raw" else "raw"
    kind = "averaged (EMA)" if weights == "ema" else "raw"
    return UsageError(f"{where} holds no {kind} weights", hint=f"leave --weights out, or use --weights {other}")
