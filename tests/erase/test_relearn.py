"""Layer groups put back and learned again: what changes, what stays frozen, and what is tried."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.erase import Choice
from memaudit.erase.finetune import LONGER, finetuned
from memaudit.erase.ground import Ground, first_uses
from memaudit.erase.group import Task
from memaudit.erase.relearn import STARTS, Relearning, _weights, choose, supported
from memaudit.network.scoped import holding
from memaudit.network.states import digest, put_back
from memaudit.settings import Silent
from tests.conftest import Trained


def ground(trained: Trained) -> Ground:
    run, panel = trained.evaluator(), Panel(trained.reference, range(150))
    return Ground(run, panel, Panel(trained.flagged, range(50)), panel, first_uses(run, trained.reference))


def test_only_the_group_learns_and_statistics_after_it_follow(trained: Trained) -> None:
    here = ground(trained)
    groups = _weights(here)
    assert [g.layer for g in groups] == ["one", "two", "three", "head"]
    before = digest(trained.module)
    edit = Relearning(groups[1], 1.0, 5).edit(here)
    assert digest(trained.module) == before
    norms = {f"{p}.1.{b}" for p in ("two", "three") for b in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(edit) == set(groups[1].names) | norms

    start = put_back(trained.module, groups[1], generator_for(0, "erase", "put back"), {})
    order, later = generator_for(0, "erase", "steps"), ["two.1", "three.1"]
    same = finetuned(trained.evaluator(), start, groups[1].names, later, here.clean, 5, order)
    assert all(torch.equal(edit[n], same[n]) for n in groups[1].names)
    plain = copy.deepcopy(trained.module)
    plain.load_state_dict({**plain.state_dict(), **edit})
    x = trained.flagged.pixels[:50]
    with torch.no_grad(), holding(trained.module, edit):
        assert torch.equal(plain(x), trained.module(x))


def test_the_most_promising_depths_learn_longer_and_critical_groups_are_tried(trained: Trained) -> None:
    here = ground(trained)
    chosen = choose(Task(here, here.clean, Choice(max_test_drop=1.0, clean_steps=4, critical=("two",)), Silent()))
    spans = ["head", "three to head", "two to head", "one to head"]
    assert len(spans) == len(STARTS)
    assert {layer for t in chosen.trials[: len(STARTS) + 1] for layer in t.kept} == {*spans, "two"}
    assert [t.steps for t in chosen.trials][:7] == [4] * 5 + [4 * LONGER] * 2
    assert all(t.how.endswith("from supported examples") for t in chosen.trials[7:])
    assert chosen.best in chosen.trials
    other = chosen.control.edit(torch.Generator().manual_seed(1)) if chosen.control.parts else None
    assert (
        other is None
        or set(other) != set(chosen.edit())
        or not all(torch.equal(other[n], t) for n, t in chosen.edit().items())
    )


def test_reference_examples_that_nobody_supports_are_left_out(trained: Trained) -> None:
    """Changed labels among the reference do not come back when the other half is shown; true ones do."""
    here = ground(trained)
    changed, flagged = set(range(0, 100, 10)), trained.reference
    labels = [(e.label + (row in changed)) % 10 for row, e in enumerate(flagged.examples)]
    here = replace(here, clean=Panel(flagged.labelled(labels), range(100, -1, -1)))
    edit = Relearning(_weights(here)[2], 1.0, 60)
    sound = supported(edit, here)
    kept = list(sound.clean.rows)
    assert kept == sorted(kept, reverse=True), "in the order they were"
    assert len(changed & set(kept)) <= 2
    assert len(kept) > 70
    half = replace(here, clean=Panel(here.clean.examples, here.clean.rows[::2]))
    asked = Panel(here.clean.examples, here.clean.rows[1::2])
    with holding(trained.module, replace(edit, steps=30).edit(half)):
        right = trained.evaluator().predicted(asked).tolist()
    assert [row for row in kept if row in set(asked.rows)] == [r for r, ok in zip(asked.rows, right, strict=True) if ok]
