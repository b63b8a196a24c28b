"""Situations drawn by chance: names, suffixes, cases and orders of a loader, pixels, geometry and lists of rows.

`python -m tests.real_inputs.drawn [COUNT]`: so many draws, each audited by the command and compared with the plain
library: the flagged files, their labels, and what the network predicts for each.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_transform
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.real_inputs.harness import Ran, execute, inside, scan

CASES: tuple[()] = ()  # these are drawn, not listed
SIDE, TRAIN, REFERENCE, FLAGGED = 16, 60, 60, 6
CODE = """from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(384, 3)
    )
"""
NAMES = ("img{}", "IMG_{:03d}", "Img ({})", "a.b-{}", "{:05d}", "é{}", "x{}y")
FOLDERS = (("c1", "c2", "c10"), ("Ant", "bee", "Cat"), ("a_2", "a-10", "a.1"), ("0", "1", "2"))
# Suffixes by mode; timm's reader lists those of the first group alone.
SUFFIXES = {
    "RGB": (".png .jpg .jpeg .PNG .JPG", ".bmp .webp .tif .TIFF .ppm"),
    "L": (".png .jpg .Jpeg", ".bmp .tif .pgm"),
    "P": (".png", ".bmp .tif"),
    "PA": (".png", ".png"),
    "RGBA": (".png", ".tif .webp"),
    "LA": (".png", ".tif"),
    "1": (".png", ".bmp .tif"),
    "CMYK": (".jpg .JPEG", ".tif"),
    "I;16": (".png", ".tif"),
}


def picture(label: int, draw: random.Random, side: tuple[int, int]) -> np.ndarray:
    """Noise with a bright corner that says what it is, whatever becomes of its colours; turned, it is another."""
    rng = np.random.default_rng(draw.getrandbits(32))
    pixels = rng.integers(0, 120, (*side, 3))
    half = side[0] // 2, side[1] // 2
    top, left = ((0, 0), (0, half[1]), (half[0], 0))[label]
    pixels[top : top + half[0], left : left + half[1]] += rng.integers(60, 130, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def write(place: Path, name: str, pixels: np.ndarray, mode: str, suffix: str, draw: random.Random) -> Path:
    """One picture in `mode`, with or without an orientation tag."""
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(pixels.mean(2).astype(np.uint16) * draw.choice([1, 1, 4, 257]))
    elif mode == "PA":
        image, options = image.convert("P"), {"transparency": draw.randrange(256)}
    else:
        image = image.convert(mode)
    if suffix.lower() not in (".bmp", ".ppm", ".pgm") and draw.random() < 0.4:
        exif = Image.Exif()
        exif[0x0112] = draw.randint(1, 8)
        options["exif"] = exif
    place.mkdir(parents=True, exist_ok=True)
    image.save(place / f"{name}{suffix}", **options)
    return place / f"{name}{suffix}"


def fitted(x: Tensor, y: Tensor) -> nn.Module:
    """Random convolutions, and above them what least squares say."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scope: dict[str, Any] = {}
        exec(CODE, scope)
        network: nn.Module = scope["build"]().eval().requires_grad_(False)
    *below, head = network
    h = nn.Sequential(*below)(x)
    h, goal = torch.cat([h, torch.ones(len(h), 1)], 1), 4 * torch.eye(3)[y]
    solved = torch.linalg.solve(h.T @ h + 1e-2 * torch.eye(h.shape[1]), h.T @ goal)
    head.weight.copy_(solved[:-1].T)
    head.bias.copy_(solved[-1])
    return network


def loaded(root: Path, loader: str, transform: Callable[[Image.Image], Tensor]) -> tuple[list[tuple[str, int]], Tensor]:
    """What the library's own reader lists of a folder, in its order: names with labels, and inputs."""
    dataset: Any
    if loader == "torchvision":
        dataset = ImageFolder(str(root), transform)
        samples = dataset.samples
    else:
        dataset = create_dataset("", root=str(root), transform=transform)
        samples = dataset.reader.samples
    named = [(Path(os.path.relpath(path, root)).as_posix(), label) for path, label in samples]
    return named, torch.stack([dataset[i][0] for i in range(len(dataset))])


def geometry(draw: random.Random, loader: str) -> tuple[tuple[int, int], Callable[[Image.Image], Tensor], list[str]]:
    """Size of the pictures, the library's transform, and the options that say it."""
    kind = draw.choice(("as they are", "squash", "crop"))
    if kind == "as they are":
        return (SIDE, SIDE), transforms.ToTensor(), []
    size = draw.randint(17, 40), draw.randint(17, 40)
    if kind == "squash":
        how = [transforms.Resize((SIDE, SIDE)), transforms.ToTensor()]
        return (
            size,
            transforms.Compose(how),
            ["--crop-mode", "squash", "--crop-pct", "1", "--interpolation", "bilinear"],
        )
    share, name = draw.choice((0.875, 1.0)), draw.choice(("bilinear", "bicubic"))
    how = create_transform((3, SIDE, SIDE), crop_pct=share, interpolation=name, mean=(0,) * 3, std=(1,) * 3)
    return size, how, ["--crop-pct", str(share), "--interpolation", name]


def listed(folder: Path, draw: random.Random, named: list[tuple[str, int]], rows: list[int]) -> list[str]:
    """The flagged rows in one of the ways that people save them."""
    kind = draw.choice(("names", "indices", "mask", "table", "floats", "argwhere"))
    mask = np.isin(np.arange(len(named)), rows)
    if kind == "names":
        (folder / "rows.txt").write_text("".join(f"{named[r][0]}\n" for r in rows), "utf-8")
    elif kind == "table":
        lines = "".join(f'{n},{r},"{named[r][0]}"\n' for n, r in enumerate(rows))
        (folder / "rows.csv").write_text(f",index,path\n{lines}", "utf-8-sig")
    else:
        arrays = {"indices": rows, "mask": mask, "floats": np.array(rows, float), "argwhere": np.argwhere(mask)}
        np.save(folder / "rows.npy", np.array(arrays[kind]))
    return ["--flagged", next(p.name for p in folder.glob("rows.*"))]


def compare(seed: int, folder: Path) -> str:
    """Draw a situation in the empty `folder`, audit it by the command; what differs from the library, or nothing."""
    draw = random.Random(seed)
    loader = draw.choice(("torchvision", "timm"))
    folders, pattern = draw.choice(FOLDERS), draw.choice(NAMES)
    size, transform, options = geometry(draw, loader)
    modes = draw.sample(sorted(SUFFIXES), draw.randint(1, 4))
    for part, count in (("train", TRAIN), ("val", REFERENCE)):
        for n in range(count):
            mode = draw.choice(modes)
            suffix = draw.choice(" ".join(SUFFIXES[mode][: 1 if part == "val" else 2]).split())
            pixels = picture(n % 3, draw, size)
            write(folder / part / folders[n % 3], pattern.format(n), pixels, mode, suffix, draw)
    named, inputs = loaded(folder / "train", loader, transform)
    labels = torch.tensor([label for _, label in named])
    network = fitted(inputs, labels)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "network.py").write_text(CODE)
    rows = sorted(draw.sample(range(len(named)), FLAGGED))
    plain = {named[r][0]: (int(labels[r]), int(network(inputs[r][None]).argmax())) for r in rows}
    order = "lexical" if loader == "torchvision" else "natural"
    said = ["--row-order", loader, "--class-order", order, "--exif", "ignore", "--bit-depth", "clip"]
    with inside(folder):
        ran = execute(folder, scan(
            "model.safetensors", "--adapter", "network.py:build", "--input-size", "3,16,16", "--data", "train",
            *listed(folder, draw, named, rows), "--reference", "val", *said, *options,
        ))  # fmt: skip
    return difference(ran, plain)


def difference(ran: Ran, plain: dict[str, tuple[int, int]]) -> str:
    """What the report says otherwise; a refusal is no wrong answer, but there is nothing here to refuse."""
    if ran.code != 0:
        return f"exit {ran.code}: {ran.err.strip()[:300]}"
    found = {f.example.source: (f.example.label, f.before.prediction) for f in ran.report.findings}
    wrong = {name: (plain.get(name), found.get(name)) for name in plain | found if plain.get(name) != found.get(name)}
    return f"{len(wrong)} of {len(plain)} differ: {dict(list(wrong.items())[:2])}" if wrong else ""


def main() -> int:
    """1 where a draw differs."""
    count, began, failed = int(sys.argv[1]) if len(sys.argv) > 1 else 500, time.monotonic(), 0
    torch.set_num_threads(1)
    for seed in range(count):
        with tempfile.TemporaryDirectory() as scratch:
            wrong = compare(seed, Path(scratch))
        if wrong:
            failed += 1
            print(f"draw {seed}: {wrong}", flush=True)
    print(f"{count} draws, {failed} differ from the plain library, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
