"""Prefixes that wrappers leave on every name (`module.` of DataParallel, `_orig_mod.` of compile, Lightning's own)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memaudit.errors import ModelRejected
from memaudit.text import clean

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")
ATTRIBUTES = ("model.", "net.", "timm_model.")  # of Lightning modules, and of the transformers wrapper around timm
AVERAGED = "n_averaged"  # the counter torch's AveragedModel keeps beside `module.`


def strip(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], str]:
    """`(tensors, prefix)` with every prefix gone that every name has.

    Raises:
        ModelRejected: two names would become one.
    """
    rest = dict(tensors)
    if AVERAGED in rest and all(n.startswith("module.") for n in rest if n != AVERAGED):
        del rest[AVERAGED]
    _refuse_collisions(rest, where)
    prefix = ""
    while token := _shared(rest):
        rest = {name[len(token) :]: tensor for name, tensor in rest.items()}
        prefix += token
    return rest, prefix


def _shared(names: Mapping[str, object]) -> str:
    """The prefix that every name has, or an empty string; a name that is nothing but the prefix does not count."""
    for token in WRAPPERS + ATTRIBUTES:
        if names and all(n.startswith(token) and len(n) > len(token) for n in names):
            return token
    return ""


def _refuse_collisions(names: Mapping[str, object], where: str) -> None:
    """Raise where DataParallel and compile prefixes hide that two tensors are called the same."""
    seen: dict[str, str] = {}
    for name in names:
        bare = name
        while bare.startswith(WRAPPERS):
            bare = bare.split(".", 1)[1]
        if bare in seen:
            raise ModelRejected(
                f"{where}: {clean(seen[bare])!r} and {clean(name)!r} become the same name without their prefixes",
                hint="two models were saved in one table; save the one to audit alone",
            )
        seen[bare] = name
