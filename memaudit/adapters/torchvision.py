"""The adapter for torchvision's classifiers, which are called `torchvision:NAME`."""

from __future__ import annotations

from typing import ClassVar

from memaudit.adapters.named import NamedAdapter


class TorchvisionAdapter(NamedAdapter):
    """A torchvision classifier, loaded strictly; auxiliary classifiers take no part."""

    name: ClassVar[str] = "torchvision"

    @classmethod
    def example(cls) -> NamedAdapter:
        """torchvision's smallest network with norms."""
        return cls.reread("torchvision:shufflenet_v2_x0_5", num_classes=5)
