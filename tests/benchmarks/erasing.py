"""How much of a group of memorized labels an edit takes out, and what it costs: the frontier of `erase`.

    python -m tests.benchmarks.erasing --data DIR --model FILE [--network resnet9|vit|vit-stem] [--out FILE.md]
        [--device cpu] [--methods head finetune relearn] [--budgets 1 3] [--steps 0]

`--model` is the last checkpoint of `python -m tests.benchmarks.cifar`. Every variant is measured on the same examples:
flagged labels that the model fits, a third of which the choices below may look at; test images of which one part gives
the factors, one the validation accuracy and one the final figures, none in two parts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data.examples import ExampleSet
from memaudit.data.images.preprocess import Preprocess
from memaudit.engine.answers import margin
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.views import Drawn, View
from memaudit.erase import Choice, components, head, relearn, steps
from memaudit.erase.curvature import spectra
from memaudit.erase.finetune import BATCH, LONGER
from memaudit.erase.ground import Ground, first_uses
from memaudit.erase.group import Choose, Task, apart_from, split
from memaudit.erase.search import EditSearch, editable_layers
from memaudit.errors import ModelRejected
from memaudit.network.scoped import holding
from memaudit.settings import Silent
from tests.benchmarks.cifar import build, change_labels, load
from tests.benchmarks.search import example_set, preprocess
from tests.benchmarks.table import options

BUDGETS = (0.01, 0.03)
METHODS: Mapping[str, Choose] = {
    "head": head.choose,
    "finetune": steps.choose,
    "curvature": components.choose,
    "curvature-head": components.choose_with_head,
    "relearn": relearn.choose,
}
# Last layers and shares of curvature they keep, whatever that costs; and how few reference examples are tried.
FIXED = ((3, 0.8), (3, 0.6), (2, 0.6))
FEW = 1_000


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


class Tail(nn.Module):
    """ResNet-9 from its last stage on: what comes before is never edited here, so its outputs are computed once.

    Where those of several views of an image lie upon each other, it takes the first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layer3, self.head = model.layer3, model.head

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.layer3[0][0].in_channels]
        return self.head(F.adaptive_max_pool2d(self.layer3(x), 1).flatten(1))


def cached(adapter: Adapter, *sets: ExampleSet) -> tuple[Adapter, list[ExampleSet]]:
    """The tail of a ResNet-9 as a model of its own, and the sets as it sees them."""
    found = [seen_by_tail(adapter, examples) for examples in sets]
    shape = found[0].pixels.shape[1:]
    tail = Adapter(Tail(adapter.module), architecture="tail", preprocess=Preprocess((shape[0], shape[1], shape[2])))
    return tail, found


def seen_by_tail(adapter: Adapter, examples: ExampleSet, views: Sequence[View] = ()) -> ExampleSet:
    """What comes before the tail of a ResNet-9 makes of each image; of its `views` too, along the channels."""
    model = adapter.module

    def body(network: Adapter, images: Tensor, _: Tensor) -> Tensor:
        seen = [model.layer2(model.layer1(model.prep(network.preprocess.normalise(x)))) for x in shown(images)]
        return torch.cat(seen, 1).cpu()

    def shown(images: Tensor) -> list[Tensor]:
        return [images, *(view(images) for view in views)]

    with torch.no_grad():
        seen = torch.cat(Evaluator(adapter, 128).each(examples, range(len(examples)), body))
    return ExampleSet(examples.examples, seen, examples.source)


def share(right: Tensor) -> float:
    return float(right.float().mean())


def setup(args: argparse.Namespace) -> Bench:
    pixels, labels = load(args.data / "cifar10-train.npz", args.images)
    changed, rows = change_labels(labels, args.share, seed=0)
    tested, test_labels = load(args.data / "cifar10-test.npz", args.test_images)
    model = build(args.network, args.width)
    model.load_state_dict(load_file(args.model))
    adapter = Adapter(model, architecture=args.network, preprocess=preprocess(32))
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
    factors, validation, final = split(len(test), 0)
    return Bench(
        Evaluator(adapter, 128),
        flagged,
        truth,
        test,
        reference,
        list(everyone[::3]),
        [i for i in everyone if i % 3],
        Panel(test, factors),
        Panel(test, validation),
        list(final),
    )


def frontier(bench: Bench, steps: int) -> Iterator[Row]:
    """Every variant, from the intact network to the choice made within each budget, with clean steps and without."""
    yield bench.row("intact", time.time())
    start = time.time()
    ground = grounds(bench)
    layers = editable_layers(ground.module, ground.use)
    found = {s.layer: s for s in spectra(bench.evaluator, bench.factors, layers, torch.Generator().manual_seed(0))}
    print(f"factors {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    alone = EditSearch(ground, found)
    mended = replace(alone, steps=steps)
    names = list(found)
    shares, variant = (
        dict.fromkeys(names[-3:], FIXED[0][1]),
        f"last 3 layers, share {FIXED[0][1]:g}, {steps} clean steps",
    )
    yield measured(bench, mended, shares, variant, steps)
    yield measured(bench, mended, dict.fromkeys(names[-3:], 1.0), f"no cut, {steps} clean steps", steps)
    for search in (mended, alone):
        for budget in BUDGETS:
            best, tried = search.run(budget)
            least, most = min(best.kept.values()), max(best.kept.values())
            told = f"share {least:g}" if least == most else f"shares {least:g} to {most:g}"
            more = f", {best.steps} clean steps" if best.steps else ""
            name = f"**chosen within {100 * budget:g} points** of {len(tried)} edits"
            variant = f"{name}: last {len(best.kept)} layers, {told}{more}"
            yield measured(bench, search, best.kept, variant, best.steps)
    for count, kept in FIXED:
        yield measured(bench, alone, dict.fromkeys(names[-count:], kept), f"last {count} layers, share {kept:g}")
    few = replace(mended, ground=replace(ground, clean=ground.clean.at(torch.arange(FEW))))
    variant = f"last 3 layers, share {FIXED[0][1]:g}, {steps} clean steps on {FEW:,} reference examples alone"
    yield measured(bench, few, shares, variant, steps)


def chosen(bench: Bench, steps: int, methods: Sequence[str], budgets: Sequence[float]) -> Iterator[Row]:
    """The intact network, and what each method chooses within each budget; clean steps of the whole network beside it.

    Args:
        budgets: percent of test accuracy that may be lost.
    """
    yield bench.row("intact", time.time())
    ground = grounds(bench)
    for count in (steps, LONGER * steps) if steps else ():
        start = time.time()
        with holding(ground.module, ground.mended({}, 0, count)):
            yield bench.row(f"no edit, {count} clean steps", start)
    for name, budget in product(methods, budgets):
        start, choice = time.time(), Choice(max_test_drop=budget / 100, clean_steps=steps)
        try:
            found = METHODS[name](Task(ground, bench.factors, choice, Silent()))
        except ModelRejected as error:
            print(name, error, file=sys.stderr, flush=True)
            continue
        more = f", {found.best.steps} clean steps" if found.best.steps else ""
        with holding(ground.module, found.edit()):
            within = f"**{name}** within {budget:g} points, of {len(found.trials)} edits"
            yield bench.row(f"{within}: {found.done}{more}", start)


def grounds(bench: Bench) -> Ground:
    """What a choice rests on, as `erase` prepares it; there are no views of what the tail of a ResNet-9 sees."""
    evaluator, clean = bench.evaluator, apart_from(bench.reference, bench.validation, 0)
    return Ground(
        evaluator,
        clean,
        Panel(bench.flagged, bench.used),
        bench.validation,
        first_uses(evaluator, bench.reference),
        shown=None if isinstance(evaluator.adapter.module, Tail) else Drawn.usable(evaluator, clean),
    )


def measured(bench: Bench, search: EditSearch, kept: Mapping[str, float], variant: str, steps: int = 0) -> Row:
    start = time.time()
    with holding(bench.evaluator.adapter.module, search.edit(kept, steps)):
        return bench.row(variant, start)


def table(rows: Sequence[Row], args: argparse.Namespace) -> str:
    trained, shown = "", ", shown moved, mirrored and zoomed into"
    if args.network == "resnet9":
        trained, shown = " on the last three of eight convolutions and the classifier", ", shown as they are"
    lines = [
        f"# Erasing a group: {args.network}, CIFAR-10",
        "",
        (
            f"{args.images:,} training images, {100 * args.share:g} % of the labels changed; flagged are those the "
            f"model fits. Shares of flagged and of true labels that are predicted, and test accuracy on "
            f"images that chose nothing. Clean steps: `memaudit.erase.finetune`, {BATCH} of {args.reference:,} "
            f"reference examples each{shown}{trained}. torch {torch.__version__}, {args.device}. "
            "Written by `python -m tests.benchmarks.erasing`."
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
    parser = options(__doc__, "model")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--flagged", type=int, default=1_000)
    parser.add_argument("--reference", type=int, default=9_000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="these instead of the frontier of curvature")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0], help="with --methods, in points")
    args = parser.parse_args()
    with exact_arithmetic():
        rows: list[Row] = []
        bench = setup(args)
        methods = args.methods and chosen(bench, args.steps, args.methods, args.budgets)
        for row in methods or frontier(bench, args.steps):
            rows.append(row)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(table(rows, args), encoding="utf-8")
    print(table(rows, args))


if __name__ == "__main__":
    main()
