"""What every test runs under: no network, one thread; and one small trained network that many tests share."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.audits.memorization import power
from memaudit.data import ExampleSet, Preprocess, from_tensors
from memaudit.data.images.workers import end_shared
from memaudit.engine.evaluator import Evaluator
from memaudit.network.units import UnitSpace, select
from tests.networks import DigitsNet
from tests.quick import forked

# Containers often say that no bytecode is written: each command that a test starts would compile memaudit anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

DIGIT = Preprocess((1, 8, 8))
MOST_EPOCHS = power.MOST_EPOCHS


class NetworkBlocked(OSError):
    """A test tried to leave this machine."""


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Sockets may connect to this machine only; anything else raises."""

    def refuse(call: Any) -> Any:
        def guarded(self: socket.socket, *args: Any) -> Any:
            host = str(args[-1][0]) if isinstance(args[-1], tuple) else ""
            outside = host not in ("localhost", "::1") and not host.startswith("127.")
            if self.family in (socket.AF_INET, socket.AF_INET6) and outside:
                raise NetworkBlocked(f"a test tried to reach {host!r}")
            return call(self, *args)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse(getattr(socket.socket, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share a small machine, and the networks are too small to gain from threads."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # commands that tests start inherit it


@pytest.fixture(scope="session", autouse=True)
def nothing_imported_is_garbage() -> None:
    """A full collection, as after each want of memory, looks at what tests made: milliseconds in place of a second."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power; a killed process leaves what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def quick_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What opens pickles and images is forked, but where the process itself is tested (mark `processes`)."""
    if request.node.get_closest_marker("processes") is None:
        monkeypatch.setattr("memaudit.system.isolated.Popen", forked)
    yield
    end_shared()  # the next test's processes are forked from what it has changed here


@pytest.fixture(scope="session", autouse=True)
def quick_planting() -> Iterator[None]:
    """Wrong labels are planted for two epochs, but where the power is tested, or processes that others start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power, "MOST_EPOCHS", 2)
        yield


@dataclass(frozen=True)
class Trained:
    """A network that memorized 50 changed labels of 1,000; `reference` are digits it never saw. Copy it first."""

    module: DigitsNet
    flagged: ExampleSet
    reference: ExampleSet
    space: UnitSpace

    @property
    def adapter(self) -> Adapter:
        return Adapter(self.module, architecture="DigitsNet", preprocess=DIGIT)

    def evaluator(self, batch_size: int = 64) -> Evaluator:
        return Evaluator(self.adapter, batch_size)


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits in [0, 1], `(N, 1, 8, 8)`, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


@pytest.fixture(scope="session")
def trained() -> Trained:
    return train()


@pytest.fixture(scope="session")
def untainted() -> Trained:
    """The same network, trained without the flagged examples; its sets are those of `trained`."""
    return train(without=True)


def train(*, without: bool = False) -> Trained:
    """Train that network, with or without its flagged examples."""
    x, truth = digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    train, changed, held_out = order[:1000], order[:50], order[1000:1300]
    shown = order[50:1000] if without else train
    labels = truth.clone()
    labels[changed] = (labels[changed] + torch.randint(1, 10, (50,), generator=generator)) % 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = DigitsNet()
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(18):
        for rows in shown[torch.randperm(len(shown), generator=generator)].split(64):
            optimiser.zero_grad()
            F.cross_entropy(module(x[rows]), labels[rows]).backward()
            optimiser.step()
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.grad = None
    flagged = from_tensors(x[changed], labels[changed], preprocess=DIGIT, num_classes=10, source="flagged")
    reference = from_tensors(x[held_out], truth[held_out], preprocess=DIGIT, num_classes=10, source="reference")
    sites = Adapter(module, architecture="DigitsNet", preprocess=DIGIT).sites(x[:3])
    return Trained(module, flagged, reference, select(sites))
