"""Other models of the same task, each with the examples as its own preprocessing reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import OtherModel
from memaudit.network.scoped import as_found

# Views are shifted by this share of the image's side: smaller images are looked at as they are, for a pixel of an
# 8-pixel digit moves what is shown.
SHIFT = 1 / 32
SMALLEST = 24


@dataclass(frozen=True)
class Other:
    """A model that was trained without the flagged examples.

    Attributes:
        name: of its file, for reports.
        sets: by name (`flagged`, `reference`, ...), the examples as it reads them, in the order of the audited model's.
        model: what a report says of it, once its premises are checked.
    """

    name: str
    sha256: str
    adapter: Adapter
    sets: Mapping[str, ExampleSet]
    model: OtherModel | None = None

    @contextmanager
    def running(self, beside: Evaluator) -> Iterator[Evaluator]:
        """It on the device of the audited model while the body runs; then it makes room again.

        Its batches are as large, and are counted and recorded with that model's.
        """
        with as_found(self.adapter.module):
            self.adapter.module.to(beside.device)
            one = Evaluator(self.adapter, beside.batch_size)
            one.stage, one.passes, one.journal = beside.stage, beside.passes, beside.journal
            yield one

    def among(self, name: str, examples: ExampleSet) -> ExampleSet:
        """Its own version of `examples`, which come from the set `name`: the same ids, under the same labels."""
        own = self.sets[name]
        place = {e.id: row for row, e in enumerate(own.examples)}
        found = own.subset([place[e.id] for e in examples.examples])
        return found.labelled(examples.labels.tolist())


@dataclass(frozen=True)
class Views:
    """A pass: logits `(views, n, classes)` of each input and of four copies shifted by a step, edges repeated."""

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([network.forward(view) for view in views(inputs)]).float().cpu()


def views(inputs: Tensor) -> list[Tensor]:
    """`inputs` `(n, ...)`, and where they are images of some size, shifted left, right, up and down."""
    if inputs.dim() != 4 or not inputs.is_floating_point() or min(inputs.shape[-2:]) < SMALLEST:
        return [inputs]
    step = max(1, round(SHIFT * inputs.shape[-1]))
    height, width = inputs.shape[-2:]
    wide = F.pad(inputs, (step, step, step, step), mode="replicate")
    places = ((step, step), (step, 0), (step, 2 * step), (0, step), (2 * step, step))
    return [wide[..., down : down + height, right : right + width] for down, right in places]


def viewed(evaluator: Evaluator, examples: ExampleSet) -> Tensor:
    """Logits `(views, N, classes)`; the first view is the example as it is."""
    return torch.cat(evaluator.each(examples, range(len(examples)), Views(), forward=5), 1)
