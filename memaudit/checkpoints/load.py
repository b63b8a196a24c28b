"""Tensors into a module, and proof that all of them went in: strict on names, shapes, kinds of numbers and NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor, nn

from memaudit.checkpoints.beside import AVERAGED, lead
from memaudit.checkpoints.misfit import diagnose
from memaudit.errors import ModelRejected, PremiseBroken
from memaudit.text import clean

SHOWN = 5  # names per list in a message
# Counters unused in eval mode. BatchNorm's is absent before torch 0.4.1, and halved along with the weights by those who
# write `{k: v.half() for ...}`; AveragedModel's stands in its own checkpoints alone.
OPTIONAL = ("num_batches_tracked", AVERAGED)
ALIGNMENT = 64  # bytes: torch's own allocator


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    stripped_prefix: str = "",
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Copy `tensors` into `module`, which ends in float32, in memory of its own, with every tensor taken from them.

    Args:
        module: with real (not `meta`) tensors; any floating type.
        tensors: by name. Half, bfloat16 and double become float32; an alias of a tied tensor may be left out, as
            safetensors' `save_model` does.
        stripped_prefix: what reading took off the names; put back where the module's own names begin with it.
        beside: what reading set aside; taken where the module has such names.

    Raises:
        ModelRejected: names missing or left over, other shapes, or another kind of number.
        PremiseBroken: a weight is NaN or infinite, or leaves the range of float32.
    """
    check_fit(module, with_prefix(module.state_dict(keep_vars=True), tensors, stripped_prefix, beside))
    module.float()
    state = fitted(module, tensors, stripped_prefix=stripped_prefix, beside=beside)
    wanted = module.state_dict(keep_vars=True)
    with torch.no_grad():
        module.load_state_dict({n: state.get(n, wanted[n]) for n in wanted}, strict=True)
        for tensor in wanted.values():
            tensor.data = aligned(tensor.data)


def fitted(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    stripped_prefix: str = "",
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """`tensors` by the module's own names, in its shapes and types, as strictly as `load_strict`; it stays as it is.

    Raises:
        ModelRejected: as `load_strict`.
        PremiseBroken: a weight is NaN or infinite.
    """
    wanted = module.state_dict(keep_vars=True)
    tensors = with_prefix(wanted, tensors, stripped_prefix, beside)
    check_fit(module, tensors)
    state = {name: tensors[source].to(wanted[name].dtype) for name, source in _sources(wanted, tensors).items()}
    check_finite(state)
    return state


def aligned(tensor: Tensor) -> Tensor:
    """`tensor`, of any shape, copied where it does not start as memory of torch's own does.

    Kernels are chosen by alignment and differ in the last bits: the same numbers must lie alike to compute alike.
    """
    return tensor.clone() if tensor.numel() and tensor.data_ptr() % ALIGNMENT else tensor


def with_prefix(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    prefix: str,
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> Mapping[str, Tensor]:
    """`tensors`, of their shapes, by the module's names where the two differ in a prefix that all names have.

    Where they differ otherwise, the names are as near as a prefix brings them.

    Args:
        wanted: the module's tensors.
        prefix: taken off when the file was read; its end is put back where that gives the module's names.
        beside: further tensors of the file by full names; those that the module has are added.
    """
    added = {n: t for n, t in beside.items() if n in wanted}
    tokens = [p + "." for p in prefix.split(".")[:-1]]
    outer = lead(n for n, t in wanted.items() if not n.endswith(OPTIONAL) and ("." in n or isinstance(t, nn.Parameter)))
    inner = lead(n for n in tensors if not n.endswith(OPTIONAL))
    renamings = [(0, "".join(tokens[start:])) for start in range(len(tokens) + 1)]
    renamings += [
        (len("".join(p + "." for p in inner[:off])), "".join(p + "." for p in outer[:on]))
        for off in range(len(inner) + 1)
        for on in range(len(outer) + 1)
    ]
    nearest: dict[str, Tensor] = {**tensors, **added}
    for cut, put in renamings:
        renamed = {put + n[cut:]: t for n, t in tensors.items()} | added
        if _same_names(wanted, renamed):
            return renamed
        if len(wanted.keys() & renamed.keys()) > len(wanted.keys() & nearest.keys()):
            nearest = renamed
    return nearest


def _same_names(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether `tensors` are those of the module, but for what may be left out."""
    filled = _sources(wanted, tensors)
    return all(n in wanted or n.endswith(OPTIONAL) for n in tensors) and all(
        n in filled or n.endswith(OPTIONAL) for n in wanted
    )


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless every name, shape and kind of number agrees. Works on a `meta` module: nothing is copied.

    Raises:
        ModelRejected: with counts and the first names.
    """
    wanted = module.state_dict(keep_vars=True)
    sources = _sources(wanted, tensors)
    missing = [n for n in wanted if n not in sources and not n.endswith(OPTIONAL)]
    unexpected = [n for n in tensors if n not in wanted]
    if missing or unexpected:
        faults = ", ".join(f for f in (_list("missing", missing), _list("unexpected", unexpected)) if f)
        cause, hint = diagnose(wanted, tensors, missing, unexpected)
        raise ModelRejected(f"the checkpoint's tensors are not this model's: {faults}{cause}", hint=hint)
    shapes = [n for n in tensors if tensors[n].shape != wanted[n].shape]
    if shapes:
        shown = [f"{clean(n)!r} {list(tensors[n].shape)}, model {list(wanted[n].shape)}" for n in shapes[:SHOWN]]
        raise ModelRejected(
            f"{len(shapes)} of the checkpoint's tensors have other shapes than this model's: {'; '.join(shown)}",
            hint="check --arch, --num-classes, --input-size and --model-kwargs against how it was trained",
        )
    kinds = [n for n in tensors if _kind(tensors[n].dtype) != _kind(wanted[n].dtype) and not n.endswith(OPTIONAL)]
    if kinds:
        shown = [f"{clean(n)!r} {_short(tensors[n])}, model {_short(wanted[n])}" for n in kinds[:SHOWN]]
        raise ModelRejected(
            f"{len(kinds)} of the checkpoint's tensors hold another kind of number: {'; '.join(shown)}",
            hint="converting them would change the model silently; save it in float32, float16 or bfloat16",
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise if any number is NaN or infinite.

    Raises:
        PremiseBroken: names the first tensor and counts.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise PremiseBroken(
                f"the weights are not finite: {clean(name)!r} holds {bad:,} NaN or infinite of {tensor.numel():,}",
                hint="training diverged or the file is damaged; audit an earlier checkpoint",
            )


def needs_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes the tensors take as float32."""
    return sum(4 * prod(t.shape) for t in tensors)


def _sources(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The module's names, each with the checkpoint's name that fills it: its own, or that of its tied twin."""
    by_tensor = {id(tensor): name for name, tensor in wanted.items() if name in tensors}
    sources = {}
    for name, tensor in wanted.items():
        source = name if name in tensors else by_tensor.get(id(tensor))
        if source is not None:
            sources[name] = source
    return sources


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "integer"


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _list(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(repr(clean(n)) for n in names[:SHOWN])}{more})"
