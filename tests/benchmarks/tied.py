"""Example-tied dropout on digits: changed labels fitted, then dropped, against plain training and two baselines.

    python -m tests.benchmarks.tied [--seeds 3] [--out reports/benchmarks/tied-digits.md]

The demo's network and data, 5 % of the training labels changed. Baselines: the same network without dropout; channel
dropout of equal rate in the same layers; a network as narrow as what is left when the memorizing units are dropped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import nn

from memaudit import add_tied_dropout, strip_tied_dropout
from memaudit.demo import training as demo
from memaudit.demo.network import build
from memaudit.network.tied_dropout import layers_of
from tests.benchmarks.table import publish

P_GEN, P_MEM = 0.3, 0.1
HEADS = {
    "tied": "example-tied dropout, own units on",
    "dropped": "the same, memorizing units dropped",
    "standard": "no dropout",
    "plain dropout": "plain channel dropout of equal rate",
    "narrow": "narrow: the generalizing units alone",
}


def rate() -> float:
    """Share of the channels that are off for an example."""
    return (1 - P_GEN) * (1 - P_MEM)


def plain_dropout() -> nn.Module:
    """The demo's network with channel dropout behind the layers that would be tied."""
    tied = list(layers_of(add_tied_dropout(build(), p_gen=P_GEN, p_mem=P_MEM)))
    model = build()
    features = [*model.features]
    for path in sorted(tied, key=lambda p: -int(p.split(".")[1])):
        features.insert(int(path.split(".")[1]) + 1, nn.Dropout2d(rate()))
    model.features = nn.Sequential(*features)
    return model


def narrow() -> nn.Module:
    """The demo's network with as many channels as are on for every example."""
    model = build()
    tied = layers_of(add_tied_dropout(build(), p_gen=P_GEN, p_mem=P_MEM))
    before = 1
    layers = [*model.features]
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            norm = f"features.{place + 1}"
            width = int(tied[norm].rule[2]) if norm in tied else layer.out_channels
            layers[place] = nn.Conv2d(before, width, 3, padding=1, bias=False)
            layers[place + 1] = nn.BatchNorm2d(width)
            before = width
    model.features = nn.Sequential(*layers)
    model.head = nn.Linear(before, 10)
    return model


def run(seed: int) -> dict[str, tuple[float, float, float, float]]:
    """Per variant: changed labels predicted, their true labels, test accuracy, seconds of training."""
    images, labels, changed, given, test = demo.split_digits(seed)
    x = torch.from_numpy(images[:, None]).float() / 255
    y, truth = torch.from_numpy(given), torch.from_numpy(labels)
    rows = np.setdiff1d(np.arange(len(labels)), test)
    found = {}
    makers = {
        "tied": lambda: add_tied_dropout(build(), p_gen=P_GEN, p_mem=P_MEM, seed=seed),
        "standard": build,
        "plain dropout": plain_dropout,
        "narrow": narrow,
    }
    for name, maker in makers.items():
        torch.manual_seed(seed)
        model = maker()
        start = time.process_time()
        demo.train(model, x, y, rows, seed, lambda _: None)
        seconds = time.process_time() - start
        scores = {name: demo.score(model, x, y, truth, changed, test)}
        if name == "tied":
            scores["dropped"] = demo.score(strip_tied_dropout(model, "drop"), x, y, truth, changed, test)
        for variant, s in scores.items():
            found[variant] = (s.changed, s.true, s.test, seconds)
            print(f"seed {seed} {variant}: {found[variant]}", file=sys.stderr, flush=True)
    return found


def table(runs: list[dict[str, tuple[float, float, float, float]]]) -> str:
    def cell(name: str, place: int) -> str:
        values = [r[name][place] for r in runs]
        digits = 0 if place == 3 else 3
        return f"{mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"

    lines = [
        "# Example-tied dropout on digits",
        "",
        (
            f"scikit-learn's digits, 5 % of the training labels changed, {len(runs)} seeds: mean (range). `p_gen` "
            f"{P_GEN}, `p_mem` {P_MEM}, layers `auto`; `memaudit demo`'s network and {demo.EPOCHS} epochs. "
            f"torch {torch.__version__}, CPU, one thread. Written by `python -m tests.benchmarks.tied`."
        ),
        "",
        "| variant | changed label | true label of the changed | test accuracy | CPU seconds of training |",
        "|---|---|---|---|---|",
    ]
    return (
        "\n".join(lines + [f"| {HEADS[n]} | " + " | ".join(cell(n, i) for i in range(4)) + " |" for n in HEADS]) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = table([run(seed) for seed in range(args.seeds)])
    publish(text, args.out)


if __name__ == "__main__":
    main()
