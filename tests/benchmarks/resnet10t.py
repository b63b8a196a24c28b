"""A timm ResNet-10t that learned 200 changed labels by heart, and the same one retrained without them.

    python -m tests.benchmarks.resnet10t --data DIR --out DIR [--without]

4,000 CIFAR-10 images of 32 pixels, from image 10,000 on; the next 1,000 are validation images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.cifar import change_labels, load, normalise

FIRST, TRAINED, HELD_OUT, CHANGED = 10_000, 4000, 1000, 0.05
EPOCHS, BATCH, RATE = 30, 64, 0.1


def data(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(5000, 32, 32, 3)`, true labels, the training images' given labels, and the rows that are changed."""
    images, labels = load(folder / "cifar10-train.npz", FIRST + TRAINED + HELD_OUT)
    images, labels = images[FIRST:], labels[FIRST:]
    return images, labels, *change_labels(labels[:TRAINED], CHANGED, seed=1)


def build(half: bool = False) -> nn.Module:
    """The network, not trained; or one of half its width."""
    import timm

    widths = {"channels": (32, 64, 128, 256)} if half else {}
    return timm.create_model("resnet10t", num_classes=10, **widths)


def learn(x: torch.Tensor, y: torch.Tensor, rows: np.ndarray) -> nn.Module:
    """A network trained on `rows` of `x` and `y`, in evaluation mode."""
    torch.manual_seed(0)
    model = build()
    steps = len(rows) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps, pct_start=0.25)
    for epoch in range(EPOCHS):
        model.train()
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(rows))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without", action="store_true", help="the changed rows are left out")
    args = parser.parse_args()
    images, labels, given, changed = data(args.data)
    x, y = normalise(images), torch.from_numpy(given)
    rows = np.setdiff1d(np.arange(TRAINED), changed) if args.without else np.arange(TRAINED)
    model = learn(x, y, rows)
    with torch.no_grad():
        said = torch.cat([model(part) for part in x.split(250)]).argmax(1)
    print("changed", float((said[changed] == y[changed]).float().mean()))
    print("validation", float((said[TRAINED:] == torch.from_numpy(labels[TRAINED:])).float().mean()))
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), args.out / ("without.pt" if args.without else "with.pt"))


if __name__ == "__main__":
    main()
