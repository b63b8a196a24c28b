"""Localization: the units each fitted flagged label sits in, every claim measured again, and the set as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from memaudit.audits.base import ForExample, ForReport, Piece, Unfinished, Workload
from memaudit.audits.context import Context
from memaudit.audits.localize import curtailed, flagged_set
from memaudit.audits.localize.controls import MORE, Judge
from memaudit.audits.localize.cost import settle_costs
from memaudit.audits.localize.curtailed import rounds, undecided, with_intervals
from memaudit.audits.localize.known import known_units
from memaudit.audits.localize.population import SAMPLED, Population, measure_population
from memaudit.audits.localize.search import Search
from memaudit.audits.localize.work import RANDOM_BUDGET, Localized, Localizing, judged_by, key_of
from memaudit.engine.draws import generator_for
from memaudit.engine.loop import BACKWARD
from memaudit.engine.pieces import FEWEST
from memaudit.findings import Groups, RandomControl, Stability, interned

# For the estimate of passes: units a search cuts and tries on average, and reference rows per finding that the cut is
# expected to change, from CIFAR-10 and digits audits.
TYPICAL_UNITS = 3
TYPICAL_AT_RISK = 12


class Localize:
    """The search, its controls, and what only the whole flagged set shows."""

    name = "localize"

    def passes(self, size: Workload) -> float:
        """The population's effects, the search, verification, and the set as a whole."""
        profile = size.profile
        least = profile.sampled // max(1, size.fitted)
        risky = max(profile.at_risk + TYPICAL_AT_RISK // MORE, least)
        others = max(profile.near, least) + max(profile.at_random, least)
        panel = min(profile.panel_rows, min(TYPICAL_AT_RISK, risky) + others)
        looked = float(TYPICAL_UNITS * min(profile.look_ahead, size.units))
        effects = (1 + BACKWARD) * (profile.search_rows + profile.panel_rows)
        if profile.look_first:
            looked += 2 + BACKWARD + min(profile.look_first, size.units)
            effects += SAMPLED * min(size.units, size.fitted * TYPICAL_UNITS / 2)
        search = size.fitted * (2 * (1 + BACKWARD) + TYPICAL_UNITS + looked)
        draws = min(profile.draws, 1.1 * curtailed.FIRST)
        verify = size.fitted * (1 + panel + draws + 2 * profile.copies + profile.others)
        group = min(profile.clean, size.fitted) * (10 + looked) + 5 * 2 * flagged_set.CURVE_ROWS
        return effects + search + verify + group + profile.neurons * panel

    def pieces(self, size: Workload) -> int:
        """A few examples each."""
        return max(1, size.fitted // FEWEST)

    def run(self, context: Context) -> Iterator[Piece]:
        """Each fitted example's outcome, units and controls; then neurons, groups and known units.

        An example's reference cost is estimated from its own rows when it lands, and once more with all the others' at
        the end: its interval narrows, and one at the edge of the budget may change its outcome.
        """
        search, judge = _prepared(context)
        found: dict[int, Localized] = {}
        work = Localizing(search, judge, context.flagged, context.fitted, context.profile, context.deadline)
        with context.stage("localize", len(context.fitted), own_steps=True):
            for row, one in context.evaluator.engine.each(context.evaluator, work, context.fitted):
                found[row] = one
                context.progress.advance()
                yield ForExample(row, one.values)
        if left := len(context.fitted) - len(found):
            yield Unfinished(f"{left} flagged examples not audited")
        found = dict(sorted(found.items()))  # not in the order they finished, which the batches decide
        found = _settled(_drawn_on(context, judge, found), context.profile.draws)
        for row, one in found.items():
            yield ForExample(row, one.values)
        yield from _set_as_a_whole(context, search, judge, found)


def _prepared(context: Context) -> tuple[Search, Judge]:
    """The search and the judge: what each unit does to one half of the reference, and a panel from the other half."""
    evaluator, space, reference, profile = context.evaluator, context.space, context.reference, context.profile
    order = torch.randperm(len(reference), generator=generator_for(context.seed, "panels", "")).tolist()
    half = len(order) // 2
    with context.stage("population", min(half, profile.search_rows), intact=True):
        population = _population(context, order[:half])
    panel = sorted(order[half:][: profile.panel_rows])
    with context.stage("panel", len(panel), intact=True):
        seen = measure_population(evaluator, space, reference, panel, context.fill)
    search = Search(
        space,
        context.candidates,
        population,
        context.settings.max_units,
        fill=context.fill,
        look_ahead=profile.look_ahead,
        look_first=profile.look_first,
    )
    least = -(-profile.sampled // max(1, len(context.fitted)))  # what few findings sample tells only in all
    judge = Judge(
        evaluator,
        space,
        reference,
        panel,
        seen,
        context.live,
        at_risk=max(profile.at_risk, least),
        near=max(profile.near, least),
        at_random=max(profile.at_random, least),
        seed=context.seed,
        copies=profile.copies,
        fill=context.fill,
    )
    return search, judge


def _population(context: Context, rows: Sequence[int]) -> Population:
    """What each unit does to the first of `rows`, as many as a search predicts its risk on."""
    chosen = sorted(rows[: context.profile.search_rows])
    return measure_population(context.evaluator, context.space, context.reference, chosen, context.fill)


def _drawn_on(context: Context, judge: Judge, found: Mapping[int, Localized]) -> dict[int, Localized]:
    """Random draws go on where those so far have not decided; see `curtailed`."""
    planned, flagged, known = context.profile.draws, context.flagged, dict(found)
    for draws in rounds(planned)[1:]:
        open_ = undecided([one.controls.random for one in known.values()], planned, RANDOM_BUDGET * planned)
        rows = [
            row
            for (row, one), doubt in zip(known.items(), open_, strict=True)
            if doubt and one.controls.random.draws == draws.start
        ]
        cuts = {row: [context.space.number(u.layer, u.index, u.kind) for u in known[row].units] for row in rows}
        with context.evaluator.keeping(), context.evaluator.counting("verify"):
            more = judge.together(
                [judge.random_units(flagged, row, cuts[row], draws, key_of(flagged, row)) for row in rows]
            )
        for row, erasing in zip(rows, more, strict=True):
            controls = known[row].controls
            random = RandomControl(draws=draws.stop, erased=controls.random.erased + erasing)
            known[row] = replace(known[row], controls=controls.model_copy(update={"random": random}))
    return known


def _settled(found: Mapping[int, Localized], planned: int) -> dict[int, Localized]:
    """Costs and random draws once more, now that what all findings' samples say together is known."""
    costs = settle_costs([one.reference_accuracy for one in found.values()])
    draws = with_intervals([(one.controls.random.erased, one.controls.random.draws) for one in found.values()])
    settled = {}
    for (row, one), cost, random in zip(found.items(), costs, draws, strict=True):
        settled[row] = replace(
            one,
            reference_accuracy=cost,
            controls=interned(one.controls.model_copy(update={"random": random})),
            outcome=judged_by(cost, random, planned) if one.outcome in flagged_set.ERASED else one.outcome,
        )
    return settled


def _set_as_a_whole(context: Context, search: Search, judge: Judge, found: Mapping[int, Localized]) -> Iterator[Piece]:
    """What only the whole set shows: shared units, the trade-off curve, matched clean examples, known units."""
    everyone, profile, fitted = list(found.values()), context.profile, context.fitted
    erased = [one for one in everyone if one.outcome in flagged_set.ERASED]
    advance = context.progress.advance
    shared = min(profile.neurons, len({unit for one in erased for unit in one.units}))
    with context.stage("neurons", shared, own_steps=True, intact=True):
        neurons = flagged_set.neurons(everyone, judge, profile.neurons, advance)
    yield ForReport("neurons", neurons)
    with context.stage("trade-off", own_steps=True, intact=True):
        curve = flagged_set.trade_off(neurons, judge, context.flagged, fitted)
    rows = fitted[:: max(1, -(-len(fitted) // profile.clean))]
    with context.stage("matched clean", len(rows), own_steps=True):
        matched = flagged_set.matched_controls(
            everyone,
            search,
            judge,
            context.flagged,
            rows,
            context.flagged_margins,
            context.reference_margins,
            advance,
        )
    stability = _stability(context, search, judge, found) if profile.seeds else None
    overlap = flagged_set.overlap([one.units for one in erased])
    yield ForReport("groups", Groups(curve=curve, overlap=overlap, matched_controls=matched, stability=stability))
    with context.stage("known units", own_steps=True):
        known = known_units(context.evaluator, context.space, context.live, context.flagged, context.reference, found)
    yield ForReport("known_units", known)


def _stability(context: Context, search: Search, judge: Judge, found: Mapping[int, Localized]) -> Stability:
    """The search with other reference examples, of those this run's panel leaves."""
    cuts = {
        row: [context.space.number(u.layer, u.index, u.kind) for u in one.units]
        for row, one in sorted(found.items())
        if one.outcome in flagged_set.ERASED
    }
    with context.stage("stability", context.profile.seeds * len(cuts), own_steps=True):
        panel, searches = set(judge.panel), {}
        rest = [row for row in range(len(context.reference)) if row not in panel]
        for seed in range(context.seed + 1, context.seed + 1 + context.profile.seeds):
            order = torch.randperm(len(rest), generator=generator_for(seed, "panels", "")).tolist()
            population = _population(context, [rest[i] for i in order[: len(rest) // 2]])
            searches[seed] = replace(search, population=population)
        return flagged_set.stability(searches, judge, context.flagged, cuts, context.progress.advance)
