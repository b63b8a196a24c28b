"""Heads of `nn.MultiheadAttention`, which hands the weights of its output projection to a function and never calls it.

While somebody looks at the projection, it is called as the module it is, so that what enters it can be seen and cut.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from memaudit.network.hooks import interposed
from memaudit.network.trace import Op, Trace
from memaudit.network.units import Site

ATTEND = F.multi_head_attention_forward
_PARAMETERS = inspect.signature(ATTEND)


# Fast path; its slow twin: tests/twins.py.
@contextmanager
def projected(module: nn.Module) -> Iterator[None]:
    """In each `nn.MultiheadAttention` whose projection has hooks, call the projection while the body runs.

    What it gets is the function's own result for a projection that changes nothing: a product with the identity, exact
    in every floating type.
    """
    watched = {
        path: m for path, m in module.named_modules() if isinstance(m, nn.MultiheadAttention) and _hooked(m.out_proj)
    }

    def around(path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _Projecting(watched[path].out_proj):
            return forward(*args, **kwargs)

    with interposed(watched, around):
        yield


def heads(trace: Trace, op: Op) -> Iterator[Site]:
    """The heads of the attention that `op` computes: `head_dim` columns each of what its projection gets."""
    attention, projection = trace.modules.get(op.module), f"{op.module}.out_proj".lstrip(".")
    if isinstance(attention, nn.MultiheadAttention) and projection in trace.modules:
        axis = len(op.shape) - 1
        edits = (("weight", 1),)
        yield Site(projection, "head", attention.num_heads, "input", axis, span=attention.head_dim, edits=edits)


class _Projecting(TorchFunctionMode):
    """Lets the function attend, and the module project. A mode also keeps PyTorch's fused kernel away."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not ATTEND:
            return func(*args, **(kwargs or {}))
        given = _PARAMETERS.bind(*args, **(kwargs or {}))
        weight = given.arguments["out_proj_weight"]
        given.arguments["out_proj_weight"] = _identity(len(weight), weight.dtype, weight.device)
        given.arguments["out_proj_bias"] = None
        attended, weights = func(*given.args, **given.kwargs)
        return self.projection(attended), weights


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@functools.lru_cache(maxsize=8)
def _identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(size, dtype=dtype, device=device)
