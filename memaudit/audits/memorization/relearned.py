"""Relearning: layers put back to random weights and learned again from other examples, then asked for the label.

After Maini et al. 2023, section 3.3, as a detector: the network keeps everything but the layers that could hold the
label. A label that other examples support comes back unseen; one that was learned by heart does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.audits.memorization.views import each_asked
from memaudit.audits.retrain import BATCH, own_norms
from memaudit.data.wide import OnDisk, Wide, add, divide, wide
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.train import AdamW, Descent, changes_of
from memaudit.engine.views import as_is, flipped
from memaudit.network.layer_groups import LayerGroup, spans
from memaudit.network.scoped import attributes, holding, needing_gradients, unchanged
from memaudit.network.states import put_back

# AdamW without decay; five passes over 1,500 examples bring a layer of a CNN most of the way back. There are never
# fewer steps than this: few examples make smaller batches first, then more passes. Batches of 32 and 16 found as
# many of 200 changed labels as batches of 64 (a ResNet-10t, references of 500 and 200), for 53 passes an example
# and not 75.
RATE = 2e-3
EPOCHS = 5
LEAST_STEPS, LEAST_BATCH = 40, 16
# The last epochs, after which the network is asked.
ASKED = 4
# Shifted views move by this share of the image's side.
SHIFT = 1 / 16


@dataclass(frozen=True)
class Member:
    """One way to put a network back.

    Attributes:
        depth: from which share of the layer groups to which; at least one group.
        share: how much of each weight is random, in [0, 1].
    """

    depth: tuple[float, float]
    share: float

    def span(self, groups: Sequence[LayerGroup]) -> LayerGroup:
        """Its layer groups, as one."""
        return spans(groups, [self.depth])[0]


# The middle alone, everything from the middle on, and a whole network that keeps some of every weight. Chosen on one
# ResNet-10t (4,000 CIFAR-10 images, 200 changed labels), where single ones found 0.53 to 0.64 of these labels at 5 %;
# the differences between a dozen such choices were within noise.
MEMBERS = (Member((0.5, 0.85), 1.0), Member((0.5, 1.0), 0.6), Member((0.0, 1.0), 0.6))


@dataclass(frozen=True)
class Views:
    """A pass over changed copies: each place in the batch has its own shift, and every other one is a mirror image.

    The order of the examples is random, so which copy an example gets is, too; and a run that goes on after a kill
    draws the same ones.
    """

    body: Descent
    mirror: bool

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        self.body(network, moved(inputs, self.mirror), labels)


def moved(inputs: Tensor, mirror: bool) -> Tensor:
    """Images `(n, channels, height, width)`, shifted by up to `SHIFT` of the side, edges repeated; others as given."""
    if inputs.dim() != 4 or not inputs.is_floating_point():
        return inputs
    step = max(1, round(SHIFT * inputs.shape[-1]))
    height, width = inputs.shape[-2:]
    wide = F.pad(inputs, (step, step, step, step), mode="replicate")
    changed = inputs.clone()
    for place in range(9):
        down, right = place // 3 * step, place % 3 * step
        changed[place::9] = wide[place::9, :, down : down + height, right : right + width]
    if mirror:
        changed[::2] = changed[::2].flip(-1)
    return changed


def epochs_for(rows: int) -> int:
    """How often `rows` examples are learned."""
    return max(EPOCHS, -(-LEAST_STEPS // -(-rows // batch_for(rows))))


def batch_for(rows: int) -> int:
    """How many of `rows` examples make a step."""
    size = BATCH
    while size > LEAST_BATCH and EPOCHS * -(-rows // size) < LEAST_STEPS:
        size //= 2
    return size


# Fast path; its slow twin: tests/twins.py.
def relearned(
    evaluator: Evaluator,
    group: LayerGroup,
    training: Panel,
    judged: Sequence[Panel],
    *,
    generator: torch.Generator,
    start: Mapping[str, Tensor] | None = None,
    share: float = 1.0,
    mirror: bool = False,
    epochs: int | None = None,
) -> list[Wide]:
    """What the network says of `judged` while `group` is learned again from `training`, averaged over epochs.

    Args:
        training: the only labels that are shown; none of `judged` may be among them.
        start: values of the group to start from, by name; by default its own, made random.
        share: how much of each own weight is random then.
        mirror: mirror images are as good as the images: half of what is learned and asked are such.
        epochs: by default `epochs_for` the training's size.

    Returns:
        Per panel `(len(panel), classes)`: softmax probabilities, float32.
    """
    module = evaluator.adapter.module
    count = epochs_for(len(training)) if epochs is None else epochs
    batch = batch_for(len(training))
    first = max(0, count - ASKED)

    total = [wide(len(panel), evaluator.adapter.num_classes) for panel in judged]

    def measure() -> list[Wide]:
        values = put_back(module, group, generator, start or {}, share)
        with (
            unchanged(module, f"relearning {group.layer}"),
            holding(module, values),
            needing_gradients(module, group.names) as parameters,
        ):
            optimizer = AdamW(parameters.values(), RATE)
            changing = changes_of(values, optimizer)
            step = Views(Descent(optimizer), mirror)
            for epoch in range(count):
                rows = _shuffled(training.rows, batch, generator)
                with attributes(own_norms(module, group), training=True):
                    evaluator.each(training.examples, rows, step, batch=batch, backward=1, changing=changing)
                if epoch >= first:
                    view = flipped if mirror and epoch % 2 else as_is
                    for panel, sums in zip(judged, total, strict=True):
                        for places, said in each_asked(evaluator, panel, view):
                            add(sums, places, said)
        for sums in total:
            divide(sums, count - first)
        return total

    name = f"relearn {group.layer} {generator.initial_seed()}"
    return evaluator.once(name, measure, large=any(isinstance(sums, OnDisk) for sums in total))


def _shuffled(rows: Sequence[int], batch: int, generator: torch.Generator) -> list[int]:
    """`rows` in a new order, without a last batch of one example: BatchNorm cannot learn from it."""
    order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
    if len(order) > batch and len(order) % batch == 1:
        order.pop()
    return [rows[i] for i in order]
