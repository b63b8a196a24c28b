"""What an audit will cost, before it starts: sites, passes and seconds."""

from __future__ import annotations

import time

import torch

from memaudit.audits.layerwise import GRADIENT_ROWS
from memaudit.audits.localize.flagged_set import CURVE_ROWS
from memaudit.data import ExampleSet
from memaudit.engine.batchnorm import CALIBRATION
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.loop import BACKWARD
from memaudit.network.layer_groups import layer_groups
from memaudit.network.replay import watch
from memaudit.network.units import select
from memaudit.settings import OVER_TIME, PROFILES, Settings

# Units a search cuts and tries on average, from CIFAR-10 and digits audits; only the estimate depends on it.
TYPICAL_UNITS = 3
# Reference rows per finding that are measured because the cut is likely to change them.
TYPICAL_AT_RISK = 16


def plan(evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, settings: Settings, states: int = 0) -> str:
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
        fitted = float(evaluator.predicted(Panel(flagged, few)).float().mean())
        if evaluator.device.type == "cuda":
            torch.cuda.synchronize()
        each = (time.perf_counter() - start) / len(few)
    expected = round(len(flagged) * fitted)
    panel = min(profile.panel_rows, TYPICAL_AT_RISK + profile.at_random)
    observed = len(flagged) + len(reference)
    looked = TYPICAL_UNITS * min(profile.look_ahead, space.total)
    search = expected * (2 * (1 + BACKWARD) + TYPICAL_UNITS + looked)
    verify = expected * (1 + panel + profile.draws + 2 * profile.copies + profile.others)
    group = min(profile.clean, expected) * (10 + looked) + 5 * 2 * CURVE_ROWS + profile.neurons * panel
    over_time = _over_time(evaluator, reference, settings, states, expected) if states > 1 else 0
    local = (1 + BACKWARD) * (profile.search_rows + profile.panel_rows) + search + verify + group
    if settings.audits is not None and "localize" not in settings.audits:
        local = 0
    passes = round(observed + local + over_time)
    kinds = ", ".join(sorted({s.kind for s in space.sites}))
    return "\n".join(
        [
            f"model      {adapter.architecture} ({adapter.parameters:,} parameters) on {evaluator.device}",
            f"units      {space.total:,} in {len(space.sites)} layers ({kinds})",
            f"flagged    {len(flagged)}, about {expected} fitted",
            f"reference  {len(reference)}",
            *([f"series     {states} checkpoints, the audited model included"] if states > 1 else []),
            f"passes     about {passes:,} examples forward (batches of {evaluator.batch_size})",
            f"time       about {max(1, round(passes * each))} s",
        ]
    )


def _over_time(evaluator: Evaluator, reference: ExampleSet, settings: Settings, states: int, fitted: int) -> float:
    """Passes of the audits over time: a replayed cell is half a pass, retraining stops after about half its budget."""
    profile, adapter = PROFILES[settings.profile], evaluator.adapter
    order = watch(adapter.module, adapter.forward, reference.batch([0], evaluator.device)).first_use
    groups = len(layer_groups(adapter.module, order, depth=settings.group_depth, layers=settings.layers))
    rows = 2 * min(fitted, profile.flagged_rows) + min(len(reference), profile.reference_rows)
    trained = min(len(reference), profile.retrain_rows)
    audits = OVER_TIME if settings.audits is None else settings.audits
    total = float(states * rows)
    if "gradients" in audits:
        total += (1 + 2 * BACKWARD) * states * GRADIENT_ROWS * rows
    if "rewind" in audits:
        total += 0.5 * groups * states * (2 * rows + CALIBRATION)
    if "retrain" in audits:
        total += groups * profile.retrain_seeds * profile.retrain_epochs / 2 * (3 * trained + rows)
    return total
