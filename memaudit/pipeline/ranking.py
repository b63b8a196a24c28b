"""From what a discovery measured to its document and its table: names, counts and averages, nothing measured here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.audits.discovery.copies import Copies
from memaudit.audits.discovery.judge import Judged, judge
from memaudit.audits.discovery.neighbours import Votes
from memaudit.data import ExampleSet, finding_id
from memaudit.data.compact import Compact
from memaudit.data.wide import Wide, own
from memaudit.engine.answers import Answers, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.loop import BACKWARD
from memaudit.findings import DataSource, ReportWarning, ToolInfo
from memaudit.findings.ranking import (
    ClassPair,
    ClassRow,
    CutOff,
    Ranked,
    Shares,
    Similar,
    Standing,
    Twins,
)
from memaudit.intervals import bootstrap, wilson
from memaudit.numbers import tidy
from memaudit.pipeline.about import config_of, environment, model_info, volatile
from memaudit.pipeline.assemble import auroc
from memaudit.report.ranked import Ranking
from memaudit.report.table import Cell, Table
from memaudit.settings import Provenance, Settings
from memaudit.version import __version__

# Examples that the document describes one by one; the table has all.
HEAD = 500
# Clean examples shown beside each; pairs of classes and near-duplicates that are listed.
NEAREST, PAIRS, TWINS = 3, 200, 200
# Lengths at which the list's precision is foretold.
TOPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
# An example whose label is probably right may stand beside others as clean.
TRUSTED = 0.5
NEIGHBOURS = "neighbours"
VIEWS = "views"
LOSS = "loss"
MEANINGS: Mapping[str, str] = {
    NEIGHBOURS: "share of the nearest others, in the model's own layers, that have another label",
    VIEWS: "1 - mean probability of the label when the image is moved, mirrored or zoomed into",
    LOSS: "1 - the model's own confidence in the label",
}
RELEARNED = "1 - probability of the label when everything from this layer on was learned again from other examples"


@dataclass(frozen=True)
class Seen:
    """All that a discovery measured.

    Attributes:
        said: by the model as it is.
        answers: by name `(N, classes)` probabilities from layers that never saw the example.
        started: seconds since the epoch.
        views: `(N, classes)` probabilities for changed copies of each image; None: they were not asked.
    """

    adapter: Adapter
    evaluator: Evaluator
    examples: ExampleSet
    class_names: tuple[str, ...]
    said: Answers
    copies: Copies
    votes: Votes
    answers: Mapping[str, Wide]
    started: float
    views: Wide | None = None


def assemble(
    seen: Seen,
    settings: Settings,
    provenance: Provenance,
    warnings: Sequence[ReportWarning],
    incomplete: Sequence[str],
) -> tuple[Ranking, Table]:
    """The document, and the table of all rows in its order."""
    labels = seen.examples.labels
    judged = judge(seen.said, labels, seen.answers, seen.votes.shares, seen.views)
    parts = _parts(seen, judged)
    twins = [pair for pair in seen.copies.pairs() if int(labels[pair[0]]) != int(labels[pair[1]])]
    examples, evaluator = seen.examples, seen.evaluator
    ranking = Ranking(
        status="incomplete" if incomplete else "complete",
        tool=ToolInfo(version=__version__),
        command=provenance.command,
        inputs=dict(provenance.inputs),
        config=dict(provenance.config) or config_of(settings),
        environment=environment(evaluator.device),
        volatile=volatile(evaluator, seen.started),
        passes=dict(sorted(evaluator.passes.items())),
        effort=tidy(_cost(evaluator.passes) / len(examples)),
        model=model_info(seen.adapter, provenance, seen.said.classes),
        data=_source(examples, seen.said),
        class_names=list(seen.class_names),
        class_order=provenance.class_order,
        parts={name: MEANINGS.get(name, RELEARNED) for name in parts},
        shares=_shares(seen, judged, settings.seed),
        ranked=[_ranked(seen, judged, parts, rank, row) for rank, row in enumerate(judged.order[:HEAD].tolist(), 1)],
        cut_offs=_cut_offs(seen, judged),
        classes=_classes(labels, judged),
        pairs=_pairs(labels, judged),
        twins=[
            Twins(first=examples.examples[a], second=examples.examples[b], distance=tidy(distance))
            for a, b, distance in sorted(twins, key=lambda pair: pair[2])[:TWINS]
        ],
        twins_in_all=len(twins),
        warnings=[*(ReportWarning(code="MEM001", message=reason) for reason in incomplete), *warnings],
    )
    return ranking, _table(seen, judged, parts)


def skeleton(
    adapter: Adapter,
    examples: ExampleSet,
    class_names: tuple[str, ...],
    settings: Settings,
    provenance: Provenance,
) -> Ranking:
    """The document of a discovery that measured nothing, with as many names in it as a real one has."""
    examples = examples.subset(range(min(len(examples), HEAD)))
    count, classes = len(examples), adapter.num_classes
    even = torch.full((count, classes), 1 / classes)
    nothing = Seen(
        adapter,
        Evaluator(adapter),
        examples,
        class_names,
        Answers.of(torch.zeros(count, classes), examples.labels),
        Copies(torch.full((count, 1), -1), torch.zeros(count, 1)),
        Votes(even, torch.zeros(count, 1, dtype=torch.int64), torch.zeros(count, 1)),
        {"relearned": even},
        time.time(),
    )
    return assemble(nothing, settings, provenance, provenance.warnings, ["nothing is measured yet"])[0]


def _parts(seen: Seen, judged: Judged) -> dict[str, Tensor]:
    """By name `(N,)` in [0, 1]: how little each kind of evidence supports the label."""

    def against(probabilities: Wide) -> Tensor:
        return (1 - own(probabilities, seen.examples.labels).double()).clamp(0, 1)

    found = {name: against(said) for name, said in seen.answers.items()}
    if seen.views is not None:
        found[VIEWS] = against(seen.views)
    return {**found, NEIGHBOURS: against(seen.votes.shares), LOSS: (1 - seen.said.confidence).clamp(0, 1)}


def _ranked(seen: Seen, judged: Judged, parts: Mapping[str, Tensor], rank: int, row: int) -> Ranked:
    example, suggested = seen.examples.examples[row], int(judged.suggested[row])
    nearest = [
        Similar(example=seen.examples.examples[other], similarity=tidy(similarity))
        for other, similarity in zip(seen.votes.nearest[row].tolist(), seen.votes.similarity[row].tolist(), strict=True)
        if float(judged.wrong[other]) < TRUSTED and similarity > -1.5
    ]
    return Ranked(
        rank=rank,
        id=finding_id(example.id, example.label),
        example=example,
        standing=judged.standings[row],
        before=seen.said.prediction(row),
        estimate=tidy(float(judged.estimate[row])),
        p_value=tidy(float(judged.p_value[row])),
        wrong=tidy(float(judged.wrong[row])),
        suggested_label=suggested,
        support=tidy(float(judged.support[row])),
        parts={name: tidy(float(values[row])) for name, values in parts.items()},
        nearest=nearest[:NEAREST],
    )


def _shares(seen: Seen, judged: Judged, seed: int) -> Shares:
    labels = seen.examples.labels
    low, high = bootstrap(judged.gap.tolist(), seed)
    truth = seen.examples.truths
    known = truth >= 0
    mislabelled = known & (truth != labels)
    learned = mislabelled & (judged.suggested == labels)
    separable = bool(mislabelled.any()) and bool((known & ~mislabelled).any())
    counts = Counter(judged.standings)

    def rate(value: float) -> float:
        return tidy(min(1.0, max(0.0, value)))

    return Shares(
        examples=len(labels),
        fitted=tidy(float(predicted(seen.said.margins).double().mean())),
        unseen=tidy(float((judged.suggested == labels).double().mean())),
        memorized=rate(float(judged.gap.mean())),
        memorized_low=rate(low),
        memorized_high=rate(high),
        wrong=rate(judged.noise.wrong),
        wrong_low=rate(judged.noise.low),
        wrong_high=rate(judged.noise.high),
        standings={standing: counts.get(standing, 0) for standing in Standing},
        known=int(known.sum()),
        known_wrong=int(mislabelled.sum()),
        known_learned=int(learned.sum()),
        auroc=rate(_auroc(judged, mislabelled, known & ~mislabelled)) if separable else None,
    )


def _auroc(judged: Judged, wrong: Tensor, right: Tensor) -> float:
    return auroc(judged.gap[wrong], judged.gap[right])


def _cut_offs(seen: Seen, judged: Judged) -> list[CutOff]:
    labels, order = seen.examples.labels, judged.order
    truth = seen.examples.truths
    noise = judged.noise
    odds = {share: noise.replaced(share)[order].cumsum(0) for share in {noise.low, noise.wrong, noise.high}}
    called = sum(standing is Standing.MEMORIZED for standing in judged.standings)
    tops = sorted({t for t in (*TOPS, called, round(noise.wrong * len(labels)), len(labels)) if 0 < t <= len(labels)})
    found = []
    for top in tops:
        first = order[:top]
        expected = {share: min(1.0, float(total[top - 1]) / top) for share, total in odds.items()}
        known = None
        if bool((truth[first] >= 0).all()):
            known = tidy(float((truth[first] != labels[first]).double().mean()))
        found.append(
            CutOff(
                top=top,
                estimate=tidy(float(judged.estimate[first].min())),
                wrong=tidy(expected[noise.wrong]),
                low=tidy(wilson(expected[noise.low] * top, top)[0]),
                high=tidy(wilson(expected[noise.high] * top, top)[1]),
                known_wrong=known,
            )
        )
    return found


def _classes(labels: Tensor, judged: Judged) -> list[ClassRow]:
    memorized = torch.tensor([s is Standing.MEMORIZED for s in judged.standings])
    found = []
    for label in sorted(set(labels.tolist())):
        own = labels == label
        found.append(
            ClassRow(
                label=label,
                examples=int(own.sum()),
                memorized=int((own & memorized).sum()),
                estimate=tidy(float(judged.estimate[own].mean())),
                wrong=tidy(float(judged.wrong[own].mean())),
            )
        )
    return found


def _pairs(labels: Tensor, judged: Judged) -> list[ClassPair]:
    """Given and suggested labels that differ, those with the most expected errors first."""
    memorized = torch.tensor([s is Standing.MEMORIZED for s in judged.standings])
    examples, by_heart, odds = Counter[tuple[int, int]](), Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for row in (labels != judged.suggested).nonzero().flatten().tolist():
        pair = int(labels[row]), int(judged.suggested[row])
        examples[pair] += 1
        by_heart[pair] += int(memorized[row])
        odds[pair] += float(judged.wrong[row])  # type: ignore[assignment]
    found = [
        ClassPair(given=g, suggested=s, examples=n, memorized=by_heart[g, s], wrong=tidy(odds[g, s]))
        for (g, s), n in examples.items()
    ]
    return sorted(found, key=lambda pair: (-pair.wrong, pair.given, pair.suggested))[:PAIRS]


def _table(seen: Seen, judged: Judged, parts: Mapping[str, Tensor]) -> Table:
    """All rows, the most memorized first."""
    columns = (
        *("index", "id", "declared_id", "source", "label", "true_label", "prediction", "fitted", "standing"),
        *("estimate", "p_value", "unsupported", "wrong", "suggested_label", "support"),
        *(name.replace(" ", "_").replace(".", "_") for name in parts),
    )
    return Table(columns, Lines(seen, judged, parts), _listed(judged))


def _listed(judged: Judged) -> list[int]:
    """Places in the order of the examples called memorized.

    Where none is called, those that are undecided: few examples may show which labels nothing supports, and be too few
    to call one.
    """
    standings = [judged.standings[row] for row in judged.order.tolist()]
    called = [place for place, standing in enumerate(standings) if standing is Standing.MEMORIZED]
    return called or [place for place, standing in enumerate(standings) if standing is Standing.UNDECIDED]


@dataclass(frozen=True, eq=False)
class Lines(Compact[tuple[Cell, ...]]):
    """The lines of the table, each made when it is written."""

    seen: Seen
    judged: Judged
    parts: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.judged.order)

    def at(self, place: int) -> tuple[Cell, ...]:
        """As `Compact.at`."""
        seen, judged, row = self.seen, self.judged, int(self.judged.order[place])
        example, suggested = seen.examples.examples[row], int(judged.suggested[row])
        said = seen.said.prediction(row)
        return (
            *(example.index, example.id, example.declared_id, example.source, example.label, example.true_label),
            *(said.prediction, int(said.prediction == example.label), judged.standings[row].value),
            *(
                tidy(float(values[row]))
                for values in (judged.estimate, judged.p_value, judged.unsupported, judged.wrong)
            ),
            *(suggested, tidy(float(judged.support[row]))),
            *(tidy(float(values[row])) for values in self.parts.values()),
        )


def _source(examples: ExampleSet, said: Answers) -> DataSource:
    right = float(predicted(said.margins).double().mean())
    return DataSource(source=examples.source, count=len(examples), sha256=examples.sha256, accuracy=tidy(right))


def _cost(passes: Mapping[str, int]) -> float:
    return sum(n * (BACKWARD if stage.endswith(" backward") else 1) for stage, n in passes.items())
