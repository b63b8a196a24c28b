"""Hints about what an audit rests on, about rankings and about lists of classes, each followed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.hints.follow import DRY, SCANNED, Follow, Right, Wrong
from tests.real_inputs.crashes import DATA, MODEL
from tests.real_inputs.harness import Ran, execute
from tests.real_inputs.pictures import Net, fit, pictures, placed, save, write_code, write_model
from tests.real_inputs.preprocessing import swapped_hues

PLAN = ("--dry-run", "-q")
FLAGGED = DATA[:2]
NAMES = ("ant", "bee", "cat")


def named(*words: str) -> Right:
    return lambda folder, ran: words


def loaded(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / name) as data:
        return data["x"], data["y"]


def labelled(change: Callable[[np.ndarray], np.ndarray], *words: str) -> Wrong:
    """The reference with other labels; the right ones stay in `kept.npz`."""

    def wrong(folder: Path) -> tuple[str, ...]:
        x, y = loaded(folder, "reference.npz")
        np.savez(folder / "kept.npz", x=x, y=y)
        np.savez(folder / "reference.npz", x=x, y=change(y))
        return words or DRY

    return wrong


def back(folder: Path, ran: Ran) -> None:
    (folder / "kept.npz").replace(folder / "reference.npz")


TWIN = ("scan", "twin.safetensors", "--input-size", "32", "--flagged", "flagged.npz", "--reference", "few.npz", *PLAN)


def twin(folder: Path) -> tuple[str, ...]:
    """A file that fits two architectures, and a reference too small to tell them apart."""
    import timm

    save_file(timm.create_model("test_efficientnet_gn", num_classes=3).state_dict(), folder / "twin.safetensors")
    x, truth = pictures()
    for name, rows in (("flagged", range(6)), ("few", range(100, 106))):
        np.savez(folder / f"{name}.npz", x=np.kron(x[rows], np.ones((1, 2, 2, 1), np.uint8)), y=truth[rows])
    return TWIN


def many(folder: Path) -> tuple[str, ...]:
    """Six images with three labels each, which take more memory than there is."""
    network = Net()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    for name in ("flagged", "reference"):
        x, _ = loaded(folder, f"{name}.npz")
        np.savez(folder / f"{name}.npz", x=x[:6], y=(network(torch.tensor(x[:6])) > 0).numpy().astype(np.int64))
    (folder / "rows.txt").write_text("0\n1\n")
    return (*DRY, "--multi-label")


def a_few(folder: Path, ran: Ran) -> tuple[str, ...]:
    lists = ("--data", "flagged.npz", "--flagged", "rows.txt", "--reference", "others.txt")
    (folder / "others.txt").write_text("2\n3\n")
    return ("scan", *MODEL, *lists, *PLAN, "--multi-label")


LAGGING = """class Lagging(Net):
    seen = []
    def forward(self, x):
        self.seen.append(self.head.bias.clone())
        y = super().forward(x)
        return y - self.head.bias + self.seen[-3:][0]

return Lagging()"""
OVER_TIME = (*SCANNED[:-2], "--checkpoints", "epoch_*.pth", "--out", "lagging")


def lagging(folder: Path) -> tuple[str, ...]:
    """A network that computes with what its bias was two runs ago, and its past."""
    final = load_file(folder / "model.safetensors")
    for epoch in range(3):
        state = {n: t * (0.7 + 0.1 * epoch) for n, t in final.items()}
        torch.save({"epoch": epoch, "state_dict": state}, folder / f"epoch_{epoch}.pth")
    write_code(folder, LAGGING)
    return (*OVER_TIME, "--audit", "localize,rewind")


def by_chance(y: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(y)


def barely(folder: Path) -> tuple[str, ...]:
    """Half of the reference has another label, and so have all flagged examples."""
    x, truth = pictures()
    y, rows = truth.copy(), np.arange(len(truth))
    y = np.where(np.random.default_rng(1).random(len(y)) < 0.53, (y + 1 + rows % 2) % 3, y)
    np.savez(folder / "reference.npz", x=x[130:], y=y[130:])
    flagged, given = loaded(folder, "flagged.npz")
    np.savez(folder / "flagged.npz", x=flagged, y=(given + 1) % 3)
    return DRY


def accepted(folder: Path, ran: Ran) -> tuple[str, ...]:
    return (*DRY, "--min-reference-accuracy", ran.err.split("--min-reference-accuracy ")[1].split()[0])


def named_folders(folder: Path, places: tuple[int, ...] = (0, 1, 2), outputs: int = 3) -> None:
    """Folders `ant`, `bee`, `cat`, whose class `k` the network gives at output `places[k]`."""
    x, truth = pictures()
    y = truth.copy()
    y[:6] = (y[:6] + 1) % 3
    for n in (*range(6), *range(200, 300)):
        save(folder / ("wrong" if n < 6 else "val") / NAMES[y[n]] / f"{n}.png", x[n])
    inputs = torch.tensor(x[:120]).permute(0, 3, 1, 2).float() / 255
    write_model(folder, placed(fit(inputs, y[:120].tolist()), places, outputs))
    write_code(folder, f"return Net(classes={outputs})")
    (folder / "order.txt").write_text("".join(f"{NAMES[k]}\n" for k in sorted(range(3), key=places.__getitem__)))


OF_FOLDERS = ("scan", *MODEL, "--flagged", "wrong", "--reference", "val", *PLAN)
# What the preparation is, is not in question.
PREPARED = ("--mean", "0,0,0", "--std", "1,1,1")


def permuted(folder: Path) -> tuple[str, ...]:
    named_folders(folder, (1, 2, 0))
    return OF_FOLDERS


class Five(Net):
    def __init__(self) -> None:
        super().__init__(classes=5)


def spare(folder: Path) -> tuple[str, ...]:
    """Five outputs, three folders; half of the cats were another class."""
    named_folders(folder, outputs=5)
    x, y = pictures()
    labels = [4 if k == 2 and n % 2 else int(k) for n, k in enumerate(y[:120])]
    module = fit(torch.tensor(x[:120]).permute(0, 3, 1, 2).float() / 255, labels, network=Five)
    save_file(module.state_dict(), folder / MODEL[0])
    return (*OF_FOLDERS, *PREPARED)


def all_listed(folder: Path, ran: Ran) -> tuple[str, ...]:
    (folder / "all.txt").write_text("ant\nbee\ncat\nowl\nyak\n")
    return (*OF_FOLDERS, *PREPARED, "--class-order", "all.txt")


def numbered(folder: Path) -> tuple[str, ...]:
    """Folders whose natural and lexical orders differ; the network was trained by torchvision."""
    x, truth = pictures()
    y = truth.copy()
    y[:6] = (y[:6] + 1) % 3
    lexical = ("c1", "c10", "c2")
    for n in (*range(6), *range(200, 300)):
        save(folder / ("wrong" if n < 6 else "val") / lexical[y[n]] / f"{n}.png", x[n])
    write_model(folder, fit(torch.tensor(x[:120]).permute(0, 3, 1, 2).float() / 255, y[:120].tolist()))
    return OF_FOLDERS


def hues(folder: Path) -> tuple[str, ...]:
    """Classes that are colours: channels in another order, or other classes."""
    swapped_hues(folder)
    (folder / "flagged").rename(folder / "wrong")
    return OF_FOLDERS


def as_said(folder: Path, ran: Ran) -> tuple[str, ...]:
    return (*OF_FOLDERS, "--class-order", ran.err.split("--class-order ")[1].split(",")[0])


# ---- several labels -----------------------------------------------------------------------------------------------


def several(folder: Path, change: Callable[[np.ndarray], np.ndarray] = lambda y: y) -> tuple[str, ...]:
    """Three labels an example: each one of the classes, there or not."""
    for name in ("flagged.npz", "reference.npz"):
        x, y = loaded(folder, name)
        np.savez(
            folder / name,
            x=x,
            y=change(np.eye(3, dtype=int)[y]) if name == "reference.npz" else np.eye(3, dtype=int)[y],
        )
    tensors = load_file(folder / "model.safetensors")
    head = tensors["head.weight"]
    others = torch.ones(3, 3) - torch.eye(3)
    tensors["head.weight"] = head - others @ head / 2  # above the mean of the others: there
    tensors["head.bias"] = tensors["head.bias"] - others @ tensors["head.bias"] / 2
    save_file(tensors, folder / "model.safetensors")
    return (*DRY, "--multi-label")


def names_of_labels(text: str) -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        (folder / "labels.txt").write_text(text)
        return (*several(folder), "--class-order", "labels.txt")

    return wrong


def three_names(folder: Path, ran: Ran) -> None:
    (folder / "labels.txt").write_text("ant\nbee\ncat\n")


# ---- rankings -----------------------------------------------------------------------------------------------------

RANK = ("discover", *MODEL, "--data", "reference.npz", "--profile", "fast", "-q", "--out", "ranked")


TRAINED = ("scan", *MODEL, *RANK[-7:-1], "found", "--max-units", "2", "--top", "3", "--exit-zero")


def few(folder: Path) -> tuple[str, ...]:
    return ("discover", *MODEL, "--data", "flagged.npz", "--profile", "fast", "-q", "--out", "ranked")


def labels(change: Callable[[np.ndarray], np.ndarray]) -> Wrong:
    return labelled(change, *RANK)


def ranked(folder: Path) -> tuple[str, ...]:
    ran = execute(folder, (*RANK, "--top", "3"))
    assert ran.code == 0, ran.err
    return ("check", "ranked/ranking.json")


def as_hinted(folder: Path, ran: Ran) -> tuple[str, ...]:
    return (*DRY, *ran.err.split("trained: ")[1].split("\n")[0].split())


@contextmanager
def little_memory() -> Iterator[None]:
    Path("full").touch()
    yield
    Path("full").unlink()


def hungry(folder: Path) -> tuple[str, ...]:
    write_code(
        folder,
        "import os\nclass M(Net):\n    def forward(self, x):\n        if os.path.exists('full'):\n"
        "            raise MemoryError\n        return super().forward(x)\n\nreturn M()",
    )
    return DRY


ARROW = mock.patch.dict(sys.modules, {"pyarrow": None})
CHECKED = "Check --num-classes and the class order."
FOLLOWED = [
    Follow("{}. Or else: {}", hues, named(*OF_FOLDERS, "--channel-order", "bgr")),
    Follow(
        "Name the one it was trained as, for example: --arch {}", twin, named(*TWIN, "--arch", "test_efficientnet_gn")
    ),
    Follow(
        "list at most {} of its rows in a file, and name the set with --data",
        many,
        a_few,
        always=lambda: mock.patch("memaudit.data.decode.MEMORY_BUDGET", 6 * 3 * 16 * 16 * 4 * 2),
    ),
    Follow(
        "the model keeps weights or state outside its parameters and buffers; leave out --audit rewind",
        lagging,
        named(*OVER_TIME, "--audit", "localize"),
    ),
    Follow(
        "Check the class order (--class-order), preprocessing (--mean, --std, --input-size) and model.",
        labelled(by_chance),
        back,
    ),
    Follow(
        "Check the class order (--class-order) and preprocessing (--mean, --std, --input-size, --channel-order); "
        "if it is that weak, say so: --min-reference-accuracy {}",
        barely,
        accepted,
    ),
    Follow(
        "Give the classes in the order the network was trained with, one per line: --class-order FILE.",
        permuted,
        named(*OF_FOLDERS, "--class-order", "order.txt"),
    ),
    Follow(
        "Give the order the network was trained with: --class-order {}, or a file of class names.", numbered, as_said
    ),
    Follow(
        "list all of the network's classes, one per line in label order, in a file: --class-order FILE",
        spare,
        all_listed,
    ),
    Follow(
        "list all of the model's labels, one per line in order, in a file: --class-order FILE",
        names_of_labels("ant\nbee\n"),
        three_names,
    ),
    Follow(
        "Check the order of the labels (--class-order), preprocessing and model.",
        lambda f: several(f, lambda y: np.random.default_rng(0).permutation(y)),
        lambda f, r: back_to_labels(f),
    ),
    # ---- rankings ----
    Follow(
        "--data FOLDER, manifest or .npz; or data = ... in a memaudit.toml (memaudit init)",
        lambda f: ("discover", *MODEL),
        named(*RANK),
    ),
    Follow("Give the training set, {} examples at least; or audit them: memaudit scan --flagged", few, named(*RANK)),
    Follow(
        "Audit examples that you name: memaudit scan --flagged",
        lambda f: (several(f), (*RANK, "--multi-label"))[1],
        named(*DRY, "--multi-label"),
    ),
    Follow("Choose the format by name: {}", lambda f: (*RANK, "-o", "rows.xlsx"), named(*RANK, "-o", "ranking.md")),
    Follow(
        "call it flagged….csv (rows that scan --flagged takes) or ranking….csv (all rows)",
        lambda f: (*RANK, "-o", "rows.csv"),
        named(*RANK, "-o", "ranking-rows.csv"),
    ),
    Follow("pip install 'memaudit[parquet]'", lambda f: (*RANK, "-o", "ranking.parquet"), fault=lambda: ARROW),
    Follow(
        "--flagged FOLDER, manifest or .npz; or flagged = ... in a memaudit.toml (memaudit init); "
        "or --data with the training set alone: what is memorized most is found and audited",
        lambda f: ("scan", *MODEL, "--reference", "reference.npz", *PLAN),
        named(*DRY),
    ),
    Follow(
        "Audit what it flags: memaudit scan MODEL --data DATA --flagged flagged.csv",
        ranked,
        named("scan", *MODEL, "--data", "reference.npz", "--flagged", "ranked/flagged.csv", *PLAN),
    ),
    Follow(
        "Run the same command again: it goes on from there.",
        lambda f: (*RANK, "--time-limit", "0.0001"),
        named(*RANK),
    ),
    Follow(
        "Run the same command again with a longer --time-limit, or name examples with --flagged.",
        lambda f: (*TRAINED, "--time-limit", "0.0001"),
        named(*TRAINED, "--time-limit", "600"),
        fault=lambda: mock.patch(
            "memaudit.cli.discover.Asked.write", return_value=(SimpleNamespace(status="incomplete"), None, None)
        ),
    ),
    Follow("if that is how it was trained: {}", lambda f: (*DRY, "--mean", "5,5,5", "--std", "1,1,1"), as_hinted),
    Follow("Use a machine with more memory, or --device cpu.", hungry, fault=little_memory),
]


def back_to_labels(folder: Path) -> tuple[str, ...]:
    """Each label at its own place again."""
    x, truth = pictures()
    np.savez(
        folder / "reference.npz",
        x=x[200:300].transpose(0, 3, 1, 2).astype(np.float32) / 255,
        y=np.eye(3, dtype=int)[truth[200:300]],
    )
    return (*DRY, "--multi-label")
