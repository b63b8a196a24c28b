"""How many examples a set may have: listing, decoding beside a DataLoader, and whole commands with their peak memory.

    python -m tests.benchmarks.scale make FOLDER --rows N [--distinct N] [--classes N]
    python -m tests.benchmarks.scale list FOLDER
    python -m tests.benchmarks.scale decode FOLDER [--rounds N] [--workers N]
    python -m tests.benchmarks.scale train FOLDER --out DIR
    python -m tests.benchmarks.scale watch [--kill SECONDS ...] -- discover MODEL ...

`make` writes JPEG files of 64 x 64 in class folders: a pattern for each class, and noise; one label in twenty is
another class's. Beyond `--distinct` files they are hard links. `list` prints the seconds and the peak memory of a
process that lists the folder, and holds names, labels and classes against torchvision's `ImageFolder`. `decode` reads
the folder by memaudit and by a `torch.utils.data.DataLoader` with as many processes, in turn, each in a process of its
own, and compares the pixels. `train` fits the network that `watch` runs a command with; `watch` prints the peak memory
of the command and of the processes that it starts, and kills it after so many seconds before it is run again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
BATCH = 256
LABEL_NOISE = 0.05
# Names that one file may have (ext4 allows 65,000).
LINKS = 60_000
# What the demo's network is for another input.
NETWORK = '''
"""The demo's network for pictures of 64 x 64; a stride keeps it as fast."""

import torch
from torch import nn

from memaudit.demo.network import Digits


class Pictures(Digits):
    default_cfg = {"input_size": (3, 64, 64)}

    def __init__(self) -> None:
        super().__init__()
        self.features[0] = nn.Conv2d(3, 32, 8, stride=8, bias=False)


def build() -> nn.Module:
    return Pictures()
'''


def picture(row: int, label: int) -> bytes:
    """JPEG number `row`: its class's pattern under a pattern and noise of its own."""
    own, shared = np.random.default_rng(row), np.random.default_rng(10**9 + label)
    coarse = 0.6 * shared.normal(size=(8, 8, 3)) + own.normal(size=(8, 8, 3))
    fine = np.kron(coarse, np.ones((SIDE // 8, SIDE // 8, 1))) * 40 + 128 + own.normal(size=(SIDE, SIDE, 3)) * 8
    buffer = io.BytesIO()
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make(folder: Path, rows: int, distinct: int, classes: int) -> None:
    """`rows` files in `classes` folders, of which `distinct` differ."""
    if rows > distinct * LINKS:
        raise SystemExit(f"{distinct} files cannot have {rows} names")
    rng = np.random.default_rng(0)
    changed, others = rng.random(rows) < LABEL_NOISE, rng.integers(1, classes, rows)
    first: list[Path] = []
    for number in range(classes):
        (folder / f"n{number:08d}").mkdir(parents=True, exist_ok=True)
    for row in range(rows):
        label = row % classes
        given = (label + int(others[row])) % classes if changed[row] else label
        path = folder / f"n{given:08d}" / f"n{given:08d}_{row}.JPEG"
        if row < distinct:
            path.write_bytes(picture(row, label))
            first.append(path)
        else:
            os.link(first[row % distinct], path)


def processor(which: int = resource.RUSAGE_SELF) -> float:
    """Processor seconds of this process, or of its children that have ended."""
    used = resource.getrusage(which)
    return used.ru_utime + used.ru_stime


def most_held() -> float:
    """MiB that this process has held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(*words: str) -> dict[str, Any]:
    """What a command of this module prints, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def list_once(folder: Path) -> dict[str, float]:
    """What it takes to list `folder` as torchvision would number it."""
    import torch  # what a command holds anyway is no part of the list

    from memaudit.data.classes import Classes
    from memaudit.data.folder import list_folder

    before, start, used = most_held(), time.perf_counter(), processor()
    found = list_folder(folder, Classes(), "lexical", "torchvision")
    seconds, work = time.perf_counter() - start, processor() - used
    assert torch
    return {"rows": len(found.rows), "seconds": seconds, "processor": work, "before": before, "peak": most_held()}


def compared(folder: Path) -> int:
    """How many rows were held against torchvision's."""
    from torchvision.datasets import ImageFolder

    from memaudit.data.classes import Classes
    from memaudit.data.folder import list_folder

    theirs, ours = ImageFolder(str(folder)), list_folder(folder, Classes(), "lexical", "torchvision")
    if tuple(theirs.classes) != ours.class_names or len(theirs.samples) != len(ours.rows):
        raise SystemExit("other classes or another number of rows than torchvision's ImageFolder")
    for row, (path, label) in zip(ours.rows, theirs.samples, strict=True):
        if (f"{folder}/{row.name}", row.label) != (path, label):
            raise SystemExit(f"row {row.index} is {row.name}, label {row.label}; torchvision has {path}, {label}")
    return len(theirs.samples)


def decode_once(which: str, folder: Path, workers: int) -> dict[str, Any]:
    """Every image of `folder` decoded once, in batches, by `memaudit` or by a `loader`; a digest of pixels and labels.

    Processor seconds count the decoding processes, which have ended by then.
    """
    import torch

    torch.set_num_threads(1)
    digest, start, used = hashlib.sha256(), time.perf_counter(), processor()
    if which == "memaudit":
        from memaudit.data import Preprocess, decode, read
        from memaudit.data.images.workers import end_shared

        decode.THREADS = workers
        found = read(folder, preprocess=Preprocess((3, SIDE, SIDE)), num_classes=None, row_order="torchvision")
        seconds, count = time.perf_counter() - start, len(found)
        batches = ((found.pixels[at : at + BATCH], found.labels[at : at + BATCH]) for at in range(0, count, BATCH))
    else:
        from torchvision import datasets, transforms

        images = datasets.ImageFolder(str(folder), transforms.PILToTensor())
        kept = list(torch.utils.data.DataLoader(images, BATCH, num_workers=workers))
        seconds, count = time.perf_counter() - start, len(images)
        batches = iter(kept)
    for pixels, labels in batches:
        digest.update(pixels.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    if which == "memaudit":
        end_shared()
    work = processor() - used + processor(resource.RUSAGE_CHILDREN)
    return {"rows": count, "seconds": seconds, "processor": work, "digest": digest.hexdigest()}


def decoding(folder: Path, workers: int, rounds: int) -> dict[str, Any]:
    """Images a second, by the clock and by processor seconds; the medians of `rounds` in turn."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(rounds):
        for which in ("loader", "memaudit"):
            found[which].append(apart("decode-once", str(folder), "--which", which, "--workers", str(workers)))
            print(which, {k: v if k == "digest" else round(v, 2) for k, v in found[which][-1].items()}, flush=True)
    if len({one["digest"] for each in found.values() for one in each}) != 1:
        raise SystemExit("memaudit and the DataLoader read other pixels or labels")
    clock = {name: median(one["rows"] / one["seconds"] for one in each) for name, each in found.items()}
    work = {name: median(one["rows"] / one["processor"] for one in each) for name, each in found.items()}
    share = {"clock": clock["memaudit"] / clock["loader"], "processor": work["memaudit"] / work["loader"]}
    return {"a second": clock, "a processor second": work, "share": share, "workers": workers, "rounds": rounds}


def train(folder: Path, out: Path, epochs: int = 4) -> None:
    """Fit the network to `folder`; `network.py` and `model.safetensors` are written."""
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional as F
    from torchvision import datasets, transforms

    out.mkdir(parents=True, exist_ok=True)
    (out / "network.py").write_text(NETWORK, encoding="utf-8")
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    network = space["build"]()
    images = datasets.ImageFolder(str(folder), transforms.ToTensor())
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(epochs):
        right = 0
        for x, y in torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=1):
            said = network(x)
            optimizer.zero_grad()
            F.cross_entropy(said, y).backward()
            optimizer.step()
            right += int((said.argmax(1) == y).sum())
        print(f"fitted {right / len(images):.3f}", flush=True)
    save_file(dict(network.state_dict()), out / "model.safetensors")


def peaks(process: int) -> dict[int, float]:
    """MiB that a process and those below it have held at the most, each."""
    found: dict[int, float] = {}
    waiting = [process]
    while waiting:
        number = waiting.pop()
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
            found[number] = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text(encoding="utf-8").split()]
    return found


def watch(words: list[str], kill: list[float]) -> dict[str, Any]:
    """Run the command, after `kill -9` of as many earlier runs as there are seconds given; its time and peak memory.

    `children` is the sum of what each process below it has held at the most: more than they ever held together.
    """
    for seconds in kill:
        process = subprocess.Popen([sys.executable, "-m", "memaudit", *words])
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            raise SystemExit(f"it ended within {seconds} s; nothing was killed")
        process.send_signal(signal.SIGKILL)
        process.wait()
    start, used = time.perf_counter(), processor(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, "-m", "memaudit", *words])
    held: dict[int, float] = {}
    while process.poll() is None:
        held |= peaks(process.pid)
        time.sleep(0.5)
    own = held.pop(process.pid)
    work = processor(resource.RUSAGE_CHILDREN) - used
    seconds = time.perf_counter() - start
    return {
        "code": process.returncode,
        "seconds": seconds,
        "processor": work,
        "peak": own,
        "children": sum(held.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("make", "list", "list-once", "decode", "decode-once", "train"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name == "make":
            command.add_argument("--rows", type=int, required=True)
            command.add_argument("--distinct", type=int)
            command.add_argument("--classes", type=int, default=10)
        if name.startswith("decode"):
            command.add_argument("--workers", type=int, default=2)
            command.add_argument("--rounds", type=int, default=3)
            command.add_argument("--which", default="memaudit")
        if name == "train":
            command.add_argument("--out", type=Path, required=True)
    watched = commands.add_parser("watch")
    watched.add_argument("--kill", type=float, nargs="*", default=[])
    watched.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    found: Any = None
    match args.command:
        case "make":
            make(args.folder, args.rows, args.distinct or args.rows, args.classes)
        case "list":
            found = apart("list-once", str(args.folder)) | {"as torchvision": compared(args.folder)}
        case "list-once":
            found = list_once(args.folder)
        case "decode":
            found = decoding(args.folder, args.workers, args.rounds)
        case "decode-once":
            found = decode_once(args.which, args.folder, args.workers)
        case "train":
            train(args.folder, args.out)
        case "watch":
            found = watch([word for word in args.words if word != "--"], args.kill)
    if found is not None:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
