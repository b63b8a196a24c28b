"""The demo's network, as a user would hand it to `--adapter network.py:build`."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Digits(nn.Module):
    """Three convolutions for 8 x 8 grey digits; about 211,000 parameters."""

    default_cfg: ClassVar = {"input_size": (1, 8, 8)}

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(96, 192, 3, padding=1, bias=False), nn.BatchNorm2d(192), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def build() -> nn.Module:
    """What `--adapter network.py:build` calls."""
    return Digits()
