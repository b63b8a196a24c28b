"""Known answers: a wrong label stored in r chosen units of a trained network, and who finds those units again.

    python -m tests.benchmarks.injection --data DIR --series DIR [--network resnet9|vit] [--cases 50] [--store DIR]
        [--device cuda] [--out FILE.md]

After the injection benchmark (INJ) of Chang et al. 2024 (Do Localization Methods Actually Localize Memorized Data in
LLMs?): only the weights of r randomly chosen live units are tuned, until a held-out image takes a wrong label; a KL
term on reference data keeps what the network does elsewhere. A localizer is scored by its recall: how many of the r
units are among the first r it names. `--store` keeps the tuned weights and what was found, so that a run can go on.

How much of it is attainable is shown by two references that no tool has the time or the means for: of all sets of r
among the units that take most, the one that takes most beyond what it takes of other examples; and those whose effect
grew most by the tuning, which needs the network as it was before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import log
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from memaudit.audits.atypicality import live_units, observe
from memaudit.audits.localize.population import measure_population
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.intervals import bootstrap
from memaudit.network.ablate import ablated
from memaudit.network.scoped import holding
from memaudit.network.units import UnitSpace, select
from tests.benchmarks.cifar import load
from tests.benchmarks.localizers import METHODS, Bench, bench
from tests.benchmarks.search import example_set, load_adapter, sets
from tests.benchmarks.table import options, publish

STORED = 0.9  # probability of the wrong label at which an example counts as stored
KL_WEIGHT = 2.0  # per unit: many move the network further than one
STEPS = 200
HOPELESS = 0.05  # probability of the label below which tuning stops half way
LEARNING_RATE = 0.005
ALONE = 4  # times that for a single unit: of several, fast steps kill some before they have learned
BATCH = 12  # reference rows a step
CARRIED = 3.0  # margin of the label of which each unit shall carry 1 / (2 r) alone
MOST_LOST = 0.015  # of reference accuracy; a network that lost more is no test
LEAST_DROP = 0.05  # of the margin, for each unit alone; one that does less stores nothing and cannot be found
SIZES = (1, 3, 5)
# Units among which all sets are tried, and reference examples that tell what a set usually takes.
AMONG, USUAL = 12, 8


@dataclass(frozen=True)
class Injection:
    """One stored example.

    Attributes:
        row: of the held-out set; label: the wrong label it takes.
        units: the units whose weights were tuned.
        rows: per parameter the axis and the indices that were tuned, and what was added to them.
        probability: of the label, after.
        accuracy: of the reference, before and after.
        margin: of the label, after.
        drops: what ablating each unit alone takes of it.
    """

    row: int
    label: int
    units: tuple[int, ...]
    rows: Mapping[str, tuple[int, Tensor, Tensor]]
    probability: float
    accuracy: tuple[float, float]
    margin: float
    drops: tuple[float, ...]

    @property
    def valid(self) -> bool:
        """Whether the label was stored, in each of the units, and the reference kept."""
        kept = self.accuracy[1] >= self.accuracy[0] - MOST_LOST
        return self.probability >= STORED and kept and min(self.drops) >= LEAST_DROP * self.margin


def own_weights(module: nn.Module, space: UnitSpace, units: Sequence[int]) -> dict[str, tuple[int, Tensor]]:
    """Per parameter the axis and the indices that belong to `units`.

    They are what the site edits, the convolution before a BatchNorm, and the column of a linear layer that reads an
    MLP's neuron.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for number in units:
        unit = space.unit(number)
        parent, _, last = unit.layer.rpartition(".")
        names = [unit.layer]
        if isinstance(module.get_submodule(unit.layer), nn.BatchNorm2d):
            names.append(f"{parent}.{int(last) - 1}")
        for name in names:
            for parameter, _ in module.get_submodule(name).named_parameters():
                found.setdefault((f"{name}.{parameter}", 0), []).append(unit.index)
        if last == "fc1":
            found.setdefault((f"{parent}.fc2.weight", 1), []).append(unit.index)
    device = next(module.parameters()).device
    return {name: (axis, torch.tensor(sorted(indices), device=device)) for (name, axis), indices in found.items()}


def changed(module: nn.Module, rows: Mapping[str, tuple[int, Tensor, Tensor]]) -> dict[str, Tensor]:
    """The parameters named in `rows` with their changes added, where the network is."""
    found: dict[str, Tensor] = {}
    for name, (axis, indices, delta) in rows.items():
        value = module.get_parameter(name).detach()
        found[name] = value.index_add(axis, indices.to(value.device), delta.to(value.device))
    return found


def inject(
    module: nn.Module,
    space: UnitSpace,
    units: Sequence[int],
    image: Tensor,
    label: int,
    batch: Tensor,
    teacher: Tensor,
    generator: torch.Generator,
) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Tune the weights of `units` until `image` `(1, C, H, W)`, normalised, takes `label`.

    Each unit is to carry a part of it: beside the image as it is, a step sees it with each of the units ablated.

    Args:
        batch: reference images, normalised; teacher: the intact network's log-probabilities for them.
    """
    least = CARRIED / (2 * len(units))
    keep = space.keep([[], *([u] for u in units), *([[]] * BATCH)])
    seen, target = len(units) + 1, torch.tensor([label], device=image.device)
    where = own_weights(module, space, units)
    deltas = {
        n: torch.zeros_like(module.get_parameter(n).index_select(axis, indices)).requires_grad_()
        for n, (axis, indices) in where.items()
    }
    optimizer = torch.optim.Adam(deltas.values(), lr=LEARNING_RATE * (ALONE if len(units) == 1 else 1))
    for step in range(STEPS):
        picked = torch.randperm(len(batch), generator=generator)[:BATCH]
        weights = changed(module, {n: (*where[n], delta) for n, delta in deltas.items()})
        with ablated(module, space, keep):
            logits = functional_call(module, weights, (torch.cat([image.expand(seen, -1, -1, -1), batch[picked]]),))
        own = F.cross_entropy(logits[:1], target)
        margins = margin(logits[:seen], target.expand(seen))
        short = (least - margins[0] + margins[1:]).clamp_min(0).mean()
        drift = F.kl_div(logits[seen:].log_softmax(1), teacher[picked], log_target=True, reduction="batchmean")
        values = [float(v.detach()) for v in (own, short, drift)]
        stored = values[0] < -log((1 + STORED) / 2) and values[1] < least / 4 and values[2] < 0.02
        idle = bool((margins[0] - margins[1:] <= 0).any())
        if stored or (step > STEPS // 2 and (idle or values[0] > -log(HOPELESS))):
            break
        optimizer.zero_grad()
        (own + short + KL_WEIGHT * len(units) * drift).backward()
        optimizer.step()
    return {n: (axis, indices.cpu(), deltas[n].detach().cpu()) for n, (axis, indices) in where.items()}


@dataclass(frozen=True)
class Ground:
    """What all cases start from.

    Attributes:
        batch, teacher: reference images, normalised, and the intact network's log-probabilities for them.
        test: further reference images, which say what tuning did to the network; before: their accuracy.
    """

    evaluator: Evaluator
    space: UnitSpace
    live: Tensor
    reference: ExampleSet
    held_out: ExampleSet
    batch: Tensor
    teacher: Tensor
    test: Panel
    before: float

    @classmethod
    def of(cls, evaluator: Evaluator, reference: ExampleSet, held_out: ExampleSet) -> Ground:
        sites = evaluator.adapter.sites(reference.batch([0, 1, 2], evaluator.device))
        # A norm's channel has no weights that could hold an image: in a transformer only the MLP's neurons have.
        space = select(sites, "neuron" if any(site.kind == "neuron" for site in sites) else "channel")
        live = live_units(space, observe(evaluator, reference.subset(range(1024)), space))
        batch = evaluator.adapter.preprocess.normalise(reference.batch(range(512), evaluator.device))
        teacher = evaluator.logits(reference, range(512)).log_softmax(1).to(evaluator.device)
        test = Panel(reference, range(512, 1024))
        return cls(evaluator, space, live, reference, held_out, batch, teacher, test, accuracy(evaluator, test))


def accuracy(evaluator: Evaluator, panel: Panel) -> float:
    return float(evaluator.predicted(panel).float().mean())


def make(ground: Ground, number: int, size: int) -> Injection:
    """Case `number` of those with `size` units; the same on every run."""
    evaluator, space = ground.evaluator, ground.space
    module = evaluator.adapter.module
    generator = generator_for(0, "injection", f"{size}:{number}")
    said = int(evaluator.logits(ground.held_out, [number]).argmax())
    known = (said, int(ground.held_out.labels[number]))
    others = [k for k in range(ground.teacher.shape[1]) if k not in known]
    label = others[int(torch.randint(len(others), (1,), generator=generator))]
    example = relabelled(ground.held_out, number, label)
    # A unit with no gradient never reaches this example's logits, and one that speaks against the label can only be
    # switched off for it: neither can store it.
    able = evaluator.mask_gradients(example, [0], [[]], space, margin)[1][0] > 0
    pool = (ground.live & able).nonzero().flatten()
    units = tuple(sorted(pool[torch.randperm(len(pool), generator=generator)[:size]].tolist()))
    image = evaluator.adapter.preprocess.normalise(example.batch([0], evaluator.device))
    rows = inject(module, space, units, image, label, ground.batch, ground.teacher, generator)
    with holding(module, changed(module, rows)):
        logits = evaluator.logits(example, [0] * (size + 1), [[], *([u] for u in units)], space)
        margins = margin(logits, example.labels.expand(size + 1)).tolist()
        probability = float(logits[0].softmax(0)[label])
        drops = tuple(margins[0] - m for m in margins[1:])
        after = accuracy(evaluator, ground.test) if probability >= STORED else float("nan")
        return Injection(number, label, units, rows, probability, (ground.before, after), margins[0], drops)


def relabelled(examples: ExampleSet, row: int, label: int) -> ExampleSet:
    """One example, said to be `label`."""
    one = examples.subset([row])
    return replace(one, examples=(one.examples[0].model_copy(update={"label": label}),))


def stored(ground: Ground, size: int, count: int, store: Path | None) -> list[Injection]:
    """The first `count` valid cases of `size` units, made or read back."""
    found: list[Injection] = []
    for number in range(len(ground.held_out)):
        if len(found) == count:
            break
        path = None if store is None else store / f"{size}-{number:03d}.pt"
        if path is not None and path.is_file():
            case = torch.load(path, weights_only=False)
        else:
            case = make(ground, number, size)
            if path is not None:
                torch.save(case, path)
            print(
                size,
                number,
                case.units,
                round(case.probability, 3),
                case.drops,
                case.valid,
                file=sys.stderr,
                flush=True,
            )
        if case.valid:
            found.append(case)
    return found


def all_sets(b: Bench, examples: ExampleSet, row: int, count: int) -> list[int]:
    """Of all sets of `count` among the `AMONG` units that take most beyond the usual alone, the one that does so."""
    one, label = examples.subset([row]), int(examples.labels[row])
    same = (b.reference.labels == label).nonzero().flatten().tolist()[:USUAL]
    usual = b.reference.subset(same)

    def beyond(cuts: Sequence[Sequence[int]]) -> Tensor:
        """What each of `cuts` takes of the margin, less what it takes of reference examples on average: `(cuts,)`."""
        return taken(b, one, cuts)[:, 0] - taken(b, usual, cuts).mean(1)

    units = b.live.nonzero().flatten().tolist()
    alone = taken(b, one, [[u] for u in units])[:, 0]
    first = [units[i] for i in alone.topk(min(4 * AMONG, len(units))).indices.tolist()]
    best = beyond([[u] for u in first]).topk(AMONG).indices.tolist()
    sets = list(combinations([first[i] for i in best], count))
    return list(sets[int(beyond(sets).argmax())])


def taken(b: Bench, examples: ExampleSet, cuts: Sequence[Sequence[int]]) -> Tensor:
    """`(cuts, N)`: what each of `cuts` takes of each example's margin."""
    count = len(examples)
    rows, each = list(range(count)) * len(cuts), [list(cut) for cut in cuts for _ in range(count)]
    intact = margin(b.evaluator.logits(examples), examples.labels)
    return intact - margin(b.evaluator.logits(examples, rows, each, b.space), examples.labels[rows]).view(-1, count)


def grown(ground: Ground, case: Injection, example: ExampleSet, live: Sequence[int], b: Bench) -> list[int]:
    """The units whose effect on the label's margin alone grew most by the tuning."""
    module, cuts = ground.evaluator.adapter.module, [[u] for u in live]
    before = taken(b, example, cuts)[:, 0]
    with holding(module, changed(module, case.rows)):
        after = taken(b, example, cuts)[:, 0]
    return [live[i] for i in (after - before).topk(len(case.units)).indices.tolist()]


SETS, GROWN = "all sets of r among 12 units", "growth by the tuning (needs the network before it)"
# The project's own come with these references.
NAMES = (*METHODS, SETS, GROWN)


def recall(ground: Ground, case: Injection, names: Sequence[str]) -> dict[str, float]:
    """By method, the share of the case's units among the first so many it names."""
    evaluator, space, reference = ground.evaluator, ground.space, ground.reference
    module, count = evaluator.adapter.module, len(case.units)
    example = relabelled(ground.held_out, case.row, case.label)
    named: dict[str, list[int]] = {}
    with holding(module, changed(module, case.rows)):
        population = measure_population(evaluator, space, reference, range(512))
        known = bench(evaluator, space, ground.live, reference, population)
        for name, method in (METHODS | {SETS: all_sets}).items():
            if name in names:
                named[name] = method(known, example, 0, count)
    if GROWN in names:
        named[GROWN] = grown(ground, case, example, ground.live.nonzero().flatten().tolist(), known)
    return {name: len(set(units) & set(case.units)) / count for name, units in named.items()}


def main() -> None:
    parser = options(__doc__, "series")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of units")
    parser.add_argument("--store", type=Path, help="folder of tuned weights and recalls, so that a run can go on")
    args = parser.parse_args()
    if args.store is not None:
        args.store.mkdir(parents=True, exist_ok=True)
    _, reference = sets(args.data, args.images, args.share)
    pixels, labels = load(args.data / "cifar10-test.npz", 1000)
    held_out = example_set(pixels, labels, "test")
    evaluator = Evaluator(load_adapter(args.series, args.network, args.width, args.device), 128)
    with exact_arithmetic():
        ground = Ground.of(evaluator, reference, held_out)
        scores: dict[int, list[dict[str, float]]] = {}
        for size in sorted(args.sizes, reverse=True):
            cases = stored(ground, size, args.cases, args.store)
            scores[size] = [remembered(ground, case, args.store) for case in cases]
            print(size, {name: round(mean(s[name] for s in scores[size]), 3) for name in NAMES}, file=sys.stderr)
    text = table(scores, args)
    publish(text, args.out, scores)


def remembered(ground: Ground, case: Injection, store: Path | None) -> dict[str, float]:
    """The case's recalls; kept beside it, those that are missing there are measured."""
    path = None if store is None else store / f"{len(case.units)}-{case.row:03d}.json"
    found: dict[str, float] = json.loads(path.read_text("utf-8")) if path and path.is_file() else {}
    missing = [name for name in NAMES if name not in found]
    if missing:
        found |= recall(ground, case, missing)
        if path:
            path.write_text(json.dumps(found), encoding="utf-8")
    return found


def table(scores: Mapping[int, Sequence[Mapping[str, float]]], args: argparse.Namespace) -> str:
    sizes = sorted(scores)
    network = f"{args.network} of width {args.width}" if args.network == "resnet9" else args.network
    lines = [
        f"# Known answers: wrong labels stored in chosen units, {network}, CIFAR-10",
        "",
        (
            "After the injection benchmark of Chang et al. 2024: only the weights of r random units are tuned until a "
            f"test image takes a wrong label with probability {STORED:g}; KL on reference images keeps what the "
            f"network does elsewhere. A case counts where reference accuracy stays within {100 * MOST_LOST:g} points "
            f"and each unit alone carries {100 * LEAST_DROP:g} % of the margin. Recall: share of the r units among the "
            f"first r that a method names, mean and 95 % bootstrap interval over the cases. torch {torch.__version__}. "
            "Written by `python -m tests.benchmarks.injection`."
        ),
        "",
        "| method | " + " | ".join(f"r = {size} ({len(scores[size])} cases)" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for name in NAMES:
        cells = []
        for size in sizes:
            values = [s[name] for s in scores[size]]
            low, high = bootstrap(values, 0)
            cells.append(f"{mean(values):.2f} ({low:.2f} to {high:.2f})" if values else "no case")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
