"""Threads: the fewest that are about as fast as more, put back afterwards, and no number of a report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import memaudit
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.threads import settle_threads, threads_kept
from tests.conftest import Trained


@pytest.fixture
def four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("took", "share", "chosen"),
    [
        ({1: 4, 2: 2, 4: 1}, 1.0, 4),
        ({1: 4, 2: 2, 4: 2}, 1.0, 2),
        ({1: 2, 2: 2, 4: 2}, 1.0, 1),
        ({1: 2, 2: 8, 4: 20}, 1.0, 1),  # they wait for each other
        ({1: 4, 2: 2, 4: 1}, 0.5, 1),  # other work has half of the processor: a few passes may be lucky
    ],
)
@pytest.mark.usefixtures("four")
def test_the_fewest_that_are_about_as_fast_as_more(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, took: dict[int, int], share: float, chosen: int
) -> None:
    clock = [0.0]

    def pretended(*_: object) -> Tensor:
        clock[0] += took[torch.get_num_threads()]
        return torch.zeros(1)

    monkeypatch.setattr(Evaluator, "logits", pretended)
    monkeypatch.setattr("memaudit.engine.threads.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("memaudit.engine.threads.time.thread_time", lambda: share * clock[0])
    evaluator = trained.evaluator()
    with threads_kept():
        said = settle_threads(evaluator, trained.reference)
        assert torch.get_num_threads() == evaluator.threads == chosen
        assert f"{chosen} thread" in said
        assert not evaluator.passes
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four")
def test_a_number_that_was_asked_for_is_taken_without_a_measurement(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "logits", lambda *_: pytest.fail("it measured"))
    with threads_kept():
        settle_threads(trained.evaluator(), trained.reference, 3)
        assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("four")
def test_a_report_holds_the_same_numbers_whatever_the_threads(trained: Trained) -> None:
    reports = []
    for threads in (1, 2):
        report = memaudit.audit(
            trained.module, trained.flagged.subset(range(6)), trained.reference, profile="fast", threads=threads
        )
        assert report.volatile["threads"] == threads
        data = report.model_dump(mode="json")
        del data["volatile"]
        reports.append(data)
    assert reports[0] == reports[1]
    assert torch.get_num_threads() == 4
