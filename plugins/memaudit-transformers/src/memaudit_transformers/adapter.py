"""The adapter for folders of transformers: image classifiers here, text classifiers in `text`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.checkpoints import Checkpoint, read
from memaudit.errors import ModelRejected, UsageError
from memaudit.text import clean
from memaudit_transformers import weights
from memaudit_transformers.folder import Saved, read_saved
from memaudit_transformers.images import check_options, prepare
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
    def recognises(cls, checkpoint: Checkpoint) -> str | None:
        """The model type its `config.json` names."""
        kind = checkpoint.facts.model_type
        return f"model_type in config.json: {clean(kind)}" if kind else None

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
        if saved.task == "text":
            raise ModelRejected("text classifiers are not taken yet", hint="see memaudit adapters list")
        seen = prepare(saved, options)
        adapter = cls(
            network,
            architecture=type(network).__name__,
            preprocess=seen.preprocess,
            reason=cls.recognises(checkpoint) or "config.json",
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

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of `images` `(N, C, H, W)` in [0, 1]; differentiable."""
        given = self.preprocess.normalise(images)
        given = given.flip(1) if self.reversed else given
        logits: Tensor = self.module(**{self.module.main_input_name: given}, return_dict=True).logits
        return logits

    def state_of(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The tensors of another checkpoint of this network, by the names of its modules."""
        return dict(weights.load(self.saved, checkpoint).state_dict())

    def write(self, state: Mapping[str, Tensor], target: Path) -> None:
        """Save `state` as transformers would: a folder, or its `.safetensors` file alone."""
        save(self, state, target)
