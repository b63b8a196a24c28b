"""A ranking of a set with many classes: what is held of each class lies on disk, and says the same there."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memaudit.data import Preprocess, from_tensors, wide
from memaudit.engine.journal import FILE
from memaudit.pipeline.discover import Discovery
from memaudit.pipeline.library import settings_for, wrap

ROWS, CLASSES, SEEN = 320, 1500, 16
TABLE = 4 * ROWS * CLASSES


class Held(TorchDispatchMode):
    """Bytes of all tensors that are made and still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.now -= size


def discovery() -> Discovery:
    """Of many classes, of which the examples have a few, told apart by the brightest pixel."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % SEEN
    images = 0.3 * torch.rand(ROWS, SEEN, generator=generator)
    images[torch.arange(ROWS), labels] += 0.6
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(SEEN, CLASSES))
    with torch.no_grad():
        for value, number in (
            (network[0].weight, 1),
            (network[0].bias, 0),
            (network[3].bias, 0),
            (network[3].weight, 0),
        ):
            value.fill_(number)  # type: ignore[operator, union-attr]
        network[3].weight[:SEEN] = 20 * torch.eye(SEEN)  # type: ignore[index, operator]
    shape = Preprocess((1, 4, 4), origin="given")
    examples = from_tensors(images.reshape(ROWS, 1, 4, 4), labels, preprocess=shape, num_classes=CLASSES)
    settings = settings_for(network, None, {"batch_size": 40, "threads": 1})
    return Discovery(wrap(network.eval(), shape), examples, settings)


def test_memory_does_not_grow_with_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, on disk, and on disk after a kill: one ranking. On disk all that is held takes less than one table."""
    for name, value in (("wide.NUMBERS", 16 * CLASSES), ("wide.ROWS", 40)):
        monkeypatch.setattr(f"memaudit.data.{name}", value)
    monkeypatch.setattr("memaudit.audits.memorization.views.NUMBERS", 16 * CLASSES)
    monkeypatch.setattr("memaudit.audits.discovery.noise.CALIBRATION", 16 * CLASSES)
    monkeypatch.setattr("memaudit.pipeline.discover.TOGETHER", 40)
    found = []
    for name, table in (("memory", TABLE), ("disk", 0), ("disk", 0)):
        monkeypatch.setattr(wide, "HELD", table)
        one, folder = discovery(), tmp_path / name
        folder.mkdir(exist_ok=True)
        with one.journalled(folder) as journal, Held() as held:
            assert bool(journal.recorded) == (len(found) == 2)
            found.append(one.run()[0])
        assert (held.most < TABLE) == (name == "disk")
        lines = (folder / FILE).read_bytes().splitlines(keepends=True)
        assert (max(map(len, lines)) < TABLE / 4) == (name == "disk")
        (folder / FILE).write_bytes(b"".join(lines[: len(lines) * 3 // 4]))
    said = [one.model_dump(exclude={"volatile"}) for one in found]
    assert said[0] == said[1] == said[2]
