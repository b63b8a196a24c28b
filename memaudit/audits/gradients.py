"""Gradient accounting: what flagged and reference examples ask of each layer, at each checkpoint.

After Maini et al. 2023, section 3.1, with what its scripts lack: matched clean examples in the flagged ones' place.
BatchNorm uses the statistics of the batch, as it did in training: with running averages every example's gradient also
asks for larger weights, which normalisation by the batch takes out, and that hides where flagged and reference examples
disagree. Batches are of a fixed size then, each with its share of flagged and reference examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.audits.base import ForLayer, Piece, Unfinished, Workload
from memaudit.audits.context import Context
from memaudit.audits.panels import drawn, matched_rows
from memaudit.engine.batchnorm import CALIBRATION_BATCH, norms, of_the_batch
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.journal import Changing
from memaudit.engine.loop import BACKWARD
from memaudit.findings import GradientPoint
from memaudit.network.layer_groups import LayerGroup
from memaudit.network.scoped import holding, needing_gradients, unchanged
from memaudit.network.states import State
from memaudit.numbers import tidy

# A group's gradient below this share of the whole network's is float32's rounding, and has no direction.
ROUNDING = 1e-6
# So many times the examples of the other audits over time.
ROWS = 4


@dataclass(frozen=True)
class Account:
    """One layer group at one checkpoint.

    Attributes:
        norms: by panel, the norm of the gradient of the summed loss; zero where it is no more than rounding (a bias
            that BatchNorm takes out again).
        cosines: by pair of panels, the cosine between their gradients; absent where one of them is zero.
    """

    norms: Mapping[str, float]
    cosines: Mapping[tuple[str, str], float]


# Fast path; its slow twin: tests/twins.py.
def account(
    evaluator: Evaluator, groups: Sequence[LayerGroup], state: State, panels: Mapping[str, Panel]
) -> list[Account]:
    """Every group's account at `state`: each example of each panel runs forward once.

    With BatchNorm flagged and matched examples run among one half each of the reference: two backward passes a batch.
    Without it batches hold one panel alone, so that no pass computes a gradient that is not used.

    Args:
        panels: `reference` and what is compared with it.
    """

    def measure() -> Any:
        module = evaluator.adapter.module
        with holding(module, state.tensors), needing_gradients(evaluator.adapter.module) as parameters:
            sums = {name: [torch.zeros_like(p) for p in parameters.values()] for name in panels}
            changing = _changing(sums)
            own = list(norms(module).values())
            with of_the_batch(own):
                for together in _together(panels) if own else [{name: panel} for name, panel in panels.items()]:
                    _add(evaluator, together, list(parameters.values()), sums, changing, mixed=bool(own))
        # Products are taken in float64, which not every device has.
        on_cpu = {name: [t.cpu() for t in total] for name, total in sums.items()}
        place = {name: n for n, name in enumerate(parameters)}
        floor = {name: ROUNDING * sum(float(t.double().square().sum()) for t in on_cpu[name]) ** 0.5 for name in panels}
        return _plain([_account(on_cpu, [place[n] for n in group.names if n in place], floor) for group in groups])

    return _found(evaluator.once(f"gradients at {state.label}", measure))


@dataclass(frozen=True)
class Accounts(Work[list[Account]]):
    """Every group's account at each checkpoint; its numbers are those of `states`."""

    groups: Sequence[LayerGroup]
    states: Sequence[State]
    panels: Mapping[str, Panel]
    alone: ClassVar[bool] = True

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, list[Account]]]:
        """As `Work`."""
        for place in rows:
            yield place, account(evaluator, self.groups, self.states[place], self.panels)

    def plain(self, found: list[Account]) -> Any:
        """As `Work.plain`."""
        return _plain(found)

    def found(self, plain: Any) -> list[Account]:
        """As `Work.found`."""
        return _found(plain)


def _plain(accounts: Sequence[Account]) -> Any:
    """As a journal holds them."""
    return [(dict(one.norms), [(a, b, c) for (a, b), c in one.cosines.items()]) for one in accounts]


def _found(plain: Any) -> list[Account]:
    return [Account(norms, {(a, b): c for a, b, c in cosines}) for norms, cosines in plain]


def _together(panels: Mapping[str, Panel]) -> list[dict[str, Panel]]:
    """Every other panel with its part of the reference."""
    reference = panels["reference"]
    others = [name for name, panel in panels.items() if name != "reference" and len(panel)]
    if not others:
        return [dict(panels)]
    return [
        {name: panels[name], "reference": Panel(reference.examples, reference.rows[n :: len(others)])}
        for n, name in enumerate(others)
    ]


@dataclass(frozen=True)
class AddGradients:
    """A pass: the gradient of each panel's summed cross-entropy by each parameter, added to that panel's sums.

    Attributes:
        sums: by the panel's number, a tensor for each of `parameters`.
        origins: where in the batch the examples of each panel are, by its number.
    """

    parameters: Sequence[Tensor]
    sums: Sequence[Sequence[Tensor]]
    origins: Mapping[int, slice]

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        with torch.enable_grad():
            losses = F.cross_entropy(network.forward(inputs), labels, reduction="none")
            sides = {number: losses[own].sum() for number, own in self.origins.items()}
        for number, loss in sides.items():
            again = number != max(sides)
            gradients = torch.autograd.grad(loss, self.parameters, retain_graph=again, allow_unused=True)
            for total, gradient in zip(self.sums[number], gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient)


def _add(
    evaluator: Evaluator,
    panels: Mapping[str, Panel],
    parameters: list[Tensor],
    sums: Mapping[str, list[Tensor]],
    changing: Changing,
    *,
    mixed: bool,
) -> None:
    """Add the gradient of each panel's summed cross-entropy by each parameter to `sums`."""
    names = list(panels)
    size = _batch(sum(map(len, panels.values()))) if mixed else evaluator.batch_size
    with torch.no_grad():
        work = partial(AddGradients, parameters, [sums[name] for name in names])
        evaluator.mixed(list(panels.values()), work, batch=size, backward=len(panels), changing=changing)


def _batch(count: int) -> int:
    """The smallest batch from `CALIBRATION_BATCH` on whose last one is not a fraction of the others."""
    sizes = range(CALIBRATION_BATCH, max(count, CALIBRATION_BATCH + 1))
    return next((s for s in sizes if count % s == 0 or count % s >= CALIBRATION_BATCH // 2), count)


def _changing(sums: Mapping[str, list[Tensor]]) -> Changing:
    tensors = {f"{name} {n}": t for name, total in sums.items() for n, t in enumerate(total)}

    def load(values: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(values[name])

    return Changing(lambda: tensors, load)


def _account(sums: Mapping[str, list[Tensor]], own: list[int], floor: Mapping[str, float]) -> Account:
    names = list(sums)
    dots = {
        (a, b): sum(float((sums[a][i].double() * sums[b][i].double()).sum()) for i in own)
        for n, a in enumerate(names)
        for b in names[n:]
    }
    norms = {a: norm if (norm := max(0.0, dots[a, a]) ** 0.5) > floor[a] else 0.0 for a in names}
    cosines = {
        (a, b): max(-1.0, min(1.0, dots[a, b] / (norms[a] * norms[b])))
        for (a, b) in dots
        if a != b and norms[a] > 0 and norms[b] > 0
    }
    return Account(norms, cosines)


class Gradients:
    """Gradient accounting at every checkpoint: all flagged examples and the whole reference count, fitted or not."""

    name = "gradients"

    def passes(self, size: Workload) -> float:
        """One forward and two backward passes of every example at every checkpoint."""
        rows = min(size.flagged, ROWS * size.profile.flagged_rows)
        return (1 + 2 * BACKWARD) * size.states * (2 * rows + min(size.reference, ROWS * size.profile.reference_rows))

    def pieces(self, size: Workload) -> int:
        """One a checkpoint."""
        return size.states

    def run(self, context: Context) -> Iterator[Piece]:
        """`gradients` of every layer group."""
        if context.late:
            yield Unfinished("gradient accounting not done")
            return
        panels = _panels(context)
        sizes = {name: len(panel) for name, panel in panels.items()}
        evaluator, states, groups = context.evaluator, context.states, context.groups
        total = len(states) * sum(sizes.values())
        work = Accounts(groups, states, panels)
        with context.stage("gradients", total), unchanged(evaluator.adapter.module, "gradient accounting"):
            found = dict(evaluator.engine.each(evaluator, work, range(len(states))))
        for number, group in enumerate(groups):
            points = [_point(state, group, found[place][number], sizes) for place, state in enumerate(states)]
            yield ForLayer(number, "gradients", points)


def _panels(context: Context) -> dict[str, Panel]:
    """More rows than the other audits run: a sum of gradients is noisier than a share of right answers, and cheaper."""
    flagged, reference, profile = context.flagged, context.reference, context.profile
    rows = drawn(range(len(flagged)), ROWS * profile.flagged_rows, context.seed, "flagged")
    matched = matched_rows(rows, flagged.labels, context.flagged_margins, reference.labels, context.reference_margins)
    others = drawn(range(len(reference)), ROWS * profile.reference_rows, context.seed, "reference")
    every = {
        "flagged": Panel(flagged, rows), "matched": Panel(reference, matched), "reference": Panel(reference, others)
    }  # fmt: skip
    return {name: panel for name, panel in every.items() if len(panel)}


def _point(state: State, group: LayerGroup, one: Account, sizes: Mapping[str, int]) -> GradientPoint:
    root = group.parameters**0.5

    def ratio(name: str) -> float | None:
        if name not in one.norms or one.norms["reference"] == 0:
            return None
        return tidy(one.norms[name] / sizes[name] / (one.norms["reference"] / sizes["reference"]))

    def cosine(name: str) -> float | None:
        value = one.cosines.get((name, "reference"))
        return None if value is None else tidy(value)

    return GradientPoint(
        checkpoint=state.label,
        flagged=tidy(one.norms["flagged"] / root),
        reference=tidy(one.norms["reference"] / root),
        matched=tidy(one.norms["matched"] / root) if "matched" in one.norms else None,
        ratio=ratio("flagged"),
        matched_ratio=ratio("matched"),
        cosine=cosine("flagged"),
        matched_cosine=cosine("matched"),
    )
