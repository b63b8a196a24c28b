"""What an audit will cost, before it starts: sites, passes and time, audit by audit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memaudit.audits.base import Audit, Workload
from memaudit.audits.context import Context
from memaudit.audits.registry import BY_NAME, chosen
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.loop import BACKWARD
from memaudit.findings import AUDITS, OVER_TIME
from memaudit.network.layer_groups import layer_groups
from memaudit.network.replay import watch
from memaudit.network.units import UnitSpace, select
from memaudit.numbers import count
from memaudit.settings import PROFILES, Settings
from memaudit.system.memory import most_held

# Numbers of workers that the plan looks ahead to, and seconds until they have loaded the network.
WORKERS, START = (2, 8, 64), 10.0
# An option is named as cheaper where it leaves less than this share of the time.
SAVED = 0.9


def plan(evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, settings: Settings, states: int = 0) -> str:
    """A few lines: what would be searched, how many passes each audit takes, and about how long here.

    And how much memory, and what would be cheaper. A backward pass counts as one and a half forward passes; one small
    batch is timed, or one for each worker.
    """
    adapter = evaluator.adapter
    with exact_arithmetic():
        few = reference.batch(list(range(min(3, len(reference)))), evaluator.device)
        space = select(adapter.sites(few), settings.unit, settings.layers)
        each, fitted = timed(evaluator, flagged)
        peak = memory(evaluator, flagged, space, evaluator.batch_size)
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
        batch=evaluator.batch_size,
    )
    audits = chosen(settings, states > 1)
    passes = _passes(audits, size)
    kinds = ", ".join(sorted({s.kind for s in space.sites}))
    total = sum(passes.values())
    fast = replace(size, profile=PROFILES["fast"])
    cheaper = [] if settings.profile == "fast" else [("--profile fast", sum(_passes(audits, fast).values()))]
    over_time = [audit for audit in audits if audit.name in OVER_TIME]
    if over_time:
        cheaper.append(("--audit localize", sum(_passes([BY_NAME["localize"]], size).values())))
    half = replace(size, flagged=size.flagged // 2, fitted=size.fitted // 2)
    cheaper.append((f"--limit {max(1, size.flagged // 2)}", sum(_passes(audits, half).values())))
    return "\n".join(
        [
            model_line(evaluator),
            f"units      {space.total:,} in {len(space.sites)} layers ({kinds})",
            f"flagged    {len(flagged)}, about {size.fitted} fitted",
            f"reference  {len(reference)}",
            *([f"series     {states} checkpoints, the audited model included"] if states > 1 else []),
            *cost_lines(evaluator, passes, each, peak),
            spread(audits, size, each * evaluator.engine.workers, time.process_time()),
            *cheaper_line([(option, other * each) for option, other in cheaper], total * each),
            *_more(size, audits, each),
        ]
    )


def timed(evaluator: Evaluator, examples: ExampleSet) -> tuple[float, float]:
    """Seconds of an example's forward pass where all workers are busy, and the share of labels that are predicted."""
    rows = range(min(evaluator.batch_size, len(examples), 32))
    small = Evaluator(evaluator.adapter, len(rows))
    small.engine, small.intact = evaluator.engine, True
    panel = Panel(examples, list(rows) * evaluator.engine.workers)
    small.logits(examples, panel.rows)  # the first pass of each worker prepares memory
    start = time.perf_counter()
    fitted = float(small.predicted(panel).float().mean())
    if evaluator.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(panel), fitted


def spread(audits: Sequence[Audit], size: Workload, each: float, alone: float) -> str:
    """What workers would make of it, after Amdahl 1967: each audit by as many as it has pieces for.

    Args:
        each: seconds of one pass, by one worker.
        alone: seconds of the processor that this process has needed so far: it does this by itself.
    """

    shared = [(audit.passes(size), audit.pieces(size)) for audit in audits]
    return workers_line([(size.flagged + size.reference, max(WORKERS)), *shared], each, alone)


def workers_line(shared: Sequence[tuple[float, int]], each: float, alone: float) -> str:
    """As `spread`, of passes and the pieces that they come in."""

    def took(workers: int) -> float:
        return alone + START + each * sum(passes / min(workers, max(1, pieces)) for passes, pieces in shared)

    said = ", ".join(f"{workers} in {spoken(took(workers))}" for workers in WORKERS)
    return f"workers    --engine ray --workers N: {said}; {spoken(alone + START)} of it by one process"


def model_line(evaluator: Evaluator) -> str:
    """What runs, and where."""
    adapter = evaluator.adapter
    return f"model      {adapter.architecture} ({adapter.parameters:,} parameters) on {evaluator.device}"


def cost_lines(
    evaluator: Evaluator,
    passes: Mapping[str, float],
    each: float,
    peak: float,
    further: Sequence[tuple[str, float]] = (),
) -> list[str]:
    """Passes and time of each stage and of all, and memory.

    Args:
        each: seconds of one pass.
        peak: bytes.
        further: what is no pass of the network, and its seconds.
    """
    workers = evaluator.engine.workers
    by = count(evaluator.threads, "thread") if workers == 1 else f"{count(workers, 'copy', 'copies')} of the network"
    total = sum(passes.values())
    return [
        f"passes     about {round(total):,} examples forward (batches of {evaluator.batch_size})",
        *(f"           {round(n):>12,}  {spoken(n * each):>10}  {name}" for name, n in passes.items()),
        *(f"           {'':>12}  {spoken(seconds):>10}  {name}" for name, seconds in further),
        f"time       about {spoken(total * each + sum(seconds for _, seconds in further))} with {by}",
        f"memory     about {peak / 2**30:.1f} GiB at the most",
    ]


def cheaper_line(options: Sequence[tuple[str, float]], seconds: float) -> list[str]:
    """What would save a tenth or more of `seconds`, and how long it then takes."""
    said = "; ".join(f"{option}: about {spoken(other)}" for option, other in options if other < SAVED * seconds)
    return [f"cheaper    {said}"] if said else []


def _passes(audits: Sequence[Audit], size: Workload) -> dict[str, float]:
    """Passes of each, by its title, and of what comes before them."""
    passes = {"observation": float(size.flagged + size.reference)}
    for audit in audits:
        passes[AUDITS[audit.name].title if audit.name in AUDITS else audit.name] = audit.passes(size)
    return passes


def _more(size: Workload, audits: Sequence[Audit], each: float) -> list[str]:
    """What the audits over time would add, where there is a series and they were not asked for."""
    left = [name for name in OVER_TIME if name not in {audit.name for audit in audits}]
    if size.states < 2 or not left:
        return []
    more = sum(BY_NAME[name].passes(size) for name in left)
    return [f"more       --audit all adds {', '.join(AUDITS[n].title for n in left)}: about {spoken(more * each)}"]


def left_out(context: Context, audits: Sequence[Audit], seconds: float) -> list[str]:
    """As the plan's line, by what the audit that ran took; empty where it left out nothing.

    Args:
        seconds: that it took.
    """
    ran = context.evaluator.passes
    total = sum(times * (BACKWARD if name.endswith("backward") else 1) for name, times in ran.items())
    size = Workload(
        profile=context.profile,
        flagged=len(context.flagged),
        fitted=len(context.fitted),
        reference=len(context.reference),
        states=len(context.states),
        groups=len(context.groups) if len(context.states) > 1 else 0,
        units=context.space.total,
    )
    return _more(size, audits, seconds / max(1.0, total))


def memory(evaluator: Evaluator, examples: ExampleSet, space: UnitSpace, batch: int) -> float:
    """Bytes at the most: what is held so far, and what a backward pass of `batch` examples keeps for its gradients.

    The tensors that a pass of a few rows keeps are counted; all but the parameters grow with the batch.
    """
    few, kept = list(range(min(4, len(examples)))), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluator.mask_gradients(examples, few, [[]] * len(few), space, margin)
    for parameter in evaluator.adapter.module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    graph = sum(kept.values()) * batch / len(few)
    cuda = evaluator.device.type == "cuda"
    return graph + (torch.cuda.memory_allocated(evaluator.device) if cuda else most_held())


def spoken(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
