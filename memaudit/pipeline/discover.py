"""`memaudit.discover`: a whole training set ranked by memorization, without a flagged list and without a reference."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.audits.context import stage
from memaudit.audits.discovery import judge
from memaudit.audits.discovery.copies import Copies, folds, near_copies
from memaudit.audits.discovery.neighbours import VOTERS, Voters, Votes, features, joined
from memaudit.audits.discovery.unseen import Unseen, effort, unseen
from memaudit.audits.memorization.views import seen
from memaudit.data import ExampleSet, Preprocess
from memaudit.data.listing import stratified
from memaudit.data.wide import Wide, wide
from memaudit.engine.answers import Answers, predicted
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.engine.threads import settle_threads, threads_kept
from memaudit.engine.views import VIEWS, mirrored
from memaudit.errors import DataRejected, Incomplete, PremiseBroken, UsageError
from memaudit.network.layer_groups import spans
from memaudit.network.replay import groups_in_order
from memaudit.network.scoped import as_found
from memaudit.network.units import UnitSpace, select
from memaudit.numbers import count, percent
from memaudit.pipeline.library import as_given, examples_of, settings_for, wrap
from memaudit.pipeline.plan_ranking import plan_ranking
from memaudit.pipeline.premises import check_accuracy, check_network
from memaudit.pipeline.proceeding import Proceeding
from memaudit.pipeline.ranking import Seen, assemble, skeleton
from memaudit.report.ranked import Ranking
from memaudit.report.table import Table
from memaudit.settings import RELEARNING, Progress, Provenance, Relearning, Settings
from memaudit.system.memory import keeping_freed

# Fewer examples than this say nothing of each other.
FEWEST = 20
# Examples that are asked for their neighbours at a time, whose features are held where a sample votes.
TOGETHER = 4096
# A set of which the model predicts less was probably not what it was trained on.
FITTED = 0.5


class Discovery(Proceeding):
    """One ranking of one training set by one loaded model.

    Args:
        adapter: the model; moved to the settings' device.
        examples: what it was trained on, with the labels it was trained with.
    """

    def __init__(
        self,
        adapter: Adapter,
        examples: ExampleSet,
        settings: Settings,
        *,
        provenance: Provenance | None = None,
        class_names: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        if adapter.multi_label:
            raise UsageError(
                "the model's labels do not exclude each other: a ranking needs one label an example",
                hint="Audit examples that you name: memaudit scan --flagged",
            )
        super().__init__(adapter, settings, provenance or Provenance(command="memaudit.discover(...)"), progress)
        self.class_names = class_names or examples.class_names
        self.budget: Relearning = RELEARNING[settings.profile]
        self.examples = self._usable(examples)

    def _usable(self, examples: ExampleSet) -> ExampleSet:
        """What can be ranked; what cannot is said."""
        if not len(examples) and examples.unreadable:
            raise Incomplete("none of the examples could be read", details=examples.unreadable)
        limit = self.settings.limit
        if limit is not None and len(examples) > limit:
            rows = [i * len(examples) // limit for i in range(limit)]
            examples = replace(examples.subset(rows), omitted=examples.omitted + len(examples) - limit)
        if len(examples) < FEWEST:
            raise DataRejected(
                f"{count(len(examples), 'example')} cannot be ranked: they are judged by each other",
                hint=f"Give the training set, {FEWEST} examples at least; or audit them: memaudit scan --flagged",
            )
        wrong = (examples.labels >= self.adapter.num_classes).nonzero().flatten().tolist()
        if wrong:
            first = examples.examples[wrong[0]]
            raise DataRejected(
                f"{count(len(wrong), 'label')} out of range: {first.source} has label {first.label}, "
                f"the model has {self.adapter.num_classes} classes",
                hint="Check --num-classes and the class order.",
            )
        if examples.omitted:
            self.incomplete.append(f"{count(examples.omitted, 'example')} not read because of a limit")
        if examples.unreadable:
            shown = "; ".join(examples.unreadable[:3])
            self.incomplete.append(f"{count(len(examples.unreadable), 'example')} could not be read: {shown}")
        if examples.duplicates:
            self.warn("MEM105", f"{len(examples.duplicates)} rows repeat others: {examples.duplicates[0]}")
        return examples

    def sets(self) -> Mapping[str, ExampleSet | None]:
        """The one set that the ranking depends on."""
        return {"data": self.examples}

    def skeleton(self) -> Ranking:
        """A document with every name of the real one and no figure, to render before anything long begins."""
        return skeleton(self.adapter, self.examples, self.class_names, self.settings, self.provenance)

    def run(self) -> tuple[Ranking, Table]:
        """The document, and all rows of the table.

        Raises:
            Incomplete: the time limit was reached before anything could be said.
        """
        self.begin(self.examples)
        with exact_arithmetic(), keeping_freed(), threads_kept():
            seen = self._measured()
        return assemble(seen, self.settings, self.provenance, self.warnings, self.incomplete)

    def plan(self) -> str:
        """What it would take, after the checks that it makes first; nothing is measured but a few batches.

        Raises:
            PremiseBroken: a check fails.
        """
        self.begin(self.examples)
        with exact_arithmetic(), threads_kept():
            check_network(self.evaluator, self.examples)
            settle_threads(self.evaluator, self.examples, self.settings.threads)
            lines = plan_ranking(self.evaluator, self.examples, self._space(), self.settings.profile)
        return "\n".join([lines, *self.doubts()])

    # ---- the steps -------------------------------------------------------------------------------------------------

    def _measured(self) -> Seen:
        self.progress.stage("check")
        check_network(self.evaluator, self.examples)
        self.progress.stage(settle_threads(self.evaluator, self.examples, self.settings.threads))
        space = self._space()
        self.evaluator.resume(self.journal)
        with stage(self.evaluator, self.progress, "observe", len(self.examples), intact=True):
            said, layers = self._seen(space)
        if not bool(said.finite.all()):
            said, layers = self._drop(said, layers)
        labels, fits = self.examples.labels, predicted(said.margins)
        self.warnings += check_accuracy(said, labels, self.class_names)
        fitted = float(fits.float().mean())
        if fitted < FITTED:
            shown = f"the model predicts {percent(fitted)} of these labels: is this what it was trained on?"
            self.warn("MEM120", shown)
        copies, votes = self._neighbours(layers, space)
        teachers = judge.teachers(votes.shares, labels)
        answers = self._relearned(copies, teachers)
        return Seen(
            self.adapter,
            self.evaluator,
            self.examples,
            self.class_names,
            said,
            copies,
            votes,
            answers,
            self.started,
            self._viewed(teachers & fits),
        )

    def _space(self) -> UnitSpace:
        """The units whose values are features."""
        space = select(self.adapter.sites(self.examples.batch(range(3), self.evaluator.device)), "auto", None)
        if not space.sites:
            raise PremiseBroken(f"no layer of {self.adapter.architecture} can be followed, so nothing has neighbours")
        return space

    def _seen(self, space: UnitSpace) -> tuple[Answers, list[Tensor]]:
        """What the model says, and the features of all examples, unless these are more than can ask each other."""
        if len(self.examples) > VOTERS:
            return self.evaluator.answers(self.examples), []
        said, layers = features(self.evaluator, self.examples, space)
        return Answers(said, self.adapter.num_classes), layers

    def _drop(self, said: Answers, layers: list[Tensor]) -> tuple[Answers, list[Tensor]]:
        """Leave out examples whose logits are not finite: the ranking is incomplete."""
        finite = said.finite
        lost = int((~finite).sum())
        self.incomplete.append(f"{count(lost, 'example')} gave logits that are not finite")
        if int(finite.sum()) < FEWEST:
            raise Incomplete(f"the logits of {lost} of {len(self.examples)} examples are NaN or infinite")
        self.examples = self.examples.subset(finite.nonzero().flatten().tolist())
        return replace(said, values=said.values[finite]), [layer[finite] for layer in layers]

    def _neighbours(self, layers: Sequence[Tensor], space: UnitSpace) -> tuple[Copies, Votes]:
        """Near-duplicates and votes; where only a sample of the examples votes, the others' features are not kept."""
        examples, evaluator, rows = self.examples, self.evaluator, torch.arange(len(self.examples))
        if not layers:
            generator = np.random.default_rng(generator_for(self.settings.seed, "voters", "").initial_seed())
            rows = torch.from_numpy(stratified(examples.labels.numpy(), VOTERS, generator))
            self.warn("MEM121", f"neighbours are {len(rows):,} of the {len(examples):,} examples, drawn by label")
        steps = len(examples) + (0 if layers else len(rows))
        with stage(evaluator, self.progress, "neighbours", steps, intact=True):

            def near() -> list[Tensor]:
                copies = near_copies(examples)
                return [copies.rows, copies.distances]

            copies = Copies(*evaluator.once("copies", near))
            voting = layers or features(evaluator, examples.subset(rows), space)[1]
            voters = Voters.of(rows, examples.labels[rows], voting)
            del voting

            def asked(part: Tensor) -> list[Tensor]:
                if layers:
                    own = [layer[part] for layer in layers]
                    self.progress.advance(len(part))
                else:
                    own = features(evaluator, examples.subset(part), space, len(rows))[1]
                votes = voters.asked(part, own, self.adapter.num_classes, copies)
                return [votes.shares[:], votes.nearest, votes.similarity]

            parts = torch.split(torch.arange(len(examples)), TOGETHER)
            said = (evaluator.once(f"votes from {int(part[0])}", partial(asked, part), short=True) for part in parts)
            votes = joined((Votes(*one) for one in said), len(examples), wide)
        return copies, votes

    def _relearned(self, copies: Copies, teachers: Tensor) -> dict[str, Wide]:
        """By name, class probabilities `(N, classes)` from layers that were learned again without the example."""
        examples, budget = self.examples, self.budget
        learned = groups_in_order(self.adapter.module, self.adapter.forward, examples.batch([0], self.evaluator.device))
        groups = spans(learned, [(depth, 1.0) for depth in budget.depths])
        parts = folds(copies.clusters(), examples.labels, budget.folds, generator_for(self.settings.seed, "folds", ""))
        with stage(self.evaluator, self.progress, "relearn", len(groups) * effort(parts, teachers, budget.rows)):
            mirror = mirrored(self.evaluator, Panel(examples, teachers.nonzero().flatten().tolist()))
            work = Unseen(examples, groups, parts, teachers, budget.rows, self.settings.seed, self.deadline, mirror)
            said = unseen(self.evaluator, work)
        names = [f"relearned from {group.layer.split(' to ')[0]}" for group in groups]
        answers = dict(zip(names, said, strict=False))
        self.late = len(said) < len(groups)
        if not answers:
            raise Incomplete(
                f"{self._limit}: no layer was learned again, so nothing is decided",
                hint="Run the same command again: it goes on from there.",
            )
        if len(answers) < len(groups):
            self.incomplete.append(
                f"{self._limit}: {len(answers)} of {len(groups)} groups of layers were learned again"
            )
        return answers

    @property
    def _limit(self) -> str:
        return f"time limit of {self.settings.time_limit:g} s"

    def _viewed(self, known: Tensor) -> Wide | None:
        """`(N, classes)` probabilities for changed copies; None where they are no images, or time ran out.

        Args:
            known: `(N,)` bool: labels that others support and the network predicts.
        """
        if not self.budget.views or not bool(known.any()) or self.late:
            return None
        if time.time() > self.deadline:
            self.late = True
            self.incomplete.append(f"{self._limit}: changed copies of the images were not asked")
            return None
        everybody = Panel(self.examples, range(len(self.examples)))
        with stage(self.evaluator, self.progress, "views", len(VIEWS) * len(everybody), intact=True):
            _, said = seen(self.evaluator, [everybody], self.examples.labels, known)
        return said[0] if said else None


def discover(
    model: nn.Module | Adapter,
    data: Any,
    *,
    settings: Settings | None = None,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Ranking:
    """Rank what a model in memory was trained on by how much it memorized each example.

    Args:
        model: a classifier, or a loaded adapter; left as found, mode and device included.
        data: its training set with the labels it was trained with: an `ExampleSet`, a pair `(images, labels)` of
            tensors or arrays, or a dataset of such pairs.
        settings, preprocess, class_names, progress, **options: as for `memaudit.audit`.

    Returns:
        The ranking: `.ranked`, `.shares`, `.cut_offs`, `.save(path)`.

    Raises:
        MemauditError: the set is too small or its labels do not fit, a premise is broken, memory or device are missing.
    """
    chosen = settings_for(model, settings, options)
    shape = model.preprocess if isinstance(model, Adapter) else preprocess or as_given(data, model)
    examples = examples_of(data, "data", shape)
    with as_found(model.module if isinstance(model, Adapter) else model):
        adapter = model if isinstance(model, Adapter) else wrap(model, shape)
        return Discovery(adapter, examples, chosen, class_names=tuple(class_names), progress=progress).run()[0]
