"""The model of `make demo`: a small network on scikit-learn's digits that memorizes labels changed on purpose."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit import demo_network
from memaudit.demo_network import build

CHANGED = 0.05  # share of the training labels moved to a random other class
TEST = 0.2
EPOCHS = 20
BATCH = 64
RATE = 0.01


@dataclass(frozen=True)
class Demo:
    """What the demo wrote: everything `memaudit scan` needs, and a series of earlier checkpoints."""

    folder: Path
    changed: int
    trained: int
    fitted: float
    test_accuracy: float

    @property
    def scan(self) -> list[str]:
        """The arguments of the scan that audits it."""
        f = self.folder
        return [
            "scan", str(f / "model.safetensors"), "--adapter", f"{f / 'network.py'}:build",
            "--flagged", str(f / "flagged.csv"), "--reference", str(f / "reference"), "--test", str(f / "test"),
        ]  # fmt: skip


def make(folder: Path, seed: int = 0, tick: Callable[[int], None] = lambda _: None) -> Demo:
    """Write digits as image folders, train, and keep a checkpoint every few epochs.

    Args:
        folder: `images/`, `reference/`, `test/`, `flagged.csv`, `network.py`, `model.safetensors` and `checkpoints/`
            are written below it.
        tick: called after each epoch.
    """
    from safetensors.torch import save_file

    images, labels, changed_rows, given, test_rows = split(seed)
    write_data(folder, images, labels, changed_rows, given, test_rows)
    shutil.copyfile(demo_network.__file__, folder / "network.py")
    torch.manual_seed(seed)
    model = build()
    train_rows = np.setdiff1d(np.arange(len(labels)), test_rows)
    x = torch.from_numpy(images[:, None]).float() / 255
    y = torch.from_numpy(given)
    (folder / "checkpoints").mkdir(exist_ok=True)

    def keep(epoch: int) -> None:
        tick(1)
        if epoch % 5 == 0 or epoch in (1, 2, 3, EPOCHS):
            state = {k: v.clone() for k, v in model.state_dict().items()}
            save_file(state, folder / "checkpoints" / f"epoch-{epoch:03d}.safetensors", metadata={"epoch": str(epoch)})

    train(model, x[train_rows], y[train_rows], seed, keep)
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    model.eval()
    with torch.no_grad():
        fitted = float((model(x[changed_rows]).argmax(1) == y[changed_rows]).float().mean())
        truth = torch.from_numpy(labels)
        accuracy = float((model(x[test_rows]).argmax(1) == truth[test_rows]).float().mean())
    return Demo(folder, len(changed_rows), len(train_rows), fitted, accuracy)


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(N, 8, 8)` uint8, true labels, changed rows, the labels given in training, test rows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    test, train = order[: round(TEST * len(labels))], order[round(TEST * len(labels)) :]
    changed = np.sort(rng.choice(train, round(CHANGED * len(train)), replace=False))
    given = labels.copy()
    given[changed] = (given[changed] + rng.integers(1, 10, len(changed))) % 10
    return images, labels, changed, given, np.sort(test)


def train(model: nn.Module, x: Tensor, y: Tensor, seed: int, keep: Callable[[int], None]) -> None:
    """Adam without augmentation, so that the changed labels are fitted; `keep(epoch)` after each epoch."""
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small lose more to waiting for each other than they gain
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule.last_epoch < EPOCHS * steps - 1:
                schedule.step()
        keep(epoch)
    torch.set_num_threads(threads)


def write_data(
    folder: Path, images: np.ndarray, labels: np.ndarray, changed: np.ndarray, given: np.ndarray, test: np.ndarray
) -> None:
    """Class folders of PNG files for reference and test, and a manifest of the changed ones."""
    is_changed, is_test = set(changed.tolist()), set(test.tolist())
    flagged: list[list[str]] = []
    for row, image in enumerate(images):
        kind = "test" if row in is_test else "flagged" if row in is_changed else "reference"
        place = folder / kind if kind == "flagged" else folder / kind / str(labels[row])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"digit-{row:04d}.png")
        if kind == "flagged":
            flagged.append([f"flagged/digit-{row:04d}.png", str(given[row]), f"digit-{row:04d}", str(labels[row])])
    with (folder / "flagged.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "id", "true_label"])
        writer.writerows(flagged)
    facts = {"changed": len(changed), "test": len(test), "reference": len(labels) - len(changed) - len(test)}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
