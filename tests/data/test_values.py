"""Examples that are no 8-bit images: taken as they are, from every kind of file, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memaudit.data import Arrays, ExampleSet, Preprocess, described, paired_names, read, thumbnails
from memaudit.errors import DataRejected, UsageError

DRAW = np.random.default_rng(0)
Y = np.array([0, 1, 2, 1, 0])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(x: np.ndarray, y: np.ndarray = Y, **more: np.ndarray) -> str:
    np.savez("a.npz", x=x, y=y, **more)
    return "a.npz"


def loaded(x: np.ndarray, preprocess: Preprocess, **more: np.ndarray) -> ExampleSet:
    return read(saved(x, **more), preprocess=preprocess, num_classes=3)


# what an array holds, and what the network takes
TAKEN: list[tuple[str, np.ndarray, tuple[int, ...]]] = [
    ("table", DRAW.normal(size=(5, 7)), (7,)),
    ("table of counts", DRAW.integers(0, 9, (5, 7)), (7,)),
    ("sound", DRAW.normal(size=(5, 400)).astype(np.float32), (400,)),
    ("signals", DRAW.normal(size=(5, 2, 64)).astype(np.float16), (2, 64)),
    ("volumes", DRAW.normal(size=(5, 1, 4, 6, 8)), (1, 4, 6, 8)),
    ("Hounsfield units", DRAW.integers(-1000, 2000, (5, 1, 4, 6, 8)).astype(np.int16), (1, 4, 6, 8)),
    ("nine channels", DRAW.random((5, 9, 8, 8)), (9, 8, 8)),
]


@pytest.mark.parametrize(("name", "x", "size"), TAKEN, ids=[c[0] for c in TAKEN])
def test_what_is_no_image_is_taken_as_it_is(name: str, x: np.ndarray, size: tuple[int, ...]) -> None:
    assert described(saved(x)) == Arrays(size, whole=x.dtype.kind in "iu")
    found = loaded(x, Preprocess(size))
    assert np.array_equal(found.batch(range(5)).numpy(), x.astype(np.float32))
    assert found.image == (len(size) == 3)
    assert not thumbnails(found)


def test_sixteen_bit_images_become_floats_in_0_1() -> None:
    x = DRAW.integers(0, 65536, (5, 6, 8, 1)).astype(np.uint16)
    assert described(saved(x)) == Arrays((1, 6, 8))
    assert np.array_equal(loaded(x, Preprocess((1, 6, 8))).pixels[:, 0].numpy(), (x[..., 0] / 65535).astype(np.float32))


def test_mean_and_std_of_a_table_are_its_columns() -> None:
    x = DRAW.normal(3, 2, (5, 4))
    size = Preprocess((4,), mean=tuple(x.mean(0)), std=tuple(x.std(0)))
    given = size.normalise(loaded(x, size).batch(range(5)))
    assert torch.allclose(given.mean(0), torch.zeros(4), atol=1e-5)


def test_token_ids_stay_whole_and_carry_their_mask() -> None:
    x, mask = DRAW.integers(0, 50, (5, 6)), np.tile([1, 1, 1, 0, 0, 0], (5, 1))
    assert described(saved(x, mask=mask)) == Arrays((2, 6), whole=True, masked=True)
    found = loaded(x, Preprocess((2, 6), tokens=True, masked=True), mask=mask)
    ids, there = found.batch(range(5)).unbind(1)
    assert (ids.dtype, ids.tolist(), there.tolist()) == (torch.int64, x.tolist(), mask.tolist())


def test_standardised_float_images_pass_where_nothing_normalises_and_bytes_as_floats_do_not() -> None:
    raw = Preprocess((3, 4, 4), raw=True)
    assert len(loaded(DRAW.normal(size=(5, 3, 4, 4)), raw)) == 5
    with pytest.raises(DataRejected, match=r"outside \[0, 1\]"):
        loaded(DRAW.integers(0, 256, (5, 3, 4, 4)).astype(np.float32), raw)


REFUSED: list[tuple[str, np.ndarray, tuple[int, ...], dict[str, Any], str]] = [
    ("another width", DRAW.normal(size=(5, 6)), (7,), {}, r"x has shape \(5, 6\), the network takes \(N, 7\)"),
    ("missing values", np.where(np.eye(5, 7) > 0, np.nan, 0), (7,), {}, "5 of 5 rows rejected; row 0: a value is NaN"),
    ("bytes without a scale", np.ones((5, 7), np.uint8), (7,), {}, "nothing says its scale"),
    ("twelve bits", np.full((5, 4, 4, 1), 4095, np.uint16), (1, 4, 4), {}, "fewer than 16 bits"),
    ("ids below 0", np.full((5, 7), -1), (7,), {"tokens": True}, "whole numbers from 0"),
]


@pytest.mark.parametrize(("name", "x", "size", "kind", "message"), REFUSED, ids=[c[0] for c in REFUSED])
def test_what_the_network_does_not_take_is_refused(
    name: str, x: np.ndarray, size: tuple[int, ...], kind: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataRejected, match=message) as caught:
        loaded(x, Preprocess(size, **kind))
    assert caught.value.hint or "rows" in caught.value.message


def test_a_mask_that_does_not_go_with_its_ids_is_refused() -> None:
    saved(DRAW.normal(size=(5, 6)), mask=np.ones((5, 6)))
    with pytest.raises(DataRejected, match="does not go with x"):
        read("a.npz", preprocess=Preprocess((2, 6)), num_classes=3)


def test_image_files_for_a_network_of_tables_are_refused_with_the_kinds_it_takes(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "set/a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "set/a/1.png")
    with pytest.raises(UsageError, match=r"shape \(7\), which no image has"):
        read("set", preprocess=Preprocess((7,)), num_classes=1)


# ---- other files ------------------------------------------------------------------------------------------------

X = DRAW.normal(size=(5, 7)).astype(np.float32)


def test_safetensors_hold_the_same_names() -> None:
    save_file({"x": torch.from_numpy(X), "y": torch.from_numpy(Y), "id": torch.arange(5)}, "a.safetensors")
    found = read("a.safetensors", preprocess=Preprocess((7,)), num_classes=3)
    assert described("a.safetensors") == Arrays((7,))
    assert np.array_equal(found.pixels.numpy(), X)
    assert [e.declared_id for e in found.examples] == list("01234")
    assert found.sha256 == loaded(X, Preprocess((7,))).sha256
    Path("a.safetensors").write_bytes(b"junk" * 9)
    with pytest.raises(DataRejected, match=r"not a whole \.safetensors file"):
        read("a.safetensors", preprocess=Preprocess((7,)), num_classes=3)


def test_a_parquet_table_is_its_label_and_its_columns_in_order() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"label": Y, **{f"f{i}": X[:, i] for i in range(7)}}
    parquet.write_table(pyarrow.table(columns), "a.parquet")
    assert described("a.parquet") == Arrays((7,))
    assert np.array_equal(read("a.parquet", preprocess=Preprocess((7,)), num_classes=3).pixels.numpy(), X)
    parquet.write_table(pyarrow.table({**columns, "f0": [None, 1.0, 2.0, 3.0, 4.0]}), "a.parquet")
    with pytest.raises(DataRejected, match="column 'f0' has 1 missing values"):
        read("a.parquet", preprocess=Preprocess((7,)), num_classes=3)


def test_one_npy_file_an_example_from_folders_and_manifests(tmp_path: Path) -> None:
    for i, (row, label) in enumerate(zip(X, Y, strict=True)):
        (tmp_path / f"set/{label}").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"set/{label}/{i}.npy", row)
    Path("a.csv").write_text("path,label\n" + "".join(f"set/{y}/{i}.npy,{y}\n" for i, y in enumerate(Y)))
    assert described("set") == described("a.csv") == Arrays((7,))
    listed = read("a.csv", preprocess=Preprocess((7,)), num_classes=3)
    assert np.array_equal(listed.pixels.numpy(), X)
    assert sorted(read("set", preprocess=Preprocess((7,)), num_classes=3).labels.tolist()) == sorted(Y)
    np.save(tmp_path / "set/0/0.npy", X[0, :3])
    with pytest.raises(DataRejected, match=r"the first file is float32 \(3,\)"):
        read("a.csv", preprocess=Preprocess((7,)), num_classes=3)


# ---- several labels ---------------------------------------------------------------------------------------------


def test_every_label_that_is_known_of_an_example_is_a_row() -> None:
    y = np.array([[0, 1], [1, -1], [-1, -1], [1, 1], [0, 0]])
    names = paired_names(["cat", "dog"], 4)
    found = read(saved(X, y), preprocess=Preprocess((7,)), num_classes=4, class_names=names, paired=True)
    assert names == ("cat:0", "cat:1", "dog:0", "dog:1")
    assert [(e.index, names[e.label]) for e in found.examples] == [
        (0, "cat:0"), (0, "dog:1"), (1, "cat:1"), (3, "cat:1"), (3, "dog:1"), (4, "cat:0"), (4, "dog:0"),
    ]  # fmt: skip
    Path("rows.txt").write_text("3\n")
    some = read("rows.txt", data="a.npz", preprocess=Preprocess((7,)), num_classes=4, class_names=names, paired=True)
    assert [(e.index, e.label) for e in some.examples] == [(3, 1), (3, 3)]


@pytest.mark.parametrize(
    ("y", "message"),
    [(Y, r"y has shape \(5,\), not \(5, 2\)"), (np.full((5, 2), 2), "other values than 0, 1 and -1")],
)
def test_answers_that_are_none_are_refused(y: np.ndarray, message: str) -> None:
    with pytest.raises(DataRejected, match=message):
        read(saved(X, y), preprocess=Preprocess((7,)), num_classes=4, paired=True)
