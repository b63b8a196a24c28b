"""What the evidence can find: wrong labels are planted in the network, and measured as flagged ones are.

A wrong label that was never learned says little of the power. Nothing supports it, and nearly every one is found; but
one that a network has learned by heart is given to views of its example, too, and its features lie nearer to those of
the label's class. So the network learns the wrong labels of a few clean examples first. It is a rough measure, for how
a label was learned matters: at p <= 0.05 it stated 0.41 and 0.66 where 0.49 and 0.58 of real changed labels were found
(a ResNet-10t, two references), 0.69 and 0.37 where 0.78 and 0.70 were (a ResNet-9), 0.27 where 0.38 were (a ResNet-18),
and 0.32 where 0.18 were (a ResNet-10t trained with shifted images). Labels that were never learned stated 0.93 to 0.96
each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memaudit.audits.atypicality import atypicality, observe
from memaudit.audits.context import Context
from memaudit.audits.memorization.clean import Clean
from memaudit.audits.memorization.crossfitted import FOLDS, folds_of
from memaudit.audits.memorization.relearned import MEMBERS, Member, relearned
from memaudit.audits.memorization.views import against
from memaudit.audits.retrain import BATCH
from memaudit.data.examples import ExampleSet
from memaudit.engine.draws import generator_for
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.loop import BACKWARD
from memaudit.engine.train import AdamW, Descent, changes_of
from memaudit.engine.views import VIEWS, View, asked
from memaudit.network.layer_groups import LayerGroup, spans, tensors_of
from memaudit.network.scoped import holding, needing_gradients, unchanged
from memaudit.network.units import UnitSpace

# Labels that are planted, of at most a quarter of the clean examples, so that three are learned beside each: with one
# beside each the network forgot more of the reference.
PLANTED, BESIDE = 48, 3
# Learned without views (shifted copies would teach the label to the views that are to find it), by AdamW without decay,
# until so many are predicted. The rate grows by a quarter an epoch, so that large and small networks all get there: 9
# epochs on CIFAR-10. At 1e-3 from the start the ResNet-10t forgot most of what it had learned by heart.
RATE, GROWTH, MOST_RATE = 1e-4, 1.25, 2e-3
LEARNED, USUAL_EPOCHS, MOST_EPOCHS = 0.9, 9, 30


@dataclass(frozen=True)
class Planting(Work[dict[str, Tensor]]):
    """The wrong labels are learned, and all parts measured with what the network is then; one piece of work.

    Attributes:
        rows: of `reference`, clean examples that the network predicts; `labels`: a wrong one for each.
        beside: rows that are learned with their own labels.
        groups: all layer groups.
        views: which are asked.
        member: what is put back and learned again, from `taught`; None: nothing is.
        mirror: mirror images show the same classes.
    """

    reference: ExampleSet
    space: UnitSpace
    groups: Sequence[LayerGroup]
    rows: Sequence[int]
    labels: Tensor
    beside: Sequence[int]
    views: Sequence[View]
    member: Member | None
    taught: Sequence[int]
    mirror: bool
    seed: int
    alone: ClassVar[bool] = True

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """As `Work`: by part `(K,)` 1 - the probability of the labels that are learned."""
        for row in rows:
            yield row, evaluator.once("planting", lambda: self._measure(evaluator), short=True)

    def _measure(self, evaluator: Evaluator) -> dict[str, Tensor]:
        module = evaluator.adapter.module
        (whole,) = spans(self.groups, [(0.0, 1.0)])
        tensors = tensors_of(module)
        values = {name: tensors[name].detach().clone() for name in whole.names}
        wrong = self.reference.labels.clone()
        wrong[list(self.rows)] = self.labels
        panel = Panel(self.reference.labelled(wrong.tolist()), self.rows)
        with unchanged(module, "planting"), holding(module, values):
            given = self._learn(evaluator, whole, values, panel)
            return {name: scores[given] for name, scores in self._parts(evaluator, panel).items()}

    def _learn(self, evaluator: Evaluator, whole: LayerGroup, values: dict[str, Tensor], panel: Panel) -> Tensor:
        """Until most labels are predicted, which are returned, `(K,)` bool; norms keep their statistics."""
        generator = generator_for(self.seed, "planting", "order")
        everybody = torch.tensor([*self.rows, *self.beside])
        with needing_gradients(evaluator.adapter.module, whole.names) as parameters:
            optimizer = AdamW(parameters.values(), RATE)
            step, changing = Descent(optimizer), changes_of(values, optimizer)
            for _ in range(MOST_EPOCHS):
                order = everybody[torch.randperm(len(everybody), generator=generator)].tolist()
                evaluator.each(panel.examples, order, step, batch=BATCH, backward=1, changing=changing)
                given = asked(evaluator, panel).argmax(1) == self.labels
                if float(given.float().mean()) >= LEARNED:
                    break
                optimizer.rate = min(MOST_RATE, optimizer.rate * GROWTH)
        return given

    def _parts(self, evaluator: Evaluator, panel: Panel) -> dict[str, Tensor]:
        """By part `(K,)`; the examples themselves are no neighbours and teach nothing."""
        features = observe(evaluator, self.reference, self.space).features
        kept = torch.ones(len(self.reference), dtype=torch.bool)
        kept[list(self.rows)] = False
        mine, others = [f[list(self.rows)] for f in features], [f[kept] for f in features]
        labels, paired = self.reference.labels[kept], evaluator.adapter.multi_label
        found = {"neighbours": atypicality(mine, self.labels, others, labels, torch.zeros(1), paired).score}
        if self.views:
            said = torch.stack([asked(evaluator, panel, view) for view in self.views]).mean(0)
            found["views"] = against(said, self.labels)
        if self.member is not None:
            (again,) = relearned(
                evaluator,
                self.member.span(self.groups),
                Panel(self.reference, self.taught),
                [panel],
                generator=generator_for(self.seed, "planting", "relearn"),
                share=self.member.share,
                mirror=self.mirror,
            )
            found["relearned"] = against(again, self.labels)
        return found


def planted(context: Context, clean: Clean, views: Sequence[View], mirror: bool) -> dict[str, Tensor]:
    """By part, what it says of planted labels; relearned once, where the profile relearns at all.

    Empty where there are too few clean examples to plant any.
    """
    known = clean.known.nonzero().flatten()
    known = known[torch.randperm(len(known), generator=generator_for(context.seed, "planting", ""))]
    count = min(PLANTED, len(known) // (1 + BESIDE))
    if not count:
        return {}
    chosen = known[:count]
    rest = torch.ones(len(clean.rows), dtype=torch.bool)
    rest[chosen] = False
    taught = clean.rows[rest & (folds_of(len(clean.rows), context.seed, "0") == 0)]
    work = Planting(
        reference=context.reference,
        space=context.space,
        groups=context.all_groups,
        rows=clean.rows[chosen].tolist(),
        labels=clean.others[chosen],
        beside=clean.rows[known[count : count * (1 + BESIDE)]].tolist(),
        views=views,
        member=MEMBERS[0] if context.profile.relearnings and len(clean.rows) >= FOLDS * 2 else None,
        taught=taught.tolist(),
        mirror=mirror,
        seed=context.seed,
    )
    with context.stage("planting", 1, own_steps=True):
        ((_, found),) = context.evaluator.engine.each(context.evaluator, work, range(1))
        context.progress.advance()
    return found


def planting(reference: int, rows: int, learned: float) -> float:
    """About how many forward passes it takes.

    Args:
        reference: reference examples.
        rows: of them that are scored.
        learned: passes of one relearning of each half of these.
    """
    count = min(PLANTED, rows // (1 + BESIDE))
    return USUAL_EPOCHS * count * (1 + BESIDE) * (1 + BACKWARD) + len(VIEWS) * count + reference + learned / 2


def other_labels(labels: Tensor, classes: int, generator: torch.Generator, paired: bool = False) -> Tensor:
    """`(N,)`: for each of `labels` another class, drawn.

    Args:
        paired: classes are two a question (`adapters.heads`): the other answer to the same one.
    """
    if paired:
        return labels ^ 1
    if classes < 2:
        return labels
    return (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
