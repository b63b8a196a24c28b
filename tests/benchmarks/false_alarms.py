"""How often `verify` says "evidence" of networks that never saw the list: simulated audits through the real code.

    python -m tests.benchmarks.false_alarms [--audits 200] [--report reports/benchmarks/false-alarms.md]

scikit-learn's digits, 5 splits: two small networks train on 600 digits, one is asked and the other is the model
without. Of 250 that neither saw 80 are listed at random, none or half of them with another label; the rest are unseen.
Splits and lists are new ones, so an audit is a draw of what a user would do with a clean model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import memaudit
from memaudit.data import ExampleSet, Preprocess, from_tensors
from memaudit.demo import training
from memaudit.intervals import clopper_pearson
from memaudit.numbers import interval, percent
from memaudit.report.markdown import table
from tests.benchmarks.table import publish
from tests.networks import DigitsNet

SPLITS, TRAINED, LISTED, POOL = 5, 600, 80, 250
DIGIT = Preprocess(input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))
# Lists: the share of labels that are wrong, and whether the manifest says which are the true ones.
LISTS = {
    "true labels": (0.0, True),
    "half changed, `true_label` given": (0.5, True),
    "half changed, `true_label` not given": (0.5, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in LISTS}
    for split in range(SPLITS):
        for name, values in audited(split, given.audits // SPLITS).items():
            found[name] += values
        print(split, {name: sum(p <= 0.05 for p in ps) for name, ps in found.items()}, flush=True)
    publish(report(found), given.report)


def audited(split: int, audits: int) -> dict[str, list[float]]:
    """The p-values of `audits` lists of each kind, of two networks of one split."""
    images, truth, *_ = training.split_digits(0)
    x, y = torch.from_numpy(images[:, None]).float() / 255, torch.from_numpy(truth)
    rng = np.random.default_rng(split)
    order = rng.permutation(len(x))
    rows, pool = order[:TRAINED], order[TRAINED : TRAINED + POOL]
    asked, other = (learned(x, y, rows, 2 * split + n) for n in (0, 1))
    reference = examples(x, y, rows[:60], "reference")
    found: dict[str, list[float]] = {name: [] for name in LISTS}
    for audit in range(audits):
        for name, (share, declared) in LISTS.items():
            listed, unseen = drawn(rng, x, y, pool, share, declared)
            said = memaudit.verify(asked, listed, reference, unseen, without=[other], profile="fast", seed=audit)
            found[name].append(said.membership.p_value)
    return found


def learned(x: torch.Tensor, y: torch.Tensor, rows: np.ndarray, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    module = DigitsNet()
    training.train(module, x, y, np.sort(rows), seed, lambda _: None)
    return module.eval()


def examples(x: torch.Tensor, y: torch.Tensor, rows: np.ndarray, source: str) -> ExampleSet:
    return from_tensors(x[rows], y[rows], preprocess=DIGIT, num_classes=10, source=source)


def drawn(
    rng: np.random.Generator, x: torch.Tensor, y: torch.Tensor, pool: np.ndarray, share: float, declared: bool
) -> tuple[ExampleSet, ExampleSet]:
    """A list of which `share` have another label, and the rest of the pool."""
    order = rng.permutation(pool)
    rows, rest = order[:LISTED], order[LISTED:]
    given = y.clone()
    wrong = rows[: round(share * LISTED)]
    given[wrong] = (given[wrong] + torch.from_numpy(rng.integers(1, 10, len(wrong)))) % 10
    listed = examples(x, given, rows, "flagged")
    if declared:
        known = zip(listed.examples, rows.tolist(), strict=True)
        marked = tuple(e.model_copy(update={"true_label": int(y[row])}) for e, row in known)
        listed = ExampleSet(marked, listed.pixels, listed.source)
    return listed, examples(x, y, rest, "unseen")


def report(found: dict[str, list[float]]) -> str:
    def row(name: str, values: list[float]) -> tuple[str, ...]:
        alarms, count = sum(p <= 0.05 for p in values), len(values)
        uniform = stats.kstest(values, "uniform", alternative="greater").pvalue
        low, high = clopper_pearson(alarms, count)
        return name, f"{alarms} of {count}", f"{percent(alarms / count)} ({interval(low, high)})", f"{uniform:.2g}"

    lines = [
        "# False alarms of `verify`: networks that never saw the list",
        (
            f"{SPLITS} splits of scikit-learn's digits, two networks each; {LISTED} listed digits that neither saw, "
            f"{POOL - LISTED} unseen ones; profile fast, one model without. A test at the 5 % level says evidence."
        ),
        "`python -m tests.benchmarks.false_alarms --report FILE`",
        table(
            ("list", "said evidence", "rate, 95 % interval", "small p-values more often than chance: p"),
            [row(name, values) for name, values in found.items()],
        ),
    ]
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
