"""Is an example fitted, and is its label atypical: not supported by its nearest reference neighbours, layer by layer.

"Memorized" is the ability to predict correctly on atypical examples (Maini et al. 2023, section 2). The neighbours are
found in the model's own intermediate features, after the deep k-NN of Papernot and McDaniel 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.data.examples import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Seen
from memaudit.network.tied_dropout import layers_of
from memaudit.network.units import UnitSpace

# Layers whose neighbours vote: evenly spread over depth. On CIFAR-10 the average of eight was as good as the best one.
LAYERS = 8
# Neighbours per layer, fewer where classes are small. 10, 30 and 50 gave AUROC 0.921, 0.916 and 0.911 on CIFAR-10.
NEIGHBOURS = 10
# Features keep a 2 x 2 grid of positions (AUROC 0.921 against 0.897 for the plain mean) and at most this many values.
CELLS = 2
FEATURE_WIDTH = 1024
# Nearest reference examples that a report shows.
SHOWN = 3
# Reference examples whose own leave-one-out support the p-value compares with.
CALIBRATION = 2000
# Flagged examples whose features, and similarities to the whole reference, are held at a time.
PART = 1024


@dataclass(frozen=True)
class Observation:
    """What one pass over a set saw.

    Attributes:
        logits: `(N, classes)`.
        features: per voting layer `(N, F)`, rectified and pooled.
        statistics: per site `(3, elements)`: the least, largest and mean value of each element over the set.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
    statistics: tuple[Tensor, ...]

    @property
    def means(self) -> tuple[Tensor, ...]:
        """Per site `(elements,)`: the mean of each element over the set."""
        return tuple(s[2] for s in self.statistics)


@dataclass(frozen=True)
class Support:
    """Atypicality of some examples: `score` and `p_value`, both `(N,)` in [0, 1].

    Attributes:
        nearest: `(N, k)` the reference rows with the largest mean similarity over the voting layers, nearest first.
        similarity: `(N, k)` that mean cosine.
    """

    score: Tensor
    p_value: Tensor
    nearest: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class Neighbours:
    """What neighbours say of labels: larger scores are less supported.

    Attributes:
        flagged: of each flagged label.
        rows: reference rows that were scored, each among the others: `own` for their labels `(n,)`.
        given: how the labels that the network gives them score `(n,)`.
        others: other labels of the same examples, drawn; `other` `(n,)` is how they score.
    """

    flagged: Support
    rows: Tensor
    own: Tensor
    given: Tensor
    others: Tensor
    other: Tensor


def observe(evaluator: Evaluator, examples: ExampleSet, space: UnitSpace) -> Observation:
    """Logits, neighbour features, and the range and mean of every site, in one pass."""
    voting = voting_sites(space)

    def reduce(number: int, tensor: Tensor) -> Seen:
        flat = tensor.reshape(-1, tensor.shape[-1]).float()
        statistics = torch.stack([flat.amin(0), flat.amax(0), flat.mean(0)])
        size = torch.tensor(float(len(flat)))
        return (statistics, size, pooled(tensor, number, examples.image)) if number in voting else (statistics, size)

    logits, seen = evaluator.observe(examples, space, reduce)
    features = tuple(torch.cat([batch[2] for batch in seen[n]]) for n in voting)
    statistics = tuple(
        _merged(torch.stack([batch[0] for batch in batches]), torch.stack([batch[1] for batch in batches]))
        for batches in seen
    )
    return Observation(logits, features, statistics)


# Fast path; its slow twin: tests/twins.py.
def observe_flagged(
    evaluator: Evaluator, examples: ExampleSet, space: UnitSpace, reference: Observation, reference_labels: Tensor
) -> tuple[Observation, Support, Tensor]:
    """Like `observe` and `atypicality`, part by part: the features of many flagged examples are never held together.

    Where an example has memorizing units of its own, its neighbours are sought without them, as the reference runs:
    they would take it away from its likes.

    Returns:
        What was seen, without features; the support of each label; and the reference's own leave-one-out scores
        `(R,)`.
    """
    parts: list[Observation] = []
    supports: list[Support] = []
    paired = evaluator.adapter.multi_label
    own = leave_one_out(reference.features, reference_labels, paired)
    tied = bool(layers_of(evaluator.adapter.module))
    for start in range(0, len(examples), PART):
        part = examples.subset(range(start, min(start + PART, len(examples))))
        seen = observe(evaluator, part, space)
        alike = observe(evaluator, part.unnumbered(), space) if tied and part.numbers else seen
        supports.append(atypicality(alike.features, part.labels, reference.features, reference_labels, own, paired))
        parts.append(Observation(seen.logits, (), seen.statistics))
    weights = torch.tensor([float(len(p.logits)) for p in parts])
    statistics = tuple(_merged(torch.stack(site), weights) for site in zip(*(p.statistics for p in parts), strict=True))
    joined = {name: torch.cat([getattr(s, name) for s in supports]) for name in Support.__dataclass_fields__}
    support = Support(**joined)
    return Observation(torch.cat([p.logits for p in parts]), (), statistics), support, own


def _merged(values: Tensor, weights: Tensor) -> Tensor:
    """Least, largest and mean values `(parts, 3, elements)` of parts of these sizes, as those of the whole."""
    mean = (values[:, 2] * weights[:, None]).sum(0) / weights.sum()
    return torch.stack([values[:, 0].amin(0), values[:, 1].amax(0), mean])


def live_units(space: UnitSpace, *sets: Observation) -> Tensor:
    """`(total,)` bool: units whose value varies over all of `sets` together. The others do nothing, or are a bias."""
    live = []
    for number, site in enumerate(space.sites):
        low = torch.stack([s.statistics[number][0] for s in sets]).amin(0)
        high = torch.stack([s.statistics[number][1] for s in sets]).amax(0)
        live.append((high > low).view(site.copies, site.width, site.span).any(-1).any(0))
    return torch.cat(live)


def voting_sites(space: UnitSpace) -> list[int]:
    """Site numbers whose features vote: at most `LAYERS`, evenly spread, the last one included."""
    count = len(space.sites)
    wanted = min(LAYERS, count)
    return sorted({(i + 1) * count // wanted - 1 for i in range(wanted)})


# Fast path; its slow twin: tests/twins.py.
def atypicality(
    features: Sequence[Tensor],
    labels: Tensor,
    reference_features: Sequence[Tensor],
    reference_labels: Tensor,
    calibration: Tensor,
    paired: bool = False,
) -> Support:
    """How little the nearest reference neighbours support each label.

    Args:
        features: per layer `(N, F)`.
        labels: `(N,)` the labels in question.
        reference_features: per layer `(R, F)`.
        reference_labels: `(R,)`.
        calibration: what `leave_one_out` made of the same reference.
        paired: labels are two a question (`adapters.heads`): only examples asked the same one are neighbours.
    """
    k, own = _neighbours(reference_labels), torch.zeros(len(labels))
    total = torch.zeros(len(labels), len(reference_labels))
    for query, base in zip(features, reference_features, strict=True):
        centre = base.mean(0)
        keys = F.normalize(base - centre, dim=1)
        similarity = _similarity(F.normalize(query - centre, dim=1), labels, keys, reference_labels, paired)
        own += _supporting(similarity, labels, reference_labels, k)
        total += similarity
    alike, nearest = (total / len(features)).clamp(max=1).topk(min(SHOWN, len(reference_labels)), dim=1)
    score = 1 - own / len(features)
    # Scores are averages of few votes; the small allowance keeps equal votes equal under float rounding.
    p_value = (calibration[None, :] >= score[:, None] - 1e-6).float().mean(1)
    return Support(score.clamp(0, 1), p_value, nearest, alike)


def sampled(count: int) -> Tensor:
    """Which of `count` reference examples `leave_one_out` scores: at most `CALIBRATION`, evenly spread: rows `(n,)`."""
    return torch.arange(count)[:: max(1, -(-count // CALIBRATION))]


def leave_one_out(
    features: Sequence[Tensor], labels: Tensor, paired: bool = False, asked: Tensor | None = None
) -> Tensor:
    """The scores of the `sampled` reference examples, each among the others: what `p_value` compares with.

    Args:
        asked: `(R,)` labels to score in place of their own.
    """
    sample = sampled(len(labels))
    k, own = _neighbours(labels), torch.zeros(len(sample))
    query = (labels if asked is None else asked)[sample]
    for base in features:
        keys = F.normalize(base - base.mean(0), dim=1)
        for start in range(0, len(sample), 1024):
            rows = sample[start : start + 1024]
            similarity = _similarity(keys[rows], labels[rows], keys, labels, paired)
            similarity[torch.arange(len(rows)), rows] = -torch.inf  # no example votes for itself
            own[start : start + 1024] += _supporting(similarity, query[start : start + 1024], labels, k)
    return (1 - own / len(features)).clamp(0, 1)


def _neighbours(labels: Tensor) -> int:
    """How many vote: `NEIGHBOURS`, fewer where classes are small."""
    return max(1, min(NEIGHBOURS, len(labels) // (2 * (int(labels.max()) + 1)), len(labels) - 1))


def _similarity(query: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, paired: bool) -> Tensor:
    """`(N, R)` cosine; minus infinity where `paired` and the two were asked different questions."""
    similarity = query @ keys.T
    return similarity.masked_fill_(labels[:, None] // 2 != key_labels // 2, -torch.inf) if paired else similarity


def _supporting(similarity: Tensor, labels: Tensor, key_labels: Tensor, k: int) -> Tensor:
    """Share of the `k` most similar keys, `(N, R)`, that carry each query's label."""
    nearest = similarity.topk(k, dim=1).indices
    return (key_labels[nearest] == labels[:, None]).float().mean(1)


def pooled(tensor: Tensor, number: int, image: bool, width: int = FEATURE_WIDTH) -> Tensor:
    """`(batch, positions, elements)` to rectified features on a coarse grid, projected where they are over `width`.

    Positions of an image are a square, of anything else a line.
    """
    batch, positions, elements = tensor.shape
    side = round(positions**0.5)
    rectified = tensor.float().clamp_min(0)
    if not image and positions >= CELLS:
        found = F.adaptive_avg_pool1d(rectified.movedim(2, 1), CELLS).flatten(1)
    elif image and side * side == positions and side >= CELLS:
        grid = rectified.movedim(2, 1).reshape(batch, elements, side, side)
        found = F.adaptive_avg_pool2d(grid, CELLS).flatten(1)
    else:
        found = rectified.mean(1)
    if found.shape[1] <= width:
        return found
    generator = torch.Generator().manual_seed(number)
    projection = torch.randn(found.shape[1], width, generator=generator) / width**0.5
    return torch.matmul(found, projection.to(found.device))
