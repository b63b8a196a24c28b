"""The demo's network, as a user would hand it to `--adapter network.py:build`."""

from __future__ import annotations

from torch import Tensor, nn


class Digits(nn.Module):
    """Three convolutions for 8 x 8 grey digits; about 56,000 parameters."""

    default_cfg = {"input_size": (1, 8, 8)}

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def build() -> nn.Module:
    """What `--adapter network.py:build` calls."""
    return Digits()
