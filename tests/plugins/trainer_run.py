"""A training run as the Trainer of transformers leaves it: three checkpoints, an image processor, class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from memaudit_transformers.library import quiet
from PIL import Image
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.conftest import digits

SIDE, CHANGED, TRAINED = 16, 8, 120
NAMES = ("nought", "one", "two")


def write_run(folder: Path) -> Path:
    """`run/` by Trainer, and the images it was trained on: `flagged/` with changed labels, `reference/` held out."""
    x, y = digits()
    keep = y < len(NAMES)
    x, truth = F.interpolate(x[keep], size=(SIDE, SIDE), mode="nearest"), y[keep]
    labels = truth.clone()
    labels[:CHANGED] = (labels[:CHANGED] + 1) % len(NAMES)
    pictures = [Image.fromarray((image[0] * 255).round().byte().numpy()).convert("RGB") for image in x]
    for part, rows in (("flagged", range(CHANGED)), ("reference", range(TRAINED, len(pictures)))):
        for name in NAMES:
            (folder / part / name).mkdir(parents=True)
        for row in rows:
            pictures[row].save(folder / part / NAMES[int(labels[row])] / f"{row:03d}.png")
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIDE, patch_size=4,
        id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        rows = [
            {"pixel_values": values, "labels": int(label)}
            for values, label in zip(
                processor([np.asarray(p) for p in pictures[:TRAINED]], return_tensors="pt")["pixel_values"],
                labels[:TRAINED],
                strict=True,
            )
        ]
        Trainer(
            ViTForImageClassification(config),
            arguments(folder / "run"),
            train_dataset=rows,
            processing_class=processor,
        ).train()
    return folder


def arguments(folder: Path, epochs: int = 80, **changes: Any) -> TrainingArguments:
    """Three checkpoints, the last one at the end."""
    return TrainingArguments(
        str(folder), num_train_epochs=epochs, save_strategy="steps", save_steps=1 / 3, per_device_train_batch_size=32,
        learning_rate=3e-3, lr_scheduler_type="constant", report_to=[], disable_tqdm=True, use_cpu=True,
        logging_strategy="no", dataloader_pin_memory=False, seed=0, **changes,
    )  # fmt: skip
