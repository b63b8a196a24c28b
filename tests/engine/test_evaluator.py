"""The forward loop: batches, memory, masks per row, counted passes, switches put back."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet, Preprocess, from_tensors
from memaudit.engine.answers import margin
from memaudit.engine.device import automatic_batch_size, exact_arithmetic, resolve_device
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.journal import FILE, journalled
from memaudit.errors import EnvironmentFault, UsageError
from memaudit.network.units import UnitSpace
from memaudit.pipeline.premises import check_network
from tests.conftest import Trained
from tests.network.test_sites import make
from tests.networks import TokenMajor
from tests.reference import cut_copy, logits_of, margin_of

CUTS = [[], [3], [20, 60], [1, 2, 70]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_cuts_and_batches_are_a_loop_over_edited_copies(trained: Trained, batch_size: int) -> None:
    rows = [5, 2, 5, 40]  # repeats, any order
    found = trained.evaluator(batch_size).logits(trained.flagged, rows, CUTS, trained.space)
    for logits, row, cut in zip(found, rows, CUTS, strict=True):
        copy = cut_copy(trained.module, trained.space, cut)
        assert torch.allclose(logits, logits_of(copy, trained.flagged, row), atol=1e-5)


def test_one_cut_serves_all_rows(trained: Trained) -> None:
    evaluator = trained.evaluator(7)
    one = evaluator.logits(trained.flagged, None, [[3, 20]], trained.space)
    assert torch.equal(one, evaluator.logits(trained.flagged, None, [[3, 20]] * 50, trained.space))
    assert not torch.equal(one, evaluator.logits(trained.flagged))


def test_no_rows_give_no_logits(trained: Trained) -> None:
    assert trained.evaluator().logits(trained.flagged, []).numel() == 0


def test_every_pass_is_counted_and_told(trained: Trained) -> None:
    told: list[int] = []
    evaluator = Evaluator(trained.adapter, 20, advance=told.append)
    with evaluator.counting("here"):
        evaluator.logits(trained.flagged)
    with evaluator.counting("there"):
        evaluator.mask_gradients(trained.flagged, range(30), [[]] * 30, trained.space, margin)
    assert evaluator.stage == "audit"
    assert told == [20, 20, 10, 20, 10]
    assert evaluator.passes == {"here forward": 50, "there forward": 30, "there backward": 30}


def test_what_is_short_is_recorded_as_a_whole_alone(trained: Trained, tmp_path: Path) -> None:
    """Its batches leave no trace, and a run that was stopped in it makes it again."""
    stopped = [True]

    def compute() -> Tensor:
        found = evaluator.logits(trained.flagged)
        if stopped:
            raise KeyboardInterrupt(stopped.pop())
        return found

    for batches in (1, 0, 0):
        evaluator = trained.evaluator(20)
        with suppress(KeyboardInterrupt), journalled(tmp_path, {"run": "one"}) as evaluator.journal:
            once = evaluator.logits(trained.flagged, range(20))
            assert evaluator.journal is not None
            assert evaluator.journal.recorded == (0 if batches else 1)
            found = evaluator.once("all", compute, short=True)
            assert torch.equal(found[:20], once)
            assert evaluator.passes == {"audit forward": 70}


@pytest.mark.parametrize("then", [True, False], ids=["still large", "now small"])
def test_what_is_large_is_made_again_of_its_batches(trained: Trained, tmp_path: Path, then: bool) -> None:
    """No line holds all of it; where it is no longer large, it is measured anew and recorded."""
    found = []
    for large, recorded in ((True, 0), (then, 4), (then, 4)):
        evaluator = trained.evaluator(20)
        with journalled(tmp_path, {"run": "one"}) as evaluator.journal:
            assert evaluator.journal is not None
            assert evaluator.journal.recorded == recorded
            found.append(evaluator.once("all", partial(evaluator.logits, trained.flagged), large=large))
            evaluator.logits(trained.flagged, range(20))
        assert evaluator.passes == {"audit forward": 70}
        assert (b'"end":{"key":"all","value":null}' in (tmp_path / FILE).read_bytes()) == large
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_observing_sees_each_example_once_and_in_order() -> None:
    """Sites whose tensors fold or move the batch give the same, image by image, as a batch of one."""
    module = make("TokenMajor")
    assert isinstance(module, TokenMajor)
    shape = Preprocess((3, 16, 16))
    adapter = Adapter(module, architecture="TokenMajor", preprocess=shape)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    examples = from_tensors(images, torch.zeros(5, dtype=torch.int64), preprocess=shape, num_classes=5)
    space = UnitSpace(tuple(adapter.sites(images[:3])))
    logits, seen = Evaluator(adapter, 3).observe(examples, space, lambda _, tensor: (tensor,))
    _, alone = Evaluator(adapter, 1).observe(examples, space, lambda _, tensor: (tensor,))
    assert torch.allclose(logits, Evaluator(adapter).logits(examples), atol=1e-5)
    assert len(seen) == len(space.sites) == 4
    for number, site in enumerate(space.sites):
        together, one_by_one = (torch.cat([v for (v,) in found[number]]) for found in (seen, alone))
        assert together.shape == (5, 16, site.width)
        assert torch.allclose(together, one_by_one, atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("seed", [0, 1])
def test_margin_is_the_lead_over_the_best_other_class(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(20, 6, generator=generator), torch.randint(6, (20,), generator=generator)
    assert margin(logits, labels).tolist() == [float(margin_of(z, int(y))) for z, y in zip(logits, labels, strict=True)]
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) == labels)


# ---- memory -------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A network on a machine that holds so many images at a time."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError, text: str = "out of memory") -> None:
        super().__init__()
        self.room, self.error, self.text = room, error, text
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error(self.text)
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def small(room: int, **how: object) -> Adapter:
    torch.manual_seed(0)
    return Adapter(Small(room, **how), architecture="Small", preprocess=Preprocess((1, 8, 8)))  # type: ignore[arg-type]


@pytest.fixture
def fifty(trained: Trained) -> ExampleSet:
    return trained.flagged


@pytest.mark.parametrize(
    ("count", "room", "left"),
    [(50, 64, 64), (50, 50, 64), (50, 40, 25), (50, 7, 6), (50, 2, 1), (32, 20, 16), (32, 2, 2), (32, 1, 1)],
)
def test_batches_are_halved_until_they_fit_and_stay_so(fifty: ExampleSet, count: int, room: int, left: int) -> None:
    evaluator, examples = Evaluator(small(room), batch_size=64), fifty.subset(range(count))
    assert torch.allclose(evaluator.logits(examples), Evaluator(small(999), 64).logits(examples), atol=1e-6)
    assert evaluator.batch_size == left
    assert evaluator.passes["audit forward"] == count  # what did not fit is not counted


def test_gradients_and_observations_shrink_too(fifty: ExampleSet) -> None:
    roomy, tight = Evaluator(small(999), 64), Evaluator(small(5), 64)
    space = UnitSpace(tuple(roomy.adapter.sites(fifty.batch([0, 1, 2]))))
    rows, cuts = list(range(50)), [[i % 4] for i in range(50)]
    expected = roomy.mask_gradients(fifty, rows, cuts, space, margin)
    for a, b in zip(tight.mask_gradients(fifty, rows, cuts, space, margin), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    tight.batch_size = 64
    _, seen = tight.observe(fifty, space, lambda _, tensor: (tensor,))
    _, whole = roomy.observe(fifty, space, lambda _, tensor: (tensor,))
    assert torch.allclose(*(torch.cat([v for (v,) in found[0]]) for found in (seen, whole)), atol=1e-5)


def test_one_example_that_does_not_fit_is_the_machines_fault(fifty: ExampleSet) -> None:
    with pytest.raises(EnvironmentFault, match="out of memory on cpu with a single example"):
        Evaluator(small(0), batch_size=64).logits(fifty)


def test_the_words_of_the_cpu_allocator_count_as_out_of_memory(fifty: ExampleSet) -> None:
    text = (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    evaluator = Evaluator(small(8, error=RuntimeError, text=text), batch_size=64)
    assert len(evaluator.logits(fifty)) == 50


def test_any_other_error_is_not_swallowed(fifty: ExampleSet) -> None:
    evaluator = Evaluator(small(8, error=RuntimeError, text="mat1 and mat2 shapes"), batch_size=64)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        evaluator.logits(fifty)
    assert evaluator.batch_size == 64


# ---- machine ------------------------------------------------------------------------------------------------------


def test_switches_are_put_back_also_when_the_body_raises() -> None:
    cudnn, matmul, mha = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mha

    def switches() -> tuple[bool, ...]:
        return (
            cudnn.allow_tf32,
            cudnn.benchmark,
            cudnn.deterministic,
            matmul.allow_tf32,
            mha.get_fastpath_enabled(),
            torch._C._get_mem_efficient_sdp_enabled(),
        )

    found = switches()
    try:
        unlike = (True, True, False, True, True, True)
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = unlike[:4]
        mha.set_fastpath_enabled(unlike[4])
        inside: list[tuple[bool, ...]] = []
        with pytest.raises(ZeroDivisionError), exact_arithmetic():
            inside.append(switches()) or 1 / 0
        assert inside == [(False, False, True, False, False, False)]
        assert switches() == unlike
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = found[:4]
        mha.set_fastpath_enabled(found[4])


def test_a_padded_batch_gives_each_row_its_own_and_counts_no_other(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cuts, space = [3, 0, 7, 7, 2], [[1], [], [4, 30], [2], [60]], trained.space
    found = []
    for pads in (False, True):
        monkeypatch.setattr(Evaluator, "pads", pads)
        evaluator = trained.evaluator(32)
        sizes = [len(evaluator._padded(rows[:count])) for count in (1, 4, 5)]
        assert sizes == ([4, 4, 8] if pads else [2, 4, 5])
        logits = evaluator.logits(trained.flagged, rows, cuts, space)
        scores, gradients = evaluator.mask_gradients(trained.flagged, rows, cuts, space, margin)
        together = evaluator.logits(trained.flagged, rows, [[5]], space)
        assert evaluator.passes == {"audit forward": 15, "audit backward": 5}
        found.append((logits, together, scores, gradients))
    for plain, padded in zip(*found, strict=True):
        assert plain.shape == padded.shape
        assert torch.allclose(plain, padded, atol=1e-5)


def test_devices_have_names() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match="no device is called 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(EnvironmentFault, match="this machine has no device 'cuda:99'"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(("side", "size"), [(8, 256), (224, 4), (64, 42)])
def test_large_images_come_in_small_batches(side: int, size: int) -> None:
    assert automatic_batch_size(torch.empty(1, 3, side, side), torch.device("cpu")) == size


def test_a_sound_network_passes_and_is_not_changed(trained: Trained) -> None:
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    check_network(trained.evaluator(), trained.reference)
    assert all(torch.equal(value, before[name]) for name, value in trained.module.state_dict().items())
