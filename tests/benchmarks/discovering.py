"""The whole training set ranked without a list and without a reference, beside scores of the series and of the network.

    python -m tests.benchmarks.discovering CASE --data DIR --work DIR --out reports/benchmarks/discovering-CASE.md

Cases are those of `tests.benchmarks.memorized`, of which all training rows are ranked; higher is more memorized.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from memaudit.intervals import wilson
from memaudit.pipeline.discover import Discovery
from memaudit.pipeline.library import examples_of, settings_for, wrap
from memaudit.report.ranked import Ranking
from memaudit.system.memory import most_held
from tests.benchmarks.memorized import CASES, Case, Scores, along, effort, row, simple
from tests.benchmarks.table import publish


def ranked(case: Case, profile: str) -> tuple[Scores, Ranking, str]:
    """By part and joined, `(N,)` each in the order of the rows; the ranking; and what it cost."""
    model = case.network()
    examples = examples_of((case.images[case.asked], case.given[case.asked]), "data", case.shape)
    start, clock = time.process_time(), time.perf_counter()
    found = Discovery(wrap(model, case.shape), examples, settings_for(model, None, {"profile": profile}))
    ranking, table = found.run()
    spent = f"{time.process_time() - start:.0f} processor seconds, {time.perf_counter() - clock:.0f} by the clock"
    places = {name: number for number, name in enumerate(table.columns)}
    order = np.array([int(str(line[places["index"]])) for line in table.rows])
    scores = {}
    for name in ("estimate", "unsupported", *(name.replace(" ", "_").replace(".", "_") for name in ranking.parts)):
        scores[name] = np.empty(len(order))
        scores[name][order] = [float(str(line[places[name]])) for line in table.rows]
    each = effort(ranking.passes) / len(order)
    return scores, ranking, f"{each:.1f} passes an example, {spent}, {most_held() / 2**30:.1f} GiB at the most"


def precision(score: np.ndarray, changed: np.ndarray) -> str:
    """Of as many as are changed, the most memorized: how many are, with its 95 % interval."""
    first, count = np.argsort(-score, kind="stable")[: changed.sum()], int(changed.sum())
    hits = int(changed[first].sum())
    low, high = wilson(hits, count)
    return f"{hits / count:.3f} ({low:.3f} to {high:.3f})"


def line(name: str, score: np.ndarray, changed: np.ndarray) -> str:
    """One line of the table."""
    return row(name, score, changed) + f" {precision(score, changed)} |"


def rankings(case: Case, profiles: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines of the table, and notes: what `discover` says of all rows."""
    lines, notes = [], []
    for profile in profiles:
        scores, ranking, cost = ranked(case, profile)
        shares = ranking.shares
        wrong = f"{shares.wrong:.3f} ({shares.wrong_low:.3f} to {shares.wrong_high:.3f})"
        notes.append(f"{profile}: {cost}. Share of wrong labels: {wrong} by the ranking.")
        lines += [line(f"{name}, {profile}", score, case.changed) for name, score in scores.items()]
        print(*lines[-len(scores) :], notes[-1], sep="\n", flush=True)
    return lines, notes


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
    lines, notes = rankings(case, args.profile)
    scores = simple(case)
    for count in args.checkpoints:
        scores |= {f"{name}, {count} checkpoints": score for name, score in along(case, count).items()}
    publish(
        TABLE.format(
            case=args.case,
            count=len(everything),
            changed=int(case.changed.sum()),
            lines="\n".join(lines + [line(name, score, case.changed) for name, score in scores.items()]),
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
