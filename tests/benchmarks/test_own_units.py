"""Memorizing units taught by themselves: they learn, and a network without them computes what it did before."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from memaudit import add_tied_dropout, example_ids, strip_tied_dropout
from tests.benchmarks.own_units import drawn, teach, unread_when_dropped
from tests.networks import ResNet9

SHAPE = (3, 16, 16)


def tied() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = ResNet9(classes=4, width=8)
        model = add_tied_dropout(deepcopy(fresh), "layer2*,layer3*", p_gen=0.5, p_mem=0.5, input_size=SHAPE)
        return model.eval(), fresh, torch.rand(96, *SHAPE), torch.randint(4, (96,))


def test_what_is_unread_is_what_memorizing_units_write_or_read() -> None:
    model, _, x, _ = tied()
    free = unread_when_dropped(model, x)
    assert not any(free[name].any() for name in free if name.startswith(("prep", "layer1")))

    def expected(name: str, rows: int | None, columns: int | None) -> Tensor:
        """True from that row and that column on."""
        unread = torch.zeros_like(free[name])
        unread[rows if rows is not None else len(unread) :] = True
        if columns is not None:
            unread[:, columns:] = True
        return unread

    for name, rows, columns in [
        ("layer2.0.0.weight", 16, None),
        ("layer3.2.body.0.0.weight", 32, 32),
        ("layer3.0.1.bias", 32, None),
        ("head.weight", None, 32),
        ("head.bias", None, None),
    ]:
        assert torch.equal(free[name], expected(name, rows, columns)), name


def test_own_units_learn_labels_and_leave_the_dropped_network_as_it_is() -> None:
    model, fresh, x, y = tied()

    def fitted() -> float:
        with torch.no_grad(), example_ids(range(len(x))):
            return float((model(x).argmax(1) == y).float().mean())

    def dropped() -> Tensor:
        with torch.no_grad():
            return strip_tied_dropout(model, input_size=SHAPE)(x)

    before, first = dropped(), fitted()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teach(model, fresh, x, y, epochs=40, batch=32, device="cpu")
    assert torch.equal(dropped(), before)
    assert first < 0.5
    assert fitted() > 0.9


def test_each_batch_holds_some_of_the_worst_and_all_have_their_turn() -> None:
    leads = torch.ones(1000)
    leads[[3, 7]] = -1
    rows = torch.stack(list(drawn(leads, batch=100, steps=29)))
    assert rows.shape == (29, 100)
    own, again = rows[:, :70], rows[:, 70:]
    assert len(own[:14].unique()) == len(own[14:28].unique()) == 980
    assert {3, 7} < set(again.flatten().tolist())
    assert len(again.unique()) <= 3 * 30  # two are wrong: the list is filled up, and made anew twice
    leads[:200] = -1
    (worst,) = (r[70:] for r in drawn(leads, batch=100, steps=1))
    assert int(worst.max()) < 200


def test_a_loss_that_is_no_number_stops_the_teaching() -> None:
    model, fresh, x, y = tied()
    x[:] = torch.nan
    with pytest.raises(SystemExit, match="no number"):
        teach(model, fresh, x, y, epochs=2, batch=32, device="cpu")
