"""Images and labels that networks of one kind learn, again and again; and the one of them that is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memaudit.data import Preprocess
from memaudit.demo import training as demo
from memaudit.demo.network import build as build_demo
from tests.benchmarks import cifar, resnet10t
from tests.benchmarks.memorized import CIFAR, Case

# The seed of the network that learns everything.
ALL = 10_000
BATCH, RATE = 64, 0.1


@dataclass(frozen=True)
class Problem:
    """What is learned, again and again.

    Attributes:
        images: uint8 with channels last, training images first, held-out ones after them.
        truth: `(N,)` labels of all; `given`: those of the training images.
        prepare: images to a network's inputs.
        learn: trains a network on rows, a file an epoch in a folder (None: none); of inputs, rows, seed, folder.
    """

    images: np.ndarray
    truth: np.ndarray
    given: np.ndarray
    shape: Preprocess
    prepare: Callable[[np.ndarray], Tensor]
    fresh: Callable[[], nn.Module]
    learn: Callable[[Tensor, np.ndarray, int, Path | None], nn.Module]

    def train(self, folder: Path) -> None:
        """The network that learns everything, its epochs in `folder`, unless they are there."""
        if (folder / "seconds.txt").exists():
            return
        start = time.process_time()
        self.learn(self.prepare(self.images), np.arange(len(self.given)), ALL, folder)
        (folder / "seconds.txt").write_text(f"{time.process_time() - start:.0f}")

    def case(self, folder: Path) -> Case:
        """The network that learned all rows, as the other benchmarks ask it; the files of its epochs in `folder`."""
        files = sorted(folder.glob("epoch-*.safetensors"))
        count = len(self.given)
        return Case(
            self.images,
            self.truth,
            self.given,
            np.arange(count),
            self.given != self.truth[:count],
            {"held-out images": np.arange(count, len(self.truth))},
            self.fresh,
            load_file(files[-1]),
            series=[load_file(file) for file in files],
            shape=self.shape,
            prepare=self.prepare,
        )


def grey(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def digits(
    images: np.ndarray, truth: np.ndarray, given: np.ndarray, trained: np.ndarray, held_out: np.ndarray
) -> Problem:
    """The demo's network on rows of its digits."""
    order = np.concatenate([trained, held_out])
    labels = torch.from_numpy(given[trained])

    def learn(x: Tensor, rows: np.ndarray, seed: int, folder: Path | None) -> nn.Module:
        torch.manual_seed(seed)
        model = build_demo()
        demo.train(model, x, labels, rows, seed, lambda e: None if folder is None else cifar.save(model, folder, e))
        return model.eval()

    shape = Preprocess(input_size=(1, 8, 8))
    return Problem(images[order][..., None], truth[order], given[trained], shape, grey, build_demo, learn)


def colours(images: np.ndarray, truth: np.ndarray, given: np.ndarray, epochs: int) -> Problem:
    """A ResNet-10t of half the width on CIFAR-10 images, those beyond the given labels held out."""
    labels = torch.from_numpy(given)

    def fresh() -> nn.Module:
        return resnet10t.build(half=True)

    def learn(x: Tensor, rows: np.ndarray, seed: int, folder: Path | None) -> nn.Module:
        torch.manual_seed(seed)
        model, chosen = fresh(), torch.from_numpy(rows)
        cifar.train(model, x[chosen], labels[chosen], epochs, folder, lr=RATE, batch=BATCH, seed=seed, half=True)
        return model.eval()

    return Problem(images, truth, given, CIFAR, cifar.normalise, fresh, learn)
