"""One forward pass, written down: which operation ran inside which module, and which tensor went where.

Nothing is re-written or compiled, so any `nn.Module` that runs can be traced: a `TorchFunctionMode` sees every torch
call, hooks say which module is running, and tensors are followed by identity (in-place writes start a new version).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memaudit.network.hooks import hooked

Key = int  # one tensor value


@dataclass(frozen=True)
class Op:
    """One torch call: `inputs` are its tensor arguments in order (parameters too), `shape` its first output's."""

    index: int
    name: str
    module: str
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    shape: tuple[int, ...]


@dataclass
class Trace:
    """What one forward pass did.

    Attributes:
        ops: in execution order.
        uses: by tensor, the ops that read it.
        outputs: by module path, the tensor its first call returned, where that is one tensor.
        result: the network's own output.
        modules: by path, only those that ran.
    """

    ops: list[Op] = field(default_factory=list)
    uses: dict[Key, list[Op]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, Key] = field(default_factory=dict)
    result: Key = -1
    modules: dict[str, nn.Module] = field(default_factory=dict)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


class _Identity:
    """Numbers for tensor values: a new object, or a new in-place version of one, gets a new number."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Key]] = {}
        self._next = 0

    def of(self, tensor: Tensor) -> Key:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self.renew(tensor)

    def renew(self, tensor: Tensor) -> Key:
        self._next += 1
        self._known[id(tensor)] = (weakref.ref(tensor), self._next)
        return self._next


class _Recorder(TorchFunctionMode):
    def __init__(self, trace: Trace, identity: _Identity, running: list[str]) -> None:
        super().__init__()
        self.trace, self.identity, self.running = trace, identity, running

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        inputs = tuple(self.identity.of(t) for t in given)
        result = func(*args, **kwargs)
        returned = list(tensors_in(result))
        if given and returned:
            outputs = tuple(self.identity.renew(t) for t in returned)
            name = getattr(func, "__name__", str(func))
            op = Op(len(self.trace.ops), name, self.running[-1], inputs, outputs, tuple(returned[0].shape))
            self.trace.ops.append(op)
            for key in dict.fromkeys(inputs):
                self.trace.uses[key].append(op)
        return result


def record(module: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> Trace:
    """Run `forward(images)` once, without gradients, and write down what happened.

    Args:
        module: the network that `forward` calls; its sub-modules give the paths.
        forward: from images to logits.
        images: `(N, C, H, W)`; a few are enough.
    """
    trace, identity, running = Trace(), _Identity(), [""]
    paths = {m: path for path, m in module.named_modules()}

    def enter(m: nn.Module, args: tuple[Any, ...]) -> None:
        running.append(paths[m])

    def leave(m: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running.pop()
        trace.modules.setdefault(paths[m], m)
        if isinstance(output, Tensor):
            trace.outputs.setdefault(paths[m], identity.of(output))

    with (
        torch.no_grad(),
        hooked(before=[(m, enter) for m in paths], after=[(m, leave) for m in paths]),
        _Recorder(trace, identity, running),
    ):
        trace.result = identity.of(forward(images))
    return trace
