"""Forward passes that start in the middle: module calls that ran before a tensor was first used return what they did.

When only some tensors of a network change, every module call that had returned before the first of them was read gives
the same output again. One intact pass per batch keeps those outputs; later passes over the same batch are handed them.
Nothing is assumed of the network but that it does the same calls in the same order: what a module call returns, what
it changes in place and what reads which tensor is watched in one pass, and every group is compared bit by bit with a
plain pass before it is trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memaudit.network.hooks import interposed
from memaudit.network.layer_groups import LayerGroup, layer_groups, tensors_of
from memaudit.network.trace import tensors_in

ROOT = -1  # the parent of calls made by the network's own forward
Forward = Callable[[Tensor], Tensor]


class Diverged(RuntimeError):
    """The network made other calls than it did when it was watched."""


@dataclass
class Call:
    """One call of one module.

    Attributes:
        path: of the module.
        parent: index of the call it was made from, or `ROOT`.
        turn: how many calls of this module its parent had made before.
        end: when it returned, on the clock of `Plan.first_use`.
        skippable: it changed none of its inputs, and its output is tensors in plain containers.
        rewritten: its output was changed in place later on, so only copies may be handed out.
    """

    path: str
    parent: int
    turn: int
    end: int = 0
    skippable: bool = True
    rewritten: bool = False


@dataclass(frozen=True)
class Plan:
    """The calls of one forward pass in the order they began, and when each tensor was first read."""

    calls: tuple[Call, ...]
    first_use: Mapping[str, int]

    def skips(self, names: Iterable[str]) -> frozenset[int]:
        """The outermost calls that returned before any of the tensors `names` was read: what a replay leaves out."""
        uses = [self.first_use[n] for n in names if n in self.first_use]
        start = min(uses, default=0)  # read where nobody saw: nothing can be left out
        chosen: set[int] = set()
        covered: set[int] = set()
        for index, call in enumerate(self.calls):
            if call.parent in covered:
                covered.add(index)
            elif call.skippable and call.end < start:
                chosen.add(index)
                covered.add(index)
        return frozenset(chosen)


def watch(module: nn.Module, forward: Forward, images: Tensor) -> Plan:
    """Run `forward(images)` once, intact and without gradients, and write down what a replay must know."""
    clock = itertools.count(1)
    calls: list[Call] = []
    outputs: list[list[tuple[Tensor, int]]] = []
    given: list[list[int]] = []
    walk = _Walk()

    def around(path: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = len(calls)
        parent, turn = walk.enter(index, path)
        call = Call(path, parent, turn)
        calls.append(call)
        outputs.append([])
        inputs = [(t, t._version) for t in tensors_in((args, kwargs))]
        given.append([_storage(t) for t, _ in inputs])
        try:
            result = run(*args, **kwargs)
        finally:
            walk.leave()
        call.end = next(clock)
        unchanged = all(t._version == version for t, version in inputs)
        call.skippable = unchanged and _plain(result)
        outputs[index] = [(t, t._version) for t in tensors_in(result)]
        return result

    with torch.no_grad(), interposed(_below(module), around), _FirstUse(tensors_of(module), clock) as uses:
        forward(images)
    for call, returned, inputs in zip(calls, outputs, given, strict=True):
        call.rewritten = any(t._version != version for t, version in returned)
        if call.rewritten and any(_storage(t) in inputs for t, _ in returned):
            call.skippable = False  # it handed its input on, and a copy would no longer be that input
    return Plan(tuple(calls), dict(uses.first))


def groups_in_order(
    module: nn.Module, forward: Forward, images: Tensor, *, depth: int | None = None, layers: str | None = None
) -> tuple[LayerGroup, ...]:
    """`layer_groups` that have parameters, in the order in which `forward(images)` first uses them."""
    found = layer_groups(module, watch(module, forward, images).first_use, depth=depth, layers=layers)
    return tuple(group for group in found if group.parameters)


@dataclass
class Tape:
    """The intact outputs of one batch, by call.

    Attributes:
        plan: what `watch` saw.
        keep: the calls whose outputs some replay will ask for.
    """

    plan: Plan
    keep: frozenset[int]
    values: dict[int, Any] = field(default_factory=dict)
    versions: dict[int, list[int]] = field(default_factory=dict)

    def record(self, module: nn.Module) -> AbstractContextManager[None]:
        """Keep the outputs of the intact pass that runs in the body."""
        self.values.clear()
        self.versions.clear()
        walk = _Walk(self.plan)

        def around(path: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            index = walk.find(path)
            try:
                result = run(*args, **kwargs)
            finally:
                walk.leave()
            if index in self.keep:
                self.values[index] = _copied(result) if self.plan.calls[index].rewritten else result
                self.versions[index] = [t._version for t in tensors_in(self.values[index])]
            return result

        return interposed(_below(module), around)

    def replay(self, module: nn.Module, skips: frozenset[int]) -> AbstractContextManager[None]:
        """The pass in the body leaves `skips` out and gets their recorded outputs instead.

        Raises:
            Diverged: inside the body, where the network makes a call it did not make before.
        """
        walk = _Walk(self.plan)

        def around(path: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            index = walk.find(path)
            try:
                if index in skips:
                    value = self.values[index]
                    return _copied(value) if self.plan.calls[index].rewritten else value
                return run(*args, **kwargs)
            finally:
                walk.leave()

        return interposed(_below(module), around)

    def intact(self) -> bool:
        """Whether nothing has written into the recorded outputs since."""
        return all([t._version for t in tensors_in(v)] == self.versions[i] for i, v in self.values.items())


# Fast path; its slow twin: tests/twins.py.
@dataclass
class Replayer:
    """Plain or replayed passes over one batch at a time, group by group; exact for any network.

    Attributes:
        module: the network that `forward` calls.
        groups: the tensor names that change together; replays are asked for by position in this list.
    """

    module: nn.Module
    forward: Forward
    groups: Sequence[Sequence[str]]
    plan: Plan | None = None
    skips: list[frozenset[int]] = field(default_factory=list)
    trusted: list[bool | None] = field(default_factory=list)
    _tape: Tape | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Whoever is sent one finds out about its own network."""
        return Replayer, (self.module, self.forward, self.groups)

    def start(self, images: Tensor) -> Tensor:
        """Logits `(n, classes)` of the intact network on a new batch, whose outputs are kept for `run`."""
        if self.plan is None:
            self.plan = watch(self.module, self.forward, images)
            self.skips = [self.plan.skips(names) for names in self.groups]
            self.trusted = [None if skips else False for skips in self.skips]
        keep = frozenset().union(*(s for s, t in zip(self.skips, self.trusted, strict=True) if t is not False))
        self._tape = Tape(self.plan, keep)
        try:
            with self._tape.record(self.module):
                return self.forward(images)
        except Diverged:
            self.trusted = [False] * len(self.groups)
            return self.forward(images)

    def run(self, group: int, images: Tensor) -> Tensor:
        """Logits `(n, classes)` on the batch of the last `start`, with whatever the tensors of `group` now hold.

        The first pass of a group is made both ways; where one bit differs, the group is never replayed.
        """
        if self.trusted[group] is False or self._tape is None:
            return self.forward(images)
        try:
            with self._tape.replay(self.module, self.skips[group]):
                replayed = self.forward(images)
        except Diverged:
            self.trusted[group] = False
            return self.forward(images)
        if self.trusted[group] and self._tape.intact():
            return replayed
        plain = self.forward(images)
        self.trusted[group] = self._tape.intact() and torch.equal(plain, replayed)
        return plain


class _Walk:
    """Where in the tree of calls the network is. Calls are known by parent and turn, so skipped ones leave no gap."""

    def __init__(self, plan: Plan | None = None) -> None:
        calls = plan.calls if plan else ()
        self._index = {(c.parent, c.path, c.turn): i for i, c in enumerate(calls)}
        self._stack = [ROOT]
        self._turns: list[dict[str, int]] = [{}]

    def enter(self, index: int, path: str) -> tuple[int, int]:
        turn = self._turns[-1].get(path, 0)
        self._turns[-1][path] = turn + 1
        parent = self._stack[-1]
        self._stack.append(index)
        self._turns.append({})
        return parent, turn

    def find(self, path: str) -> int:
        turn = self._turns[-1].get(path, 0)
        index = self._index.get((self._stack[-1], path, turn))
        if index is None:
            raise Diverged(path)
        self.enter(index, path)
        return index

    def leave(self) -> None:
        self._stack.pop()
        self._turns.pop()


class _FirstUse(TorchFunctionMode):
    """Notes when a torch call first gets one of the network's tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], clock: itertools.count[int]) -> None:
        super().__init__()
        self._names = {id(t): n for n, t in tensors.items()}
        self._clock = clock
        self.first: dict[str, int] = {}

    def __enter__(self) -> _FirstUse:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tensors_in((args, kwargs or {})):
            name = self._names.get(id(tensor))
            if name is not None and name not in self.first:
                self.first[name] = next(self._clock)
        return func(*args, **(kwargs or {}))


def _below(module: nn.Module) -> dict[str, nn.Module]:
    """Every module but the network itself; scripted code keeps its own forward."""
    return {p: m for p, m in module.named_modules() if p and not isinstance(m, torch.jit.ScriptModule)}


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(map(_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str) or type(value) is Tensor


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
