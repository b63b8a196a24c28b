"""Everything an audit may read: the model, the examples, what was observed of them, and where to say how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from memaudit.audits.atypicality import Neighbours
from memaudit.audits.panels import Panels, drawn_panels
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.loop import silent
from memaudit.engine.others import Other
from memaudit.engine.passes import Fill
from memaudit.network.layer_groups import LayerGroup
from memaudit.network.replay import groups_in_order
from memaudit.network.states import State
from memaudit.network.units import UnitSpace
from memaudit.settings import PROFILES, Profile, Progress, Settings, Silent
from memaudit.system.memory import give_back


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the audits of one run share.

    Attributes:
        flagged_logits: `(N, classes)` of the intact model; `reference_logits` `(R, classes)` likewise.
        space: the units that can be cut.
        live: `(total,)` bool, units whose value varies over the reference.
        candidates: `(total,)` bool, units whose value varies over reference and flagged examples together: a unit
            that fires for flagged examples alone is what a search is for.
        fill: per site what ablated units take instead of 0.
        states: checkpoints of the series, earliest first, the audited model last.
        deadline: seconds since the epoch; no further piece of work is begun after it.
        neighbours: how far neighbours support the labels; None where nobody asked them.
        without: models that were trained without the flagged examples, each with its own `flagged` and `reference`.
        found: fields of the findings that audits which ran before this one have yielded, by flagged row.
    """

    evaluator: Evaluator
    settings: Settings
    flagged: ExampleSet
    reference: ExampleSet
    flagged_logits: Tensor
    reference_logits: Tensor
    space: UnitSpace
    live: Tensor
    candidates: Tensor
    fill: Fill = None
    states: Sequence[State] = ()
    progress: Progress = field(default_factory=Silent)
    deadline: float = float("inf")
    neighbours: Neighbours | None = None
    without: Sequence[Other] = ()
    found: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def profile(self) -> Profile:
        """How much is measured."""
        return PROFILES[self.settings.profile]

    @property
    def seed(self) -> int:
        """The run's."""
        return self.settings.seed

    @property
    def late(self) -> bool:
        """Whether the time limit is reached."""
        return time.time() > self.deadline

    @cached_property
    def flagged_margins(self) -> Tensor:
        """`(N,)` of the intact model."""
        return margin(self.flagged_logits, self.flagged.labels)

    @cached_property
    def reference_margins(self) -> Tensor:
        """`(R,)` of the intact model."""
        return margin(self.reference_logits, self.reference.labels)

    @cached_property
    def fitted(self) -> list[int]:
        """Flagged rows whose label the intact model predicts."""
        return [int(row) for row in predicted(self.flagged_margins).nonzero().flatten()]

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layer groups that `--layers` and `--group-depth` name, in execution order."""
        depth, layers = self.settings.group_depth, self.settings.layers
        return self.all_groups if depth is None and layers is None else self._groups(depth=depth, layers=layers)

    @cached_property
    def all_groups(self) -> tuple[LayerGroup, ...]:
        """Every layer group of the network, whatever the settings say of layers."""
        return self._groups()

    def _groups(self, *, depth: int | None = None, layers: str | None = None) -> tuple[LayerGroup, ...]:
        adapter, few = self.evaluator.adapter, range(min(2, len(self.reference)))
        images = self.reference.batch(few, self.evaluator.device)
        return groups_in_order(adapter.module, adapter.forward, images, depth=depth, layers=layers)

    @cached_property
    def panels(self) -> Panels:
        """The rows that the audits over time run at every checkpoint."""
        return drawn_panels(
            self.flagged, self.reference, self.flagged_margins, self.reference_margins, self.profile, self.seed
        )

    @contextmanager
    def stage(
        self, name: str, total: int | None = None, *, own_steps: bool = False, intact: bool = False
    ) -> Iterator[None]:
        """A stage while the body runs: passes count under `name`, and progress is shown of `total` steps.

        Args:
            own_steps: the body calls `progress.advance` itself; by default each example that is run is a step.
            intact: the body leaves the network as it was loaded: others that loaded it may run its batches.
        """
        with stage(self.evaluator, self.progress, name, total, own_steps=own_steps, intact=intact):
            yield


@contextmanager
def stage(
    evaluator: Evaluator,
    progress: Progress,
    name: str,
    total: int | None = None,
    *,
    own_steps: bool = False,
    intact: bool = False,
) -> Iterator[None]:
    """As `Context.stage`, for what runs before there is a context."""
    give_back()
    progress.stage(name, total)
    advance: Callable[[int], None] = silent if own_steps else progress.advance
    with evaluator.keeping(intact), evaluator.counting(name, advance):
        yield
