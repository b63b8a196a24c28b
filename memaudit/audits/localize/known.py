"""A network with example-tied dropout knows which units memorize: do the audit's cuts contain them?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from memaudit.audits.localize.flagged_set import ERASED, Found
from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import lost, margin, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import KnownUnits
from memaudit.intervals import wilson
from memaudit.network.tied_dropout import feeding, layers_of, set_mode
from memaudit.network.units import UnitSpace
from memaudit.numbers import tidy


def known_units(
    evaluator: Evaluator,
    space: UnitSpace,
    live: Tensor,
    flagged: ExampleSet,
    reference: ExampleSet,
    findings: Mapping[int, Found],
) -> KnownUnits | None:
    """Recall and precision of the audit's cuts; None for a network without, or where no tied layer was searched.

    Args:
        live: `(total,)` bool, units that may be drawn at random.
        findings: by flagged row.
    """
    memorizing = _memorizing(evaluator, space, reference, flagged)
    if memorizing is None:
        return None
    layers, known = memorizing
    module = evaluator.adapter.module
    with set_mode(module, "drop"):
        dropped, clean = evaluator.logits(flagged), evaluator.logits(reference)
    gone = lost(margin(dropped, flagged.labels))
    held = [row for row, f in findings.items() if f.fitted and bool(gone[row])]
    cuts = {row: [space.number(u.layer, u.index, u.kind) for u in findings[row].units] for row in held}
    hits = {row: sum(bool(known[row, u]) for u in cut) for row, cut in cuts.items()}
    recalled = sum(findings[row].outcome in ERASED and hits[row] > 0 for row in held)
    low, high = wilson(recalled, len(held))
    cut_units = sum(map(len, cuts.values()))
    truths = [(row, e.true_label) for row, e in enumerate(flagged.examples) if e.true_label is not None]
    known_rows, true_labels = [row for row, _ in truths], torch.tensor([label for _, label in truths])
    right = predicted(margin(dropped[known_rows], true_labels)).tolist() if truths else []
    return KnownUnits(
        layers=layers,
        own=flagged.numbers is not None,
        units=round(float(known.sum(1).float().mean())),
        chance=tidy(float(known[:, live].float().mean())) if bool(live.any()) else 0.0,
        held=len(held),
        recalled=recalled,
        recall=tidy(recalled / len(held)) if held else None,
        recall_low=tidy(low) if held else None,
        recall_high=tidy(high) if held else None,
        precision=tidy(sum(hits.values()) / cut_units) if cut_units else None,
        flagged_dropped=tidy(1 - float(gone.float().mean())),
        true_label_dropped=tidy(sum(right) / len(right)) if right else None,
        reference_dropped=tidy(float(predicted(margin(clean, reference.labels)).float().mean())),
    )


def _memorizing(
    evaluator: Evaluator, space: UnitSpace, reference: ExampleSet, flagged: ExampleSet
) -> tuple[list[str], Tensor] | None:
    """The tied layers among the searched, and `(flagged, total)` bool: the memorizing units of each example."""
    layers = layers_of(evaluator.adapter.module)
    if not layers:
        return None
    probe = reference.batch(list(range(min(3, len(reference)))), evaluator.device)
    sites = feeding(evaluator.adapter.module, evaluator.adapter.forward, probe)
    known = torch.zeros(len(flagged), space.total, dtype=torch.bool)
    names = []
    for path, site in sites.items():
        searched = [n for n, s in enumerate(space.sites) if s.layer == site.layer and s.kind == site.kind]
        if not searched:
            continue
        layer, numbers = layers[path], flagged.numbers
        memorizing = layer.memorizing().cpu().expand(len(flagged), -1)
        if numbers is not None:
            memorizing = memorizing & layer.mask(numbers).cpu()
        known[:, space.offsets[searched[0]] : space.offsets[searched[0] + 1]] |= memorizing
        names.append(path)
    return (names, known) if names else None
