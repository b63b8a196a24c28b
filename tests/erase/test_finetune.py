"""Clean steps against a plain loop, and what they leave alone."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.views import VIEWS, Drawn
from memaudit.erase.finetune import BATCH, RATE, WRONG, _rows, finetuned
from memaudit.network.states import digest
from tests.conftest import Trained

STEPS = 20


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_steps_are_those_of_a_plain_loop(trained: Trained) -> None:
    """AdamW on whole batches, BatchNorm after the cut in training mode, the second half averaged."""
    names, paths = ["three.0.weight", "three.1.weight", "three.1.bias", "head.weight", "head.bias"], ["three.1"]
    clean = Panel(trained.reference, range(150))
    edit = {"three.0.weight": trained.module.three[0].weight.detach() * 0.5}
    before = digest(trained.module)
    found = finetuned(trained.evaluator(), edit, names, paths, clean, STEPS, generator())
    assert digest(trained.module) == before
    assert list(found) == names
    assert torch.equal(edit["three.0.weight"], trained.module.three[0].weight * 0.5)

    slow = copy.deepcopy(trained.module)
    slow.load_state_dict({**slow.state_dict(), **edit})
    own = dict(slow.named_parameters())
    for name in names:
        own[name].requires_grad_(True)
    slow.three[1].train()
    optimizer = torch.optim.AdamW([own[n] for n in names], weight_decay=0.0)
    history = []
    rows, order = generator(), list[int]()
    while len(order) < STEPS * BATCH:
        order += torch.randperm(150, generator=rows)[:128].tolist()  # two whole batches of 150 examples
    for step in range(STEPS):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / (0.1 * STEPS))
        optimizer.zero_grad()
        F.cross_entropy(slow(trained.reference.batch(chosen)), trained.reference.labels[chosen]).backward()
        optimizer.step()
        history.append({n: own[n].detach().clone() for n in names})
    for name in names:
        expected = sum(h[name] for h in history[STEPS // 2 :]) / (STEPS - STEPS // 2)
        assert torch.allclose(found[name], expected, atol=1e-5), name
        assert float((found[name] - history[-1][name]).abs().max()) > 1e-5  # the last weights are others


def test_each_step_shows_each_image_as_it_is_or_through_a_view() -> None:
    """Against a plain loop that changes one image at a time."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)).eval()
    pixels = torch.rand(BATCH, 3, 8, 8, generator=generator())
    labels = torch.arange(BATCH) % 4
    given = Preprocess((3, 8, 8))
    examples = from_tensors(pixels, labels, preprocess=given, num_classes=4)
    run, clean = Evaluator(Adapter(module, architecture="x", preprocess=given), 32), Panel(examples, range(BATCH))
    names, views = ["1.weight", "1.bias"], VIEWS[:3]
    found = finetuned(run, {}, names, [], clean, 4, generator(), Drawn(views))

    slow, drawn = copy.deepcopy(module).requires_grad_(True), generator()
    orders = [torch.randperm(BATCH, generator=drawn).tolist() for _ in range(4)]
    optimizer = torch.optim.AdamW(slow.parameters(), lr=RATE, weight_decay=0.0)
    history = []
    for order in orders:
        which = torch.randint(1 + len(views), (BATCH,), generator=drawn).tolist()
        shown = [pixels[[row]] if not w else views[w - 1](pixels[[row]]) for row, w in zip(order, which, strict=True)]
        optimizer.zero_grad()
        F.cross_entropy(slow(torch.cat(shown)), labels[order]).backward()
        optimizer.step()
        history.append({n: p.detach().clone() for n, p in slow.named_parameters()})
    for name in names:
        expected = (history[2][name] + history[3][name]) / 2
        assert torch.allclose(found[name], expected, atol=1e-5), name
    assert not torch.allclose(found["1.weight"], finetuned(run, {}, names, [], clean, 4, generator())["1.weight"])


def test_wrong_labels_become_less_probable_by_the_steps_of_a_plain_loop() -> None:
    """Each step also goes down -log(1 - p), with p the probability of the label that is known to be wrong."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    pixels, given = torch.rand(200, 1, 4, 4, generator=generator()), Preprocess((1, 4, 4))
    labels = torch.arange(200) % 4
    examples = from_tensors(pixels, labels, preprocess=given, num_classes=4)
    run = Evaluator(Adapter(module, architecture="x", preprocess=given), 32)
    clean, wrong, names = Panel(examples, range(150)), Panel(examples, range(160, 200)), ["1.weight", "1.bias"]
    found = finetuned(run, {}, names, [], clean, STEPS, generator(), wrong=wrong)

    slow, drawn = copy.deepcopy(module).requires_grad_(True), generator()
    orders = [_rows(panel, STEPS, size, drawn) for panel, size in ((clean, BATCH), (wrong, WRONG))]
    optimizer = torch.optim.AdamW(slow.parameters(), weight_decay=0.0)
    history = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / (0.1 * STEPS))
        kept, told = (o[step * n : (step + 1) * n] for o, n in zip(orders, (BATCH, WRONG), strict=True))
        probability = slow(pixels[told]).softmax(1)[range(WRONG), labels[told]]
        optimizer.zero_grad()
        (F.cross_entropy(slow(pixels[kept]), labels[kept]) - (1 - probability).log().mean()).backward()
        optimizer.step()
        history.append({n: p.detach().clone() for n, p in slow.named_parameters()})
    for name in names:
        expected = sum(h[name] for h in history[STEPS // 2 :]) / (STEPS - STEPS // 2)
        assert torch.allclose(found[name], expected, atol=1e-5), name
    alone = finetuned(run, {}, names, [], clean, STEPS, generator())
    given_to = {}
    for name, state in (("told", found), ("alone", alone)):
        slow.load_state_dict(state)
        given_to[name] = slow(pixels[160:]).softmax(1)[range(40), labels[160:]].mean()
    assert given_to["told"] < given_to["alone"]


def test_batches_are_whole_and_go_around() -> None:
    examples = from_tensors(torch.rand(150, 1, 2, 2), [0] * 150, preprocess=Preprocess((1, 2, 2)), num_classes=2)
    rows = _rows(Panel(examples, range(10, 150)), 5, BATCH, generator())
    assert len(rows) == 5 * BATCH
    assert all(len(set(rows[i : i + 2 * BATCH])) == 2 * BATCH for i in (0, 2 * BATCH))
    assert set(rows) <= set(range(10, 150))
    few = _rows(Panel(examples, range(3)), 4, BATCH, generator())
    assert len(few) == 4 * BATCH, "fewer than a batch: seen several times"


def test_a_network_without_batchnorm_comes_back_as_it_was() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.rand(90, 1, 2, 2, generator=generator())
    examples = from_tensors(x, [int(v > 0.5) for v in x[:, 0, 0, 0]], preprocess=Preprocess((1, 2, 2)), num_classes=2)
    run = Evaluator(Adapter(module, architecture="x", preprocess=Preprocess((1, 2, 2))), 32)
    before = digest(module)
    first, again = (
        finetuned(run, {}, ["1.weight", "4.weight"], [], Panel(examples, range(90)), STEPS, generator())
        for _ in range(2)
    )
    assert digest(module) == before
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["1.weight"], module[1].weight)
