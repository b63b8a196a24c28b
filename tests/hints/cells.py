"""Hints about tables of images, each followed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow
from pyarrow import parquet

from memaudit.data import read
from tests.data.test_images import encoded
from tests.data.test_read import SMALL, picture
from tests.hints.follow import InCode

IMAGES = [encoded(picture(number, (8, 8)), "JPEG") for number in range(2)]
TABLE = {"image": IMAGES, "label": [0, 1]}


def table(columns: dict[str, Any] = TABLE, name: str = "a.parquet", rows: int = 1000) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table(columns), folder / name, row_group_size=rows)
        return folder / name

    return write


def split(*names: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name in names:
            table(name=f"set/{name}-00000-of-00001.parquet")(folder)
        return folder / "set"

    return write


def saved(folder: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    one = datasets.Dataset.from_dict(TABLE, features=features)
    one.save_to_disk(folder / "saved")
    return folder / "saved"


def splits(folder: Path) -> Path:
    import datasets

    one = datasets.load_from_disk(saved(folder))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(folder / "splits")
    return folder / "splits"


def moved(folder: Path) -> Path:
    """Its note names a file that is elsewhere; a copy of what the library can load is whole again."""
    path = saved(folder)
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": f"../{f['filename']}"} for f in state["_data_files"]]
    for file in path.glob("*.arrow"):
        shutil.move(file, folder / file.name)
    (path / "state.json").write_text(json.dumps(state))
    return path


def again(folder: Path) -> Path:
    import datasets

    datasets.load_from_disk(moved(folder)).save_to_disk(folder / "new")
    return folder / "new"


def reads(write: Callable[[Path], Path], largest: int = 2**30) -> Callable[[], object]:
    def check() -> None:
        with tempfile.TemporaryDirectory() as folder, mock.patch("memaudit.data.parquet.LARGEST", largest):
            assert len(read(write(Path(folder)), preprocess=SMALL, num_classes=2)) == 2

    return check


ONE = 7 * max(map(len, IMAGES)) // 2  # bytes of a row group of one of them, with what is noted of it, and less than two

FOLLOWED = [
    InCode("keep one column of undecoded images", reads(table({**TABLE, "mask": IMAGES})), reads(table())),
    InCode("write it with a row_group_size of 1000 or less", reads(table(), ONE), reads(table(rows=1), ONE)),
    InCode(
        "put the files of one split into a folder of their own", reads(split("train", "test")), reads(split("train"))
    ),
    InCode("name the folder of one of them", reads(splits), reads(lambda folder: splits(folder) / "test")),
    InCode("load it with datasets' load_from_disk and save it again", reads(moved), reads(again)),
]
