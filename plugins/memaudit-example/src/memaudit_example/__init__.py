"""An adapter for small MLP-Mixers: its whole shape is read from the names and shapes of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from memaudit import Adapter
from memaudit.adapters.base import ModelOptions
from memaudit.checkpoints import Checkpoint, read
from memaudit.checkpoints.load import load_strict
from memaudit.data import Preprocess
from memaudit.errors import ModelRejected

MAX_BLOCKS = 64  # a checkpoint may come from anybody: what it asks to be built has bounds


@dataclass(frozen=True)
class Shape:
    """Everything that says how large a mixer is."""

    channels: int
    patch: int
    side: int
    width: int
    token_hidden: int
    channel_hidden: int
    blocks: int
    classes: int


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(nn.functional.gelu(self.widen(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Mixes the places of each channel, then the channels of each place."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.tokens = Mlp((shape.side // shape.patch) ** 2, shape.token_hidden)
        self.mix = Mlp(shape.width, shape.channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mix(self.second(x))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """Patches, blocks, mean, classifier."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch = nn.Conv2d(shape.channels, shape.width, shape.patch, stride=shape.patch)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width)
        self.classify = nn.Linear(shape.width, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.classify(self.norm(x).mean(1))  # type: ignore[no-any-return]


class MixerAdapter(Adapter):
    """Recognises a mixer by its tensors and loads it strictly. The base class finds its units and runs it."""

    name: ClassVar[str] = "example"

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> MixerAdapter:
        """Build a mixer of the shape that the tensors show, and fill it with all of them.

        Raises:
            ModelRejected: they are no mixer's.
        """
        shape = shape_of(checkpoint.tensors)
        if shape is None:
            raise ModelRejected(
                f"{checkpoint.path.name} is no mixer: patch.weight, blocks.0.tokens.widen.weight or others are missing",
                hint="this adapter loads only what memaudit_example.Mixer saved",
            )
        network = Mixer(shape)
        load_strict(network, checkpoint.tensors, stripped_prefix=checkpoint.stripped_prefix)
        size = (shape.channels, shape.side, shape.side)
        preprocess = Preprocess(size, mean=options.mean or (), std=options.std or (), origin="memaudit-example")
        reason = f"a mixer of {shape.blocks} blocks, {shape.side} x {shape.side} images"
        return cls(network, architecture=f"mixer-{shape.blocks}x{shape.width}", preprocess=preprocess, reason=reason)

    @classmethod
    def example(cls) -> MixerAdapter:
        """Two blocks with random weights, through a real file."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Mixer(Shape(1, 2, 8, 16, 24, 32, 2, 10))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "mixer.safetensors"
            save_file(network.state_dict(), path)
            return cls.load(read(path), ModelOptions())


def shape_of(tensors: Mapping[str, Tensor]) -> Shape | None:
    """The mixer these tensors belong to, as far as the ones that decide its size tell."""
    try:
        patch, tokens = tensors["patch.weight"], tensors["blocks.0.tokens.widen.weight"]
        mix, classify = tensors["blocks.0.mix.widen.weight"], tensors["classify.weight"]
    except KeyError:
        return None
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if patch.dim() != 4 or tokens.dim() != 2 or mix.dim() != 2 or classify.dim() != 2 or blocks > MAX_BLOCKS:
        return None
    side = isqrt(tokens.shape[1]) * patch.shape[2]
    return Shape(
        patch.shape[1], patch.shape[2], side, patch.shape[0], tokens.shape[0], mix.shape[0], blocks, classify.shape[0]
    )
