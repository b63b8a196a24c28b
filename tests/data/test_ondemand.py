"""Sets larger than what is kept of them: the same values as in memory, made when they are asked for."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from memaudit.data import ExampleSet, Preprocess, from_arrays, ondemand, read, spill
from memaudit.data.ondemand import OnDemand, Store
from memaudit.data.spill import Spill
from memaudit.errors import DataRejected
from tests.data.test_read import SMALL, write

EACH = 3 * 8 * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(9):
        write(tmp_path / f"set/{'ab'[number % 2]}/{number}.png", seed=number, size=(9, 11))
    write(tmp_path / "set/b/again.png", seed=1, size=(9, 11))  # the content of b/1.png
    (tmp_path / "set/b/broken.png").touch()
    return tmp_path / "set"


@pytest.fixture(params=[0, 4 * EACH, 2**20], ids=["no disk", "some disk", "disk"])
def both(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[ExampleSet, ExampleSet]:
    """The folder in memory, and with room for three images there and for none, four or all on disk."""
    whole = read(folder, preprocess=SMALL, num_classes=2)
    monkeypatch.setattr(ondemand, "KEPT", 3 * EACH + 1)
    monkeypatch.setattr(spill, "SPILLED", request.param)
    return whole, read(folder, preprocess=SMALL, num_classes=2)


def test_a_set_of_any_size_is_read_and_is_the_one_in_memory(both: tuple[ExampleSet, ExampleSet]) -> None:
    whole, large = both
    assert isinstance(whole.pixels, Tensor)
    assert isinstance(large.pixels, OnDemand)
    assert (large.examples, large.sha256, large.unreadable, large.duplicates) == (
        whole.examples,
        whole.sha256,
        whole.unreadable,
        whole.duplicates,
    )
    assert (large.pixels.shape, large.pixels.dtype, large.image, large.whole) == (
        whole.pixels.shape,
        torch.uint8,
        True,
        False,
    )
    rows = [8, 0, 0, 4, 7, 2]
    for _ in range(2):
        assert torch.equal(large.batch(rows), whole.batch(rows))
        large.ahead([5, 6, 0])
    picked, plain = large.subset([6, 1, 3]), whole.subset([6, 1, 3])
    assert picked.examples == plain.examples
    assert torch.equal(picked.subset([2, 0]).batch([1, 0]), plain.subset([2, 0]).batch([1, 0]))
    assert torch.equal(large.pixels[3], whole.pixels[3])
    assert torch.equal(large.pixels[7:], whole.pixels[7:])


def test_no_more_is_kept_than_there_is_room_for(both: tuple[ExampleSet, ExampleSet]) -> None:
    pixels = both[1].pixels
    assert isinstance(pixels, OnDemand)
    for start in range(0, 9, 2):
        both[1].batch(range(start, min(start + 2, 9)))
    assert len(pixels.store.kept) == pixels.store.used == 3
    assert pixels.store.disk.used == min(7, spill.SPILLED // EACH)
    assert not pixels.store._coming


@pytest.mark.parametrize("both", [2**20], indirect=True)
def test_a_disk_that_gives_nothing_back_costs_time_and_no_values(
    both: tuple[ExampleSet, ExampleSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, large = both

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(spill.os, "preadv", broken)
    monkeypatch.setattr(spill.os, "pwrite", broken)
    for _ in range(2):
        assert torch.equal(large.batch(range(9)), whole.batch(range(9)))


def test_a_disk_without_room_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert not Spill(8).append(np.zeros(8, np.uint8))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    values = Spill(8)
    assert values.append(np.arange(8, dtype=np.uint8))
    monkeypatch.setattr(spill.os, "pwrite", lambda *_: 5)  # as on a disk that is full
    assert not values.append(np.ones(8, np.uint8))
    assert not values.append(np.ones(8, np.uint8))
    assert values.used == 1
    found = np.empty(8, np.uint8)
    assert values.read(0, found)
    assert found.tolist() == list(range(8))
    assert not list(tmp_path.iterdir()), "a file without a name"


@pytest.mark.parametrize("both", [0], indirect=True)
def test_a_file_that_changes_during_the_audit_is_never_taken_for_the_one_that_was_listed(
    both: tuple[ExampleSet, ExampleSet], folder: Path
) -> None:
    large = both[1]
    last = large.examples[-1].source
    write(folder / last, seed=77, size=(9, 11))
    with pytest.raises(DataRejected, match=f"{last} changed while it was audited$"):
        large.batch([8])
    (folder / last).unlink()
    with pytest.raises(DataRejected, match=r"changed while it was audited \(cannot be opened"):
        large.batch([8])
    assert len(large.batch([0, 1]))


def test_arrays_that_must_be_resized_are_resized_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 9, 12, 3)).astype(np.uint8)
    whole = from_arrays(x, [0, 1] * 3 + [0], preprocess=SMALL, num_classes=2)
    monkeypatch.setattr(ondemand, "KEPT", 2 * EACH)
    large = from_arrays(x, [0, 1] * 3 + [0], preprocess=SMALL, num_classes=2)
    assert isinstance(large.pixels, OnDemand)
    assert torch.equal(large.batch(range(7)), whole.batch(range(7)))


def test_what_comes_next_is_made_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ready = Counter[int](), threading.Event()

    def make(places: Sequence[int]) -> list[np.ndarray]:
        made.update(places)
        if 4 in places:
            ready.set()
        return [np.full((1,), place, np.float32) for place in places]

    monkeypatch.setattr(spill, "SPILLED", 0)
    store = Store(make, 6, (1,), torch.float32)
    store.kept = store.kept[:2]
    assert store.rows(torch.tensor([0, 1, 2, 2])).flatten().tolist() == [0, 1, 2, 2]
    store.ahead(torch.tensor([0, 4]))
    assert ready.wait(10)
    assert store.rows(torch.tensor([4, 0])).flatten().tolist() == [4, 0]
    assert made == {0: 1, 1: 1, 2: 1, 4: 1}, "made once for each time it was asked for, and not where it was kept"
    assert store.rows(torch.tensor([2])).item() == 2
    assert made[2] == 2


def test_more_bits_stay_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write(tmp_path / f"set/a/{number}.png", seed=number)
    deep = Preprocess((3, 8, 8), bit_depth=16)
    whole = read(tmp_path / "set", preprocess=deep, num_classes=1)
    monkeypatch.setattr(ondemand, "KEPT", 1)
    assert torch.equal(read(tmp_path / "set", preprocess=deep, num_classes=1).batch([2, 0]), whole.batch([2, 0]))
