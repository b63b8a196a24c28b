"""Decoded images that a folder keeps: the same values, decoded once, whatever became of the folder meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from memaudit.data import ExampleSet, Preprocess, kept, read
from memaudit.data.images import workers
from memaudit.data.kept import ROW, Images, Kept
from memaudit.errors import EnvironmentFault
from tests.data.test_read import SMALL, write

EACH = 3 * 8 * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        write(tmp_path / f"set/{'ab'[number % 2]}/{number}.png", seed=number, size=(9, 11))
    (tmp_path / "set/b/broken.png").write_bytes(b"<html>")
    (tmp_path / "set/a/misnamed.jpg").write_bytes((tmp_path / "set/a/0.png").read_bytes())
    return tmp_path / "set"


def decoded(folder: Path, keep: Kept | None, way: Preprocess = SMALL) -> tuple[ExampleSet, int]:
    """The set, as another process would read it, and how many files were decoded for it."""
    for images in kept._open.values():
        images._held.release()
    kept._open.clear()
    count, plain = 0, workers.Workers.decode_all

    def counted(self: workers.Workers, files: Sequence[tuple[bytes, str]]) -> object:
        nonlocal count
        count += len(files)
        return plain(self, files)

    with mock.patch.object(workers.Workers, "decode_all", counted):
        return read(folder, preprocess=way, num_classes=2, kept=keep), count


def same(one: ExampleSet, other: ExampleSet) -> bool:
    return torch.equal(one.batch(range(len(one))), other.batch(range(len(other)))) and (
        (one.examples, one.unreadable, one.duplicates, one.seen)
        == (other.examples, other.unreadable, other.duplicates, other.seen)
    )


def test_what_was_decoded_once_is_read_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    plain, _ = decoded(folder, None)
    assert plain.seen == {"misnamed": 1, "resized": 7}
    keep = Kept(tmp_path / "cache")
    for expected in (8, 1, 1):  # what cannot be decoded is tried again
        found, count = decoded(folder, keep)
        assert count == expected
        assert same(found, plain)
    write(folder / "a/6.png", seed=6)
    assert decoded(folder, keep)[1] == 2


def test_another_way_of_preparing_images_is_kept_apart(folder: Path, tmp_path: Path) -> None:
    keep = Kept(tmp_path / "cache")
    decoded(folder, keep)
    other = replace(SMALL, input_size=(3, 4, 4))
    assert decoded(folder, keep, other)[1] == 8
    assert same(decoded(folder, keep, other)[0], decoded(folder, None, other)[0])
    assert decoded(folder, keep)[1] == 1


@pytest.mark.parametrize("damage", ["torn pixels", "torn rows", "a flipped bit", "lost pixels", "lost rows"])
def test_what_is_damaged_is_decoded_again(folder: Path, tmp_path: Path, damage: str) -> None:
    keep = Kept(tmp_path / "cache")
    plain, _ = decoded(folder, keep)
    path = next((tmp_path / "cache").glob("*.pixels" if "pixels" in damage or "bit" in damage else "*.rows"))
    content = path.read_bytes()
    if damage.startswith("torn"):
        path.write_bytes(content[:-1])
    elif damage.startswith("lost"):
        path.write_bytes(b"")
    else:
        path.write_bytes(content[:EACH] + bytes([content[EACH] ^ 1]) + content[EACH + 1 :])
    found, count = decoded(folder, keep)
    assert same(found, plain)
    assert count == (8 if damage.startswith("lost") else 2)
    again, count = decoded(folder, keep)
    assert (same(again, plain), count) == (True, 1)


def test_no_more_is_kept_than_there_is_room_for(folder: Path, tmp_path: Path) -> None:
    keep = Kept(tmp_path / "cache", most=3 * EACH + 1)
    plain, _ = decoded(folder, None)
    for _ in range(2):
        assert same(decoded(folder, keep)[0], plain)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    assert pixels.stat().st_size == 3 * EACH


def test_a_full_disk_keeps_no_more(folder: Path, tmp_path: Path) -> None:
    plain, _ = decoded(folder, None)
    with mock.patch("os.pwrite", side_effect=OSError(28, "No space left on device")):
        assert same(decoded(folder, Kept(tmp_path / "cache"))[0], plain)


def test_of_two_processes_one_writes(folder: Path, tmp_path: Path) -> None:
    keep = Kept(tmp_path / "cache")
    decoded(folder, keep)
    first = keep.of(SMALL, torch.empty(0, dtype=torch.uint8).numpy().dtype)
    path = next((tmp_path / "cache").glob("*.pixels")).with_suffix("")
    second = Images(path, (3, 8, 8), first.dtype, 2**20)
    assert (first._held.is_locked, second._held.is_locked, second.room) == (True, False, 0)
    row = next((tmp_path / "cache").glob("*.rows")).read_bytes()[: ROW.itemsize]
    identity = int.from_bytes(row[:8], "little")
    ours, theirs = first.get(identity), second.get(identity)
    assert ours is not None
    assert theirs is not None
    assert (ours[0] == theirs[0]).all()


def test_a_folder_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="file cannot keep images"):
        decoded(folder, Kept(tmp_path / "file"))
