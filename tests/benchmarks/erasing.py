"""How much of a group of memorized labels an edit takes out, and what it costs: the frontier of `erase`.

    python -m tests.benchmarks.erasing --data DIR --model FILE [--network resnet9|vit] [--out FILE.md] [--device cpu]

`--model` is the last checkpoint of `python -m tests.benchmarks.cifar`. Every variant is measured on the same examples:
flagged labels that the model fits, a third of which the choices below may look at; test images of which one part gives
the factors, one the validation accuracy and one the final figures, none in two parts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.batchnorm import norms, reestimated
from memaudit.curvature import Spectrum, spectra
from memaudit.data.examples import ExampleSet
from memaudit.erase_group import Search, in_order
from memaudit.evaluate import Evaluator, Panel, exact_arithmetic, margin
from memaudit.images.preprocess import Preprocess
from memaudit.retrain import trainable, training
from memaudit.states import holding
from tests.benchmarks.cifar import MEAN, STD, build, change_labels, load
from tests.benchmarks.search import example_set

BUDGETS = (0.01, 0.03)


@dataclass(frozen=True)
class Row:
    """One variant on the final examples."""

    variant: str
    used: float
    unused: float
    true: float
    test: float
    seconds: float


@dataclass
class Bench:
    """The network, its examples and the splits."""

    evaluator: Evaluator
    flagged: ExampleSet
    truth: Tensor
    test: ExampleSet
    reference: ExampleSet
    used: list[int]
    unused: list[int]
    factors: Panel
    validation: Panel
    final: list[int]

    def row(self, variant: str, start: float) -> Row:
        """What the network predicts as it stands."""
        rows = [*self.used, *self.unused]
        said = self.evaluator.logits(self.flagged, rows).argmax(1)
        labels = self.flagged.labels[rows]
        right = said == labels
        tested = self.evaluator.logits(self.test, self.final).argmax(1) == self.test.labels[self.final]
        split = len(self.used)
        found = Row(
            variant,
            share(right[:split]),
            share(right[split:]),
            share(said == self.truth[rows]),
            share(tested),
            time.time() - start,
        )
        print(found, file=sys.stderr, flush=True)
        return found

    def clean_steps(self, steps: int, rate: float = 1e-3, batch: int = 64) -> None:
        """Train the network as it stands on reference examples, and estimate BatchNorm anew."""
        module = self.evaluator.adapter.module
        order = torch.randperm(len(self.reference), generator=torch.Generator().manual_seed(0)).tolist()
        with trainable(module, [n for n, _ in module.named_parameters()]) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)

            def step(images: Tensor, labels: Tensor) -> None:
                optimizer.zero_grad()
                with torch.enable_grad(), training(list(norms(module).values())):
                    F.cross_entropy(self.evaluator.adapter.forward(images), labels).backward()
                optimizer.step()

            rows = (order * (1 + steps * batch // len(order)))[: steps * batch]
            self.evaluator.each(self.reference, rows, step, batch=batch, backward=1)


class Tail(nn.Module):
    """ResNet-9 from its last stage on: what comes before is never edited here, so its outputs are computed once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layer3, self.head = model.layer3, model.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_max_pool2d(self.layer3(x), 1).flatten(1))


def cached(adapter: Adapter, *sets: ExampleSet) -> tuple[Adapter, list[ExampleSet]]:
    """The tail of a ResNet-9 as a model of its own, and the sets as it sees them."""
    model = adapter.module

    def features(examples: ExampleSet) -> ExampleSet:
        def body(images: Tensor, _: Tensor) -> Tensor:
            with torch.no_grad():
                return model.layer2(model.layer1(model.prep(adapter.preprocess.normalise(images)))).cpu()

        seen = torch.cat(Evaluator(adapter, 128).each(examples, range(len(examples)), body))
        return ExampleSet(examples.examples, seen, examples.source)

    found = [features(examples) for examples in sets]
    shape = found[0].pixels.shape[1:]
    tail = Adapter(Tail(model), architecture="tail", preprocess=Preprocess((shape[0], shape[1], shape[2])))
    return tail, found


def share(right: Tensor) -> float:
    return float(right.float().mean())


def setup(args: argparse.Namespace) -> Bench:
    pixels, labels = load(args.data / "cifar10-train.npz", args.images)
    changed, rows = change_labels(labels, args.share, seed=0)
    tested, test_labels = load(args.data / "cifar10-test.npz", args.test_images)
    model = build(args.network, args.width)
    model.load_state_dict(load_file(args.model))
    adapter = Adapter(model, architecture=args.network, preprocess=Preprocess((3, 32, 32), mean=MEAN, std=STD))
    adapter.module.to(args.device)
    evaluator = Evaluator(adapter, 128)
    flagged, test = example_set(pixels[rows], changed[rows], "flagged"), example_set(tested, test_labels, "test")
    clean = np.setdiff1d(np.arange(len(labels)), rows)[: args.reference]
    reference, truth = example_set(pixels[clean], labels[clean], "reference"), torch.from_numpy(labels[rows])
    fitted = (margin(evaluator.logits(flagged), flagged.labels) > 0).nonzero().flatten().tolist()[: args.flagged]
    flagged, truth = flagged.subset(fitted), truth[fitted]
    if args.network == "resnet9":
        adapter, (flagged, test, reference) = cached(adapter, flagged, test, reference)
    everyone = range(len(flagged))
    a, b = round(0.2 * len(test)), round(0.4 * len(test))
    return Bench(
        Evaluator(adapter, 128),
        flagged,
        truth,
        test,
        reference,
        list(everyone[::3]),
        [i for i in everyone if i % 3],
        Panel(test, range(a)),
        Panel(test, range(a, b)),
        list(range(b, len(test))),
    )


def frontier(bench: Bench, steps: int) -> list[Row]:
    """Every variant, from the intact network to the choice made within each budget, with clean steps and without."""
    module = bench.evaluator.adapter.module
    rows = [bench.row("intact", time.time())]
    start = time.time()
    layers, use = in_order(bench.evaluator, bench.reference)
    found = {s.layer: s for s in spectra(bench.evaluator, bench.factors, layers, torch.Generator().manual_seed(0))}
    print(f"factors {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    calibration = Panel(bench.reference, range(512))
    flagged = Panel(bench.flagged, bench.used)
    search = Search(bench.evaluator, found, calibration, flagged, bench.validation, use)
    names = list(found)
    for last, kept in ((3, 0.8), (3, 0.75), (2, 0.6)):
        shares = dict.fromkeys(names[-last:], kept)
        rows.append(measured(bench, search, shares, f"last {last} layers, share {kept:g}"))
    for budget in BUDGETS:
        best, _ = search.run(budget)
        told = ", ".join(f"{path} {kept:g}" for path, kept in best.kept.items())
        rows.append(measured(bench, search, best.kept, f"chosen within {100 * budget:g} points: {told}"))
        if steps:
            rows.append(measured(bench, search, best.kept, f"the same, then {steps} clean steps", steps))
    if steps:
        saved = {n: p.detach().clone() for n, p in module.named_parameters()}
        with holding(module, saved):
            start = time.time()
            bench.clean_steps(steps)
            with holding(module, reestimated(bench.evaluator, {}, calibration)):
                rows.append(bench.row(f"no edit, {steps} clean steps", start))
    return rows


def measured(bench: Bench, search: Search, kept: Mapping[str, float], variant: str, steps: int = 0) -> Row:
    module = bench.evaluator.adapter.module
    start = time.time()
    own = {n: t.detach().clone() for n, t in module.named_parameters()}
    with holding(module, {**own, **search.edit(kept)}):
        if steps:
            bench.clean_steps(steps)
            with holding(module, reestimated(bench.evaluator, {}, search.calibration)):
                return bench.row(variant, start)
        return bench.row(variant, start)


def table(rows: Sequence[Row], args: argparse.Namespace, found: Mapping[str, Spectrum] | None = None) -> str:
    lines = [
        f"# Erasing a group: {args.network}, CIFAR-10",
        "",
        (
            f"{args.images:,} training images, {100 * args.share:g} % of the labels changed; flagged are those the "
            f"model fits. Shares of flagged and of true labels that are predicted, and test accuracy on "
            f"images that chose nothing. Clean steps: AdamW, 64 reference examples each. torch {torch.__version__}, "
            f"{args.device}. Written by `python -m tests.benchmarks.erasing`."
        ),
        "",
        "| variant | flagged label, used for choosing | never used | true label | test accuracy | change, points |",
        "|---|---|---|---|---|---|",
    ]
    intact = rows[0].test
    for r in rows:
        change = 100 * (r.test - intact)
        lines.append(f"| {r.variant} | {r.used:.3f} | {r.unused:.3f} | {r.true:.3f} | {r.test:.3f} | {change:+.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--network", choices=["resnet9", "vit"], default="resnet9")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--flagged", type=int, default=1_000)
    parser.add_argument("--reference", type=int, default=9_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with exact_arithmetic():
        text = table(frontier(setup(args), args.steps), args)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
