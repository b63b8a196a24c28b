"""Labels that people got wrong (CIFAR-10N), found among all images without a list, beside what retraining finds.

    python -m tests.benchmarks.human_labels KIND --data DIR --work DIR --train
    python -m tests.benchmarks.human_labels KIND --data DIR --work DIR --out reports/benchmarks/human-labels-KIND.md

Kinds (Wei et al. 2022): `aggregate`, the majority of three people (9 % are wrong), and `worst`, of three (40 %).
One network learns the first images of the training set with the labels people gave, and is asked; `--train` trains it
into DIR, and for each `--folds` networks that learn what is outside a fold of as many (confident learning's input).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from memaudit.engine.loop import BACKWARD
from tests.benchmarks import problem
from tests.benchmarks.baselines import baselines, quality
from tests.benchmarks.cifar import load
from tests.benchmarks.discovering import line, rankings
from tests.benchmarks.memorized import Scores, answers
from tests.benchmarks.problem import Problem
from tests.benchmarks.table import publish

EPOCHS = {"aggregate": 12, "worst": 16}


def people(kind: str, data: Path, count: int) -> Problem:
    """The first `count` images with the labels people gave."""
    images, truth = load(data / "cifar10-train.npz", count)
    with np.load(data / "cifar10-train-human-labels.npz") as archive:
        given = archive[f"human_{kind}"][:count].astype(np.int64)
    return problem.colours(images, truth, given, EPOCHS[kind])


def retrained(asked: Problem, folds: int, work: Path) -> np.ndarray:
    """Probabilities `(N, classes)` of each image by a network that did not learn it; kept in `work`."""
    kept = work / f"folds-{folds}.npz"
    if not kept.exists():
        start = time.process_time()
        x, order = asked.prepare(asked.images), np.random.default_rng(folds).permutation(len(asked.given))
        said = torch.zeros(len(order), 10, dtype=torch.float64)
        for k in range(folds):
            out = order[k::folds]
            said[out] = answers(asked.learn(x, np.sort(np.setdiff1d(order, out)), k, None), x[out]).softmax(1)
            print("retrained", k, flush=True)
        np.savez(kept, said=said.numpy(), seconds=time.process_time() - start)
    return np.asarray(np.load(kept)["said"])


def out_of_sample(asked: Problem, folds: int, work: Path, epochs: int) -> Scores:
    """cleanlab's scores of what networks say that were retrained without each image."""
    scores = quality(torch.from_numpy(retrained(asked, folds, work)), torch.from_numpy(asked.given))
    cost = (folds - 1) * epochs * (1 + BACKWARD) + 1
    return {f"retrained, {folds} folds ({cost:.0f} passes): {name}": score for name, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=EPOCHS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--folds", type=int, nargs="*", default=[2])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--profile", nargs="+", default=["standard"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    asked = people(args.kind, args.data, args.images)
    if args.train:
        asked.train(args.work / "all")
        for folds in args.folds:
            retrained(asked, folds, args.work)
        return
    case = asked.case(args.work / "all")
    lines, notes = rankings(case, args.profile)
    scores = baselines(case)
    for folds in args.folds:
        scores |= out_of_sample(asked, folds, args.work, EPOCHS[args.kind])
    said = answers(case.network(), case.inputs).argmax(1).numpy()
    wrong = case.changed
    publish(
        TABLE.format(
            kind=args.kind,
            rows=len(wrong),
            wrong=int(wrong.sum()),
            share=float(wrong.mean()),
            epochs=EPOCHS[args.kind],
            seconds=(args.work / "all" / "seconds.txt").read_text(),
            fitted=float((said == case.given).mean()),
            fitted_wrong=float((said == case.given)[wrong].mean()),
            right=float((said == case.truth)[wrong].mean()),
            lines="\n".join(lines + [line(name, score, wrong) for name, score in scores.items()]),
            notes="\n\n".join(notes),
        ),
        args.out,
    )


TABLE = """# Labels that people got wrong: {kind}

Made by `python -m tests.benchmarks.human_labels {kind}`. A ResNet-10t of half the width learned {rows:,} CIFAR-10
images in {epochs} epochs ({seconds} processor seconds), of which people labelled {wrong:,} ({share:.3f}) otherwise than
the data set does. It gives {fitted:.3f} of all labels it learned and {fitted_wrong:.3f} of the wrong ones, and for
{right:.3f} of these the true label. All images are ranked; nothing but images and labels is given. `estimate` says what
is memorized, so it is 0 for labels that the network does not give; `unsupported` is the column for wrong labels.

| score | AUROC (95 %) | average precision | found at 5 % of the true labels | | precision at the true share |
|---|---|---|---|---|---|
{lines}

{notes}
"""


if __name__ == "__main__":
    main()
