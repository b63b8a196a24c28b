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
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
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
    shutil.copy(folder / "vit" / f"epoch-{EPOCHS:03d}.safetensors", folder / "vit.safetensors")  # away from its series
    (folder / "vit.py").write_text(CODE)
    for name, rows in (("flagged", slice(0, CHANGED)), ("reference", slice(IMAGES, IMAGES + 300))):
        np.savez(folder / f"vit-{name}.npz", x=x[rows].numpy(), y=labels[rows].numpy())


def audits(folder: Path, device: str) -> Iterator[str]:
    """A row of the table for each audit, as it is made."""
    trained = train()
    write_work(folder, trained)
    flagged = trained.flagged
    for name, few in (("all-flagged", flagged), ("few", flagged.subset(range(4)))):
        np.savez(folder / f"{name}.npz", x=few.pixels.numpy(), y=few.labels.numpy())
    write_vit(folder, device)
    for model, command in MODELS.items():
        on_cpu = f"cpu, batches of {BATCHES[0]}"
        first = f"{device}, batches of {BATCHES[0]}"
        known = {on_cpu: audit(command, "cpu", BATCHES[0])[0]}
        for place, batch, against in [
            (first, BATCHES[0], on_cpu),
            (f"{first}, again", BATCHES[0], first),
            *((f"{device}, batches of {batch}", batch, first) for batch in BATCHES[1:]),
        ]:
            known[place], seconds = audit(command, device, batch)
            yield f"| {model} | {place} | {against} | {compared(known[against], known[place])} | {seconds:.1f} |"


def audit(command: Sequence[str], device: str, batch: int) -> tuple[dict[str, Any], float]:
    """What a scan reports, without what may differ between two runs, and its seconds."""
    start = time.perf_counter()
    options = ("--device", device, "--batch-size", str(batch), "--out", "out", "--images", "none", "-q")
    code = run(["scan", *command, *options])
    if code > 1:
        raise SystemExit(f"{command[0]} on {device} ended with {code}")
    report: dict[str, Any] = json.loads(Path("out", "report.json").read_text("utf-8"))
    del report["volatile"], report["command"], report["config"], report["environment"]["device"]
    return report, time.perf_counter() - start


def compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How two reports of the same audit differ, as cells of the table."""
    pairs = list(zip(one["findings"], other["findings"], strict=True))
    same = [(a, b) for a, b in pairs if a["units"] == b["units"]]
    apart = max(abs(a[k]["margin"] - b[k]["margin"]) for a, b in same for k in ("before", "after") if a[k] and b[k])
    outcomes = sum(a["outcome"] == b["outcome"] for a, b in pairs)
    return f"{len(pairs)} | {outcomes} | {len(same)} | {apart:.1e} | {'yes' if one == other else 'no'}"


def table(equal: Mapping[str, tuple[int, int]], rows: Sequence[str], device: str) -> str:
    lines = [
        f"# The same on the CPU and on {torch.cuda.get_device_name() if device.startswith('cuda') else device}",
        "",
        f"torch {torch.__version__}. Written by `python -m tests.benchmarks.devices`.",
        "",
        "Masks of example-tied dropout against the CPU's, channel by channel:",
        "",
        "| made | masks | equal |",
        "|---|---|---|",
        *(f"| {way} | {count:,} | {same:,} |" for way, (count, same) in equal.items()),
    ]
    if rows:
        lines += [
            "",
            "Audits, each against the one named; margins are compared where the units are the same.",
            "",
            "| network | audit | against | findings | same outcome | same units | margins apart | identical | s |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = None if args.out is None else args.out.absolute()
    equal, rows = masks(args.device), list[str]()
    publish(table(equal, rows, args.device), out)
    with TemporaryDirectory() as folder, chdir(folder):
        for row in audits(Path(folder), args.device):
            rows.append(row)
            publish(table(equal, rows, args.device), out)


if __name__ == "__main__":
    main()
