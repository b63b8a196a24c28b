"""How much of a machine's speed the search leaves: full-size networks on a GPU, smaller images and fewer on the CPU.

    python -m tests.benchmarks.throughput [--device cuda] [--full] [--rounds 3] [--bf16]
        [--out reports/benchmarks/throughput-cuda.json]

Random weights, random images, the labels that the network gives them: what is found means nothing, the passes are
those of a search. Each network runs in a process of its own. Prints one JSON object a line: `share_of_bare` is the time
of as many bare batched forward and backward passes over the search's, both measured by turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from memaudit.adapters.base import Adapter
from memaudit.audits.localize.population import measure_population
from memaudit.audits.localize.search import Search
from memaudit.data.images.preprocess import Preprocess
from memaudit.engine.device import automatic_batch_size, exact_arithmetic
from memaudit.engine.evaluator import Evaluator
from memaudit.network.units import select
from memaudit.system.memory import keeping_freed
from tests.benchmarks.search import example_set, rounds
from tests.networks import ResNet9

REFERENCE = 256


@dataclass(frozen=True)
class Setting:
    """A network and what it is given; `full` on a GPU. A transformer's neurons are the most units it has."""

    side: int
    examples: int
    width: int = 64
    unit: str = "channel"


SETTINGS = {
    "resnet9": {False: Setting(32, 128, width=16), True: Setting(32, 2048)},
    "resnet50": {False: Setting(64, 32), True: Setting(224, 512)},
    "vit_base_patch16_224": {False: Setting(64, 32, unit="neuron"), True: Setting(224, 512, unit="neuron")},
}


def build(network: str, setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    if network == "resnet9":
        return ResNet9(width=setting.width)
    size = {"img_size": setting.side} if network.startswith("vit") else {}
    return timm.create_model(network, num_classes=10, **size)


def measure(network: str, setting: Setting, device: str, count: int, dtype: torch.dtype) -> dict[str, Any]:
    adapter = Adapter(
        build(network, setting).to(device),
        architecture=network,
        preprocess=Preprocess((3, setting.side, setting.side), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    shape = (setting.examples + REFERENCE, setting.side, setting.side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = example_set(pixels, np.zeros(len(pixels), dtype=np.int64), "images")
    size = automatic_batch_size(images.pixels[:1], torch.device(device))
    evaluator = Evaluator(adapter, size, gradient_dtype=dtype)
    said = evaluator.logits(images).argmax(1).numpy()
    labelled = example_set(pixels, said, "images")
    reference, flagged = labelled.subset(range(REFERENCE)), labelled.subset(range(REFERENCE, len(labelled)))
    space = select(adapter.sites(reference.batch([0, 1, 2], device)), setting.unit)
    population = measure_population(evaluator, space, reference, range(REFERENCE))
    search = Search(space, torch.ones(space.total, dtype=torch.bool), population, max_units=20)
    rows = range(len(flagged))
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    proposals, timed = rounds(evaluator, search, flagged, rows, count)
    seconds = median(ours for ours, _ in timed)
    return {
        "network": network,
        "input": [3, setting.side, setting.side],
        "parameters": adapter.parameters,
        "units": space.total,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "gradients": str(dtype).removeprefix("torch."),
        "batch_size": evaluator.batch_size,
        "examples": len(rows),
        "examples_per_second": len(rows) / seconds,
        "forward_passes_per_example": evaluator.passes["audit forward"] / len(rows),
        "backward_passes_per_example": evaluator.passes["audit backward"] / len(rows),
        "units_per_example": sum(len(p.cut) for p in proposals) / len(rows),
        "share_of_bare": median(bare / ours for ours, bare in timed),
        "peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak(),
    }


def resident_peak() -> float:
    """This process's own, in MiB: what `getrusage` says starts from the parent's."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="full size on the CPU too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="gradients in bfloat16; what is measured stays float32")
    parser.add_argument("--network", choices=SETTINGS, help="one network, in this process")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    full = args.full or args.device != "cpu"
    if args.network:
        with exact_arithmetic(), keeping_freed():
            dtype = torch.bfloat16 if args.bf16 else torch.float32
            print(json.dumps(measure(args.network, SETTINGS[args.network][full], args.device, args.rounds, dtype)))
        return
    lines = []
    for network in SETTINGS:
        command = [sys.executable, "-m", "tests.benchmarks.throughput", "--network", network, "--device", args.device]
        command += ["--rounds", str(args.rounds), *["--full"] * full, *["--bf16"] * args.bf16]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        lines.append(json.loads(ran.stdout))
        print(ran.stdout, end="", flush=True)
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
