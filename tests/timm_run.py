"""A training run as timm leaves it: `args.yaml` and checkpoints by timm's own saver, on image folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor
from torch.nn import functional as F

from tests.conftest import digits

MODEL = "test_resnet"
SIDE = 32
# In natural order, which is timm's; as text, c10 and c11 come before c2.
CLASSES = ("c1", "c2", "c3", "c10", "c11", "c20")
CHANGED, TRAINED = 8, 300
MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.4, 0.3)


def write_images(folder: Path) -> list[tuple[str, str]]:
    """`train/` with some labels changed, and `val/`; the changed ones as (path below train, given class)."""
    x, y = digits()
    keep = y < len(CLASSES)
    x, truth = F.interpolate(x[keep], size=(SIDE, SIDE), mode="nearest"), y[keep]
    flagged = []
    for row in range(TRAINED + 200):
        label = int(truth[row])
        part = "train" if row < TRAINED else "val"
        if row < CHANGED:
            label = (label + 1) % len(CLASSES)
            flagged.append((f"{CLASSES[label]}/{row:04d}.png", CLASSES[label]))
        place = folder / part / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[row, 0] * 255).round().to(torch.uint8).numpy()).convert("RGB").save(place / f"{row:04d}.png")
    return flagged


def arguments(data: str, **changes: Any) -> argparse.Namespace:
    """As timm's training script parses them, as far as they are not its defaults for optimisation."""
    values: dict[str, Any] = {
        "data": None, "data_dir": data, "dataset": "", "train_split": "train", "val_split": "validation",
        "class_map": "", "model": MODEL, "pretrained": False, "num_classes": len(CLASSES), "gp": None, "in_chans": None,
        "img_size": None, "input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "mean": list(MEAN), "std": list(STD),
        "interpolation": "", "train_interpolation": "random", "model_ema": False, "model_kwargs": {}, "batch_size": 32,
        "lr": 3e-3, "opt": "adam", "epochs": 14, "checkpoint_hist": 3, "aa": None, "seed": 42, "output": "",
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def train(folder: Path, data: Path, args: argparse.Namespace, ema: bool = False) -> Path:
    """Train with timm's own data set and evaluation transform, so that the changed labels are fitted."""
    folder.mkdir(parents=True)
    dataset = create_dataset(args.dataset, root=str(data), split=args.train_split, class_map=args.class_map)
    dataset.transform = create_transform((3, SIDE, SIDE), mean=MEAN, std=STD, crop_pct=1.0, interpolation="bilinear")
    items = [dataset[row] for row in range(len(dataset))]
    x, y = torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(args.model, num_classes=args.num_classes)
        average = ModelEmaV3(network, decay=0.5) if ema else None
        optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
        saver = CheckpointSaver(
            network, optimizer, args=args, model_ema=average, checkpoint_dir=str(folder), recovery_dir=str(folder),
            max_history=args.checkpoint_hist,
        )  # fmt: skip
        for epoch in range(args.epochs):
            network.train()
            for rows in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
                if average is not None:
                    average.update(network)
            saver.save_checkpoint(epoch, metric=accuracy(network, x, y))
    (folder / "args.yaml").write_text(yaml.safe_dump(vars(args), default_flow_style=False))
    (folder / "summary.csv").write_text("epoch,train_loss\n")
    return folder


@torch.no_grad()
def accuracy(network: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """In evaluation mode, per cent, as timm counts."""
    network.eval()
    return 100 * float((network(x).argmax(1) == y).float().mean())
