"""The only file that registers hooks or stands in for a module's forward: scoped, gone even when the body raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Before = Callable[[nn.Module, tuple[Any, ...]], Any]
After = Callable[[nn.Module, tuple[Any, ...], Any], Any]
Around = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


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


@contextmanager
def interposed(modules: Mapping[str, nn.Module], around: Around) -> Iterator[None]:
    """Let `around(path, forward, args, kwargs)` decide what calls of `modules` return while the body runs.

    Unlike a hook it may leave the module's own forward out, and it also sees `module.forward(x)` called directly.
    """
    saved: list[tuple[nn.Module, Any]] = []
    missing = object()

    def instead(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: around(path, forward, args, kwargs)

    try:
        for path, module in modules.items():
            saved.append((module, module.__dict__.get("forward", missing)))
            module.__dict__["forward"] = instead(path, module.forward)
        yield
    finally:
        for module, own in reversed(saved):
            if own is missing:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
