"""What an audit will cost, before it starts: sites, passes and time, audit by audit."""

from __future__ import annotations

import time

import torch

from memaudit.audits.base import Workload
from memaudit.audits.registry import chosen
from memaudit.data import ExampleSet
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.findings import AUDITS
from memaudit.network.layer_groups import layer_groups
from memaudit.network.replay import watch
from memaudit.network.units import select
from memaudit.settings import PROFILES, Settings


def plan(evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, settings: Settings, states: int = 0) -> str:
    """A few lines: what would be searched, how many passes each audit takes, and about how long here.

    A backward pass counts as one and a half forward passes; one small batch is timed.
    """
    adapter = evaluator.adapter
    with exact_arithmetic():
        few = reference.batch(list(range(min(3, len(reference)))), evaluator.device)
        space = select(adapter.sites(few), settings.unit, settings.layers)
        rows = list(range(min(evaluator.batch_size, len(flagged), 32)))
        evaluator.logits(flagged, rows[:1])
        start = time.perf_counter()
        fitted = float(evaluator.predicted(Panel(flagged, rows)).float().mean())
        if evaluator.device.type == "cuda":
            torch.cuda.synchronize()
        each = (time.perf_counter() - start) / len(rows)
    use = watch(adapter.module, adapter.forward, few[:1]).first_use if states > 1 else {}
    groups = layer_groups(adapter.module, use, depth=settings.group_depth, layers=settings.layers) if use else ()
    size = Workload(
        profile=PROFILES[settings.profile],
        flagged=len(flagged),
        fitted=round(len(flagged) * fitted),
        reference=len(reference),
        states=states,
        groups=len(groups),
        units=space.total,
    )
    passes = {"observation": float(len(flagged) + len(reference))}
    for audit in chosen(settings, states > 1):
        passes[AUDITS[audit.name].title if audit.name in AUDITS else audit.name] = audit.passes(size)
    kinds = ", ".join(sorted({s.kind for s in space.sites}))
    total = sum(passes.values())
    return "\n".join(
        [
            f"model      {adapter.architecture} ({adapter.parameters:,} parameters) on {evaluator.device}",
            f"units      {space.total:,} in {len(space.sites)} layers ({kinds})",
            f"flagged    {len(flagged)}, about {size.fitted} fitted",
            f"reference  {len(reference)}",
            *([f"series     {states} checkpoints, the audited model included"] if states > 1 else []),
            f"passes     about {round(total):,} examples forward (batches of {evaluator.batch_size})",
            *(f"           {round(count):>12,}  {_time(count * each):>10}  {name}" for name, count in passes.items()),
            f"time       about {_time(total * each)}",
        ]
    )


def _time(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
