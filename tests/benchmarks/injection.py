"""Known answers: a wrong label stored in r chosen units of a trained network, and who finds those units again.

    python -m tests.benchmarks.injection --data DIR --series DIR [--network resnet9|vit] [--cases 50] [--store DIR]

After the injection benchmark (INJ) of Chang et al. 2024 (Do Localization Methods Actually Localize Memorized Data in
LLMs?): only the weights of r randomly chosen live units are tuned, until a held-out image takes a wrong label; a KL
term on reference data keeps what the network does elsewhere. A localizer is scored by its recall: how many of the r
units are among the first r it names. `--store` keeps the tuned weights, so that a second run only searches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from memaudit.controls import generator_for
from memaudit.data.examples import ExampleSet
from memaudit.evaluate import Evaluator, exact_arithmetic, margin
from memaudit.fit import live_units, observe
from memaudit.intervals import bootstrap
from memaudit.localize import measure_population
from memaudit.states import holding
from memaudit.units import UnitSpace, select
from tests.benchmarks.cifar import load
from tests.benchmarks.localizers import METHODS, bench
from tests.benchmarks.search import example_set, load_adapter, sets

STORED = 0.9  # probability of the wrong label at which an example counts as stored
KL_WEIGHT = 10.0
STEPS = 200
LEARNING_RATE = 0.02
BATCH = 24  # reference rows a step
MOST_LOST = 0.015  # of reference accuracy; a network that lost more is no test
LEAST_DROP = 0.05  # of the margin, for each unit alone; one that does less stores nothing and cannot be found
SIZES = (1, 3, 5)


@dataclass(frozen=True)
class Injection:
    """One stored example.

    Attributes:
        row: of the held-out set; label: the wrong label it takes.
        units: the units whose weights were tuned.
        rows: per parameter the rows that were tuned, and what was added to them.
        probability: of the label, after.
        accuracy: of the reference, before and after.
        margin: of the label, after.
        drops: what ablating each unit alone takes of it.
    """

    row: int
    label: int
    units: tuple[int, ...]
    rows: Mapping[str, tuple[Tensor, Tensor]]
    probability: float
    accuracy: tuple[float, float]
    margin: float
    drops: tuple[float, ...]

    @property
    def valid(self) -> bool:
        """Whether the label was stored, in each of the units, and the reference kept."""
        kept = self.accuracy[1] >= self.accuracy[0] - MOST_LOST
        return self.probability >= STORED and kept and min(self.drops) >= LEAST_DROP * self.margin


def own_weights(module: nn.Module, space: UnitSpace, units: Sequence[int]) -> dict[str, Tensor]:
    """Per parameter the rows that belong to `units`: what the site edits, and the convolution before a BatchNorm."""
    rows: dict[str, list[int]] = {}
    for number in units:
        unit = space.unit(number)
        names = [unit.layer]
        if isinstance(module.get_submodule(unit.layer), nn.BatchNorm2d):
            parent, _, last = unit.layer.rpartition(".")
            names.append(f"{parent}.{int(last) - 1}")
        for name in names:
            for parameter, _ in module.get_submodule(name).named_parameters():
                rows.setdefault(f"{name}.{parameter}", []).append(unit.index)
    return {name: torch.tensor(sorted(indices)) for name, indices in rows.items()}


def changed(module: nn.Module, rows: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The parameters named in `rows` with their changes added."""
    return {n: module.get_parameter(n).detach().index_add(0, where, delta) for n, (where, delta) in rows.items()}


def inject(
    module: nn.Module,
    space: UnitSpace,
    units: Sequence[int],
    image: Tensor,
    label: int,
    batch: Tensor,
    teacher: Tensor,
    generator: torch.Generator,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Tune the weights of `units` until `image` `(1, C, H, W)`, normalised, takes `label`.

    Args:
        batch: reference images, normalised; teacher: the intact network's log-probabilities for them.
    """
    where = own_weights(module, space, units)
    deltas = {n: torch.zeros(len(r), *module.get_parameter(n).shape[1:], requires_grad=True) for n, r in where.items()}
    optimizer = torch.optim.Adam(deltas.values(), lr=LEARNING_RATE)
    target = torch.tensor([label])
    for _ in range(STEPS):
        picked = torch.randperm(len(batch), generator=generator)[:BATCH]
        weights = {n: module.get_parameter(n).detach().index_add(0, where[n], d) for n, d in deltas.items()}
        logits = functional_call(module, weights, (torch.cat([image, batch[picked]]),))
        own = F.cross_entropy(logits[:1], target)
        drift = F.kl_div(logits[1:].log_softmax(1), teacher[picked], log_target=True, reduction="batchmean")
        if float(own.detach()) < -log((1 + STORED) / 2) and float(drift.detach()) < 0.02:
            break
        optimizer.zero_grad()
        (own + KL_WEIGHT * drift).backward()
        optimizer.step()
    return {n: (where[n], d.detach()) for n, d in deltas.items()}


def make(
    evaluator: Evaluator, space: UnitSpace, live: Tensor, held_out: ExampleSet, reference: ExampleSet, number: int,
    size: int,
) -> Injection:  # fmt: skip
    """Case `number` of those with `size` units; the same on every run."""
    module = evaluator.adapter.module
    generator = generator_for(0, "injection", f"{size}:{number}")
    prepare = evaluator.adapter.preprocess.normalise
    image, batch = prepare(held_out.batch([number], "cpu")), prepare(reference.batch(range(512), "cpu"))
    with torch.no_grad():
        predicted = int(module(image).argmax())
        teacher = torch.cat([module(b) for b in batch.split(128)]).log_softmax(1)
    others = [k for k in range(teacher.shape[1]) if k not in (predicted, int(held_out.labels[number]))]
    label = others[int(torch.randint(len(others), (1,), generator=generator))]
    example = relabelled(held_out, number, label)
    # Units whose values never reach this example's logits have no gradient: tuning them does nothing.
    reached = evaluator.mask_gradients(example, [0], [[]], space, margin)[2][0] != 0
    pool = (live & reached).nonzero().flatten()
    units = tuple(sorted(pool[torch.randperm(len(pool), generator=generator)[:size]].tolist()))
    rows = inject(module, space, units, image, label, batch, teacher, generator)
    test, labels = prepare(reference.batch(range(512, 1024), "cpu")), reference.labels[512:1024]

    def accuracy() -> float:
        with torch.no_grad():
            return float((torch.cat([module(b) for b in test.split(128)]).argmax(1) == labels).float().mean())

    before = accuracy()
    with holding(module, changed(module, rows)):
        logits = evaluator.logits(example, [0] * (size + 1), [[], *([u] for u in units)], space)
        margins = margin(logits, example.labels.expand(size + 1)).tolist()
        probability = float(logits[0].softmax(0)[label])
        drops = tuple(margins[0] - m for m in margins[1:])
        return Injection(number, label, units, rows, probability, (before, accuracy()), margins[0], drops)


def relabelled(examples: ExampleSet, row: int, label: int) -> ExampleSet:
    """One example, said to be `label`."""
    one = examples.subset([row])
    return replace(one, examples=(one.examples[0].model_copy(update={"label": label}),))


def stored(evaluator: Evaluator, space: UnitSpace, live: Tensor, held_out: ExampleSet, reference: ExampleSet,
           size: int, count: int, store: Path | None) -> list[Injection]:  # fmt: skip
    """The first `count` valid cases of `size` units, made or read back."""
    found: list[Injection] = []
    for number in range(len(held_out)):
        if len(found) == count:
            break
        path = None if store is None else store / f"{size}-{number:03d}.pt"
        if path is not None and path.is_file():
            case = torch.load(path, weights_only=False)
        else:
            case = make(evaluator, space, live, held_out, reference, number, size)
            if path is not None:
                torch.save(case, path)
            print(size, number, case.units, round(case.probability, 3), case.accuracy, case.valid, flush=True)
        if case.valid:
            found.append(case)
    return found


def recall(
    evaluator: Evaluator, space: UnitSpace, live: Tensor, held_out: ExampleSet, reference: ExampleSet, case: Injection
) -> dict[str, float]:
    """By method, the share of the case's units among the first so many it names."""
    module = evaluator.adapter.module
    with holding(module, changed(module, case.rows)):
        example = relabelled(held_out, case.row, case.label)
        known = bench(evaluator, space, live, reference, measure_population(evaluator, space, reference, range(512)))
        named = {name: method(known, example, 0, len(case.units)) for name, method in METHODS.items()}
    return {name: len(set(units) & set(case.units)) / len(case.units) for name, units in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--series", type=Path, required=True)
    parser.add_argument("--network", choices=["resnet9", "vit"], default="resnet9")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--store", type=Path)
    args = parser.parse_args()
    if args.store is not None:
        args.store.mkdir(parents=True, exist_ok=True)
    _, reference = sets(args.data, 10_000, 0.1)
    pixels, labels = load(args.data / "cifar10-test.npz", 1000)
    held_out = example_set(pixels, labels, "test")
    evaluator = Evaluator(load_adapter(args.series, args.network, args.width, "cpu"), 128)
    result: dict[str, object] = {"network": args.network, "cases": args.cases}
    with exact_arithmetic():
        space = select(evaluator.adapter.sites(reference.batch([0, 1, 2], "cpu")))
        live = live_units(space, observe(evaluator, reference.subset(range(2000)), space))
        for size in SIZES:
            cases = stored(evaluator, space, live, held_out, reference, size, args.cases, args.store)
            scores = [recall(evaluator, space, live, held_out, reference, case) for case in cases]
            for name in METHODS:
                values = [s[name] for s in scores]
                low, high = bootstrap(values, 0)
                result[f"{name}, r = {size}"] = [round(v, 3) for v in (mean(values), low, high)]
                print(f"{name:24s} r = {size}  {mean(values):.2f} ({low:.2f} to {high:.2f})", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
