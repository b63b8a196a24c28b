"""The sample report on CIFAR-10: a small ResNet-9 with 10 % of its labels changed, every audit, in one command.

    python -m tests.benchmarks.over_time --data DIR --series DIR [--out reports/sample-cifar10-resnet9] [--flagged 200]

`--series` holds what `tests.benchmarks.cifar` wrote (`epoch-001.safetensors` ...); it is trained first where it is
empty. `--flagged` of the changed labels and `--reference` of the clean training images are audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memaudit import report
from memaudit.__main__ import run
from tests.benchmarks.cifar import MEAN, STD, change_labels, load

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Retraining one group on clean data alone leaves this changed-label accuracy, group by group: a published reproduction
# on a ResNet-9 of full width and all of CIFAR-10, in which every layer could train.
PUBLISHED = (0.96, 0.69, 0.77, 0.57, 0.20, 0.39, 0.65, 0.63, 0.59)


def write_sets(data: Path, folder: Path, images: int, flagged: int, reference: int, test: int) -> None:
    """`flagged.npz` (labels as trained), `reference.npz` and `test.npz`."""
    pixels, truth = load(data / "cifar10-train.npz", images)
    labels, changed = change_labels(truth, 0.1, seed=0)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(changed, min(flagged, len(changed)), replace=False))
    clean = np.sort(rng.choice(np.setdiff1d(np.arange(images), changed), reference, replace=False))
    np.savez(folder / "flagged.npz", x=pixels[chosen], y=labels[chosen], true_label=truth[chosen], id=chosen)
    np.savez(folder / "reference.npz", x=pixels[clean], y=truth[clean])
    held_out, held_out_labels = load(data / "cifar10-test.npz", test)
    np.savez(folder / "test.npz", x=held_out, y=held_out_labels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--series", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("reports/sample-cifar10-resnet9"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--flagged", type=int, default=200)
    parser.add_argument("--reference", type=int, default=3000)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--epochs", type=int, default=14)
    args = parser.parse_args(arguments)
    if not sorted(args.series.glob("epoch-*.safetensors")):
        command = [sys.executable, "-m", "tests.benchmarks.cifar", "--data", str(args.data), "--out", str(args.series)]
        subprocess.run([*command, "--images", str(args.images), "--epochs", str(args.epochs)], check=True)
    model = sorted(args.series.glob("epoch-*.safetensors"))[-1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sets(args.data, folder, args.images, args.flagged, args.reference, 2000)
        (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
        run([
            "scan", str(model), "--adapter", "tests/networks.py:ResNet9", "--flagged", str(folder / "flagged.npz"),
            "--reference", str(folder / "reference.npz"), "--test", str(folder / "test.npz"),
            "--class-order", str(folder / "classes.txt"), "--input-size", "3,32,32",
            "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)),
            "--audit", "all", "--profile", args.profile, "--images", "none", "--exit-zero", "--out", str(args.out),
        ])  # fmt: skip
    report.write(report.read(args.out / "report.json"), args.out / "report.md")
    layers = json.loads((args.out / "report.json").read_text(encoding="utf-8"))["layers"]
    print("group, layer, changed labels back, interval, reference, published")
    for number, (layer, published) in enumerate(zip(layers, PUBLISHED, strict=True)):
        found = layer["retrain"]
        print(number, layer["layer"], found["flagged"], (found["low"], found["high"]), found["reference"], published)


if __name__ == "__main__":
    main()
