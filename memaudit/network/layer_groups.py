"""Layer groups: which tensors are rewound, retrained and accounted for together, in the order the network runs them.

A group is a module of the network with everything below it, or one tensor that a module above all groups owns itself
(a position embedding); either way `layer` is the prefix of its tensors' names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memaudit.errors import UsageError
from memaudit.text import clean, closest

# The finest grain that still fits one table and one heat map; ResNet-50 has 19 groups, a 12-block ViT 17.
MAX_GROUPS = 24
MAX_DEPTH = 12
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class LayerGroup:
    """Tensors that travel together.

    Attributes:
        layer: module path, or the tensor's own name, that prefixes all of `names`.
        names: parameters and buffers by `state_dict` name; a tied tensor under its first name only.
        parameters: number of scalar parameters, buffers not counted.
    """

    layer: str
    names: tuple[str, ...]
    parameters: int


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by the first of its `state_dict` names: the tensors themselves, no copies."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def layer_groups(
    module: nn.Module, order: Mapping[str, int], *, depth: int | None = None, layers: str | None = None
) -> tuple[LayerGroup, ...]:
    """The network's tensors in groups, in execution order; every parameter and buffer is in exactly one.

    Args:
        order: when each tensor (by `tensors_of` name) is first used; one that never is comes last.
        depth: how many parts a group's path has; by default as many as give at most `MAX_GROUPS` groups, where a
            module of plain layers (convolution, norm and activation, or an MLP) stays whole.
        layers: keep only groups that match this shell pattern, or hold a module that does (comma separates several).

    Raises:
        UsageError: no group matches, or `depth` is below 1.
    """
    if depth is not None and depth < 1:
        raise UsageError(f"a group depth of {depth} makes no groups", hint="use 1 for the network's top-level modules")
    if depth is not None:
        groups = _groups(module, _cut(module, depth, whole=False))
    else:
        options = [_groups(module, _cut(module, d, whole=True)) for d in range(1, MAX_DEPTH + 1)]
        groups = max((g for g in options if len(g) <= MAX_GROUPS), key=len, default=options[0])
    never = max(order.values(), default=0) + 1
    place = {g.layer: n for n, g in enumerate(groups)}
    groups.sort(key=lambda g: (min((order.get(n, never) for n in g.names), default=never), place[g.layer]))
    return tuple(groups) if layers is None else _matching(module, groups, layers)


def merged(groups: Sequence[LayerGroup]) -> LayerGroup:
    """One or more groups as one, called after the first and the last."""
    layer = groups[0].layer if len(groups) == 1 else f"{groups[0].layer} to {groups[-1].layer}"
    names = tuple(name for group in groups for name in group.names)
    return LayerGroup(layer, names, sum(group.parameters for group in groups))


def spans(groups: Sequence[LayerGroup], shares: Sequence[tuple[float, float]]) -> list[LayerGroup]:
    """Runs of consecutive `groups` as one group each: those between two shares of the depth, at least one."""
    found: dict[tuple[int, int], LayerGroup] = {}
    for low, high in shares:
        first = min(round(low * len(groups)), len(groups) - 1)
        last = max(first + 1, round(high * len(groups)))
        found[first, last] = merged(groups[first:last])
    return list(found.values())


def _cut(module: nn.Module, depth: int, *, whole: bool) -> list[str]:
    """Paths of the modules that become groups: `depth` parts long, or shorter where nothing is below.

    Args:
        whole: do not cut a block of leaves (a convolution stays with its norm), nor any other module of its class (a
            residual block with a shortcut of its own).
    """
    paths: list[str] = []
    kept = _kept_whole(module) if whole else set()

    def visit(path: str, here: nn.Module, level: int) -> None:
        children = list(here.named_children())
        if level and (level == depth or not children or (whole and _plain(here)) or type(here) in kept):
            paths.append(path)
            return
        for name, child in children:
            visit(f"{path}.{name}" if path else name, child, level + 1)

    visit("", module, 0)
    return paths


def _plain(module: nn.Module) -> bool:
    """Whether `module` is one layer or block: all leaves below it, and in a mere container only one with weights."""
    children = list(module.children())
    if not children or any(list(c.children()) for c in children):
        return False
    weighted = sum(any(p.dim() > 1 for p in c.parameters()) for c in children)
    return weighted < 2 or not isinstance(module, CONTAINERS)


def _kept_whole(module: nn.Module) -> set[type]:
    return {type(m) for path, m in module.named_modules() if path and _plain(m) and not isinstance(m, CONTAINERS)}


def _groups(module: nn.Module, paths: Sequence[str]) -> list[LayerGroup]:
    parameters = dict(module.named_parameters())
    names: dict[str, list[str]] = {}
    known = set(paths)
    for name in tensors_of(module):
        owner = next((p for p in _prefixes(name) if p in known), name)
        names.setdefault(owner, []).append(name)
    return [
        LayerGroup(layer, tuple(own), sum(parameters[n].numel() for n in own if n in parameters))
        for layer, own in names.items()
    ]


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _matching(module: nn.Module, groups: Sequence[LayerGroup], layers: str) -> tuple[LayerGroup, ...]:
    patterns = layers.split(",")
    modules = [path for path, _ in module.named_modules()]
    kept = []
    for group in groups:
        inside = [p for p in modules if p == group.layer or p.startswith(group.layer + ".")]
        if any(fnmatch.fnmatchcase(name, pattern) for name in (group.layer, *inside) for pattern in patterns):
            kept.append(group)
    if not kept:
        near = closest(layers, (g.layer for g in groups))
        raise UsageError(f"no layer group matches {clean(layers)!r}{near}")
    return tuple(kept)
