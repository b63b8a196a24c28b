"""What an audit will cost, before it starts: sites, passes and seconds."""

from __future__ import annotations

import time

import torch

from memaudit.data import ExampleSet
from memaudit.evaluate import Evaluator, exact_arithmetic, margin
from memaudit.settings import PROFILES, Settings
from memaudit.units import select

# Units a search cuts and tries on average, from CIFAR-10 and digits audits; only the estimate depends on it.
TYPICAL_UNITS = 3


def plan(evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, settings: Settings) -> str:
    """A few lines: what would be searched, how many passes that takes, and about how long here.

    A backward pass counts as one and a half forward passes; one small batch is timed.
    """
    profile = PROFILES[settings.profile]
    with exact_arithmetic():
        adapter = evaluator.adapter
        space = select(adapter.sites(reference.batch(list(range(min(3, len(reference)))), evaluator.device)),
                       settings.unit, settings.layers)  # fmt: skip
        few = list(range(min(evaluator.batch_size, len(flagged), 32)))
        evaluator.logits(flagged, few[:1])
        start = time.perf_counter()
        fitted = float((margin(evaluator.logits(flagged, few), flagged.labels[few]) > 0).float().mean())
        if evaluator.device.type == "cuda":
            torch.cuda.synchronize()
        each = (time.perf_counter() - start) / len(few)
    expected = round(len(flagged) * fitted)
    panel = min(profile.panel_rows, profile.at_risk + profile.at_random)
    observed = len(flagged) + len(reference)
    search = expected * (2 * 2.5 + TYPICAL_UNITS)
    verify = expected * (1 + panel + profile.draws + 8 + profile.others)
    group = min(profile.clean, expected) * 10 + 10 * 512 + 100 * panel
    passes = round(observed + 2.5 * (profile.search_rows + profile.panel_rows) + search + verify + group)
    kinds = ", ".join(sorted({s.kind for s in space.sites}))
    return "\n".join(
        [
            f"model      {adapter.architecture} ({adapter.parameters:,} parameters) on {evaluator.device}",
            f"units      {space.total:,} in {len(space.sites)} layers ({kinds})",
            f"flagged    {len(flagged)}, about {expected} fitted",
            f"reference  {len(reference)}",
            f"passes     about {passes:,} examples forward (batches of {evaluator.batch_size})",
            f"time       about {max(1, round(passes * each))} s",
        ]
    )
