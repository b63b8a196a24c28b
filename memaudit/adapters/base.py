"""What an adapter is: it turns a checkpoint into a module and knows how images reach it. Everything else is derived."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from memaudit.adapters.options import ModelOptions as ModelOptions
from memaudit.checkpoints import Checkpoint
from memaudit.images.preprocess import Preprocess
from memaudit.sites import find_sites
from memaudit.tied_dropout import bypassed
from memaudit.units import Site


class Adapter:
    """A loaded model and how to audit it. Subclasses say how to build one; they override what they know better.

    Attributes:
        module: the network, in eval mode, float32, strictly loaded; parameters need no gradient.
        architecture: its name, as reports print it.
        preprocess: from an image to `forward`'s argument.
        reason: why this adapter took the checkpoint, in a few words.
        alternatives: architectures that fit the same tensors but compute differently, this one included; more than
            one asks the caller to choose by reference accuracy.
        variants: whether the alternatives have the same modules and differ only in settings that no module shows.
        test_size: `(C, H, W)` the model is tested at, where that is known, differs and the user chose no size.
    """

    variants: bool = False
    test_size: tuple[int, int, int] | None = None
    name: ClassVar[str] = ""

    def __init__(
        self,
        module: nn.Module,
        *,
        architecture: str,
        preprocess: Preprocess,
        reason: str = "",
        alternatives: tuple[str, ...] = (),
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.architecture = architecture
        self.preprocess = preprocess
        self.reason = reason
        self.alternatives = alternatives or (architecture,)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> str | None:
        """Why this adapter can load `checkpoint`, or `None`. Looks at names, shapes and facts; runs nothing."""
        raise NotImplementedError

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> Adapter:
        """Build the architecture on `meta`, hold it against the file's tensors, load strictly.

        Raises:
            ModelRejected: the tensors do not fit, or the architecture cannot be told.
            UsageError: an option names something that does not exist.
        """
        raise NotImplementedError

    @classmethod
    def example(cls) -> Adapter:
        """A small network with random weights, loaded the way users' files are: what `memaudit adapters test` checks.

        Optional; it must need neither files nor network.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of `images` `(N, C, H, W)` in [0, 1]; differentiable."""
        logits = self.module(self.preprocess.normalise(images))
        if isinstance(logits, tuple | list):
            logits = logits[0]
        return logits  # type: ignore[no-any-return]

    def sites(self, images: Tensor) -> list[Site]:
        """Where units can be cut, in execution order, found by following `images` through one forward pass."""
        with bypassed(self.module):
            return find_sites(self.module, self.forward, images)

    @cached_property
    def num_classes(self) -> int:
        """Width of the logits, seen on one black image."""
        with torch.no_grad():
            return int(self.forward(torch.zeros(1, *self.preprocess.input_size, device=self.device)).shape[-1])

    @property
    def parameters(self) -> int:
        """Number of scalar parameters, tied tensors once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        first = next(self.module.parameters(), None)
        return first.device if first is not None else torch.device("cpu")
