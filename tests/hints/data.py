"""Hints about examples, each followed."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.hints.follow import Follow, Right, Wrong
from tests.real_inputs.crashes import DATA, MODEL
from tests.real_inputs.harness import Ran
from tests.real_inputs.pictures import pictures

PLAN = ("--dry-run", "-q")
REFERENCE = DATA[2:]
Change = Callable[[np.ndarray, np.ndarray], dict[str, Any]]


def on(name: str, *more: str) -> tuple[str, ...]:
    return ("scan", *MODEL, "--flagged", name, *REFERENCE, *PLAN, *more)


def named(*words: str) -> Right:
    return lambda folder, ran: words


def examples(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The flagged ones, floats `(6, 3, 16, 16)`."""
    with np.load(folder / "flagged.npz") as data:
        return data["x"], data["y"]


def bytes_of(x: np.ndarray) -> np.ndarray:
    """As uint8 `(N, H, W, C)`."""
    return (x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def arrays(change: Change, *more: str, name: str = "own.npz") -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        np.savez(folder / name, **change(*examples(folder)))
        return on(name, *more)

    return wrong


def mended(change: Change = lambda x, y: {"x": x, "y": y}, *more: str) -> Right:
    return lambda folder, ran: arrays(change, *more)(folder)


def file(name: str, write: Callable[[Path, np.ndarray, np.ndarray], object], *more: str) -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        write(folder, *examples(folder))
        return on(name, *more)

    return wrong


def then(name: str, write: Callable[[Path, np.ndarray, np.ndarray], object], *more: str) -> Right:
    return lambda folder, ran: file(name, write, *more)(folder)


def text(name: str, content: str | bytes, *more: str) -> Wrong:
    data = content.encode() if isinstance(content, str) else content
    return file(name, lambda f, x, y: (f / name).write_bytes(data), *more)


def images(folder: Path, root: str = "pictures", names: str = "{}.png", count: int = 12) -> list[str]:
    """A folder of classes 0 to 2 as the network knows them; the files' paths in it."""
    x, truth = pictures()
    labels = truth.copy()
    labels[:6] = (labels[:6] + 1) % 3
    found = []
    for n in range(count):
        place = folder / root / str(labels[n]) / names.format(n)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[n]).save(place)
        found.append(f"{labels[n]}/{names.format(n)}")
    return found


def shard(folder: Path, end: int | None) -> tuple[str, ...]:
    """The same pictures as samples of one tar file, of which so many bytes were downloaded."""
    with tarfile.open(folder / "own.tar", "w") as archive:
        for number, name in enumerate(images(folder)):
            for suffix, content in (("png", (folder / "pictures" / name).read_bytes()), ("cls", name[:1].encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    (folder / "own.tar").write_bytes((folder / "own.tar").read_bytes()[:end])
    return on("own.tar")


def tabled(folder: Path, rows: list[str], header: str = "path,label") -> None:
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")


def pictured(change: Callable[[Path], object], name: str = "pictures", *more: str) -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        images(folder)
        change(folder)
        return on(name, *more)

    return wrong


def manifest(folder: Path) -> None:
    images(folder)
    tabled(folder, [f"pictures/{n},{n[0]}" for n in images(folder)])


def manifested(folder: Path, ran: Ran) -> tuple[str, ...]:
    manifest(folder)
    return on("list.csv")


def saved(folder: Path, **named: np.ndarray) -> None:
    save_file({name: torch.tensor(values) for name, values in named.items()}, folder / "own.safetensors")


def zipped(folder: Path, member: bytes) -> None:
    with zipfile.ZipFile(folder / "own.npz", "w") as archive:
        archive.writestr("x.npy", member)


def second_version(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, x, version=(2, 0))
    return file.getvalue()


def huge(path: Path) -> None:
    """A PNG whose header says 100 megapixels."""
    head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def stacked(folder: Path, shapes: tuple[int, ...] = (16,) * 4, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    x, y = examples(folder)
    for n, side in enumerate(shapes):
        np.save(folder / f"{n}.npy", x[n, :, :side, :side])
    tabled(folder, [*(f"{n}.npy,{y[n]}" for n in range(len(shapes))), *more])
    return on("list.csv")


# ---- networks that take no images: the label is the largest of the first three numbers, or the first token -----------

TABLE = """from torch import nn


def build():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
"""
TOKENS = """from torch import nn


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(9, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, ids, mask=None):
        return self.two(self.one(self.table(ids).sum(1)).relu())


def build():
    return Reader()
"""
OWN = ("own.safetensors", "--adapter", "own.py:build")


def masked(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = tokens(folder)
    with np.load(folder / "rest.npz") as rest:
        np.savez(folder / "rest.npz", **rest, mask=np.ones_like(rest["x"]))
    return x, y


def eye(rows: int, columns: int) -> torch.Tensor:
    return torch.eye(rows, columns).contiguous()


def table(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (folder / "own.py").write_text(TABLE)
    state = {"0.weight": eye(6, 8), "0.bias": torch.zeros(6), "2.weight": eye(3, 6), "2.bias": torch.zeros(3)}
    save_file(state, folder / "own.safetensors")
    x = np.random.default_rng(0).random((60, 8), dtype=np.float32)
    y = x[:, :3].argmax(1)
    np.savez(folder / "rest.npz", x=x[20:], y=y[20:])
    return x[:20], y[:20]


def tokens(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (folder / "own.py").write_text(TOKENS)
    linear = {"one.weight": eye(6, 8), "one.bias": torch.zeros(6), "two.weight": eye(3, 6), "two.bias": torch.zeros(3)}
    save_file({"table.weight": eye(9, 8), **linear}, folder / "own.safetensors")
    ids = np.random.default_rng(0).integers(3, 9, (60, 5))
    y = np.arange(60) % 3
    ids[:, 0] = y
    np.savez(folder / "rest.npz", x=ids[20:], y=y[20:])
    return ids[:20], y[:20]


def own(make: Callable[[Path], tuple[np.ndarray, np.ndarray]], change: Change, *more: str) -> Wrong:
    """An array of a network that takes no images."""

    def wrong(folder: Path) -> tuple[str, ...]:
        np.savez(folder / "some.npz", **change(*make(folder)))
        return ("scan", *OWN, "--flagged", "some.npz", "--reference", "rest.npz", *PLAN, *more)

    return wrong


def parquet(change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        import pyarrow
        from pyarrow import parquet as files

        x, y = table(folder)
        columns = {**{f"f{i}": x[:, i].tolist() for i in range(8)}, "label": y.tolist()}
        files.write_table(pyarrow.table(change(columns)), folder / "some.parquet")
        return ("scan", *OWN, "--flagged", "some.parquet", "--reference", "rest.npz", *PLAN)

    return wrong


def features(folder: Path) -> None:
    """The table of numbers as a spreadsheet writes it."""
    from pyarrow import csv
    from pyarrow import parquet as files

    csv.write_csv(files.read_table(folder / "some.parquet"), folder / "some.csv")


TABLED = ("scan", *OWN, "--reference", "rest.npz", "--input-size", "(8)")


def rewritten(folder: Path, ran: Ran) -> tuple[str, ...] | None:
    return parquet()(folder)


def same(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    return {"x": x, "y": y}


def filled(columns: dict[str, Any], value: object) -> dict[str, Any]:
    return {**columns, "f1": [value, *columns["f1"][1:]] if not isinstance(value, str) else [value] * 20}


def loose(folder: Path) -> None:
    (folder / "pictures" / "x.png").write_bytes((folder / "pictures" / "0").glob("*").__next__().read_bytes())


def flat(folder: Path) -> None:
    for path in (folder / "pictures").glob("*/*"):
        path.unlink()
    for path in (folder / "pictures").iterdir():
        path.rmdir()


def renamed(folder: Path) -> None:
    for path in (folder / "pictures").glob("*/*"):
        path.rename(path.with_suffix(".gifs"))


def fourth(folder: Path) -> None:
    (folder / "pictures" / "3").mkdir()
    next((folder / "pictures" / "0").iterdir()).rename(folder / "pictures" / "3" / "x.png")


def counted(folder: Path) -> tuple[str, ...]:
    """Rows of a folder that loaders number differently."""
    images(folder, names="img{}.png")
    (folder / "rows.txt").write_text("".join(f"{n}\n" for n in range(8)))
    return on("rows.txt", "--data", "pictures")


def rows(content: str, name: str = "rows.csv") -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        (folder / name).write_text(content)
        return on(name, "--data", "reference.npz")

    return wrong


def listed(folder: Path, ran: Ran) -> tuple[str, ...]:
    return rows("index\n1\n2\n")(folder) or ()


def deep(folder: Path) -> tuple[str, ...]:
    place = folder / "deep" / "0"
    place.mkdir(parents=True)
    Image.fromarray((np.arange(256).reshape(16, 16) * 16).astype(np.uint16)).save(place / "x.png")
    return on("deep")


CHECK_PATH = "check the path, and where you run this"
HOLDS = "it may hold {} and nothing else"
UTF_8 = "save it as UTF-8"
NO_ARROW = mock.patch.dict(sys.modules, {"pyarrow": None})
FOLLOWED = [
    Follow(
        "one index a row: y.argmax(1) of one-hot rows, y.ravel() of a column, y.astype(int) of whole floats",
        arrays(lambda x, y: {"x": x, "y": np.eye(3)[y]}),
        mended(lambda x, y: {"x": x, "y": np.eye(3)[y].argmax(1)}),
    ),
    Follow(
        "save both sets as the network was given them, or both as floats in [0, 1]",
        arrays(lambda x, y: {"x": (x - 0.5) / 0.25, "y": y}),
        mended(),
    ),
    Follow("np.savez(path, x=images, y=labels)", arrays(lambda x, y: {"y": y}), mended()),
    Follow(HOLDS, arrays(lambda x, y: {"x": x, "y": y, "weight": y}), mended()),
    Follow(
        "save plain numbers or text: np.save(path, array.astype(str)); no objects, no pickle",
        arrays(lambda x, y: {"x": x, "y": y.astype(object)}),
        mended(),
    ),
    Follow("save it with np.save or np.savez", file("own.npz", lambda f, x, y: zipped(f, second_version(x))), mended()),
    Follow("save it with np.savez", text("own.npz", b"nonsense"), mended()),
    Follow(
        "if it is real data, save it uncompressed with np.savez",
        file("own.npz", lambda f, x, y: np.savez_compressed(f / "own.npz", x=np.zeros((900, 16, 16, 3), np.uint8))),
        mended(),
        always=lambda: mock.patch("memaudit.data.npz.SMALL", 1 << 16),
    ),
    Follow(
        "save it with np.save",
        file("own.npz", lambda f, x, y: zipped(f, b"\x93NUMPY\x01\x00\x06\x00{'des'")),
        mended(),
    ),
    Follow(
        "give (N, H, W, C)",
        arrays(lambda x, y: {"x": bytes_of(x)[..., :2], "y": y}),
        mended(lambda x, y: {"x": bytes_of(x), "y": y}),
    ),
    Follow(
        "save it as NHWC: x.transpose(0, 2, 3, 1)",
        arrays(lambda x, y: {"x": bytes_of(x).transpose(0, 3, 1, 2), "y": y}),
        mended(lambda x, y: {"x": bytes_of(x), "y": y}),
    ),
    Follow(
        "it is NHWC: transpose it with x.transpose(0, 3, 1, 2)",
        arrays(lambda x, y: {"x": x.transpose(0, 2, 3, 1), "y": y}),
        mended(),
    ),
    Follow(
        "resize it first, or give uint8",
        arrays(lambda x, y: {"x": np.kron(x, np.ones((1, 1, 2, 2), np.float32)), "y": y}),
        mended(lambda x, y: {"x": bytes_of(x).repeat(2, 1).repeat(2, 2), "y": y}),
    ),
    Follow(
        "save floats as the network was trained on them, for example x / 4095 of 12 bits",
        arrays(lambda x, y: {"x": (x * 4095).astype(np.uint16).transpose(0, 2, 3, 1), "y": y}),
        mended(),
    ),
    Follow(
        "fill missing values in as the training did, or leave the rows out",
        own(table, lambda x, y: {"x": np.where(x > 0.9, np.nan, x), "y": y}),
        lambda f, r: own(table, lambda x, y: {"x": np.where(x > 0.9, 0, x), "y": y})(f),
    ),
    Follow(
        "leave --multi-label out where an example has one label",
        arrays(same, "--multi-label"),
        mended(),
    ),
    # ---- what is no image ----
    Follow(
        "save floats as the network was trained on them: x.astype('float32') / 255, or without the division",
        own(table, lambda x, y: {"x": (x * 255).astype(np.uint8), "y": y}, "--input-size", "(8)"),
        lambda f, r: own(table, lambda x, y: {"x": (x * 255).astype(np.uint8).astype("float32") / 255, "y": y})(f),
    ),
    Follow(
        "give examples of the network's own shape, or name it: --input-size '(C,T)'",
        own(table, lambda x, y: {"x": x[:, :7], "y": y}, "--input-size", "(8)"),
        lambda f, r: own(table, same, "--input-size", "(8)")(f),
    ),
    Follow(
        "save them as int64",
        own(tokens, lambda x, y: {"x": x - 3, "y": y}),
        lambda f, r: own(tokens, same)(f),
    ),
    Follow(
        "x holds token ids (N, T), mask a 1 for each that counts and a 0 for padding",
        own(masked, lambda x, y: {"x": x, "y": y, "mask": np.ones((20, 4), int)}),
        lambda f, r: own(masked, lambda x, y: {"x": x, "y": y, "mask": np.ones((20, 5), int)})(f),
    ),
    Follow(
        "give arrays: .npz, .safetensors, .parquet, or one .npy file an example",
        lambda f: (
            table(f),
            images(f),
            ("scan", *OWN, "--input-size", "(8)", "--flagged", "pictures", "--reference", "rest.npz", *PLAN),
        )[2],
        lambda f, r: own(table, same, "--input-size", "(8)")(f),
    ),
    Follow(
        "the table's label column is called label, or y",
        parquet(lambda c: {"target" if n == "label" else n: v for n, v in c.items()}),
        rewritten,
    ),
    Follow(
        "save a table of numbers as .parquet (pandas: to_parquet); a manifest of files has the column path",
        lambda f: (parquet()(f), features(f), (*TABLED, "--flagged", "some.csv", *PLAN))[2],
        lambda f, r: (*TABLED, "--flagged", "some.parquet", *PLAN),
    ),
    Follow("one column a feature, in the network's order", parquet(lambda c: {"label": c["label"]}), rewritten),
    Follow("fill them in as the training did", parquet(lambda c: filled(c, None)), rewritten),
    Follow("leave it out, or encode it as the training did", parquet(lambda c: {**c, "f1": ["red"] * 20}), rewritten),
    Follow("write it anew", lambda f: (parquet()(f), (f / "some.parquet").write_bytes(b"PAR1"))[0], rewritten),
    Follow("pip install pyarrow", parquet(), fault=lambda: NO_ARROW),
    Follow(
        "save it with safetensors' save_file",
        text("own.safetensors", b"nonsense"),
        then(
            "own.safetensors",
            lambda f, x, y: saved(f, x=x, y=y),
        ),
    ),
    Follow(
        HOLDS,
        file(
            "own.safetensors",
            lambda f, x, y: saved(f, images=x, y=y),
        ),
        then(
            "own.safetensors",
            lambda f, x, y: saved(f, x=x, y=y),
        ),
    ),
    Follow(
        "a set holds images or arrays, not both",
        lambda f: (images(f), stacked(f, more=("pictures/" + images(f)[0] + ",0",)))[1],
        lambda f, r: stacked(f),
    ),
    Follow(
        "bring all examples to one shape and type, as the network takes them",
        lambda f: stacked(f, (16, 15, 16)),
        lambda f, r: stacked(f),
    ),
    # ---- tables and folders ----
    Follow("one line per image: path,label", text("list.csv", "path,label\n"), manifested),
    Follow(UTF_8, text("list.csv", "path,label\nä.png,1\n".encode("latin-1")), manifested),
    Follow('write " inside quotes as ""', text("list.csv", 'path,label\n"a.png,1\n'), manifested),
    Follow(
        "name the data set: --data DIR|npz",
        text("rows.txt", "1\n2\n"),
        named(*on("rows.txt", "--data", "reference.npz")),
    ),
    Follow("one a line; indices count the rows of --data from 0", rows("index\n100\n"), listed),
    Follow(
        "call the column index; or, if it is row 0, save the list as .txt",
        rows("0\n1\n2\n"),
        lambda folder, ran: rows("0\n1\n2\n", "rows.txt")(folder),
    ),
    Follow(
        "rows: index, path or id, optionally label, true_label, note; or cleanlab's is_label_issue; or path,label",
        rows("row_number,score\n1,0.5\n"),
        listed,
    ),
    Follow(
        "save it with its index: issues.to_csv(path)",
        rows("is_label_issue,label_quality\nTrue,0.1\n"),
        lambda f, r: rows(",is_label_issue,label_quality\n4,True,0.1\n")(f),
    ),
    Follow(
        "say whose numbers these are: --row-order torchvision or --row-order timm; or list the files' names",
        counted,
        named(*on("rows.txt", "--data", "pictures", "--row-order", "torchvision")),
    ),
    Follow(
        "put every image into its class's sub-folder, or write a manifest (.csv with path,label)",
        pictured(loose),
        lambda f, r: ((f / "pictures" / "x.png").rename(f / "pictures" / "0" / "x.png"), None)[1],
    ),
    Follow("one folder per class, or a .csv with path,label", pictured(flat), lambda f, r: (images(f), None)[1]),
    Follow("known: {}", pictured(renamed), lambda f, r: (images(f), None)[1]),
    Follow(
        "an image folder, a manifest (.csv .tsv .jsonl), arrays (.npz .safetensors .parquet), or images in "
        ".tar or .parquet",
        text("list.xlsx", "path,label\n"),
        manifested,
    ),
    Follow(
        "name another folder with --image-cache, or leave it out",
        pictured(lambda f: (f / "file").touch(), "pictures", "--image-cache", "file"),
        named(*on("pictures", "--image-cache", "folder")),
    ),
    Follow("download it again", lambda f: shard(f, 1024), lambda f, r: shard(f, None)),
    Follow(CHECK_PATH, lambda f: on("nowhere"), named(*on("flagged.npz"))),
    Follow(
        "natural is timm's order, lexical is torchvision's; a file lists the names, one per line",
        pictured(lambda f: None, "pictures", "--class-order", "alphabetical"),
        named(*on("pictures", "--class-order", "lexical")),
    ),
    Follow(
        "list all of the model's classes, one per line in label order, in a file: --class-order FILE",
        pictured(fourth),
        lambda f, r: (
            (f / "order.txt").write_text("0\n1\n2\n"),
            images(f),
            on("list.csv", "--class-order", "order.txt"),
            manifest(f),
        )[2],
    ),
    Follow(
        "scale the images down, or take them out of the set",
        pictured(lambda f: huge(f / "pictures" / "0" / "huge.png")),
        lambda f, r: ((f / "pictures" / "0" / "huge.png").unlink(), None)[1],
    ),
    Follow(
        "say how the network was trained on them: {}",
        deep,
        named(*on("deep", "--bit-depth", "clip")),
    ),
]
