"""Prefixes that wrappers leave on every name: `module.` of DataParallel, `_orig_mod.` of compile, an attribute's name.

A network whose own names all begin alike loses that beginning too; `load.with_prefix` puts it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memaudit.checkpoints.beside import lead
from memaudit.errors import ModelRejected
from memaudit.text import clean

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")  # those under which two copies of one network may hide


def strip(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], str]:
    """`(tensors, prefix)` with every prefix gone that every name has.

    Raises:
        ModelRejected: two names would become one.
    """
    _refuse_collisions(tensors, where)
    prefix = "".join(part + "." for part in lead(tensors))
    if not all(name[len(prefix) :] for name in tensors):
        return dict(tensors), ""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items()}, prefix


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
