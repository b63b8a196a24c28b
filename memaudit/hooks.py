"""The only file that registers hooks: scoped, removed even when the body raises, newest last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Before = Callable[[nn.Module, tuple[Any, ...]], Any]
After = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def hooked(
    before: Iterable[tuple[nn.Module, Before]] = (), after: Iterable[tuple[nn.Module, After]] = ()
) -> Iterator[None]:
    """Call `before` hooks on modules' positional inputs and `after` hooks on their outputs while the body runs.

    A hook that returns something other than `None` replaces what it was given, as in `torch.nn.Module`. Scopes nest:
    an inner scope sees what the outer one returned. On the way out, by return or raise, every hook is gone.
    """
    with ExitStack() as stack:
        for module, first in before:
            stack.callback(module.register_forward_pre_hook(first).remove)
        for module, last in after:
            stack.callback(module.register_forward_hook(last).remove)
        yield


def hook_count(module: nn.Module) -> int:
    """Forward hooks of either side on `module` and everything below it."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
