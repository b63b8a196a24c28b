"""What safe loading costs, for a ResNet-50: against the libraries' own loading, and for the whole command.

    python -m tests.benchmarks.loading [--arch resnet50] [--rounds 5]

Prints one JSON object of medians in seconds; every load has a process of its own, and the kinds take turns.
`safetensors`: reading the file, by memaudit (checks included, digests on their way) and by the library with
`backend="pread"`, which reads every byte as memaudit does (its default maps the file and reads nothing yet).
`inspect`: the whole command on a `.safetensors` and on a `.pth` file; their difference is what the child costs a user.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import timm
import torch
from safetensors.torch import save_file

READ = """
import sys, time, torch
from safetensors.torch import load_file
import memaudit.checkpoints.tensors
from memaudit.checkpoints import read
load = {"ours": read, "library": lambda path: load_file(path, backend="pread"), "mapped": load_file}[sys.argv[1]]
start = time.perf_counter()
kept = load(sys.argv[2])
print(time.perf_counter() - start)
"""


def reading(how: str, path: Path) -> float:
    """Seconds of one load in a new process."""
    command = [sys.executable, "-c", READ, how, str(path)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def inspecting(path: Path) -> float:
    """Seconds of `memaudit inspect`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "memaudit", "inspect", str(path)], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    state = timm.create_model(options.arch).state_dict()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        pickled, plain = Path(name) / "model.pth", Path(name) / "model.safetensors"
        torch.save(state, pickled)
        save_file(state, plain)
        for _ in range(options.rounds):
            for how in ("ours", "library", "mapped"):
                times[how].append(reading(how, plain))
            for path in (plain, pickled):
                times[path.suffix].append(inspecting(path))
        size = plain.stat().st_size
    found = {name: median(values) for name, values in times.items()}
    child = found[".pth"] - found[".safetensors"]
    read = {name: round(found[name], 3) for name in ("ours", "library", "mapped")}
    commands = {suffix: round(found[suffix], 2) for suffix in (".safetensors", ".pth")}
    print(
        json.dumps(
            {
                "arch": options.arch,
                "mib": round(size / 2**20),
                "safetensors": {**read, "ratio": round(found["ours"] / found["library"], 2)},
                "inspect": {**commands, "child": round(child, 2)},
            }
        )
    )


if __name__ == "__main__":
    main()
