"""What safe loading costs: a ResNet-50 as `.pth` and as `.safetensors`, against the libraries' own loading.

    python -m tests.benchmarks.loading [--arch resnet50] [--rounds 5]

Prints one JSON object: the median seconds over rounds in which both loads take turns, for each kind of file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
from safetensors.torch import load_file, save_file

from memaudit import checkpoints


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    state = timm.create_model(options.arch).state_dict()
    with tempfile.TemporaryDirectory() as name:
        pickled, plain = Path(name) / "model.pth", Path(name) / "model.safetensors"
        torch.save(state, pickled)
        save_file(state, plain)
        loads = {
            "pth": (lambda: checkpoints.read(pickled), lambda: torch.load(pickled, weights_only=True)),
            "safetensors": (lambda: checkpoints.read(plain), lambda: load_file(plain)),
        }
        figures: dict[str, object] = {"arch": options.arch, "mib": round(plain.stat().st_size / 2**20)}
        for kind, both in loads.items():
            rounds = [[seconds(load) for load in both] for _ in range(options.rounds + 1)][1:]
            ours, theirs = (median(times) for times in zip(*rounds, strict=True))
            figures[kind] = {
                "ours": round(ours, 3),
                "library": round(theirs, 3),
                "overhead": round(ours - theirs, 3),
                "ratio": round(ours / theirs, 2),
            }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
