"""A few steps of training on clean examples: accuracy that an edit cost comes back, labels that it cut do not.

An edit that takes out all of a group takes accuracy with it. What clean examples share is soon learned again from them;
a memorized label is in none of them, and its traces are written over. The weights of the second half are averaged
(Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization"), which on CIFAR-10 left
fewer labels and cost less accuracy than a rate that falls to zero. Images are shown moved, mirrored and zoomed into
where the network tells the same classes in these views: there are more of them than of the images, and steps that see
no image twice alike learn what the classes share.

Where it is known that labels are wrong, the same steps learn that, too: a batch holds some of these examples, and the
probability of their labels goes down (negative learning, Kim et al. 2019, section 3.1). No label is put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.engine.batchnorm import norms, of_the_batch
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.train import AdamW, Descent
from memaudit.network.scoped import holding, needing_gradients

# AdamW without decay; the rate rises over the first tenth of the steps, then stays.
RATE = 2e-3
WARM = 0.1
BATCH = 64
# A second length that methods try: more steps leave fewer labels, and may cost more accuracy.
LONGER = 3
# Examples with a wrong label in each step, beside the clean ones.
WRONG = 32


# Inputs of a step `(n, ...)`, changed as is drawn.
Shown = Callable[[Tensor, torch.Generator], Tensor]


@dataclass
class AveragedDescent:
    """Steps, each at the rate of its place among `steps`; `mean` averages `trained` over the second half.

    `shown` changes what a step is shown.
    """

    optimizer: AdamW
    steps: int
    trained: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    shown: Shown | None
    generator: torch.Generator
    taken: int = 0

    def step(self, network: Adapter, inputs: Tensor, labels: Tensor, places: Mapping[int, slice]) -> None:
        """A pass; `places` are those of the clean examples in the batch, 0, and of those with a wrong label, 1."""
        self.taken += 1
        self.optimizer.rate = RATE * min(1.0, self.taken / (WARM * self.steps))
        inputs = inputs if self.shown is None else self.shown(inputs, self.generator)
        Descent(self.optimizer, partial(_loss, places=places))(network, inputs, labels)
        if (within := self.taken - self.steps // 2) > 0:
            for name, value in self.trained.items():
                self.mean[name].lerp_(value, 1 / within)


def finetuned(
    evaluator: Evaluator,
    edit: Mapping[str, Tensor],
    names: Collection[str],
    paths: Collection[str],
    clean: Panel,
    steps: int,
    generator: torch.Generator,
    shown: Shown | None = None,
    wrong: Panel | None = None,
) -> dict[str, Tensor]:
    """The parameters `names`, by name and of their shapes, averaged over the second half of `steps` on `clean`.

    The network itself stays as it is.

    Args:
        edit: tensors by name to start from, over the network's own.
        paths: BatchNorm modules that use each batch's own statistics, as in training; the others, and everything else,
            run as in evaluation. Running statistics are left to the caller.
        clean: two examples or more, in a new order each time around.
        shown: what to change of the inputs at each step; by default nothing.
        wrong: examples whose labels the steps learn to be wrong; by default none.
    """
    module = evaluator.adapter.module
    own = dict(module.named_parameters())
    trained = {n: edit.get(n, own[n]).detach().clone() for n in names}
    batchwise = of_the_batch(m for p, m in norms(module).items() if p in paths)
    mean = {n: torch.zeros_like(t) for n, t in trained.items()}
    with holding(module, {**edit, **trained}), needing_gradients(module, names) as parameters, batchwise:
        descent = AveragedDescent(AdamW(parameters.values(), RATE), steps, trained, mean, shown, generator)
        parts = [(clean, BATCH)] if wrong is None else [(clean, BATCH), (wrong, WRONG)]
        panels = [Panel(panel.examples, _rows(panel, steps, size, generator)) for panel, size in parts]
        step = descent.step
        evaluator.mixed(panels, lambda places: partial(step, places=places), batch=batch_of(wrong), backward=1)
    return mean


def batch_of(wrong: Panel | None) -> int:
    """Examples of one step."""
    return BATCH if wrong is None else BATCH + WRONG


def _loss(logits: Tensor, labels: Tensor, places: Mapping[int, slice]) -> Tensor:
    """Mean cross-entropy of the clean examples, and the mean -log(1 - probability) of the wrong labels."""
    loss = torch.zeros((), device=logits.device)
    if (clean := places.get(0)) is not None:
        loss = F.cross_entropy(logits[clean], labels[clean])
    if (wrong := places.get(1)) is not None:
        said = logits[wrong]
        others = said.scatter(1, labels[wrong, None], -torch.inf)
        loss = loss + (said.logsumexp(1) - others.logsumexp(1)).mean()
    return loss


def _rows(panel: Panel, steps: int, batch: int, generator: torch.Generator) -> list[int]:
    """Rows of whole batches, each example once each time around."""
    around = max(1, len(panel) // batch) * batch
    rows: list[int] = []
    while len(rows) < steps * batch:
        rows += [panel.rows[i] for i in torch.randperm(len(panel), generator=generator)[:around].tolist()]
    return rows[: steps * batch]
