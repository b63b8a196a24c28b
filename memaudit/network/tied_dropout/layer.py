"""The dropout layer: a mask that is the example's own, by a hash, without a table and without random state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from memaudit.errors import UsageError
from memaudit.network.tied_dropout.ids import Ids, as_ids, signed

Mode = Literal["train", "test", "drop"]
RULE = "rule"  # its one buffer

_WORD = 0xFFFFFFFF
_CHUNK = 0x9E3779B9


class ExampleTiedDropout(nn.Module):
    """Dropout whose mask belongs to the example: the same in every epoch, batch, process and device.

    Args:
        channels: width of the channel axis.
        p_gen: share of the channels, the first ones, that are on for every example.
        p_mem: probability that another channel is on for an example.
        seed: any integer; layers of one network need different ones.
        axis: the channel axis; by default 1 of `(N, C)` and `(N, C, H, W)`, the last of `(N, L, C)` and, where only
            that fits, of `(N, H, W, C)`.

    Attributes:
        mode: `train`: each example's own mask, whose ids `example_ids` tells. `test`: memorizing channels at their
            expected value, `p_mem` times their own. `drop`: memorizing channels at zero. None, the default: `train`
            while ids are known and in training, otherwise `test`.
        rule: `(5,)` int64, in every checkpoint: channels, axis (-1: none given), number of generalizing channels,
            `p_mem` in units of 2^-32, seed.
    """

    rule: Tensor

    def __init__(
        self, channels: int, p_gen: float = 0.3, p_mem: float = 0.1, seed: int = 0, *, axis: int | None = None
    ) -> None:
        super().__init__()
        if channels < 1:
            raise UsageError(f"{channels} channels; it must be at least 1")
        for name, value in (("p_gen", p_gen), ("p_mem", p_mem)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be between 0 and 1")
        self.channels, self.axis = channels, axis
        self.mode: Mode | None = None
        shape = [channels, -1 if axis is None else axis]
        rule = [*shape, round(p_gen * channels), round(p_mem * (1 << 32)), signed(seed)]
        self.register_buffer(RULE, torch.tensor(rule, dtype=torch.int64))

    @property
    def p_mem(self) -> float:
        """Probability that a memorizing channel is on for an example."""
        return int(self.rule[3]) / (1 << 32)

    def memorizing(self) -> Tensor:
        """`(channels,)` bool: which channels are not on for every example."""
        return torch.arange(self.channels, device=self.rule.device) >= self.rule[2]

    def mask(self, ids: Tensor | Sequence[int]) -> Tensor:
        """`(N, channels)` bool: the channels that are on for each of the examples `ids`, on the layer's device."""
        ids = as_ids(ids).to(self.rule.device)
        channel = torch.arange(self.channels, device=ids.device)
        generalizing, threshold, seed = self.rule[2:].unbind()
        low = _mix(_mix(seed & _WORD) ^ (ids & _WORD))
        high = _mix(_mix((seed >> 32) & _WORD) ^ _mix((ids >> 32) & _WORD) ^ low)
        # Masked first: of an index times a number alone, PyTorch's compiler makes int32 for a GPU, which overflows.
        own = _mix((channel & _WORD) * _CHUNK & _WORD)
        drawn = _mix(_mix(low[:, None] ^ own) ^ high[:, None])
        return (drawn < threshold) | (channel < generalizing)

    def factors(self, mode: Mode) -> Tensor:
        """`(channels,)` float32: what `test` or `drop` multiplies each channel by."""
        share = self.rule[3].float() / (1 << 32) if mode == "test" else 0.0
        return torch.where(self.memorizing(), share, torch.ones((), dtype=torch.float32, device=self.rule.device))

    def forward(self, x: Tensor) -> Tensor:
        """`x` `(N, ..., channels, ...)` with the channels of each example scaled, of the same shape.

        Raises:
            UsageError: no axis has `channels` elements, ids are needed and not known, or there are not as many as
                examples.
        """
        axis = self._axis(x)
        ids, mode = Ids.current, self.mode
        if mode is None:
            mode = "train" if self.training or ids is not None else "test"
        shape = [1] * x.dim()
        shape[axis] = self.channels
        if mode != "train":
            return x * self.factors(mode).to(x.device, x.dtype).reshape(shape)
        if ids is None:
            raise UsageError(
                "example-tied dropout needs the ids of the batch's examples",
                hint="Write: with memaudit.example_ids(ids): model(images). Or call model.eval() to test.",
            )
        if len(ids) != len(x):
            raise UsageError(
                f"{len(ids)} example ids for {len(x)} rows",
                hint="Give one id per example; a layer that folds windows into the batch cannot be tied.",
            )
        shape[0] = len(x)
        return x * self.mask(ids).to(x.device, x.dtype).reshape(shape)

    def _axis(self, x: Tensor) -> int:
        if self.axis is not None:
            candidates = [self.axis]
        else:
            candidates = [x.dim() - 1, 1] if x.dim() == 3 else [1, x.dim() - 1]
        for axis in candidates:
            if 0 < axis < x.dim() and x.shape[axis] == self.channels:
                return axis
        raise UsageError(f"no channel axis of {self.channels} in a tensor of shape {tuple(x.shape)}")

    def extra_repr(self) -> str:
        """What `print(model)` shows of it: channels, generalizing ones, `p_mem` and seed."""
        return f"{self.channels}, generalizing={int(self.rule[2])}, p_mem={self.p_mem:g}, seed={int(self.rule[4])}"


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words (in int64) that scatters them: xor-shift and multiply, no product past 63 bits.

    The constants are those that Wellons' search ("hash-prospector", 2018) found least biased for two rounds.
    """
    word = word ^ (word >> 16)
    word = (word * 0x21F0AAAD) & _WORD
    word = word ^ (word >> 15)
    word = (word * 0x735A2D97) & _WORD
    return word ^ (word >> 15)
