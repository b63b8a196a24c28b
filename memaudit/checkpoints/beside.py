"""Tensors that stand beside a network's own in its checkpoint: what counting, averaging and training leave there.

They are set aside, not thrown away: a network that has such tensors itself gets them back when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

# The counters that thop adds to every module while it counts operations, saved with the weights ever after.
COUNTERS = ("total_ops", "total_params")
AVERAGED = "n_averaged"  # how often torch's AveragedModel was updated, beside `module.`
# First parts of names under which Lightning modules keep a loss or a metric next to the network.
_TRAINING = re.compile(
    r"(?:.*_)?(?:criteri(?:on|a)|loss(?:es|_?fn|_?func(?:tion)?)?|metrics?|acc(?:uracy)?|f1(?:_?score)?|auroc|confmat)"
    r"(?:_.*|\d+)?",
    re.IGNORECASE,
)


def set_aside(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """`(the network's, what stands beside it)`, both by their full names.

    A loss's or a metric's tensors are recognised by their names, and only where all the others share one prefix: the
    network is one attribute of a training module, the loss another.
    """
    beside = {n for n in tensors if n.rpartition(".")[2] in COUNTERS}
    if AVERAGED in tensors and all(n.startswith("module.") for n in tensors if n != AVERAGED):
        beside.add(AVERAGED)
    rest = [n for n in tensors if n not in beside]
    training = [n for n in rest if "." in n and _TRAINING.fullmatch(n.split(".")[0])]
    if training and lead(n for n in rest if n not in set(training)):
        beside |= set(training)
    return {n: t for n, t in tensors.items() if n not in beside}, {n: tensors[n] for n in tensors if n in beside}


def lead(names: Iterable[str]) -> tuple[str, ...]:
    """The first parts that all of the dotted names have in common; never all parts of a name."""
    common: list[str] | None = None
    for name in names:
        parts = name.split(".")[:-1]
        if common is None:
            common = parts
        else:
            same = next((i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), None)
            common = common[: min(len(common), len(parts)) if same is None else same]
        if not common:
            return ()
    return tuple(common or ())
