"""The journal: what it keeps, what it cuts, whom it refuses; and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memaudit.engine.encoding import decode, encode
from memaudit.engine.journal import FILE, Changing, Journal, journalled
from memaudit.errors import EnvironmentFault, UsageError
from memaudit.system import failpoints, interrupts

RUN = {"model": "a" * 64, "seed": "0"}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_plain_values_come_back_equal(value: object) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (2, 0, 4)])
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    given = (torch.randn(shape) * 3).to(dtype)
    back = decode(json.loads(json.dumps(encode((given, {"a": [given.t() if given.dim() == 2 else given]})))))
    assert torch.equal(back[0], given)
    assert back[0].dtype == dtype
    assert back[1]["a"][0].shape == (given.t() if given.dim() == 2 else given).shape


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    back = decode(encode(torch.tensor([torch.nan, torch.inf, -torch.inf])))
    assert back.isnan().tolist() == [True, False, False]
    assert back[1:].tolist() == [torch.inf, -torch.inf]


def filled(folder: Path, count: int = 5) -> bytes:
    journal = Journal(folder, RUN)
    for n in range(count):
        assert journal.next(f"batch {n}") is None
        journal.add(f"batch {n}", 2, torch.full((2,), float(n)))
    journal.close()
    return (folder / FILE).read_bytes()


def values(journal: Journal, count: int = 9) -> list[float]:
    found = []
    for n in range(count):
        batch = journal.next(f"batch {n}")
        if batch is None:
            break
        found.append(float(batch.value[0]))
    return found


def test_what_was_kept_is_handed_out_in_order(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal(tmp_path, RUN)
    assert journal.recorded == 5
    assert values(journal) == [0, 1, 2, 3, 4]


def test_every_line_is_json_with_its_length_and_checksum(tmp_path: Path) -> None:
    import zlib

    for line in filled(tmp_path).splitlines():
        parsed = json.loads(line)
        body = line[line.index(b'"record":') + 9 : -1]
        assert (int(parsed["length"], 16), int(parsed["crc"], 16)) == (len(body), zlib.crc32(body))
        assert json.loads(body) == parsed["record"]


def test_a_tail_torn_at_any_byte_is_cut_and_the_rest_is_kept(tmp_path: Path) -> None:
    whole = filled(tmp_path, 3)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        journal = Journal(tmp_path, RUN)
        kept = max(0, sum(end <= size for end in ends) - 1)  # the first line is no batch
        assert values(journal) == list(range(kept))
        journal.add(f"batch {kept}", 2, torch.tensor([9.0]))
        journal.close()
        assert values(Journal(tmp_path, RUN)) == [*range(kept), 9]


def test_a_flipped_byte_costs_what_follows_it_and_nothing_else(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for position in range(ends[0], len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (tmp_path / FILE).write_bytes(damaged)
        assert values(Journal(tmp_path, RUN)) == list(range(sum(end <= position for end in ends) - 1))


@given(st.binary(max_size=300))
def test_any_other_content_is_an_empty_journal(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / FILE).write_bytes(content)
    assert Journal(folder, RUN).recorded == 0


def test_another_run_is_refused_and_told_what_differs(tmp_path: Path) -> None:
    before = filled(tmp_path)
    with pytest.raises(UsageError, match=r"journal\.jsonl was begun with another seed$") as caught:
        Journal(tmp_path, {**RUN, "seed": "1"})
    assert caught.value.details == ("seed: 0 then, 1 now",)
    assert "--fresh" in caught.value.hint
    assert (tmp_path / FILE).read_bytes() == before
    assert Journal(tmp_path, {**RUN, "seed": "1"}, fresh=True).recorded == 0
    assert not (tmp_path / FILE).exists()


def test_a_journal_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / FILE).symlink_to("elsewhere")
    with pytest.raises(UsageError, match="not a regular file"):
        Journal(tmp_path, RUN, fresh=True)
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_a_run_that_goes_another_way_drops_what_followed(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal(tmp_path, RUN)
    assert journal.next("batch 0") is not None
    assert journal.next("something else") is None
    journal.add("something else", 2, torch.tensor([7.0]))
    assert journal.next("batch 1") is None
    journal.close()
    assert Journal(tmp_path, RUN).recorded == 2


def test_a_full_disk_is_the_machines_fault_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setenv(failpoints.VARIABLE, "journal.half:1:full")
    monkeypatch.setattr(failpoints, "_passed", type(failpoints._passed)())

    def measure() -> None:
        with journalled(tmp_path, RUN) as journal:
            values(journal)
            journal.add("batch 5", 2, torch.zeros(3))

    with pytest.raises(EnvironmentFault, match="No space left") as caught:
        measure()
    assert caught.value.__notes__ == [f"5 batches are kept in {tmp_path / FILE}"]
    assert values(Journal(tmp_path, RUN)) == [0, 1, 2, 3, 4]


# ---- loops whose batches change tensors -----------------------------------------------------------------------------


class Sum:
    """Adds up numbers batch by batch, and counts how many it really added."""

    def __init__(self, journal: Journal, stop: int | None = None) -> None:
        self.total, self.added, self.journal, self.stop = torch.zeros(()), 0, journal, stop

    def run(self, name: str, numbers: list[float]) -> float:
        done = self.journal.begin(name)
        if done is not None:
            return float(done)

        def load(saved: dict[str, Tensor]) -> None:
            self.total = saved["total"]

        changing = Changing(lambda: {"total": self.total}, load)  # type: ignore[arg-type]
        for n, number in enumerate(numbers):
            if self.journal.next(f"{name} {n}", changing) is None:
                if self.added == self.stop:
                    raise KeyboardInterrupt
                self.total = self.total + number
                self.added += 1
                self.journal.add(f"{name} {n}", 1, None, changing)
        result = float(self.total)
        self.journal.end(name, result)
        return result


@pytest.mark.parametrize("stop", range(7))
def test_a_sum_that_is_cut_short_goes_on_from_its_last_state(tmp_path: Path, stop: int) -> None:
    def measure(journal: Journal) -> None:
        first = Sum(journal, stop)
        first.run("one", [1, 2, 3])
        first.run("two", [4, 5, 6, 7])

    with pytest.raises(KeyboardInterrupt), journalled(tmp_path, RUN) as journal:
        measure(journal)
    with journalled(tmp_path, RUN) as journal:
        second = Sum(journal)
        one = second.run("one", [1, 2, 3])
        second.total = torch.tensor(one)
        two = second.run("two", [4, 5, 6, 7])
    assert (one, two) == (6, 28)
    assert second.added == 7 - stop  # not one batch twice


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_without_its_state_a_loop_starts_again(tmp_path: Path, damage: bytes) -> None:
    with pytest.raises(KeyboardInterrupt), journalled(tmp_path, RUN) as journal:
        Sum(journal, 2).run("one", [1, 2, 3])
    for path in tmp_path.glob("journal.?.safetensors"):
        path.write_bytes(path.read_bytes() + damage) if damage else path.unlink()
    with journalled(tmp_path, RUN) as journal:
        again = Sum(journal)
        assert again.run("one", [1, 2, 3]) == 6
    assert again.added == 3


def test_one_lost_state_costs_one_batch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), journalled(tmp_path, RUN) as journal:
        Sum(journal, 3).run("one", [1, 2, 3, 4])
    (tmp_path / "journal.0.safetensors").write_bytes(b"torn while it was written")  # the third batch's, like the first
    with journalled(tmp_path, RUN) as journal:
        again = Sum(journal)
        assert again.run("one", [1, 2, 3, 4]) == 10
    assert again.added == 2


def test_the_journal_and_its_states_are_removed_together(tmp_path: Path) -> None:
    with journalled(tmp_path, RUN) as journal:
        Sum(journal).run("one", [1, 2, 3])
        assert len(list(tmp_path.iterdir())) == 3
        journal.discard()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def signals() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    interrupts.install()  # forgets what came, or every later test of this process would end by it
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_signal_waits_for_the_batch(capfd: pytest.CaptureFixture[str]) -> None:
    interrupts.install()
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.finishing():
        steps.append(os.kill(os.getpid(), signal.SIGINT) or "measured")
    assert steps == ["measured"]
    assert "finishing this batch" in capfd.readouterr().err
    interrupts.install()
    with pytest.raises(interrupts.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
