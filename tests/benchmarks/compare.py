"""Every way to choose units, on the same examples: what is erased, with how many units, and at what cost.

    python -m tests.benchmarks.compare --data DIR --series DIR [--network resnet9|vit] [--out FILE.md] [--only PATTERN]

A ranking is cut unit by unit until the label is lost or the budget is spent. Each set is then measured on reference
images and on other flagged examples that chose nothing. Writes FILE.md and, beside it, FILE.json; methods that `--only`
does not match keep the rows they have there.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median

import torch

from memaudit.audits.atypicality import live_units, observe
from memaudit.audits.localize.population import measure_population
from memaudit.audits.localize.search import RISK_WEIGHT, Search
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator
from memaudit.intervals import bootstrap, wilson
from memaudit.network.units import UnitSpace, select
from memaudit.settings import PROFILES
from tests.benchmarks import published
from tests.benchmarks.localizers import METHODS, Bench, Method, bench
from tests.benchmarks.search import load_adapter, sets
from tests.benchmarks.table import options, publish

WEIGHTS = (10.0, RISK_WEIGHT, 100.0)
PANEL = 256  # reference images a set is measured on, and other flagged examples

Cuts = list[list[int] | None]
"""Per example the units whose ablation loses the label; None where the budget did not do."""


@dataclass(frozen=True)
class Row:
    """One method on `examples` examples.

    Attributes:
        erased: share within the budget; units: median and mean of those.
        reference: right answers kept, relative to before, with its 95 % interval; others: the same of flagged labels.
        seconds: per example.
    """

    method: str
    examples: int
    erased: tuple[float, float, float]
    median_units: float
    units: float
    reference: tuple[float, float, float]
    others: float
    seconds: float


@dataclass(frozen=True)
class Judge:
    """What every set is measured on: examples that no method was shown."""

    evaluator: Evaluator
    reference: ExampleSet
    flagged: ExampleSet

    def row(self, method: str, space: UnitSpace, choose: Callable[[], Cuts]) -> Row:
        start = time.perf_counter()
        found = choose()
        seconds = (time.perf_counter() - start) / len(found)
        cuts = [cut for cut in found if cut is not None]
        kept = [self.kept(self.reference, space, cut) for cut in cuts]
        row = Row(
            method,
            len(found),
            (len(cuts) / len(found), *wilson(len(cuts), len(found))),
            median(map(len, cuts)) if cuts else float("nan"),
            mean(map(len, cuts)) if cuts else float("nan"),
            (mean(kept), *bootstrap(kept, 0)) if kept else (float("nan"),) * 3,
            mean(self.kept(self.flagged, space, cut) for cut in cuts) if cuts else float("nan"),
            seconds,
        )
        print(row, file=sys.stderr, flush=True)
        return row

    def kept(self, examples: ExampleSet, space: UnitSpace, cut: Sequence[int]) -> float:
        """Share of the labels still predicted; `examples` are those the intact model predicts."""
        said = self.evaluator.logits(examples, cuts=[cut], space=space).argmax(1)
        return float((said == examples.labels).float().mean())


def shortest(b: Bench, examples: ExampleSet, row: int, ranked: Sequence[int]) -> list[int] | None:
    """The first so many of `ranked` that lose the label."""
    logits = b.evaluator.logits(examples, [row] * len(ranked), [ranked[: n + 1] for n in range(len(ranked))], b.space)
    lost = (margin(logits, examples.labels[[row] * len(ranked)]) < 0).nonzero().flatten().tolist()
    return list(ranked[: lost[0] + 1]) if lost else None


def searched(b: Bench, examples: ExampleSet, rows: Sequence[int], most: int, weight: float, ahead: int) -> Cuts:
    """The product's search, all examples at once."""
    search = Search(b.space, b.live, b.population, most, weight=weight, look_ahead=ahead)
    found = {p.row: list(p.cut) if p.erased else None for p in search.run(b.evaluator, examples, rows)}
    return [found[row] for row in rows]


def as_published(b: Bench, examples: ExampleSet, rows: Sequence[int], most: int, space: UnitSpace) -> Cuts:
    """The published search, one example at a time."""
    cuts: Cuts = []
    for row in rows:
        cut = published.search(b.evaluator.adapter, space, examples, row, b.reference, most, seed=row)
        logits = b.evaluator.logits(examples, [row], [cut], space)
        cuts.append(cut if float(margin(logits, examples.labels[[row]])) < 0 else None)
    return cuts


def methods(b: Bench, flagged: ExampleSet, args: argparse.Namespace) -> dict[str, tuple[UnitSpace, Callable[[], Cuts]]]:
    """By name, the units each method chooses from and what chooses them."""
    rows, most = range(args.flagged), args.max_units
    found: dict[str, tuple[UnitSpace, Callable[[], Cuts]]] = {}
    for name, method in METHODS.items():
        if name.startswith("memaudit"):
            continue

        def choose(method: Method = method) -> Cuts:
            return [shortest(b, flagged, row, method(b, flagged, row, most)) for row in rows]

        found[name] = b.space, choose
    convolutions = published.conv_outputs(b.evaluator.adapter.module)
    if args.published and convolutions.total > b.space.total // 2:
        few = range(args.published)
        found["published greedy"] = convolutions, lambda: as_published(b, flagged, few, most, convolutions)
    for ahead in (0, PROFILES["deep"].look_ahead):
        for weight in WEIGHTS:
            name = f"memaudit{', deep' if ahead else ''}, reference weight {weight:g}"

            def own(weight: float = weight, ahead: int = ahead) -> Cuts:
                return searched(b, flagged, rows, most, weight, ahead)

            found[name + (" (default)" if weight == RISK_WEIGHT else "")] = b.space, own
    return found


def table(rows: Sequence[Row], args: argparse.Namespace, network: str) -> str:
    lines = [
        f"# Ways to choose units: {network}, CIFAR-10",
        "",
        (
            f"{args.images:,} training images, {100 * args.share:g} % of the labels changed; the same changed labels "
            f"that the model fits for every method, at most {args.max_units} units. Kept: right answers on {PANEL} "
            f"reference images, and labels of {PANEL} other flagged examples, that chose nothing; 95 % intervals. "
            f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, other work beside it. "
            f"Written by `python -m tests.benchmarks.compare`."
        ),
        "",
        "| method | examples | erased | median units | mean units | reference kept | other flagged | s / example |",
        "|---|---:|---|---:|---:|---|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.method} | {r.examples} | {r.erased[0]:.2f} ({r.erased[1]:.2f} to {r.erased[2]:.2f}) "
            f"| {r.median_units:g} | {r.units:.1f} | {r.reference[0]:.3f} ({r.reference[1]:.3f} to "
            f"{r.reference[2]:.3f}) | {r.others:.3f} | {r.seconds:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options(__doc__, "series")
    parser.add_argument("--flagged", type=int, default=32)
    parser.add_argument("--published", type=int, default=8, help="examples for the published search, which is slow")
    parser.add_argument("--max-units", type=int, default=20)
    parser.add_argument("--only", default="*", help="shell pattern of the methods to measure")
    args = parser.parse_args()
    before = {}
    if args.only != "*":
        if args.out is None:
            parser.error("--only needs --out: the other rows are read from the JSON beside it")
        before = {r["method"]: Row(**r) for r in json.loads(args.out.with_suffix(".json").read_text("utf-8"))}
    flagged, reference = sets(args.data, args.images, args.share)
    evaluator = Evaluator(load_adapter(args.series, args.network, args.width, args.device), 128)
    with exact_arithmetic():
        space = select(evaluator.adapter.sites(reference.batch([0, 1, 2], args.device)))
        live = live_units(space, observe(evaluator, reference.subset(range(2000)), space))
        b = bench(evaluator, space, live, reference, measure_population(evaluator, space, reference, range(512)))
        known = [fitted(evaluator, s) for s in (flagged, reference.subset(range(512, 1024)))]
        judge = Judge(
            evaluator, known[1].subset(range(PANEL)), known[0].subset(range(args.flagged, args.flagged + PANEL))
        )
        rows = [
            judge.row(name, *chosen) if fnmatch.fnmatchcase(name, args.only) else before[name]
            for name, chosen in methods(b, known[0], args).items()
        ]
    text = table(rows, args, args.network)
    publish(text, args.out, [asdict(r) for r in rows])


def fitted(evaluator: Evaluator, examples: ExampleSet) -> ExampleSet:
    """The examples whose label the model predicts."""
    right = margin(evaluator.logits(examples), examples.labels) > 0
    return examples.subset(right.nonzero().flatten().tolist())


if __name__ == "__main__":
    main()
