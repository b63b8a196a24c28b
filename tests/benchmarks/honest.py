"""Are p-values of `memorized` honest: networks trained without noise, ten classes, and a hundred of few examples each.

    python -m tests.benchmarks.honest --networks 6 --out reports/benchmarks/honest.md

scikit-learn's digits. A hundred classes are pairs of digits, four reference examples a class. Each network learns true
labels alone. Three lists are audited: examples that it was trained on, examples that it never saw, and the wrong labels
that it gives some of those. None is memorized in the sense of the verdict; of those that are fitted at most 5 % should
have a p-value of at most 0.05, and one list in twenty should have any called.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memaudit
from memaudit.data import Preprocess
from memaudit.intervals import wilson
from tests.benchmarks.table import publish
from tests.conftest import digits

LEVEL, LISTED = 0.05, 150
LISTS = ("trained on", "never seen", "never seen, wrong labels")


def pairs(
    images: Tensor, labels: Tensor, rows: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """`count` pairs of digits of `rows` side by side, `(count, 1, 8, 16)`, every class as often as any other."""
    by_digit = [rows[labels[rows].numpy() == digit] for digit in range(10)]
    classes = np.arange(count) % 100
    left = np.array([rng.choice(by_digit[c // 10]) for c in classes])
    right = np.array([rng.choice(by_digit[c % 10]) for c in classes])
    return torch.cat([images[left], images[right]], 3), torch.from_numpy(classes)


def some(examples: tuple[Tensor, Tensor], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`LISTED` of them."""
    rows = torch.from_numpy(rng.permutation(len(examples[0]))[:LISTED])
    return examples[0][rows], examples[1][rows]


def network(classes: int) -> nn.Module:
    """Three convolutions and a linear layer, not trained."""
    layers: list[nn.Module] = []
    for before, width in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, classes))


def learn(x: Tensor, y: Tensor, classes: int, seed: int) -> nn.Module:
    """A network trained on `x` and `y`, in evaluation mode."""
    torch.manual_seed(seed)
    model = network(classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(12):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def draw(classes: int, seed: int) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """A network, the three lists, and the reference, of images that it never saw."""
    images, labels = digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    parts = {"train": order[:800], "reference": order[800:1300], "unseen": order[1300:]}
    if classes == 100:
        sizes = {"train": 4000, "reference": 400, "unseen": 400}
        sets = {name: pairs(images, labels, rows, sizes[name], rng) for name, rows in parts.items()}
    else:
        sets = {name: (images[rows], labels[rows]) for name, rows in parts.items()}
    model = learn(*sets["train"], classes, seed)
    unseen = sets["unseen"]
    first, second = (some(sets[name], rng) for name in ("train", "unseen"))
    with torch.no_grad():
        said = model(unseen[0]).argmax(1)
    mistaken = (said != unseen[1]).nonzero().flatten()  # the wrong labels that the network gives
    third = unseen[0][mistaken], said[mistaken]
    return model, dict(zip(LISTS, (first, second, third), strict=True)), sets["reference"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = []
    for classes in (10, 100):
        fitted, low, called = Counter[str](), Counter[str](), Counter[str]()
        lists = Counter[str]()
        for seed in range(args.networks):
            model, asked, reference = draw(classes, seed)
            shape = Preprocess(tuple(reference[0].shape[1:]))
            for name, examples in asked.items():
                if len(examples[0]) < 2:
                    continue
                report = memaudit.audit(model, examples, reference, preprocess=shape, audits=(), seed=seed)
                known = [f for f in report.findings if f.fitted]
                fitted[name] += len(known)
                low[name] += sum(f.estimate.p_value <= LEVEL for f in known)
                called[name] += any(f.memorized for f in known)
                lists[name] += 1
        for name in LISTS:
            a, b = wilson(low[name], fitted[name])
            share = low[name] / max(1, fitted[name])
            lines.append(
                f"| {classes} | {name} | {low[name]} of {fitted[name]}: {share:.1%} ({a:.1%} to {b:.1%}) | "
                f"{called[name]} of {lists[name]} |"
            )
            print(lines[-1], flush=True)
    publish(TABLE.format(networks=args.networks, lines="\n".join(lines)), args.out)


TABLE = """# Honest p-values

Made by `python -m tests.benchmarks.honest`. {networks} networks for each number of classes, trained on true labels of
scikit-learn's digits alone; a hundred classes are pairs of digits, four reference examples a class. Profile standard.
Wrong labels are those that the network gives by mistake; of others none is fitted.

| classes | list | p-value of at most 0.05, of those fitted (95 %) | lists with any called |
|---|---|---|---|
{lines}
"""


if __name__ == "__main__":
    main()
