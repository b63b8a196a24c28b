"""Speed and cost of the search against the published one and against bare passes, on the same network and examples.

    python -m tests.benchmarks.search [--data DIR --series DIR] [--flagged 256] [--published 8] [--device cpu] --json

`--series` is a folder written by `python -m tests.benchmarks.cifar`; without one a small ResNet-9 is trained on
scikit-learn's digits. Prints one JSON object.

Ours trades units for reference accuracy by one weight, the published search has no such choice. So both are compared at
as many units: `weight` is the largest one at which ours needs no more than the published search on the same examples,
`units` and `reference_accuracy` are what it gives there, and all else is measured with it too, on all examples
(`mean_units`, `median_units`, `reference_kept`). `by_weight` has units and reference accuracy of the examples that both
ran at every weight, the default among them. Without the published search the weight is the default.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.audits.atypicality import atypicality, leave_one_out, observe
from memaudit.audits.localize.controls import Judge
from memaudit.audits.localize.job import Proposal
from memaudit.audits.localize.population import measure_population
from memaudit.audits.localize.search import RISK_WEIGHT, Search
from memaudit.data.examples import ExampleSet
from memaudit.data.images.preprocess import Preprocess
from memaudit.engine.answers import margin
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import Example
from memaudit.network.units import UnitSpace, select
from memaudit.system.memory import keeping_freed
from tests.benchmarks import published
from tests.benchmarks.cifar import MEAN, STD, build, change_labels, load, normalise, train
from tests.benchmarks.table import options
from tests.reference import auroc

EPOCHS = 30  # of the embedded data
SHARE = 0.15  # of its labels changed: 269 examples, of which 256 are flagged
SIDE = 24  # fewer pixels than CIFAR-10 has, so that the published search ends within minutes
WEIGHTS = (3.0, 5.0, 10.0, 15.0, 20.0, RISK_WEIGHT, 50.0, 100.0)


def sets(data: Path, images: int, share: float) -> tuple[ExampleSet, ExampleSet]:
    """The changed examples with their trained labels, and the clean rest."""
    pixels, labels = load(data / "cifar10-train.npz", images)
    changed, rows = change_labels(labels, share, seed=0)
    clean = np.setdiff1d(np.arange(images), rows)
    return example_set(pixels[rows], changed[rows], "flagged"), example_set(pixels[clean], labels[clean], "reference")


def example_set(pixels: np.ndarray, labels: np.ndarray, name: str) -> ExampleSet:
    examples = tuple(Example(id=f"{name}{i}", source=name, label=int(y), index=i) for i, y in enumerate(labels))
    return ExampleSet(examples, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), name)


def embedded(width: int, device: str) -> tuple[Adapter, ExampleSet, ExampleSet]:
    """A network that fits scikit-learn's digits, `SHARE` of their labels changed; those, and the clean rest."""
    digits = load_digits()
    small = torch.from_numpy(digits.images)[:, None].float() * 255 / 16
    large = F.interpolate(small, SIDE, mode="bilinear").round().to(torch.uint8)
    pixels = large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    truth = digits.target.astype(np.int64)
    labels, rows = change_labels(truth, SHARE, seed=0)
    torch.manual_seed(0)
    model = build("resnet9", width)
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        train(model, normalise(pixels), torch.from_numpy(labels), EPOCHS, Path(folder), device=device, lr=0.2)
    clean = np.setdiff1d(np.arange(len(truth)), rows)
    loaded = build("resnet9", width)  # in the memory format that a scan loads a file into, not the training's
    loaded.load_state_dict(model.state_dict())
    adapter = Adapter(loaded.to(device), architecture="resnet9", preprocess=preprocess(SIDE))
    return adapter, example_set(pixels[rows], labels[rows], "flagged"), example_set(pixels[clean], truth[clean], "rest")


def preprocess(side: int) -> Preprocess:
    return Preprocess((3, side, side), mean=MEAN, std=STD)


def load_adapter(series: Path, network: str, width: int, device: str) -> Adapter:
    model = build(network, width)
    model.load_state_dict(load_file(sorted(series.glob("epoch-*.safetensors"))[-1]))
    adapter = Adapter(model, architecture=network, preprocess=preprocess(32))
    adapter.module.to(device)
    return adapter


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rounds(
    evaluator: Evaluator, search: Search, examples: ExampleSet, rows: Sequence[int], count: int
) -> tuple[list[Proposal], list[tuple[float, float]]]:
    """What a search proposes; and, `count` times, its seconds and those of as many bare passes.

    By turns, because a machine's speed changes by the minute. Leaves `evaluator.passes` of one search.
    """
    device = str(evaluator.device)
    list(search.run(evaluator, examples, rows[: evaluator.batch_size]))  # warm-up
    timed: list[tuple[float, float]] = []
    for _ in range(count):
        evaluator.passes.clear()
        wait(device)
        start = time.perf_counter()
        proposals = list(search.run(evaluator, examples, rows))
        wait(device)
        seconds = time.perf_counter() - start
        forwards, backwards = evaluator.passes["audit forward"], evaluator.passes["audit backward"]
        timed.append((seconds, bare(evaluator, examples, rows, forwards, backwards)))
    return proposals, timed


def bare(evaluator: Evaluator, examples: ExampleSet, rows: Sequence[int], forwards: int, backwards: int) -> float:
    """Seconds of as many bare batched forward and forward + backward example-passes, no masks, no bookkeeping."""
    adapter, size = evaluator.adapter, evaluator.batch_size
    images = examples.batch([rows[i % len(rows)] for i in range(size)], evaluator.device)
    labels = examples.labels[[rows[i % len(rows)] for i in range(size)]].to(evaluator.device)

    def forward() -> None:
        with torch.no_grad():
            adapter.forward(images)

    def both() -> None:
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(margin(adapter.forward(inputs), labels).sum(), inputs)

    total = 0.0
    for run, count in ((forward, max(0, forwards - backwards)), (both, backwards)):
        run()
        repeats = max(3, round(count / size))
        wait(str(evaluator.device))
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait(str(evaluator.device))
        total += (time.perf_counter() - start) / (repeats * size) * count
    return total


def panel_accuracy(
    evaluator: Evaluator, space: UnitSpace, reference: ExampleSet, cuts: Sequence[Sequence[int]]
) -> float:
    """Mean reference accuracy after each cut, relative to before, on the last 256 reference rows."""
    rows = list(range(len(reference) - 256, len(reference)))
    labels = reference.labels[rows]
    before = float((evaluator.logits(reference, rows).argmax(1) == labels).float().mean())
    after = [
        float((evaluator.logits(reference, rows, [cut], space).argmax(1) == labels).float().mean()) for cut in cuts
    ]
    return mean(after) / before


def main() -> None:
    parser = options(__doc__, "series", required=False)
    parser.add_argument("--flagged", type=int, default=256)
    parser.add_argument("--published", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--max-units", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=31, help="searches, by turns with bare passes")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    args = parser.parse_args()
    if (args.data is None) != (args.series is None):
        parser.error("--data and --series are given together, or neither")
    if args.series is None:
        adapter, flagged, reference = embedded(args.width, args.device)
    else:
        adapter = load_adapter(args.series, args.network, args.width, args.device)
        flagged, reference = sets(args.data, args.images, args.share)
    with exact_arithmetic(), keeping_freed():
        result = measure(Evaluator(adapter, args.batch_size), flagged, reference, args)
    print(json.dumps(result, indent=None if args.json else 2))


def measure(
    evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, args: argparse.Namespace
) -> dict[str, Any]:
    adapter, device = evaluator.adapter, args.device
    space = select(adapter.sites(reference.batch([0, 1, 2], device)))
    margins = margin(evaluator.logits(flagged), flagged.labels)
    rows = [i for i in range(len(flagged)) if margins[i] > 0][: args.flagged]
    population = measure_population(evaluator, space, reference, range(512))
    live = torch.ones(space.total, dtype=torch.bool)
    weight, against = RISK_WEIGHT, dict[str, Any]()
    if args.published:
        both = rows[: args.published]
        against = published_figures(adapter, evaluator, flagged, reference, both, args.max_units)
        against["by_weight"] = by_weight = [
            trade(evaluator, Search(space, live, population, args.max_units, w), flagged, reference, both)
            for w in WEIGHTS
        ]
        matched = [t for t in by_weight if t["units"] <= against["reference_units"]]
        chosen = matched[-1] if matched else next(t for t in by_weight if t["weight"] == RISK_WEIGHT)
        weight, against = chosen["weight"], against | chosen
    search = Search(space, live, population, args.max_units, weight)
    proposals, timed = rounds(evaluator, search, flagged, rows, args.rounds)
    forwards, backwards = evaluator.passes["audit forward"], evaluator.passes["audit backward"]
    seconds, floor = (median(t[i] for t in timed) / len(rows) for i in (0, 1))
    low, overhead, high = quantiles((ours / bare for ours, bare in timed), n=4, method="inclusive")
    panel = list(range(512, 1024))
    judge = Judge(
        evaluator, space, reference, panel, measure_population(evaluator, space, reference, panel), live, 16, 16, 0
    )
    erased = [p for p in proposals if p.erased]
    random = judge.together([judge.random_units(flagged, p.row, p.cut, range(10), str(p.row)) for p in erased])
    result: dict[str, Any] = {
        "network": f"{args.network} width {args.width}",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "examples": len(rows),
        "fitted": float((margins > 0).float().mean()),
        "erased": len(erased) / len(rows),
        "mean_units": mean(len(p.cut) for p in erased),
        "median_units": median(len(p.cut) for p in erased),
        "random_erased": sum(r.erased for r in random) / sum(r.draws for r in random),
        "reference_kept": panel_accuracy(evaluator, space, reference, [p.cut for p in erased[:128]]),
        "seconds_per_example": seconds,
        "bare_seconds_per_example": floor,
        "overhead": overhead,
        "overhead_quartiles": [low, high],
        "forwards_per_example": forwards / len(rows),
        "backwards_per_example": backwards / len(rows),
        "atypicality_auroc": atypical(evaluator, space, flagged, reference),
    }
    if args.published:
        result |= against | {"speedup": against["published_seconds_per_example"] / seconds}
    else:
        result |= {"units": result["mean_units"], "reference_accuracy": result["reference_kept"]}
    return result


def trade(
    evaluator: Evaluator, search: Search, flagged: ExampleSet, reference: ExampleSet, rows: Sequence[int]
) -> dict[str, float]:
    """Units and reference accuracy of one weight; an example whose label is kept counts with all that was cut."""
    cuts = [p.cut for p in search.run(evaluator, flagged, rows)]
    return {
        "weight": search.weight,
        "units": mean(map(len, cuts)),
        "reference_accuracy": panel_accuracy(evaluator, search.space, reference, cuts),
    }


def published_figures(
    adapter: Adapter, evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, rows: Sequence[int], most: int
) -> dict[str, Any]:
    space = published.conv_outputs(adapter.module)
    start = time.perf_counter()
    cuts = [published.search(adapter, space, flagged, row, reference, most, seed=row) for row in rows]
    seconds = (time.perf_counter() - start) / len(rows)
    return {
        "reference_units": mean(len(c) for c in cuts),
        "reference_accuracy_published": panel_accuracy(evaluator, space, reference, cuts),
        "published_seconds_per_example": seconds,
        "published_examples": len(rows),
    }


def atypical(evaluator: Evaluator, space: UnitSpace, flagged: ExampleSet, reference: ExampleSet) -> float:
    """AUROC of the atypicality of flagged against as many true-labelled training examples held out of the reference."""
    count = min(200, len(flagged))
    own, other = flagged.subset(range(count)), reference.subset(range(count))
    rest = reference.subset(range(count, len(reference)))
    seen = observe(evaluator, rest, space)
    calibration = leave_one_out(seen.features, rest.labels)
    scores = [
        atypicality(observe(evaluator, s, space).features, s.labels, seen.features, rest.labels, calibration).score
        for s in (own, other)
    ]
    return auroc(scores[0].tolist(), scores[1].tolist())


if __name__ == "__main__":
    main()
