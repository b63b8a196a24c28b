"""The definition of memorization, measured: networks trained with and without each example, beside what one says.

    python -m tests.benchmarks.feldman_zhang CASE --data DIR --work DIR --train 200
    python -m tests.benchmarks.feldman_zhang CASE --data DIR --work DIR --ask
    python -m tests.benchmarks.feldman_zhang CASE --data DIR --work DIR --out reports/benchmarks/feldman-zhang-CASE.md

Feldman and Zhang 2020: how often networks that were trained with an example give its label, less how often networks
that were trained without it do. Each network learns a random 70 % of the rows. `--train` adds networks until there are
so many, and one that learns all rows, a checkpoint an epoch; what each says is kept in DIR. `--ask` scores all rows by
that one network, and keeps the scores. Without either, scores are compared with the truth of the networks there are.

Cases: `digits` (the demo's network and digits, 5 % of the labels changed), `cifar` (5,000 CIFAR-10 images, 5 % changed,
a timm ResNet-10t of half the width). Another `--seed` takes other images or labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from memaudit.demo import training as demo
from tests.benchmarks import cifar, problem
from tests.benchmarks.baselines import baselines
from tests.benchmarks.discovering import ranked
from tests.benchmarks.memorized import Case, Scores, answers, effort, scanned
from tests.benchmarks.problem import Problem
from tests.benchmarks.table import publish

SHARE = 0.7
CHANGED = 0.05
DRAWS = 1000
# Parts that only an audit with a series has.
NEW = ("estimate", "along training")
# CIFAR-10: images of other benchmarks end before the first one.
FIRST, TRAINED, HELD_OUT = 30_000, 5000, 1000
EPOCHS = 12


def digits(data: Path | None, seed: int) -> Problem:
    images, truth, _, given, test = demo.split_digits(seed)
    return problem.digits(images, truth, given, np.setdiff1d(np.arange(len(truth)), test), test)


def colours(data: Path | None, seed: int) -> Problem:
    assert data is not None, "--data says where CIFAR-10 is"
    first = FIRST + seed * (TRAINED + HELD_OUT)
    images, truth = (part[first:] for part in cifar.load(data / "cifar10-train.npz", first + TRAINED + HELD_OUT))
    given, _ = cifar.change_labels(truth[:TRAINED], CHANGED, seed)
    return problem.colours(images, truth, given, EPOCHS)


PROBLEMS: dict[str, Callable[[Path | None, int], Problem]] = {"digits": digits, "cifar": colours}


def train(asked: Problem, count: int, work: Path) -> None:
    """Add networks to `work` until there are `count`, and the one that learns everything."""
    x, labels = asked.prepare(asked.images), torch.from_numpy(asked.given)
    everything = np.arange(len(labels))
    asked.train(work / "all")
    for number in range(count):
        kept = work / f"network-{number:04d}.npz"
        if kept.exists():
            continue
        start = time.process_time()
        rows = np.random.default_rng(number).permutation(everything)[: round(SHARE * len(everything))]
        said = answers(asked.learn(x, np.sort(rows), number, None), x[: len(labels)])
        own = said.softmax(1).gather(1, labels[:, None]).squeeze(1)
        np.savez(
            kept,
            inside=np.isin(everything, rows),
            right=(said.argmax(1) == labels).numpy(),
            own=own.half().numpy(),
            seconds=time.process_time() - start,
        )
        print(number, f"{time.process_time() - start:.1f} s", flush=True)


@dataclass(frozen=True)
class Truth:
    """What the networks in a folder say of each row; `networks` rows in each array.

    Attributes:
        inside: which rows each network learned; `right`: whose label it gives; `own`: the label's probability.
        seconds: processor seconds of all.
    """

    inside: np.ndarray
    right: np.ndarray
    own: np.ndarray
    seconds: float

    @classmethod
    def of(cls, work: Path) -> Truth:
        """As `train` kept it."""
        found = [np.load(file) for file in sorted(work.glob("network-*.npz"))]
        inside, right, own = (np.stack([one[name] for one in found]) for name in ("inside", "right", "own"))
        return cls(inside, right, own.astype(float), float(sum(one["seconds"] for one in found)))

    def memorization(self, some: slice = slice(None)) -> np.ndarray:
        """`(N,)` in [-1, 1], of some of the networks."""
        inside, right = self.inside[some], self.right[some]
        return share(right, inside) - share(right, ~inside)

    def fitted(self) -> float:
        """Share of the labels that networks give where they learned them."""
        return float(self.right[self.inside].mean())

    def without(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """1 - the label's mean probability by the first `count` networks without a row, and the truth by the others."""
        outside = ~self.inside
        asked = outside & (outside.cumsum(0) <= count)
        others = share(self.right, self.inside) - share(self.right, outside & ~asked)
        return 1 - share(self.own, asked), others


def share(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean over the networks chosen for each row; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return np.asarray((values * chosen).sum(0) / chosen.sum(0))


def reliability(truth: Truth) -> float:
    """Correlation of the truth with that of as many other networks, by its halves (Spearman and Brown)."""
    one, other = truth.memorization(slice(0, None, 2)), truth.memorization(slice(1, None, 2))
    both = np.isfinite(one + other)
    halves = pearson(one[both], other[both])
    return 2 * halves / (1 + halves)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; NaN of what is constant."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def audited(case: Case, **options: Any) -> tuple[Scores, str]:
    """The audit's estimate of every training row, a clean reference beside them; by part and joined."""
    start = time.process_time()
    report = scanned(case, case.references["held-out images"], **options)
    found = sorted(report.findings, key=lambda f: f.example.index)
    scores = {"estimate": np.array([f.estimate.score for f in found])}
    for place, part in enumerate(found[0].estimate.parts):
        scores[part.name] = np.array([f.estimate.parts[place].score for f in found])
    cost = effort(report.passes) / (len(found) + report.data.reference.count)
    return scores, f"{cost:.1f} passes an example, {time.process_time() - start:.0f} processor seconds"


def lines(scores: Scores, truth: np.ndarray, changed: np.ndarray, ours: str | None) -> list[str]:
    """A line a score: correlation with the truth, and by how much that of `ours` is larger; bootstrapped over rows."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(DRAWS)]
    drawn = {name: np.array([pearson(score[rows], truth[rows]) for rows in draws]) for name, score in scores.items()}
    found = []
    for name, score in scores.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        less = (
            ""
            if ours in (name, None)
            else "{:+.3f} ({:+.3f} to {:+.3f})".format(
                pearson(scores[ours], truth) - pearson(score, truth),
                *np.quantile(drawn[ours] - drawn[name], [0.025, 0.975]),
            )
        )
        found.append(
            f"| {name} | {pearson(score, truth):.3f} ({low:.3f} to {high:.3f}) | {spearmanr(score, truth)[0]:.3f} | "
            f"{pearson(score[~changed], truth[~changed]):.3f} | {roc_auc_score(changed, score):.3f} | {less} |"
        )
    return found


def ask(case: Case, work: Path) -> None:
    """Every score of every row by the network that learned all, kept in `work` with what they cost."""
    scores: Scores = {}
    notes = []
    for name, options in (("audit", {}), ("audit with the series", {"checkpoints": case.series[:-1]})):
        found, cost = audited(case, **options)
        scores |= {f"{name}: {part}": score for part, score in found.items() if not options or part in NEW}
        notes.append(f"{name}: {cost}.")
    for name, profile in (("discover", "standard"), ("discover, fast", "fast")):
        found, ranking, cost = ranked(case, profile)
        shares = ranking.shares
        scores |= {f"{name}: {part}": score for part, score in found.items() if part != "loss"}
        mean = f"{shares.memorized:.3f} ({shares.memorized_low:.3f} to {shares.memorized_high:.3f})"
        notes.append(f"{name}: {cost}. The mean of its estimates: {mean}.")
    print(*notes, sep="\n", flush=True)
    scores |= baselines(case, case.references["held-out images"])
    said = (answers(case.network(), case.inputs[case.asked]).argmax(1) == case.labels).numpy()
    np.savez(work / "scores.npz", said=said, notes=np.array(notes), **{f"score {n}": s for n, s in scores.items()})


def compared(case: Case, work: Path) -> str:
    """The table: the one network's scores and the truth."""
    truth = Truth.of(work)
    real, changed = truth.memorization(), case.changed
    known = np.isfinite(real)  # some network learned the row, and some did not
    with np.load(work / "scores.npz") as kept:
        said, notes = kept["said"], kept["notes"].tolist()
        scores = {name[6:]: kept[name][known] for name in kept if name.startswith("score ")}
    retrained = []
    for count in (1, 4):
        score, others = truth.without(count)
        enough = np.isfinite(others)
        name = f"really retrained without it, {count} times"
        retrained += lines({name: score[enough]}, others[enough], changed[enough], None)
    return TABLE.format(
        networks=len(truth.inside),
        rows=len(real),
        changed=int(changed.sum()),
        held_out=len(case.references["held-out images"]),
        epochs=len(case.series),
        seconds=truth.seconds,
        fitted=truth.fitted(),
        outside=float(truth.right[~truth.inside].mean()),
        own=float(said.mean()),
        own_changed=float(said[changed].mean()),
        known=int(known.sum()),
        mean=real[known].mean(),
        spread=real[known].std(),
        reliability=reliability(truth),
        ceiling=f"{reliability(truth) ** 0.5:.2f}",
        corrected=pearson(scores["discover: estimate"], real[known]) / reliability(truth) ** 0.5,
        lines="\n".join(lines(scores, real[known], changed[known], "discover: estimate")),
        retrained="\n".join(retrained),
        notes="\n\n".join(notes),
    )


TABLE = """
{networks} networks learned 70 % of {rows:,} images each, {changed} of which have a changed label: {epochs} epochs,
{seconds:,.0f} processor seconds in all. They give {fitted:.3f} of the labels they learned and {outside:.3f} of the
others. The network that is asked learned all of them and gives {own:.3f} ({own_changed:.3f} of the changed ones).

The truth is p(label given by networks that learned it) - p(label given by those that did not), for the {known:,}
images that some network did not learn: mean {mean:.3f}, standard deviation {spread:.3f}. No score can correlate
with it better than about {ceiling}: its reliability is {reliability:.3f}. Corrected for that, the estimate
of `discover` has {corrected:.3f}. `discover` is given the images and labels
that were learned, and nothing else; `audit` also
{held_out:,} held-out images as the reference, which second-split forgetting goes on with.

| score | Pearson (95 %) | Spearman | Pearson, true labels | AUROC, changed labels | `discover` is ahead by (95 %) |
|---|---|---|---|---|---|
{lines}
{retrained}

{notes}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=PROBLEMS)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--work", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--train", type=int, default=0, help="train until there are so many networks")
    parser.add_argument("--ask", action="store_true", help="score all rows anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = PROBLEMS[args.case](args.data, args.seed)
    if args.train:
        train(chosen, args.train, args.work)
        return
    case = chosen.case(args.work / "all")
    if args.ask:
        ask(case, args.work)
        return
    title = f"# Feldman and Zhang's memorization: {args.case}\n\nMade by `python -m tests.benchmarks.feldman_zhang "
    publish(f"{title}{args.case}`.\n{compared(case, args.work)}", args.out)


if __name__ == "__main__":
    main()
