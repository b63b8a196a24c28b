"""What an audit and a ranking have in common: a model on its device, a journal, what a reader must know, the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.device import automatic_batch_size, resolve_device
from memaudit.engine.engines import Engine, InProcess
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.journal import Journal, journalled
from memaudit.engine.others import Other
from memaudit.findings import ReportWarning
from memaudit.network.states import State
from memaudit.pipeline.identity import run_of
from memaudit.settings import Progress, Provenance, Settings, Silent
from memaudit.text import clean


class Proceeding:
    """One loaded model and what is done with it, from the first check to the document.

    Args:
        adapter: the model; moved to the settings' device.
        provenance: where everything came from; its warnings are the document's first.

    Attributes:
        states: checkpoints that the run depends on, earliest first.
        without: other models that it depends on.
        incomplete: why not all that was given is in the document.
        late: the time limit was reached: the same run, resumed, gets further.
        engine: who does the work that may be done elsewhere.
    """

    def __init__(
        self, adapter: Adapter, settings: Settings, provenance: Provenance, progress: Progress | None = None
    ) -> None:
        self.adapter, self.settings, self.provenance = adapter, settings, provenance
        self.progress: Progress = progress or Silent()
        self.states: Sequence[State] = ()
        self.without: Sequence[Other] = ()
        self.warnings: list[ReportWarning] = list(provenance.warnings)
        self.incomplete: list[str] = []
        self.journal: Journal | None = None
        self.late = False
        self.engine: Engine = InProcess()
        self.started = time.time()
        self.evaluator: Evaluator

    @property
    def deadline(self) -> float:
        """Seconds since the epoch at which the time limit is reached; infinite without one."""
        return self.started + (self.settings.time_limit or float("inf"))

    def sets(self) -> Mapping[str, ExampleSet | None]:
        """The sets that the run depends on, by name."""
        raise NotImplementedError

    def warn(self, code: str, message: str) -> None:
        """Put something a reader must know into the document."""
        self.warnings.append(ReportWarning(code=code, message=message))

    def doubts(self) -> list[str]:
        """Lines for a plan: each warning so far, and why the document would be incomplete."""
        warned = [f"warning    {clean(w.message, 400)} ({w.code})" for w in self.warnings]
        return [*warned, *(f"incomplete {clean(reason, 400)}" for reason in self.incomplete)]

    @contextmanager
    def journalled(self, folder: Path, *, fresh: bool = False) -> Iterator[Journal]:
        """Keep what is measured in `folder` while the body runs, and go on with what an earlier run kept there.

        Raises:
            UsageError: what lies there belongs to another run, and `fresh` does not say to throw it away.
        """
        run = run_of(self.adapter, self.sets(), self.states, self.settings, self.provenance)
        run |= {f"without {number}": other.sha256 for number, other in enumerate(self.without, 1)}
        with journalled(folder, run, fresh=fresh) as self.journal:
            yield self.journal

    def begin(self, examples: ExampleSet) -> None:
        """Start the clock, move the model to its device and choose a batch that fits `examples`."""
        self.started = time.time()
        device = resolve_device(self.settings.device)
        self.adapter.module.to(device)
        batch = self.settings.batch_size or automatic_batch_size(examples.batch([0]), device)
        self.evaluator = Evaluator(self.adapter, batch, gradient_dtype=getattr(torch, self.settings.dtype))
        self.evaluator.engine = self.engine
