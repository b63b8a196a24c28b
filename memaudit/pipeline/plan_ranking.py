"""What ranking a training set will cost, before it starts: passes and time, stage by stage."""

from __future__ import annotations

import time

import torch

from memaudit.audits.discovery.copies import Copies
from memaudit.audits.discovery.neighbours import VOTERS, Voters, features
from memaudit.audits.memorization.relearned import ASKED, epochs_for
from memaudit.audits.retrain import BATCH
from memaudit.data import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.loop import BACKWARD
from memaudit.engine.views import VIEWS
from memaudit.network.units import UnitSpace
from memaudit.pipeline.plan import WORKERS, cheaper_line, cost_lines, memory, model_line, timed, workers_line
from memaudit.settings import RELEARNING, Relearning

# Examples whose neighbours are sought to see how long it takes, among so many others.
SOUGHT, AMONG = 256, 4096


def plan_ranking(evaluator: Evaluator, examples: ExampleSet, space: UnitSpace, profile: str) -> str:
    """A few lines, as `plan.plan` for an audit.

    Args:
        space: the units whose values are features.
        profile: its name.
    """
    count, views = len(examples), examples.image
    each, fitted = timed(evaluator, examples)
    seconds, held = _neighbours(evaluator, examples, space)
    peak = memory(evaluator, examples, space, BATCH) + held
    passes = _passes(count, RELEARNING[profile], views)
    total = sum(passes.values()) * each + seconds
    others = [] if profile == "fast" else [("--profile fast", _passes(count, RELEARNING["fast"], views), seconds)]
    half = max(1, count // 2)
    voters = min(half, VOTERS) / min(count, VOTERS)
    others.append((f"--limit {half}", _passes(half, RELEARNING[profile], views), seconds / 2 * voters))
    pieces = {"relearning": len(RELEARNING[profile].depths) * RELEARNING[profile].folds}
    shared = [(amount, pieces.get(name, max(WORKERS))) for name, amount in passes.items()]
    return "\n".join(
        [
            model_line(evaluator),
            f"data       {count:,} examples; of the first ones {100 * fitted:.0f}% are predicted",
            *cost_lines(evaluator, passes, each, peak, [(f"neighbours among {min(count, VOTERS):,}", seconds)]),
            workers_line(shared, each * evaluator.engine.workers, time.process_time() + seconds),
            *cheaper_line([(name, sum(p.values()) * each + extra) for name, p, extra in others], total),
        ]
    )


def _passes(count: int, budget: Relearning, views: bool) -> dict[str, float]:
    """By stage, of `count` examples that may all teach each other; of more than `VOTERS` features are made again."""
    taught = min(budget.rows, count - count // budget.folds)
    epochs = epochs_for(taught)
    relearned = budget.folds * epochs * taught * (1 + BACKWARD) + min(ASKED, epochs) * count
    found = {"observation": float(2 * count + VOTERS if count > VOTERS else count)}
    found["relearning"] = float(len(budget.depths) * relearned)
    return found | ({"views": float(len(VIEWS) * count)} if budget.views and views else {})


def _neighbours(evaluator: Evaluator, examples: ExampleSet, space: UnitSpace) -> tuple[float, float]:
    """Seconds of the search for all, from that of a few among others; and bytes that features of the voters take."""
    count = len(examples)
    few = examples.subset(range(0, count, -(-count // SOUGHT)))
    layers = features(evaluator, few, space, min(count, VOTERS))[1]
    among = torch.arange(min(count, AMONG))
    others = [layer.repeat(-(-len(among) // len(few)), 1)[: len(among)] for layer in layers]
    voters = Voters.of(among, examples.labels[among], others)
    alone = Copies(torch.full((count, 1), -1), torch.full((count, 1), torch.inf))
    rows = torch.arange(len(few))
    start = time.perf_counter()
    voters.asked(rows, layers, evaluator.adapter.num_classes, alone)
    pair = (time.perf_counter() - start) / (len(rows) * len(among))
    return pair * count * min(count, VOTERS), 4.0 * min(count, VOTERS) * sum(layer.shape[1] for layer in layers)
