"""The engine on Ray, with actors that are objects of this process: the same reports, whatever happens to them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memaudit.engine.ray as engine
from memaudit.adapters.options import ModelOptions
from memaudit.audits.gradients import Accounts
from memaudit.audits.learning import follow
from memaudit.audits.retrain import Retrainings
from memaudit.audits.rewind import rewind
from memaudit.data.ondemand import OnDemand, Store
from memaudit.engine import worker
from memaudit.engine.copies import copies_of
from memaudit.engine.engines import InProcess, Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.packing import packed, unpacked
from memaudit.engine.pieces import parts
from memaudit.engine.worker import Piece, Recipe, Remote, Worker, probed
from memaudit.errors import EnvironmentFault, ExitCode, ModelRejected
from memaudit.network.layer_groups import tensors_of
from memaudit.network.replay import groups_in_order
from memaudit.network.states import State, digest
from memaudit.system import failpoints
from tests.cli_support import FAST, MODEL, NPZ, copied, write_work
from tests.conftest import DIGIT, Trained
from tests.engine.fake_ray import Fake
from tests.engine.squares import Squares
from tests.pipeline.test_identity import forked

SCAN = ("scan", *MODEL, *NPZ, *FAST, "--threads", "1", "--test", "reference.npz", "--out", "report")
RAY = ("--engine", "ray")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A folder with a network, examples, and the report of this process."""
    folder = write_work(tmp_path_factory.mktemp("ready"), trained)
    assert forked(folder, SCAN).code == ExitCode.POLICY
    return folder


@pytest.fixture
def work(ready: Path, tmp_path: Path) -> Path:
    """The same without the report."""
    folder = copied(ready, tmp_path / "work")
    shutil.rmtree(folder / "report")
    return folder


@pytest.fixture
def recipe(ready: Path, trained: Trained) -> Recipe:
    """Of the network in that folder."""
    from memaudit import checkpoints

    path = str(ready / "digits.safetensors")
    code = f"{ready / 'network.py'}:build"
    options = ModelOptions(input_size=(1, 8, 8), user_file=code)
    sha256 = checkpoints.read(path).sha256
    return Recipe(path, sha256, None, options, code, DIGIT, False, "cpu", 1, torch.float32, probed(trained.adapter))


def report(folder: Path, name: str = "report.json") -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "report" / name).read_text())
    del data["volatile"], data["command"]
    return data


@pytest.mark.parametrize(("workers", "deaths"), [("1", ()), ("3", ()), ("2", (2, 3, 9, 14, 21))])
def test_the_report_is_that_of_one_process(
    ready: Path, work: Path, monkeypatch: pytest.MonkeyPatch, workers: str, deaths: tuple[int, ...]
) -> None:
    fake = Fake(deaths)
    monkeypatch.setattr(engine, "imported", lambda: fake)
    ended = forked(work, (*SCAN, *RAY, "--workers", workers))
    assert (ended.code, ended.err) == (ExitCode.POLICY, "")
    assert report(work) == report(ready)
    assert json.loads((work / "report/report.json").read_text())["volatile"]["workers"] == int(workers)


def test_the_ranking_of_a_training_set_is_that_of_one_process(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "imported", lambda: Fake(deaths=[4, 8]))
    words = ("discover", *MODEL, "--data", "reference.npz", *FAST, "--threads", "1", "--out")
    found = []
    for more in ((), (*RAY, "--workers", "3")):
        ended = forked(work, (*words, "report", *more))
        assert (ended.code, ended.err) == (ExitCode.OK, "")
        found.append(report(work, "ranking.json"))
    assert found[0] == found[1]


@pytest.mark.parametrize("point", ["journal.line:3", "journal.half:9", "journal.line:14"])
def test_killed_and_gone_on_with_by_other_workers(
    ready: Path, work: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(engine, "imported", lambda: Fake())
    assert forked(work, (*SCAN, *RAY, "--workers", "3"), **{failpoints.VARIABLE: point}).code == -9
    ended = forked(work, (*SCAN, *RAY, "--workers", "2"))
    assert (ended.code, ended.err) == (ExitCode.POLICY, "")
    assert report(work) == report(ready)
    assert json.loads((work / "report/report.json").read_text())["volatile"]["resumed_batches"] > 0


@pytest.fixture
def started(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Any:
    """From what Ray does to an engine of two workers."""

    def start(fake: Fake, own: Recipe = recipe) -> engine.RayEngine:
        monkeypatch.setattr(engine, "imported", lambda: fake)
        return engine.RayEngine(own, engine.Workers(2))

    return start


def test_rows_come_back_once_and_actors_end_with_the_engine(started: Any, trained: Trained) -> None:
    fake = Fake(deaths=[4, 6])
    with started(fake) as ray:
        found = list(ray.each(trained.evaluator(), Squares(), range(12)))
        assert sorted(found) == [(row, row**2) for row in range(12)]
        assert fake.running
    assert not fake.running
    assert len(fake.dead) == 2 + 2  # two that died, and those that took their place or were left


def test_an_error_of_a_worker_is_raised_here_as_it_was_there(started: Any, trained: Trained) -> None:
    with started(Fake()) as ray, pytest.raises(ModelRejected, match="thirteen") as raised:
        list(ray.each(trained.evaluator(), Squares(), [1, 13]))
    assert raised.value.hint == "Leave it out."
    assert f"in worker {os.getpid()}" in raised.value.__notes__[0]
    assert "line" in str(raised.value.__cause__)


def test_what_ends_every_worker_ends_the_run(started: Any, trained: Trained) -> None:
    with started(Fake(deaths=range(3, 99))) as ray, pytest.raises(EnvironmentFault, match="ended while they worked"):
        list(ray.each(trained.evaluator(), Squares(), range(4)))


def test_workers_that_never_start_end_the_run(started: Any, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    with started(Fake(starts=False)) as ray, pytest.raises(EnvironmentFault, match="Ray has 3 CPU"):
        list(ray.each(trained.evaluator(), Squares(), range(4)))


def test_another_file_is_no_worker_of_this_run(started: Any, trained: Trained, recipe: Recipe) -> None:
    for other in (replace(recipe, sha256="0"), replace(recipe, expected=recipe.expected + 1)):
        with started(Fake(), other) as ray, pytest.raises(EnvironmentFault, match="not the one that is audited"):
            list(ray.each(trained.evaluator(), Squares(), range(4)))


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_parts_hold_every_row_once_and_the_last_are_the_smallest(workers: int) -> None:
    found = list(parts(range(100), workers, 4, 20))
    assert [row for part in found for row in part] == list(range(100))
    assert all(len(a) >= len(b) for a, b in pairwise(found))
    assert all(4 <= len(part) <= 20 for part in found[:-1])
    assert [len(part) for part in parts(range(240), 2, 16, 99)] == [84, 84, 36, 36]
    assert [len(part) for part in parts(range(6), 2, 1, 99)] == [2, 2, 1, 1]


def test_memory_that_runs_out_halves_the_batch(started: Any, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pass for all, as in one process; of rows for the worker that ran out."""
    expected = trained.evaluator(64).logits(trained.flagged)
    inputs, sizes = Evaluator.inputs, []

    def small(self: Evaluator, examples: Any, rows: Any) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs(self, examples, rows)

    monkeypatch.setattr(Evaluator, "inputs", small)
    evaluator = trained.evaluator(32)
    with started(Fake()) as evaluator.engine:
        evaluator.intact = True
        assert torch.equal(evaluator.logits(trained.flagged), expected)
    assert evaluator.batch_size == 16
    assert max(sizes) == 32


def test_a_worker_whose_batch_did_not_fit_remembers_it(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shrinking(Work[int]):
        def __call__(self, evaluator: Evaluator, rows: Any) -> Iterator[tuple[int, int]]:
            yield 0, evaluator.batch_size
            evaluator.batch_size //= 2

    one = Worker(recipe)
    seen = [one.do(Piece("a", [0], "x", 64), lambda evaluator: Shrinking()).value for _ in range(3)]
    assert seen == [[[0, 64]], [[0, 32]], [[0, 16]]]


def test_a_broken_cuda_context_ends_the_worker(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    def broken() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    monkeypatch.setattr(worker.os, "_exit", left.append)
    answer = Remote(replace(recipe, device="cuda", path="/nowhere")).hello()
    assert left == [1]
    assert isinstance(answer.error, ModelRejected)


def test_an_error_that_cannot_be_sent_is_sent_in_words() -> None:
    class Local(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    assert str(worker.portable(Local("here"))) == "Local: here"


def test_work_travels_without_the_network_and_large_tensors_by_themselves(trained: Trained) -> None:
    evaluator = trained.evaluator()
    large, small = torch.arange(1 << 18), torch.arange(3)
    content, tensors = packed([evaluator, evaluator.adapter, large, small, lambda: large], evaluator)
    assert len(content) < 10_000
    assert list(tensors.values()) == [large]
    other = trained.evaluator()
    found = unpacked(content, other, tensors.__getitem__)
    assert found[:2] == [other, other.adapter]
    assert torch.equal(found[2], large)
    assert torch.equal(found[3], small)
    assert found[4]() is found[2]


def test_a_set_is_sent_without_its_copy_on_a_gpu_and_values_on_demand_are_made_again(trained: Trained) -> None:
    examples = trained.flagged.subset([1, 2])
    examples._resident[torch.device("cuda")] = torch.ones(1)
    sent = pickle.loads(pickle.dumps(examples))
    assert sent == replace(examples, pixels=sent.pixels)
    assert torch.equal(sent.pixels, examples.pixels)
    assert not sent._resident
    store = Store(_made, 4, (2,), torch.int64)
    values = pickle.loads(pickle.dumps(OnDemand(store, torch.tensor([3, 1]))))
    assert values[:].tolist() == [[3, 3], [1, 1]]


def _made(places: Sequence[int]) -> Any:
    import numpy as np

    return [np.full(2, place) for place in places]


def test_this_process_runs_a_changed_network_itself(started: Any, trained: Trained) -> None:
    evaluator = trained.evaluator()
    with started(Fake()) as evaluator.engine:
        assert not isinstance(evaluator.engine, InProcess)
        calls = evaluator.engine.ray.calls
        evaluator.logits(trained.flagged)
        assert evaluator.engine.ray.calls == calls


# ---- audits over time ------------------------------------------------------------------------------------------------


def measured(evaluator: Evaluator, trained: Trained, deadline: float = float("inf")) -> Any:
    """What the audits over time find at an earlier state and at the last one."""
    last = {name: tensor.detach().clone() for name, tensor in tensors_of(trained.module).items()}
    noise = torch.Generator().manual_seed(0)
    early = {
        n: t + 0.2 * t.std() * torch.randn(t.shape, generator=noise) if t.dim() > 1 else t for n, t in last.items()
    }
    states = [State("epoch 1", early), State("last", last, final=True)]
    groups = groups_in_order(trained.module, trained.adapter.forward, trained.reference.batch([0]))
    flagged, reference = Panel(trained.flagged, range(20)), Panel(trained.reference, range(70))
    work = Accounts(groups, states, {"flagged": flagged, "reference": reference})
    accounts = dict(evaluator.engine.each(evaluator, work, range(2)))
    with evaluator.keeping():
        grid = rewind(evaluator, groups, states, [flagged, reference], reference)
    runs = Retrainings(groups[:2], states[0], flagged, reference, flagged, 2.0, 1, (0, 7), deadline)
    trained_again = dict(evaluator.engine.each(evaluator, runs, range(4)))
    course = follow(evaluator, states, trained.flagged, range(20))
    return accounts, grid, trained_again, course


@pytest.fixture
def spread(request: pytest.FixtureRequest, trained: Trained, started: Any) -> Iterator[Evaluator]:
    evaluator = trained.evaluator(16)
    copies = copies_of(evaluator, trained.flagged, 2)
    assert copies is not None
    of = {"copies": nullcontext(copies), "ray": started(Fake()), "dying": started(Fake((3, 5, 11)))}
    with of[request.param] as evaluator.engine:
        yield evaluator


@pytest.mark.parametrize("spread", ["copies", "ray", "dying"], indirect=True)
def test_shared_among_workers_they_find_the_same(trained: Trained, spread: Evaluator) -> None:
    alone, before = trained.evaluator(16), digest(trained.module)
    assert spread.engine.workers == 2
    accounts, grid, runs, course = measured(alone, trained)
    others = measured(spread, trained)
    assert accounts == others[0]
    for one, other in zip((*grid.right, *grid.recalibrated), (*others[1].right, *others[1].recalibrated), strict=True):
        assert torch.equal(one, other)
    assert sorted(runs) == sorted(others[2]) == list(range(4))
    for place, one in runs.items():
        other = others[2][place]
        assert (one.epochs, one.fitted) == (other.epochs, other.fitted)
        assert torch.equal(one.flagged, other.flagged)
        assert torch.equal(one.matched, other.matched)
    assert torch.equal(course.confidence, others[3].confidence)
    assert torch.equal(course.right, others[3].right)
    assert alone.passes == spread.passes
    assert digest(trained.module) == before


def test_after_the_deadline_no_run_is_begun(trained: Trained) -> None:
    assert measured(trained.evaluator(16), trained, deadline=0.0)[2] == {}
