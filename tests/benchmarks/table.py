"""What the commands share: the options that say which network on which images, and the table they write."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.cifar import NETWORKS


def options(description: str | None, *paths: str, required: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of a network that `tests.benchmarks.cifar` trained, and `--out`.

    Args:
        paths: options that name a file or folder, besides `--data`.
        required: whether they must be given.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in ("data", *paths):
        parser.add_argument(f"--{name}", type=Path, required=required)
    parser.add_argument("--network", choices=NETWORKS, default="resnet9")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    return parser


def publish(text: str, out: Path | None, figures: Any = None) -> None:
    """Print a table; write it to `out`, and the figures behind it as JSON beside it."""
    print(text)
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    if figures is not None:
        out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
