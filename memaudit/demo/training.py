"""The model of `make demo`: a small network on scikit-learn's digits that memorizes labels changed on purpose.

With example-tied dropout (`memaudit demo --tied-dropout`) it memorizes them in units that can be dropped.
"""

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

from memaudit.demo import network as demo_network
from memaudit.demo.network import build
from memaudit.network.tied_dropout import add_tied_dropout, example_ids, strip_tied_dropout

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

    @property
    def discover(self) -> list[str]:
        """The arguments of the ranking that finds the changed labels among all of them, without a list."""
        f = self.folder
        return [
            "discover", str(f / "model.safetensors"), "--adapter", f"{f / 'network.py'}:build",
            "--data", str(f / "training.csv"), "--profile", "fast",
        ]  # fmt: skip


@dataclass(frozen=True)
class TrainingScores:
    """Shares of right answers: the changed labels, the true labels of the same digits, and held-out test digits."""

    changed: float
    true: float
    test: float


def make(folder: Path, seed: int = 0, tick: Callable[[int], None] = lambda _: None, *, tied: bool = False) -> Demo:
    """Write digits as image folders, train, and keep a checkpoint every few epochs.

    Args:
        folder: `images/`, `reference/`, `test/`, `flagged.csv`, `network.py`, `model.safetensors` and `checkpoints/`
            are written below it.
        tick: called after each epoch.
        tied: train with example-tied dropout.
    """
    from safetensors.torch import save_file

    images, labels, changed_rows, given, test_rows = split_digits(seed)
    write_data(folder, images, labels, changed_rows, given, test_rows, "{}" if tied else "digit-{:04d}")
    shutil.copyfile(demo_network.__file__, folder / "network.py")
    torch.manual_seed(seed)
    model = add_tied_dropout(build(), seed=seed) if tied else build()
    train_rows = np.setdiff1d(np.arange(len(labels)), test_rows)
    x = torch.from_numpy(images[:, None]).float() / 255
    y = torch.from_numpy(given)
    (folder / "checkpoints").mkdir(exist_ok=True)

    def keep(epoch: int) -> None:
        tick(1)
        if epoch % 5 == 0 or epoch in (1, 2, 3, EPOCHS):
            state = {k: v.clone() for k, v in model.state_dict().items()}
            save_file(state, folder / "checkpoints" / f"epoch-{epoch:03d}.safetensors", metadata={"epoch": str(epoch)})

    train(model, x, y, train_rows, seed, keep)
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    reached = score(model, x, y, torch.from_numpy(labels), changed_rows, test_rows)
    return Demo(folder, len(changed_rows), len(train_rows), reached.changed, reached.test)


def with_and_without_dropout(
    folder: Path, seed: int = 0, tick: Callable[[int], None] = lambda _: None
) -> dict[str, TrainingScores]:
    """The tied model of `make` with its memorizing units on and dropped, and the same network trained without them.

    Writes `dropped.safetensors`: weights of the plain network, without the dropout and what it memorized.

    Args:
        tick: called after each epoch of that training.
    """
    from safetensors.torch import load_file, save_file

    images, labels, changed, given, test = split_digits(seed)
    x, y, truth = torch.from_numpy(images[:, None]).float() / 255, torch.from_numpy(given), torch.from_numpy(labels)
    tied = add_tied_dropout(build(), seed=seed)
    tied.load_state_dict(load_file(folder / "model.safetensors"))
    dropped = strip_tied_dropout(tied, "drop")
    save_file(dict(dropped.state_dict()), folder / "dropped.safetensors")
    torch.manual_seed(seed)
    without = build()
    train(without, x, y, np.setdiff1d(np.arange(len(labels)), test), seed, lambda _: tick(1))
    models = {"without tied dropout": without, "each its own units": tied, "units dropped": dropped}
    return {name: score(model, x, y, truth, changed, test) for name, model in models.items()}


@torch.no_grad()
def score(
    model: nn.Module, x: Tensor, y: Tensor, truth: Tensor, changed: np.ndarray, test: np.ndarray
) -> TrainingScores:
    """What `model` gets right; the changed rows run with their ids."""
    model.eval()
    with example_ids(torch.from_numpy(changed)):
        said = model(x[changed]).argmax(1)
    right = (said == y[changed], said == truth[changed], model(x[test]).argmax(1) == truth[test])
    return TrainingScores(*(float(r.float().mean()) for r in right))


def split_digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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


def train(model: nn.Module, x: Tensor, y: Tensor, chosen: np.ndarray, seed: int, keep: Callable[[int], None]) -> None:
    """Adam on the rows `chosen`, their numbers being their ids; no augmentation, so that changed labels are fitted.

    Args:
        keep: called with the epoch's number after each.
    """
    ids = torch.from_numpy(chosen)
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small lose more to waiting for each other than they gain
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    steps = -(-len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for order in torch.split(torch.randperm(len(ids)), BATCH):
            rows = ids[order]
            optimizer.zero_grad()
            with example_ids(rows):
                F.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule.last_epoch < EPOCHS * steps - 1:
                schedule.step()
        keep(epoch)
    torch.set_num_threads(threads)


def write_data(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    changed: np.ndarray,
    given: np.ndarray,
    test: np.ndarray,
    name: str,
) -> None:
    """Class folders of PNG files for reference and test, and manifests: of the changed ones, and of all trained on.

    Args:
        name: of the changed ones, by their row.
    """
    is_changed, is_test = set(changed.tolist()), set(test.tolist())
    flagged: list[list[str]] = []
    training: list[list[str]] = []
    for row, image in enumerate(images):
        kind = "test" if row in is_test else "flagged" if row in is_changed else "reference"
        place = folder / kind if kind == "flagged" else folder / kind / str(labels[row])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"digit-{row:04d}.png")
        if kind == "reference":
            label = str(labels[row])
            training.append([f"reference/{label}/digit-{row:04d}.png", label, name.format(row), label])
        if kind == "flagged":
            flagged.append([f"flagged/digit-{row:04d}.png", str(given[row]), name.format(row), str(labels[row])])
    for manifest, rows in (("flagged.csv", flagged), ("training.csv", [*training, *flagged])):
        with (folder / manifest).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "id", "true_label"])
            writer.writerows(rows)
    facts = {"changed": len(changed), "test": len(test), "reference": len(labels) - len(changed) - len(test)}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
