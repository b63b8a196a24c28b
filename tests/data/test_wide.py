"""Tables that lie on disk are written and read as a tensor is; a disk without room is said, or not asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memaudit.data import spill, wide
from memaudit.errors import EnvironmentFault


def test_a_table_on_disk_is_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    held = wide.wide(20, 3)
    monkeypatch.setattr(wide, "HELD", 0)
    disk = wide.wide(20, 3)
    assert isinstance(held, torch.Tensor)
    assert isinstance(disk, wide.OnDisk)
    rows = torch.tensor([3, 19, 0])
    for where, count in ((slice(2, 9), 7), (rows, 3), (slice(18, 40), 2)):
        values = torch.rand(count, 3, generator=generator)
        for one in (held, disk):
            one[where] = values
            wide.add(one, torch.tensor([1, 5]), values[:2])
    for one in (held, disk):
        wide.divide(one, 3)
    assert disk.shape == held.shape
    assert len(disk) == 20
    for part in (slice(None), slice(5, 11), slice(20, 30), rows, torch.tensor([], dtype=torch.int64)):
        assert torch.equal(disk[part], held[part])
    labels = torch.arange(20) % 3
    assert torch.equal(wide.own(disk, labels), held.gather(1, labels[:, None]).squeeze(1))


def test_parts_cover_each_row_once_whatever_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "NUMBERS", 12)
    for columns, step in ((1, 12), (5, 2), (100, 1)):
        found = [list(range(20))[part] for part in wide.slices(20, columns)]
        assert [row for part in found for row in part] == list(range(20))
        assert {len(part) for part in found[:-1]} == {step}


def test_a_disk_without_room_is_not_asked_and_one_that_fills_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "HELD", 0)
    table = wide.wide(4, 2)

    class Full:
        """A file on a disk that takes five bytes more."""

        def __getattr__(self, name: str) -> Any:
            return {"seek": lambda _: 0, "write": lambda _: 5}[name]

    monkeypatch.setattr(table, "_file", Full())
    with pytest.raises(EnvironmentFault, match="does not fit on the disk: No space left"):
        table[0:2] = torch.ones(2, 2)
    monkeypatch.setattr(spill, "nameless", lambda: (_ for _ in ()).throw(OSError()))
    assert isinstance(wide.wide(4, 2), torch.Tensor)
