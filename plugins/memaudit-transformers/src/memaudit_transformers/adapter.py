"""The adapter for folders of transformers: image classifiers here, text classifiers in `text`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.checkpoints import Checkpoint, read
from memaudit.errors import UsageError
from memaudit.text import clean
from memaudit_transformers import text, weights
from memaudit_transformers.folder import Saved, read_saved
from memaudit_transformers.images import Seen, check_options, prepare
from memaudit_transformers.library import quiet
from memaudit_transformers.saving import save


class TransformersAdapter(Adapter):
    """A classifier of transformers, built from its `config.json` and loaded strictly.

    Attributes:
        saved: the folder it came from.
        reversed: its image processor turns the order of colours round.
    """

    name: ClassVar[str] = "transformers"
    folders: ClassVar[bool] = True
    module: PreTrainedModel
    saved: Saved
    reversed: bool = False

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> TransformersAdapter:
        """Build what `config.json` beside the weights describes, and fill it with all of them.

        Raises:
            ModelRejected: no classifier, or other tensors than its.
            PremiseBroken: a weight is NaN or infinite.
            UsageError: an option that is for other libraries, or another number of classes.
        """
        check_options(options)
        saved = read_saved(checkpoint.path.parent)
        network = weights.load(saved, checkpoint)
        classes = network.config.num_labels
        if options.num_classes is not None and options.num_classes != classes:
            raise UsageError(
                f"--num-classes {options.num_classes}: the classifier has {classes}", hint="leave --num-classes out"
            )
        seen = Seen(text.prepare(saved, options)) if saved.task == "text" else prepare(saved, options)
        adapter = cls(
            network,
            architecture=type(network).__name__,
            preprocess=seen.preprocess,
            reason=f"model_type in config.json: {clean(saved.config.model_type)}",
        )
        adapter.saved, adapter.reversed = saved, seen.reversed
        return adapter

    @classmethod
    def example(cls) -> TransformersAdapter:
        """A small ViT with random weights, through a folder as `save_pretrained` writes it."""
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
            patch_size=8, num_labels=5, initializer_range=0.2,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), TemporaryDirectory(prefix="memaudit-") as folder, quiet():
            torch.manual_seed(0)
            ViTForImageClassification(config).save_pretrained(folder)
            return cls.load(read(folder), ModelOptions())

    @cached_property
    def _encode(self) -> Callable[[Sequence[str]], Tensor]:
        return text.encoder(self.saved)

    @property
    def encode(self) -> Callable[[Sequence[str]], Tensor] | None:
        """For a network that reads text: from texts to token ids and mask."""
        return self._encode if self.saved.task == "text" else None

    def blank(self, count: int) -> Tensor:
        """Examples of zeros; of token ids, zeros that all count."""
        zeros = super().blank(count)
        return torch.stack([zeros[:, 0], torch.ones_like(zeros[:, 0])], 1) if self.preprocess.masked else zeros

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Examples of noise; of token ids, zeros and ones that all count."""
        made = super().noise(count, generator)
        return torch.stack([made[:, 0], torch.ones_like(made[:, 0])], 1) if self.preprocess.masked else made

    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Pixels or token ids and their mask, as the network's forward takes them first."""
        given = super().inputs(batch)
        return (given[0].flip(1),) if self.reversed else given

    def state_of(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The tensors of another checkpoint of this network, by the names of its modules."""
        return dict(weights.load(self.saved, checkpoint).state_dict())

    def write(self, state: Mapping[str, Tensor], target: Path) -> None:
        """Save `state` as transformers would: a folder, or its `.safetensors` file alone."""
        save(self, state, target)
