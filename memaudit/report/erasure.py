"""What an edited copy of the checkpoint does, before and after, as rows of text for every view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import MISSING, count, percent

if TYPE_CHECKING:
    from memaudit.findings import Erasure


def summary(erasure: Erasure) -> str:
    """What was done, in a sentence; no name from outside is in it."""
    alone = [e for e in erasure.examples if e.after.prediction != e.before.prediction]
    lost = f"; {len(alone):,} of them no longer get the label" if erasure.examples else ""
    done = f"An edited copy of the model: {erasure.done or erasure.method}{lost}."
    return f"{done} All figures are of the file as read back from disk."


def rows(erasure: Erasure) -> list[tuple[str, str, str, str]]:
    """Figure, examples behind it, before, after."""
    before, after, counts = erasure.before, erasure.after, erasure.counts
    used = erasure.used_by or "flagged label, used"
    fitted = counts.get("used", 0) + counts.get("unused", 0)
    table = [
        (used, counts.get("used", 0), before.used, after.used),
        ("flagged label, never used", counts.get("unused", 0), before.unused, after.unused),
        ("true label of flagged", counts.get("true", fitted), before.true_label, after.true_label),
        ("reference accuracy", counts.get("reference", 0), before.reference, after.reference),
        ("test accuracy", counts.get("test", 0), before.test, after.test),
    ]
    if (random := erasure.random) is not None:
        name = f"{count(random.units, f'random {random.kind}')} instead:"
        table.append((f"{name} flagged label", counts.get("used", 0), before.used, random.used))
        table.append((f"{name} reference", counts.get("reference", 0), before.reference, random.reference))
    if (alone := erasure.steps_alone) is not None:
        name, found = f"{count(alone.steps, 'clean step')}, no edit:", alone.scores
        table.append((f"{name} flagged label", counts.get("used", 0), before.used, found.used))
        table.append((f"{name} reference", counts.get("reference", 0), before.reference, found.reference))
        table.append((f"{name} test", counts.get("test", 0), before.test, found.test))
    shown = [(n, f"{c:,}", percent(b), percent(a)) for n, c, b, a in table if a is not None]
    classes = [(c, b, a) for c, (b, a) in enumerate(zip(before.by_class, after.by_class, strict=True)) if b is not None]
    worst = min(classes, key=lambda row: (row[2] or 0) - (row[1] or 0), default=None)
    if worst is not None:
        how = "loses most" if (worst[2] or 0) < (worst[1] or 0) else "gains least"
        shown.append((f"class {worst[0]}, which {how}", "", percent(worst[1]), percent(worst[2])))
    return shown


def probes(erasure: Erasure) -> list[tuple[str, str, str, str]]:
    """Probe, setting, flagged labels predicted, and the figure to compare it with."""
    table = [
        (
            "input noise",
            f"{point.sigma:g} of the inputs' deviation",
            percent(point.after),
            f"{percent(point.before)} before the edit",
        )
        for point in erasure.noise
    ]
    for found in erasure.inputs:
        control = f"{percent(found.control)} from clean examples of that class"
        table.append(("input search", f"{found.radius:g} of the inputs' deviation", percent(found.flagged), control))
    for point in erasure.relearning:
        control = MISSING if point.control is None else f"{percent(point.control)} after as many clean ones"
        table.append(("relearning others", count(point.steps, "step"), percent(point.rest), control))
    return table


def tried(erasure: Erasure) -> list[tuple[str, ...]]:
    """Edits that were tried, the fewest labels first: layers, what is kept, steps, label, accuracy, the choice."""
    ordered = sorted(erasure.candidates, key=lambda c: (c.flagged, -c.validation))
    return [
        (
            _span(c.layers),
            c.how or f"{percent(c.curvature)} of the curvature",
            str(c.clean_steps),
            percent(c.flagged),
            percent(c.validation),
            "chosen" if c.chosen else "",
        )
        for c in ordered
    ]


def _span(layers: list[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]} ({len(layers)})"


def membership(erasure: Erasure) -> str:
    """Whether the file still tells the flagged from test examples; empty where that was not measured."""
    from memaudit.report.verification.words import power, strongest, unlike

    before, after = erasure.membership_before, erasure.membership
    if after is None:
        return ""
    best = strongest(after)
    was = "" if before is None else f"{strongest(before).auc:.3f} (p {before.p_value:.2g}) before the edit, "
    found = f"{best.auc:.3f} ({best.auc_low:.3f} to {best.auc_high:.3f}; p {after.p_value:.2g}) after it"
    if after.unlike:
        said = f"Whether the edited file gives them away cannot be told: {unlike(after)}"
    elif after.found:
        said = "The edited file still gives them away"
    else:
        said = f"The edited file shows no evidence of them. {power(after)}"
    return f"Membership, AUC of the strongest test against test examples: {was}{found}. {said}"


def _choices(erasure: Erasure) -> list[str]:
    """What each edit that was tried leaves and costs, on examples that no final figure is measured on."""
    found = tried(erasure)
    if not found:
        return []
    head = f"{'tried: layers':<36}{'kept':<28}{'steps':>7}{'label':>8}{'accuracy':>10}"
    return ["", head, *(f"{a:<36.36}{b:<28}{c:>7}{d:>8}{e:>10}  {f}".rstrip() for a, b, c, d, e, f in found)]


def text(erasure: Erasure) -> str:
    """What was tried, with its result, for a terminal."""
    lines = [summary(erasure), *_choices(erasure), "", f"{'':<54}{'examples':>9}{'before':>9}{'after':>9}"]
    lines += [f"{name:<54}{examples:>9}{before:>9}{after:>9}" for name, examples, before, after in rows(erasure)]
    if probes(erasure):
        lines += ["", f"{'probe':<20}{'':<32}{'label':>8}  against"]
        lines += [f"{name:<20}{how:<32}{label:>8}  {against}" for name, how, label, against in probes(erasure)]
    return "\n".join([*lines, "", *filter(None, [membership(erasure)]), *erasure.notes])
