"""Slow, obvious twins of the fast paths: one example at a time, an edited copy of the weights, plain loops.

Nothing here knows of masks or batches, and hooks only look. A unit is scaled by scaling its slices of the weights in a
deep copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memaudit.data import ExampleSet
from memaudit.network.units import Site, UnitSpace

Label = int


def location(space: UnitSpace, unit: int) -> tuple[Site, int]:
    """The site of a unit's number, and its index there."""
    for site in space.sites:
        if unit < site.width:
            return site, unit
        unit -= site.width
    raise IndexError(unit)


def slices(
    module: nn.Module, space: UnitSpace, unit: int
) -> Iterable[tuple[nn.Parameter, tuple[slice | list[int], ...]]]:
    """Each parameter that holds weights of `unit`, and the index of those weights."""
    site, index = location(space, unit)
    owned = [
        copy * site.width * site.span + index * site.span + s for copy in range(site.copies) for s in range(site.span)
    ]
    for name, axis in site.edits:
        yield getattr(module.get_submodule(site.layer), name), (slice(None),) * axis + (owned,)


def cut_copy(module: nn.Module, space: UnitSpace, cut: Iterable[int]) -> nn.Module:
    """A deep copy with the weights of `cut` zeroed."""
    copy = deepcopy(module)
    with torch.no_grad():
        for unit in cut:
            for parameter, where in slices(copy, space, unit):
                parameter[where] = 0
    return copy


def logits_of(module: nn.Module, examples: ExampleSet, row: int) -> Tensor:
    """`(classes,)` of one example, alone in its batch."""
    dtype = next(module.parameters()).dtype
    return module(examples.batch([row]).to(dtype))[0]


def margin_of(logits: Tensor, label: Label) -> Tensor:
    others = [logits[k] for k in range(len(logits)) if k != label]
    return logits[label] - max(others)


def mask_gradient(
    module: nn.Module, space: UnitSpace, examples: ExampleSet, row: int, cut: Sequence[int], kept: float = 1.0
) -> list[float]:
    """Derivative of the margin by each unit's scale: weight times gradient, summed over the weights it scales.

    Units in `cut` have no weights left to scale, so theirs is 0 here; all others are at `kept`.
    """
    copy = cut_copy(module, space, cut)
    with torch.no_grad():
        for unit in range(space.total):
            for parameter, where in slices(copy, space, unit):
                parameter[where] *= kept
    copy.requires_grad_(True)
    margin_of(logits_of(copy, examples, row), examples.examples[row].label).backward()
    result = []
    for unit in range(space.total):
        total = 0.0
        for parameter, where in slices(copy, space, unit):
            assert parameter.grad is not None
            total += float((parameter.grad[where] * parameter.detach()[where]).sum())
        result.append(total / kept)
    return result


def signal(module: nn.Module, space: UnitSpace, examples: ExampleSet, row: int) -> list[float]:
    """By unit, the mean size of its values for one example, over the mean of its site."""
    seen: dict[str, Tensor] = {}
    sites = {site.layer: site for site in space.sites}

    def look(layer: str) -> None:
        def see(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[layer] = (output if sites[layer].side == "output" else args[0]).detach()

        handles.append(module.get_submodule(layer).register_forward_hook(see))

    handles: list[RemovableHandle] = []
    for layer in sites:
        look(layer)
    logits_of(module, examples, row)
    for handle in handles:
        handle.remove()
    sizes = []
    for unit in range(space.total):
        site, index = location(space, unit)
        values = seen[site.layer].index_select(site.axis, torch.tensor(site.elements(index)))
        sizes.append(sum(abs(float(v)) for v in values.flatten()) / values.numel())
    means = {layer: [s for u, s in enumerate(sizes) if location(space, u)[0].layer == layer] for layer in sites}
    return [s / (sum(m) / len(m)) for u, s in enumerate(sizes) for m in [means[location(space, u)[0].layer]]]


@dataclass(frozen=True)
class Crowd:
    """The reference: `margins[r]`, `effects[r][u]` by which unit u's ablation lowers it to first order, `labels[r]`.

    Of `examples` these are the `rows`.
    """

    margins: list[float]
    effects: list[list[float]]
    labels: list[int]
    examples: ExampleSet
    rows: list[int]

    @classmethod
    def measure(cls, module: nn.Module, space: UnitSpace, reference: ExampleSet, rows: Sequence[int]) -> Crowd:
        margins, effects, labels = [], [], []
        for row in rows:
            labels.append(reference.examples[row].label)
            margins.append(float(margin_of(logits_of(module, reference, row), labels[-1])))
            effects.append(mask_gradient(module, space, reference, row, []))
        return cls(margins, effects, labels, reference, list(rows))

    def usual(self, unit: int, label: int, deviations: float, fewest: int) -> float:
        """Mean effect of the unit on examples of the label, and so many standard deviations more."""
        same = [e[unit] for e, y in zip(self.effects, self.labels, strict=True) if y == label]
        if len(same) < fewest:
            same = [e[unit] for e in self.effects]
        mean = sum(same) / len(same)
        return mean + deviations * math.sqrt(sum((v - mean) ** 2 for v in same) / len(same))

    @property
    def typical(self) -> float:
        right = sorted(m for m in self.margins if m > 0)
        return right[(len(right) - 1) // 2]

    def wrong(self, cut: Sequence[int], softness: float) -> float:
        """Expected share of the reference that is wrong with `cut` gone."""
        total = 0.0
        for value, effect in zip(self.margins, self.effects, strict=True):
            predicted = min(value, value - sum(effect[u] for u in cut))
            total += 1 / (1 + math.exp(min(500.0, predicted / (softness * self.typical))))
        return total / len(self.margins)


@dataclass(frozen=True)
class GreedySearch:
    """The search of `memaudit.audits.localize`, one example at a time."""

    module: nn.Module
    space: UnitSpace
    candidates: Sequence[bool]
    crowd: Crowd
    max_units: int
    weight: float
    softness: float
    shortlist: int
    plan: int
    look_ahead: int = 0
    look_first: int = 0
    sampled: int = 0
    doubted: int = 0
    faded: float = 1.0
    deviations: float = 0.0
    fewest: int = 0

    def run(self, examples: ExampleSet, row: int) -> tuple[list[int], bool]:
        """The cut, in order, and whether it erases the label."""
        cut: list[int] = []
        seen: dict[frozenset[int], float] = {}
        tries = self.look_ahead or self.look_first
        strength = signal(self.module, self.space, examples, row) if tries else []
        while True:
            value = seen[frozenset(cut)] = self.margin(examples, row, cut)
            if value < 0:
                return self.reduce(examples, row, cut, seen), True
            if len(cut) == self.max_units:
                return cut, False
            gradient = mask_gradient(self.module, self.space, examples, row, cut)
            hidden: dict[int, float] = {}
            if self.look_ahead or (self.look_first and not cut):
                faded = mask_gradient(self.module, self.space, examples, row, cut, self.faded)
                both = [(abs(g) + abs(f)) * s for g, f, s in zip(gradient, faded, strength, strict=True)]
                tried = self.tried(examples, row, cut, value, both, tries)
                seen |= {frozenset([*cut, u]): value - drop for u, drop in tried.items()}
                hidden = {} if self.look_ahead else {u: self.hidden(u) for u in tried}
                gradient = [tried.get(u, -math.inf if self.look_ahead else g) for u, g in enumerate(gradient)]
            free = [u for u in range(self.space.total) if self.candidates[u] and u not in cut and gradient[u] > 0]
            short = sorted(free, key=lambda u: -gradient[u])[: self.shortlist]
            planned = 0
            while value >= 0 and planned < self.plan and len(cut) < self.max_units:
                best = self.best(gradient, hidden, short, cut, examples.examples[row].label)
                if best is None:
                    break
                value -= gradient[best]
                cut.append(best)
                planned += 1
            if not planned:
                return cut, False

    def tried(
        self, examples: ExampleSet, row: int, cut: Sequence[int], value: float, size: Sequence[float], count: int
    ) -> dict[int, float]:
        """What each of the `count` units of the largest `size` takes of the margin."""
        free = [u for u in range(self.space.total) if self.candidates[u] and u not in cut]
        looked = sorted(free, key=lambda u: -size[u])[:count]
        return {unit: value - self.margin(examples, row, [*cut, unit]) for unit in looked}

    def hidden(self, unit: int) -> float:
        """What the unit costs a few of the crowd, ablated, beyond what its effects say."""
        crowd, scale = self.crowd, self.softness * self.crowd.typical

        def spread(count: int, most: int) -> list[int]:
            number = min(count, most)
            return [i * (count - 1) // max(1, number - 1) for i in range(number)]

        def surplus(place: int) -> float:
            intact = crowd.margins[place]
            after = self.margin(crowd.examples, crowd.rows[place], [unit])
            predicted = min(intact, intact - crowd.effects[place][unit])
            seen = 1 / (1 + math.exp(min(500.0, min(intact, after) / scale)))
            return seen - 1 / (1 + math.exp(min(500.0, predicted / scale)))

        places = spread(len(crowd.margins), self.doubted)
        first = [places[i] for i in spread(len(places), self.sampled)]
        risks = [surplus(place) for place in first]
        if sum(risks) > 0.5:
            risks += [surplus(place) for place in places if place not in first]
        return self.weight * crowd.typical * max(0.0, sum(risks) / len(risks))

    def best(
        self,
        gradient: Sequence[float],
        hidden: Mapping[int, float],
        short: Sequence[int],
        cut: Sequence[int],
        label: int,
    ) -> int | None:
        now = self.crowd.wrong(cut, self.softness)
        scores = {
            u: gradient[u]
            - hidden.get(u, 0.0)
            - self.weight * self.crowd.typical * (self.crowd.wrong([*cut, u], self.softness) - now)
            for u in short
            if u not in cut
        }
        if self.look_ahead:
            scores = {u: s - self.crowd.usual(u, label, self.deviations, self.fewest) for u, s in scores.items()}
        return max(scores, key=lambda u: scores[u]) if scores else None

    def reduce(self, examples: ExampleSet, row: int, cut: list[int], seen: dict[frozenset[int], float]) -> list[int]:
        """What is left of the cut; a label that was seen to be kept is taken to be kept with less cut."""
        while len(cut) > 1:
            without = {u: [c for c in cut if c != u] for u in cut}
            kept = {u for u, less in without.items() if any(s >= set(less) and v >= 0 for s, v in seen.items())}
            margins = {u: self.margin(examples, row, less) for u, less in without.items() if u not in kept}
            seen |= {frozenset(without[u]): m for u, m in margins.items()}
            spare = {u: m for u, m in margins.items() if m < 0}
            if not spare:
                break
            cut = without[min(spare, key=lambda u: spare[u])]
        return cut

    def margin(self, examples: ExampleSet, row: int, cut: Sequence[int]) -> float:
        with torch.no_grad():
            logits = logits_of(cut_copy(self.module, self.space, cut), examples, row)
        return float(margin_of(logits, examples.examples[row].label))


def accuracy(
    module: nn.Module, space: UnitSpace, reference: ExampleSet, rows: Iterable[int], cut: Sequence[int]
) -> float:
    """Share of `rows` that an edited copy predicts right."""
    copy = cut_copy(module, space, cut)
    with torch.no_grad():
        right = [int(logits_of(copy, reference, r).argmax()) == reference.examples[r].label for r in rows]
    return sum(right) / len(right)


def nearest(query: Sequence[Sequence[Sequence[float]]], base: Sequence[Sequence[Sequence[float]]]) -> list[list[int]]:
    """By query, the rows of `base` from the most to the least similar: cosine around its mean, averaged over layers."""
    found = []
    for row in range(len(query[0])):
        total = [0.0] * len(base[0])
        for layer, keys in zip(query, base, strict=True):
            width = len(keys[0])
            centre = [sum(key[f] for key in keys) / len(keys) for f in range(width)]
            own = [value - c for value, c in zip(layer[row], centre, strict=True)]
            for j, key in enumerate(keys):
                moved = [value - c for value, c in zip(key, centre, strict=True)]
                dot = sum(a * b for a, b in zip(own, moved, strict=True))
                total[j] += dot / math.sqrt(sum(v * v for v in own) * sum(v * v for v in moved))
        found.append(sorted(range(len(total)), key=lambda j: -total[j]))
    return found


def support(
    query: Sequence[Sequence[float]],
    labels: Sequence[Label],
    base: Sequence[Sequence[float]],
    base_labels: Sequence[Label],
    k: int,
    *,
    leave_out_self: bool = False,
) -> list[float]:
    """Share of the `k` nearest of `base` (cosine, after taking off the mean of `base`) with the query's label."""
    width = len(base[0])
    centre = [sum(row[f] for row in base) / len(base) for f in range(width)]

    def direction(row: Sequence[float]) -> list[float]:
        moved = [value - c for value, c in zip(row, centre, strict=True)]
        length = math.sqrt(sum(v * v for v in moved))
        return [v / length for v in moved]

    keys = [direction(row) for row in base]
    shares = []
    for number, (row, label) in enumerate(zip(query, labels, strict=True)):
        own = direction(row)
        similarity = {
            j: sum(a * b for a, b in zip(own, key, strict=True))
            for j, key in enumerate(keys)
            if not (leave_out_self and j == number)
        }
        nearest = sorted(similarity, key=lambda j: -similarity[j])[:k]
        shares.append(sum(base_labels[j] == label for j in nearest) / k)
    return shares


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The rates p whose distance to the observed one is 1.96 standard errors of p itself, found by bisection."""
    z = 1.959963984540054

    def distance(p: float) -> float:
        return abs(hits / count - p) - z * math.sqrt(p * (1 - p) / count)

    def edge(inside: float, outside: float) -> float:
        if distance(outside) <= 0:
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if distance(middle) <= 0 else (inside, middle)
        return inside

    return edge(hits / count, 0.0), edge(hits / count, 1.0)


def auroc(positive: Iterable[float], negative: Sequence[float]) -> float:
    """Chance that a positive is above a negative, over all pairs; a tie is half."""
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return sum(wins) / len(wins)
