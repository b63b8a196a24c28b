"""Lists of rows: whose numbering they follow, and what else the tables that people save say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.real_inputs.harness import Case, Expected, Ran, scan
from tests.real_inputs.pictures import CODE, fit, pictures, save, write_model

FLAGGED, TRAIN = 12, 120
MODEL = ("model.safetensors", "--adapter", CODE, "--input-size", "3,16,16")
NAMES = ("ant", "bee", "cat")


def write_folder(
    root: Path, file: Callable[[int], str] = lambda n: f"img{n}.png", names: Sequence[str] = NAMES, rows: int = TRAIN
) -> list[str]:
    """`train/` with the first labels changed, `val/`; the changed files' names relative to `train`."""
    x, truth = pictures()
    changed = []
    for n in range(rows):
        label = int(truth[n]) if n >= FLAGGED else (int(truth[n]) + 1) % 3
        name = f"{names[label]}/{file(n)}"
        save(root / "train" / name, x[n])
        changed += [name] if n < FLAGGED else []
    for n in range(300, 400):
        save(root / "val" / names[int(truth[n])] / f"v{n}.png", x[n])
    return changed


def torchvision_run(root: Path) -> tuple[ImageFolder, nn.Module]:
    """A network trained by torchvision's loader on `train/`."""
    dataset = ImageFolder(str(root / "train"), transforms.ToTensor())
    module = fit(torch.stack([dataset[i][0] for i in range(len(dataset))]), dataset.targets)
    write_model(root, module)
    return dataset, module


def positions(dataset: ImageFolder, root: Path, names: Sequence[str]) -> list[int]:
    """Rows of the loader that hold `names`."""
    place = {str(Path(path).relative_to(root / "train")): i for i, (path, _) in enumerate(dataset.samples)}
    return [place[name] for name in names]


def all_fitted(ran: Ran) -> None:
    """Every flagged row was the right file: the network gives each changed label."""
    fitted = sum(f.fitted for f in ran.report.findings)
    assert (len(ran.report.findings), fitted) == (FLAGGED, FLAGGED), f"{fitted} of {len(ran.report.findings)} fitted"


def by_names(root: Path) -> None:
    changed = write_folder(root)
    torchvision_run(root)
    (root / "flagged.txt").write_text("".join(f"{name}\n" for name in changed))


def padded_indices(root: Path) -> None:
    changed = write_folder(root, lambda n: f"img{n:04d}.png")
    dataset, _ = torchvision_run(root)
    np.save(root / "flagged.npy", np.array(positions(dataset, root, changed)))


def listed(flagged: str, *more: str) -> tuple[str, ...]:
    return scan(*MODEL, "--data", "train", "--flagged", flagged, "--reference", "val", *more)


CASES = [
    Case("rows", "files by name", by_names, listed("flagged.txt"), Expected(0, holds=all_fitted)),
    Case(
        "rows",
        "indices where both loaders number alike",
        padded_indices,
        listed("flagged.npy"),
        Expected(0, holds=all_fitted),
    ),
]
