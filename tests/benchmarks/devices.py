"""Whether a GPU finds what the CPU finds: masks of example-tied dropout, and audits in several batch sizes, twice.

    python -m tests.benchmarks.devices [--device cuda] [--out reports/benchmarks/devices-cuda.md]

Masks must be equal bit for bit, also compiled and after save and load. An audit must say the same to the byte when it
is made again on the same device (but for `volatile`); across devices and batch sizes the arithmetic's last digits
differ, and the table says how many findings name other units or another outcome, and how far margins are apart.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit import ExampleTiedDropout, example_ids
from memaudit.__main__ import run
from tests.benchmarks.cifar import build
from tests.benchmarks.cifar import train as train_network
from tests.benchmarks.table import publish
from tests.cli_support import MODEL, NPZ, write_work
from tests.conftest import digits, train

IDS = 4096
CHANNELS = (7, 64, 1000)
SEEDS = (0, 2**63 - 1)
VIT = ("vit.safetensors", "--adapter", "vit.py:build", "--input-size", "3,32,32", "--mean", "0.5,0.5,0.5", "--std",
       "0.25,0.25,0.25", "--flagged", "vit-flagged.npz", "--reference", "vit-reference.npz")  # fmt: skip
CODE = "from tests.benchmarks.cifar import build as network\n\n\ndef build():\n    return network('vit')\n"
IMAGES, CHANGED, EPOCHS = 600, 30, 60  # of digits, for the transformer
MODELS: dict[str, tuple[str, ...]] = {
    "convolutions": (*MODEL, "--flagged", "all-flagged.npz", *NPZ[2:], "--profile", "standard"),
    "convolutions, deep": (*MODEL, "--flagged", "few.npz", *NPZ[2:], "--profile", "deep"),
    "transformer": (*VIT, "--profile", "standard"),
}
BATCHES = (64, 7, 1)


def masks(device: str) -> dict[str, tuple[int, int]]:
    """By way of making them: masks compared with the CPU's, and those of them that are equal."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor([0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63)])
    ids = torch.cat([edges, torch.randint(-(2**62), 2**62, (IDS - len(edges),), generator=generator)])
    found: dict[str, list[int]] = {}
    for channels in CHANNELS:
        for seed in SEEDS:
            layer = ExampleTiedDropout(channels, 0.25, 0.2, seed)
            expected = layer.mask(ids)
            layer.to(device)
            told = ids.to(device)
            saved = io.BytesIO()
            torch.save(layer, saved)
            saved.seek(0)
            again: nn.Module = torch.load(saved, weights_only=False)
            compiled = torch.compile(layer, fullgraph=True)
            ways = {
                "one batch": layer.mask(told),
                "reversed": layer.mask(told.flip(0)).flip(0),
                "in batches of 7": torch.cat([layer.mask(part) for part in told.split(7)]),
                "saved and loaded": passed(again, told, channels),
                "compiled": passed(compiled, told, channels),
            }
            for way, mask in ways.items():
                counts = found.setdefault(way, [0, 0])
                counts[0] += len(ids)
                counts[1] += int((mask.cpu() == expected).all(1).sum())
    return {way: (compared, equal) for way, (compared, equal) in found.items()}


def passed(layer: nn.Module, ids: Tensor, channels: int) -> Tensor:
    """The mask, seen from what comes through."""
    with torch.no_grad(), example_ids(ids):
        through: Tensor = layer(torch.ones(len(ids), channels, device=ids.device))
    return through != 0


def write_vit(folder: Path, device: str) -> None:
    """A small transformer that fits some changed labels of digits, its code, and its data."""
    x, truth = digits()
    x = F.interpolate(x.repeat(1, 3, 1, 1), size=(32, 32), mode="bilinear")
    labels = truth.clone()
    labels[:CHANGED] = (labels[:CHANGED] + 1) % 10
    torch.manual_seed(0)
    model = build("vit")
    inputs = (x[:IMAGES] - 0.5) / 0.25
    train_network(model, inputs, labels[:IMAGES], EPOCHS, folder / "vit", device=device, lr=1e-3, batch=50, adam=True)
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "vit.safetensors")
    (folder / "vit.py").write_text(CODE)
    for name, rows in (("flagged", slice(0, CHANGED)), ("reference", slice(IMAGES, IMAGES + 300))):
        np.savez(folder / f"vit-{name}.npz", x=x[rows].numpy(), y=labels[rows].numpy())


def audits(folder: Path, device: str) -> dict[str, dict[str, Any]]:
    """Reports of every model by device and batch size; the first on the device is made twice."""
    trained = train()
    write_work(folder, trained)
    flagged = trained.flagged
    for name, few in (("all-flagged", flagged), ("few", flagged.subset(range(4)))):
        np.savez(folder / f"{name}.npz", x=few.pixels.numpy(), y=few.labels.numpy())
    write_vit(folder, device)
    os.chdir(folder)
    found: dict[str, dict[str, Any]] = {}
    for model, command in MODELS.items():
        places = [("cpu", BATCHES[0]), (device, BATCHES[0]), *((device, batch) for batch in BATCHES)]
        for number, (place, batch) in enumerate(places):
            start = time.perf_counter()
            out = f"out{number}"
            options = ("--device", place, "--batch-size", str(batch), "--out", out, "--images", "none", "-q")
            code = run(["scan", *command, *options])
            if code > 1:
                raise SystemExit(f"{model} on {place} ended with {code}")
            report = json.loads((folder / out / "report.json").read_text("utf-8"))
            report["seconds"] = time.perf_counter() - start
            del report["volatile"], report["command"], report["config"]
            again = " again" if number == 2 else ""
            found.setdefault(model, {})[f"{place}, batches of {batch}{again}"] = report
    return found


def compare(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """How two reports of the same audit differ."""
    pairs = list(zip(first["findings"], other["findings"], strict=True))
    alike = [(a[when], b[when]) for a, b in pairs if a["units"] == b["units"] for when in ("before", "after")]

    def without(report: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in report.items() if key != "seconds"}

    return {
        "findings": len(pairs),
        "outcomes": dict(Counter(a["outcome"] for a, _ in pairs)),
        "same_outcome": sum(a["outcome"] == b["outcome"] for a, b in pairs),
        "same_units": sum(a["units"] == b["units"] for a, b in pairs),
        "margin": max(abs(a["margin"] - b["margin"]) for a, b in alike if a and b),
        "identical": without(first) == without(other),
        "seconds": other["seconds"],
    }


def table(equal: Mapping[str, tuple[int, int]], reports: Mapping[str, Mapping[str, Any]], device: str) -> str:
    lines = [
        f"# The same on the CPU and on {name_of(device)}",
        "",
        f"torch {torch.__version__}. Written by `python -m tests.benchmarks.devices`.",
        "",
        "Masks of example-tied dropout against the CPU's, channel by channel:",
        "",
        "| made | masks | equal |",
        "|---|---|---|",
        *(f"| {way} | {compared:,} | {same:,} |" for way, (compared, same) in equal.items()),
        "",
        "Audits. Each row against the one named; the largest difference of a margin is among findings of equal units.",
        "",
        "| network | audit | against | findings | same outcome | same units | margins apart | identical | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, by_place in reports.items():
        places = list(by_place)
        for place in places[1:]:
            against = places[0] if place == places[1] else places[1]
            row = compare(by_place[against], by_place[place])
            print(row)
            lines.append(
                f"| {model} | {place} | {against} | {row['findings']} | {row['same_outcome']} | {row['same_units']} | "
                f"{row['margin']:.1e} | {'yes' if row['identical'] else 'no'} | {row['seconds']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else f"the {device}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = None if args.out is None else args.out.absolute()
    equal = masks(args.device)
    with TemporaryDirectory() as folder:
        reports = audits(Path(folder), args.device)
        os.chdir("/")
    publish(table(equal, reports, args.device), out)


if __name__ == "__main__":
    main()
