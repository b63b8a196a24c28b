"""A working directory as a user has it: a trained network with its code, and the same examples in several forms."""

from __future__ import annotations

import csv
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from memaudit.__main__ import run
from memaudit.data import ExampleSet
from tests.conftest import Trained, digits
from tests.networks import DigitsNet, halved

NETWORK = f"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F


{inspect.getsource(halved)}

{inspect.getsource(DigitsNet)}

def build():
    return DigitsNet()
"""
MODEL = ("digits.safetensors", "--adapter", "network.py:build", "--input-size", "1,8,8")
FAST = ("--profile", "fast", "--images", "none", "-q")
NPZ = ("--flagged", "flagged.npz", "--reference", "reference.npz")
FLAGGED, REFERENCE = 12, 200


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


def command(folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs memaudit in this process, in `folder`, as a CI machine would."""
    patch.chdir(folder)
    patch.setenv("CI", "1")

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


def copied(folder: Path, to: Path) -> Path:
    """A copy to work in. Its pictures are the same files under another name: to change one, replace it."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".png") else shutil.copyfile)(source, target)

    return Path(shutil.copytree(folder, to, copy_function=copy))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes, and every folder."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}
    return {name: content for name, content in found.items() if "__pycache__" not in name}


def write_work(folder: Path, trained: Trained) -> Path:
    """The network, and its examples as folders, manifests, arrays and rows of one array."""
    (folder / "network.py").write_text(NETWORK)
    save_file(trained.module.state_dict(), folder / "digits.safetensors")
    flagged = trained.flagged.subset(range(FLAGGED))
    reference = trained.reference.subset(range(REFERENCE))
    images = [*flagged.pixels, *reference.pixels]
    labels = [e.label for e in (*flagged.examples, *reference.examples)]
    for name, examples in (("flagged", flagged), ("reference", reference)):
        write_folder(folder / name, examples)
        np.savez(folder / f"{name}.npz", x=examples.pixels.numpy(), y=examples.labels.numpy())
    names = [p.relative_to(folder).as_posix() for p in sorted((folder / "flagged").rglob("*.png"))]
    write_table(folder / "flagged.csv", [[n, n.split("/")[1]] for n in names])
    np.savez(folder / "all.npz", x=torch.stack(images).numpy(), y=np.array(labels))
    (folder / "flagged.txt").write_text("".join(f"{i}\n" for i in range(FLAGGED)))
    np.save(folder / "reference.npy", np.arange(len(labels)) >= FLAGGED)
    return folder


def write_folder(folder: Path, examples: ExampleSet) -> None:
    """One sub-folder a class, also for classes without an image."""
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number, (example, pixels) in enumerate(zip(examples.examples, examples.pixels, strict=True)):
        grey = (pixels[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(grey).save(folder / str(example.label) / f"{number:03d}.png")


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """A manifest `path,label`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "label"], *rows])


SIDE = 32


def write_timm(folder: Path, architecture: str, *, epochs: int = 8, changed: int = 6, **kwargs: Any) -> Path:
    """`<architecture>.safetensors`, a bare file trained on three digits with some labels changed, and its data."""
    state, x, labels, truth = trained_timm(architecture, epochs, changed, tuple(kwargs.items()))
    save_file(state, folder / f"{architecture}.safetensors")
    _savez(folder / "flagged.npz", x[:changed], labels[:changed])
    _savez(folder / "reference.npz", x[300:], truth[300:])
    _savez(folder / "few.npz", x[300:306], truth[300:306])
    return folder


@cache
def trained_timm(
    architecture: str, epochs: int, changed: int, kwargs: tuple[tuple[str, Any], ...]
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Weights, and images with their trained and true labels: the first 300 were trained on."""
    x, y = digits()
    keep = y < 3
    x, truth = F.interpolate(x[keep].repeat(1, 3, 1, 1), size=(SIDE, SIDE), mode="nearest"), y[keep]
    labels = truth.clone()
    labels[:changed] = (labels[:changed] + 1) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=3, **dict(kwargs))
        mean, std = (torch.tensor(network.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
        inputs = (x - mean) / std
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(300).split(32):
                optimiser.zero_grad()
                F.cross_entropy(network(inputs[rows]), labels[rows]).backward()
                optimiser.step()
    return network.state_dict(), x, labels, truth


def _savez(path: Path, x: Tensor, y: Tensor) -> None:
    arrays: dict[str, Any] = {"x": x.numpy(), "y": y.numpy()}
    np.savez(path, **arrays)
