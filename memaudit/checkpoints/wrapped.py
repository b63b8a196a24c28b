"""Names that a wrapper left inside others, and the names of other toolkits for the same network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from memaudit.errors import ModelRejected
from memaudit.text import clean

T = TypeVar("T")

# Modules that torch puts round parts of a network: compile, FSDP, activation checkpointing. No name of a user's own
# begins with an underscore and ends so.
INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(tensors: Mapping[str, T], where: str) -> dict[str, T]:
    """`tensors` without the parts of names that wrappers round single layers left.

    Raises:
        ModelRejected: two names would become one.
    """
    found: dict[str, T] = {}
    for name, tensor in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in INNER)
        if not bare or bare in found:
            raise ModelRejected(
                f"{where}: {clean(name)!r} and another name become the same without the names of wrappers",
                hint="two models were saved in one table; save the one to audit alone",
            )
        found[bare] = tensor
    return found


def bare_names(tensors: Mapping[str, T]) -> Mapping[str, T]:
    """`tensors` by the names of torchvision and timm where they have those of MMPretrain (`backbone.`, `head.fc.`)."""
    backbone = [n for n in tensors if n.startswith("backbone.")]
    head = [n for n in tensors if n.startswith("head.fc.")]
    if not head or not backbone or len(backbone) + len(head) != len(tensors):
        return tensors
    return {n.removeprefix("backbone.").removeprefix("head."): t for n, t in tensors.items()}


def spelled(tensors: Mapping[str, T], wanted: Collection[str]) -> Mapping[str, T]:
    """`tensors` by the plain names where those are the module's own, else as they are."""
    other = bare_names(tensors)
    return other if other.keys() <= set(wanted) else tensors
