"""Memory and time of a scan as the number of flagged examples grows: the demo's network, the standard profile.

    python -m tests.benchmarks.many [--counts 1000 10000] [--out reports/benchmarks/many.md]

Flagged are digits with a little noise, each another image, labelled as the network labels them; every scan is a process
of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from memaudit.demo import training as demo
from memaudit.demo.network import build
from tests.benchmarks.table import publish

# The process says its own peak: what wait4 says of a child starts from its parent's.
SCAN = """
import sys, time
from memaudit.__main__ import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], time.process_time(), file=sys.stderr)
"""


@dataclass(frozen=True)
class Run:
    """One scan: peak resident memory in MiB, seconds by the clock and of processor time, bytes of `report.json`."""

    flagged: int
    peak: float
    seconds: float
    cpu: float
    report: int


def write(folder: Path, count: int) -> Path:
    """`count` flagged images as `.npz`."""
    digits = load_digits().images
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (count, 8, 8))
    pixels = np.clip(digits[np.arange(count) % len(digits)] * 255 / 16 + noise, 0, 255).round().astype(np.uint8)
    model = build()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    with torch.no_grad():
        labels = model(torch.from_numpy(pixels[:, None]).float() / 255).argmax(1).numpy()
    path = folder / f"flagged-{count}.npz"
    np.savez(path, x=pixels, y=labels)
    return path


def scan(folder: Path, count: int) -> Run:
    out = folder / f"report-{count}"
    options = demo.Demo(folder, 0, 0, 0.0, 0.0).scan
    options[options.index("--flagged") + 1] = str(write(folder, count))
    start = time.perf_counter()
    arguments = [*options, "--audit", "localize", "-q", "--exit-zero", "--out", str(out)]
    child = subprocess.run([sys.executable, "-c", SCAN, *arguments], capture_output=True, text=True, check=True)
    peak, cpu = map(float, child.stderr.split()[-2:])
    report = (out / "report.json").stat().st_size
    return Run(count, peak / 1024, time.perf_counter() - start, cpu, report)


def table(runs: list[Run]) -> str:
    lines = [
        "# Many flagged examples",
        "",
        (
            f"`memaudit scan` of the demo's network, standard profile, localization alone; torch {torch.__version__}. "
            "Written by `python -m tests.benchmarks.many`."
        ),
        "",
        "| flagged | peak memory, MiB | seconds | processor seconds | per example, ms | report.json, MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for r in runs:
        lines.append(
            f"| {r.flagged:,} | {r.peak:.0f} | {r.seconds:.0f} | {r.cpu:.0f} | {1000 * r.cpu / r.flagged:.1f} "
            f"| {r.report / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo.make(folder)
        runs = []
        for count in args.counts:
            runs.append(scan(folder, count))
            print(runs[-1], file=sys.stderr, flush=True)
    text = table(runs)
    publish(text, args.out)


if __name__ == "__main__":
    main()
