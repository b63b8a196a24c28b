"""The whole training set ranked without a list and without a reference, beside scores of the series and of the network.

    python -m tests.benchmarks.discovering CASE --data DIR --work DIR --out reports/benchmarks/discovering-CASE.md

Cases are those of `tests.benchmarks.memorized`, of which all training rows are ranked; higher is more memorized.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from memaudit.engine.loop import BACKWARD
from memaudit.pipeline.discover import Discovery
from memaudit.pipeline.library import examples_of, settings_for, wrap
from memaudit.system.memory import most_held
from tests.benchmarks.memorized import CASES, Case, Scores, along, preprocess, row, simple
from tests.benchmarks.table import publish


def ranked(case: Case, profile: str) -> tuple[Scores, str]:
    """By part and joined, `(N,)` each in the order of the rows; and what the ranking says of itself."""
    shape = preprocess()
    model = case.network()
    examples = examples_of((case.images[case.asked], case.given[case.asked]), "data", shape)
    start, clock = time.process_time(), time.perf_counter()
    ranking, table = Discovery(wrap(model, shape), examples, settings_for(model, None, {"profile": profile})).run()
    spent = f"{time.process_time() - start:.0f} processor seconds, {time.perf_counter() - clock:.0f} by the clock"
    places = {name: number for number, name in enumerate(table.columns)}
    order = np.array([int(str(line[places["index"]])) for line in table.rows])
    scores = {}
    for name in ("estimate", *(name.replace(" ", "_").replace(".", "_") for name in ranking.parts)):
        scores[name] = np.empty(len(order))
        scores[name][order] = [float(str(line[places[name]])) for line in table.rows]
    passes = sum(n * (BACKWARD if stage.endswith(" backward") else 1) for stage, n in ranking.passes.items())
    shares = ranking.shares
    return scores, (
        f"{profile}: {passes / len(order):.1f} passes an example, {spent}, {most_held() / 2**30:.1f} GiB at the most. "
        f"Share of wrong labels: {shares.wrong:.3f} ({shares.wrong_low:.3f} to {shares.wrong_high:.3f}) by the ranking."
    )


def precision(score: np.ndarray, changed: np.ndarray) -> float:
    """Of as many as are changed, the most memorized: how many are."""
    return float(changed[np.argsort(-score, kind="stable")[: changed.sum()]].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder with the trained weights")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", nargs="+", default=["standard"])
    parser.add_argument("--checkpoints", type=int, nargs="*", default=[], help="of the series, for AUM, CSL and others")
    args = parser.parse_args()
    case = CASES[args.case](args.data, args.work)
    everything = np.arange(len(case.given))
    case = replace(case, asked=everything, changed=case.given != case.truth[: len(everything)])
    lines, notes = [], []
    for profile in args.profile:
        scores, said = ranked(case, profile)
        notes.append(said)
        for name, score in scores.items():
            lines.append(row(f"{name}, {profile}", score, case.changed) + f" {precision(score, case.changed):.3f} |")
            print(lines[-1], round(float(roc_auc_score(case.changed, score)), 4), flush=True)
    for name, score in simple(case).items():
        lines.append(row(name, score, case.changed) + f" {precision(score, case.changed):.3f} |")
    for count in args.checkpoints:
        for name, score in along(case, count).items():
            line = row(f"{name}, {count} checkpoints", score, case.changed)
            lines.append(line + f" {precision(score, case.changed):.3f} |")
    publish(
        TABLE.format(
            case=args.case,
            count=len(everything),
            changed=int(case.changed.sum()),
            lines="\n".join(lines),
            notes="\n\n".join(notes),
        ),
        args.out,
    )


TABLE = """# Discovering: {case}

Made by `python -m tests.benchmarks.discovering {case}`. All {count} training images are ranked, of which {changed} have
a changed label; nothing else is given.

| score | AUROC (95 %) | average precision | found at 5 % of the true labels | | precision at the true share |
|---|---|---|---|---|---|
{lines}

{notes}
"""


if __name__ == "__main__":
    main()
