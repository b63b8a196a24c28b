"""Copies of the network on threads: the same reports, whatever becomes of a copy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memaudit
from memaudit.adapters.base import Adapter
from memaudit.engine import copies
from memaudit.engine.copies import Copies, copies_of, rebound
from memaudit.engine.engines import InProcess, Work
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.threads import settle_threads, threads_kept
from memaudit.errors import ModelRejected
from tests.conftest import Trained
from tests.engine.squares import Squares


@pytest.fixture
def three(trained: Trained) -> Evaluator:
    """An evaluator with three copies."""
    evaluator = trained.evaluator(16)
    made = copies_of(evaluator, trained.flagged, 3)
    assert made is not None
    evaluator.engine = made
    return evaluator


def test_a_report_is_that_of_the_network_alone(trained: Trained) -> None:
    reports = []
    for threads in (1, 3):
        report = memaudit.audit(
            trained.module, trained.flagged.subset(range(12)), trained.reference, profile="fast", threads=threads
        )
        assert report.volatile["workers"] == threads
        reports.append(report.model_dump(mode="json", exclude={"volatile"}))
    assert reports[0] == reports[1]


def test_a_pass_is_spread_over_the_copies_and_put_together_in_order(trained: Trained, three: Evaluator) -> None:
    seen = set()

    def slow_first(self: Evaluator, *args: Any) -> Tensor:
        seen.add(threading.current_thread().name)
        time.sleep(0.05 if len(seen) == 1 else 0)
        return inputs(self, *args)

    inputs = Evaluator.inputs
    expected = trained.evaluator(16).logits(trained.reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "inputs", slow_first)
        three.intact = True
        assert torch.equal(three.logits(trained.reference), expected)
        assert len(seen) > 1
        assert threading.current_thread().name not in seen
        seen.clear()
        three.intact = False  # its weights may be others than the copies'
        assert torch.equal(three.logits(trained.reference), expected)
        assert seen == {threading.current_thread().name}


def test_rows_come_back_once_and_an_error_as_it_was(trained: Trained, three: Evaluator) -> None:
    rows = [row for row in range(40) if row != 13]
    found = list(three.engine.each(three, Squares(), rows))
    assert sorted(found) == [(row, row**2) for row in rows]
    with pytest.raises(ModelRejected, match="thirteen") as raised:
        list(three.engine.each(three, Squares(), range(40)))
    assert "line" in str(raised.value.__cause__)


def test_memory_that_runs_out_halves_the_batch(
    trained: Trained, three: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Evaluator.inputs
    expected = trained.evaluator(4).logits(trained.flagged)

    def small(self: Evaluator, examples: Any, rows: Any) -> Tensor:
        if len(rows) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return inputs(self, examples, rows)

    monkeypatch.setattr(Evaluator, "inputs", small)
    three.intact = True
    assert torch.allclose(three.logits(trained.flagged), expected, atol=1e-5)
    assert three.batch_size == 4


class Whose(Work[str]):
    """Which network a row is asked of, and of which evaluator its work speaks."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.own = evaluator
        self.adapter: Callable[[], Adapter] = lambda: evaluator.adapter

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        assert self.own is evaluator
        assert self.adapter() is evaluator.adapter
        time.sleep(0.01)
        for row in rows:
            yield row, str(id(evaluator.adapter.module))


def test_work_speaks_of_the_copy_that_does_it(trained: Trained, three: Evaluator) -> None:
    networks = {said for _, said in three.engine.each(three, Whose(three), range(30))}
    assert len(networks) > 1
    assert str(id(trained.module)) not in networks


class Endless(Work[int]):
    """Runs batches until it is stopped."""

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        if 0 in rows:
            raise ModelRejected("zero")
        while True:
            list(evaluator.run(1, lambda _: time.sleep(0.001)))
        yield 0, 0


def test_pieces_that_nobody_waits_for_end_with_their_batch(three: Evaluator) -> None:
    assert isinstance(three.engine, Copies)
    with pytest.raises(ModelRejected, match="zero"):
        list(three.engine.each(three, Endless(), range(40)))
    three.engine._pool.shutdown()  # waits for what still runs


def test_what_is_large_is_shared(trained: Trained) -> None:
    evaluator = trained.evaluator()
    tensor = torch.rand(3)
    work = {"sets": [trained.flagged], "tensor": tensor, "rest": [1, (2,)]}
    again = rebound(work, evaluator)(trained.evaluator())
    assert again["sets"][0] is trained.flagged
    assert again["tensor"] is tensor
    assert again["rest"] == work["rest"]
    assert again["rest"] is not work["rest"]


class Uncopied(nn.Module):
    """A network that holds what cannot be copied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Changed(nn.Module):
    """A network whose copies answer otherwise."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.number = inner, 0.0

    def __deepcopy__(self, memo: Any) -> nn.Module:
        other = Changed(self.inner)
        other.number = 1.0
        return other.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.number * torch.arange(10)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Uncopied, Changed])
def test_a_network_that_cannot_be_copied_runs_as_it_is(trained: Trained, kind: type[nn.Module]) -> None:
    preprocess = trained.adapter.preprocess
    adapter = Adapter(kind(trained.module).eval(), architecture="odd", preprocess=preprocess, reason="a test")
    evaluator = Evaluator(adapter, 16)
    assert copies_of(evaluator, trained.flagged, 2) is None
    with threads_kept():
        assert settle_threads(evaluator, trained.flagged, 2) == "2 threads"
    assert isinstance(evaluator.engine, InProcess)


def test_no_more_copies_than_memory_has_room_for(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = trained.evaluator(16)
    size = sum(t.nbytes for t in trained.module.state_dict().values()) + 4 * copies.KEPT * 16 * 64
    for room, made in ((2.5, 2), (1.5, None)):
        monkeypatch.setattr(copies, "available", lambda room=room: int(room * size / copies.SHARE))
        found = copies_of(evaluator, trained.flagged, 8)
        assert (found.workers if isinstance(found, Copies) else None) == made
        assert found is None or found.threads == 4
