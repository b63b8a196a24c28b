"""From whatever a network returns to logits `(N, classes)`: one rule for every head, so that nobody else asks.

A single logit is two classes. Where an example may have several labels at once (multi-label), each is a question of its
own: class `2 j` is "label j is absent", class `2 j + 1` "it is there". An example's row of the logits answers the one
question it is asked; all other classes stand so far below that they change no margin, probability or gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from memaudit.errors import ModelRejected
from memaudit.network.sites import MOVES
from memaudit.network.trace import record
from memaudit.text import clean

# How far below the asked pair the logits of all other classes stand: softmax gives them less than float32 can add.
BELOW = 30.0
# A probability is taken back to its logit within these bounds: float32 has no larger one below 1.
EDGE = 1e-7
_asked: ContextVar[Tensor | None] = ContextVar("asked", default=None)


def logits_of(output: object, count: int) -> Tensor:
    """The one tensor `(N, outputs)` in what a network returned.

    Args:
        output: a tensor; a tuple or list that begins with it; a mapping or an object that calls it `logits`.
        count: N.

    Raises:
        ModelRejected: there is none, or it has another shape.
    """
    tensor = _tensor(output)
    if tensor is None:
        raise ModelRejected(
            f"the network returned {clean(_kind(output))}, not logits (N, classes)",
            hint="wrap it in a module whose forward returns the logits, or a dict that calls them 'logits'",
        )
    if tensor.dim() < 2 and tensor.numel() == count:
        tensor = tensor.reshape(count, 1)
    while tensor.dim() > 2 and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    if tensor.dim() != 2 or len(tensor) != count or not tensor.is_floating_point():
        raise ModelRejected(
            f"the network returned shape {tuple(tensor.shape)} ({_short(tensor)}) for {count} examples, "
            "not logits (examples, classes)",
            hint="wrap it in a module whose forward returns one row of logits an example",
        )
    return tensor


def further(output: object) -> int:
    """How many tensors of the logits' own shape stand beside them, where only their place says which is which."""
    if not isinstance(output, tuple | list) or hasattr(output, "logits"):
        return 0
    first = _tensor(output)
    return sum(isinstance(one, Tensor) and first is not None and one.shape == first.shape for one in output[1:])


def below(outputs: Tensor, ends_in: str) -> Tensor:
    """The logits `(N, classes)` below a final softmax (up to a constant a row, which no figure sees) or sigmoid."""
    if ends_in == "softmax":
        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return torch.logit(outputs, EDGE) if ends_in == "sigmoid" else outputs


def two_classes(logit: Tensor) -> Tensor:
    """`(N, 2)` of one logit `(N, 1)`: class 1 is predicted where it is above 0."""
    return torch.cat([torch.zeros_like(logit), logit], 1)


def paired(logits: Tensor) -> Tensor:
    """`(N, 2 L)` of one logit a label `(N, L)`, each row for the label it is asked for (`asking`), else for all."""
    pairs = torch.stack([torch.zeros_like(logits), logits], -1).flatten(1)
    labels = _asked.get()
    if labels is None or len(labels) != len(logits):
        return pairs
    column = (labels.to(logits.device) // 2)[:, None]
    own = torch.arange(pairs.shape[1], device=logits.device)[None] // 2 == column
    floor = logits.gather(1, column).detach().clamp_max(0) - BELOW
    return torch.where(own, pairs, floor)


@contextmanager
def asking(labels: Tensor) -> Iterator[None]:
    """Batches that run in the body are asked for the labels that `labels` `(N,)`, classes of pairs, belong to."""
    token = _asked.set(labels)
    try:
        yield
    finally:
        _asked.reset(token)


def ends_in_sigmoid(module: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> bool:
    """Whether what the network returns are probabilities: the last thing it computes is a sigmoid."""
    trace = record(module, forward, inputs)
    makers = {key: op for op in trace.ops for key in op.outputs}
    key = trace.result
    while key in makers and makers[key].name in MOVES:
        key = makers[key].inputs[0]
    return key in makers and makers[key].name in ("sigmoid", "sigmoid_")


def _tensor(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        values = list(output.values())
        return _tensor(output["logits"] if "logits" in output else values[0] if len(values) == 1 else None)
    if hasattr(output, "logits"):
        return _tensor(output.logits)
    if isinstance(output, tuple | list) and output:
        return _tensor(output[0])
    return None


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(output: object) -> str:
    kind = type(output).__name__
    return f"{kind} with {', '.join(map(str, output))}" if isinstance(output, Mapping) else kind
