"""The adapter for timm's architectures."""

from __future__ import annotations

from typing import ClassVar

from memaudit.adapters.named import NamedAdapter


class TimmAdapter(NamedAdapter):
    """A timm architecture, loaded strictly."""

    name: ClassVar[str] = "timm"

    @classmethod
    def example(cls) -> NamedAdapter:
        """timm's smallest ResNet."""
        return cls.reread("test_resnet", num_classes=5)
