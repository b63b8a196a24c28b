"""Planted wrong labels, few and many, at random and between pairs of classes: are they found, and is their share said?

    python -m tests.benchmarks.planted --work DIR [--draws 3] --out reports/benchmarks/planted-digits.md

The demo's network on its digits. `uniform`: a random other class; `pairs`: class c becomes c + 1. Each share is planted
`--draws` times, with other digits, labels and weights; the networks are kept in DIR.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from memaudit.demo import training as demo
from memaudit.intervals import wilson
from tests.benchmarks import problem
from tests.benchmarks.baselines import neighbours
from tests.benchmarks.discovering import ranked
from tests.benchmarks.memorized import Case, along, answers, simple
from tests.benchmarks.table import publish

SHARES = (0.01, 0.05, 0.10, 0.20, 0.40)
KINDS = ("uniform", "pairs")


def case(kind: str, share: float, seed: int, work: Path) -> Case:
    """A network that learned digits of which `share` have another label."""
    images, truth, _, _, test = demo.split_digits(seed)
    rows = np.setdiff1d(np.arange(len(truth)), test)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(rows, round(share * len(rows)), replace=False)
    given = truth.copy()
    given[chosen] = (given[chosen] + (rng.integers(1, 10, len(chosen)) if kind == "uniform" else 1)) % 10
    learned = problem.digits(images, truth, given, rows, test)
    folder = work / f"{kind}-{share:.2f}-{seed}"
    learned.train(folder)
    return learned.case(folder)


def judged(kind: str, share: float, draws: int, work: Path) -> str:
    """One line of the table: means over the draws, intervals of each."""
    found: dict[str, list[float]] = {}
    intervals, hits, wrong = [], 0, 0
    for seed in range(draws):
        one = case(kind, share, seed, work)
        changed = one.changed
        scores, ranking, _ = ranked(one, "standard")
        shares = ranking.shares
        hits += int(changed[np.argsort(-scores["estimate"], kind="stable")[: changed.sum()]].sum())
        wrong += int(changed.sum())
        low, high = shares.wrong_low, shares.wrong_high
        held = low <= changed.mean() <= high
        intervals.append(f"{shares.wrong:.3f} ({low:.3f} to {high:.3f}){'' if held else ' **missed**'}")
        said = answers(one.network(), one.inputs[one.asked]).argmax(1).numpy()
        figures = {
            "fitted": float((said == one.given)[changed].mean()),
            "ours": roc_auc_score(changed, scores["estimate"]),
            "loss": roc_auc_score(changed, simple(one)["loss (cleanlab: self-confidence, in sample)"]),
            "neighbours": roc_auc_score(changed, neighbours(one)),
            "CSL": roc_auc_score(changed, along(one, len(one.series))["CSL"]),
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(float(value))
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    low, high = wilson(hits, wrong)
    line = (
        f"| {kind} | {share:.0%} | {mean['fitted']:.3f} | {mean['ours']:.3f} ({min(found['ours']):.3f}) | "
        f"{hits / wrong:.3f} ({low:.3f} to {high:.3f}) | {'; '.join(intervals)} | "
        f"{mean['loss']:.3f} | {mean['neighbours']:.3f} | {mean['CSL']:.3f} |"
    )
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [judged(kind, share, args.draws, args.work) for kind in KINDS for share in SHARES]
    missed = sum(line.count("missed") for line in lines)
    publish(
        TABLE.format(draws=args.draws, lines="\n".join(lines), missed=missed, all=args.draws * len(lines)),
        args.out,
    )


TABLE = """# Planted wrong labels: digits

Made by `python -m tests.benchmarks.planted`. The demo's network learns 1,438 digits in 20 epochs, and there are so
many for each line: {draws}. Everything is ranked by `discover`, one checkpoint, nothing else given. AUROC of wrong
against right labels is the mean over them, for ours the lowest one behind it; a wrong label that the network does not
give is not memorized, and comes last. The estimated share of wrong labels has its 95 % interval: {missed} of {all} miss
the truth.

| noise | share | fitted | AUROC | precision at the true share | share estimated | loss | k-NN, penultimate | CSL |
|---|---|---|---|---|---|---|---|---|
{lines}
"""


if __name__ == "__main__":
    main()
