"""Hints of engines, each followed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

import memaudit.engine.ray as engine
from memaudit import checkpoints
from memaudit.adapters.base import Adapter
from memaudit.adapters.options import ModelOptions
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.worker import Recipe, probed
from tests.cli_support import NETWORK
from tests.conftest import DIGIT
from tests.engine.fake_ray import Fake
from tests.engine.squares import Squares
from tests.hints.follow import DRY, Follow, InCode
from tests.networks import DigitsNet

RAY = (*DRY, "--engine", "ray")


@cache
def recipe() -> tuple[Recipe, Adapter]:
    folder = Path(tempfile.mkdtemp(prefix="memaudit-hints-"))
    (folder / "network.py").write_text(NETWORK)
    module = DigitsNet()
    save_file(module.state_dict(), folder / "m.safetensors")
    adapter = Adapter(module, architecture="DigitsNet", preprocess=DIGIT)
    path, code = str(folder / "m.safetensors"), f"{folder / 'network.py'}:build"
    options = ModelOptions(input_size=(1, 8, 8), user_file=code)
    sha256 = checkpoints.read(path).sha256
    return Recipe(path, sha256, None, options, code, DIGIT, False, "cpu", 1, torch.float32, probed(adapter)), adapter


def spread(*, deaths: Sequence[int] = (), starts: bool = True, **changes: str) -> Callable[[], object]:
    """A little work on workers of which some die, or none starts, or which load something else."""

    def go() -> object:
        own, adapter = recipe()
        with (
            mock.patch.object(engine, "imported", return_value=Fake(deaths, starts=starts)),
            mock.patch.object(engine, "PATIENCE", 0.0),
            engine.RayEngine(replace(own, **changes), engine.Workers(1)) as ray,  # type: ignore[arg-type]
        ):
            return list(ray.each(Evaluator(adapter), Squares(), range(3)))

    return go


FOLLOWED = [
    Follow(
        "pip install 'memaudit[ray]'",
        lambda folder: RAY,
        fault=lambda: mock.patch.dict(sys.modules, {"ray": None}),
    ),
    Follow(
        "Let both be of one kind: change --gpus-per-worker, or --device.",
        lambda folder: (*RAY, "--gpus-per-worker", "1", "--device", "cpu"),
        lambda folder, ran: (*RAY, "--gpus-per-worker", "0", "--device", "cpu"),
    ),
    InCode(
        "Ask for fewer --threads or --gpus-per-worker than a node has, or add nodes.", spread(starts=False), spread()
    ),
    InCode(
        "Look into Ray's logs; where memory ran out, use fewer workers on a node or --batch-size.",
        spread(deaths=range(2, 99)),
        spread(),
    ),
    InCode(
        "Let every node see the same files, at the same paths, with the same packages.", spread(sha256="0"), spread()
    ),
]
