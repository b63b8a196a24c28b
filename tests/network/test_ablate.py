"""Ablation: what masks and edits do to a network, and that nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from memaudit.errors import BugError
from memaudit.network.ablate import ablated, edited, edited_parameters, silence
from memaudit.network.hooks import hook_count, hooked
from memaudit.network.units import Site, UnitSpace
from tests.conftest import Trained
from tests.networks import Oddly
from tests.reference import cut_copy

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CUT = [1, 20, 60, 61]


def run(module: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return module(images)


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


def by_mask(trained: Trained, module: nn.Module) -> AbstractContextManager[None]:
    return ablated(module, trained.space, trained.space.keep([CUT]))


def by_edit(trained: Trained, module: nn.Module) -> AbstractContextManager[None]:
    return edited(module, trained.space, CUT)


@contextmanager
def nested(trained: Trained, module: nn.Module) -> Iterator[None]:
    with by_mask(trained, module), by_edit(trained, module), by_mask(trained, module):
        yield


Scope = Callable[[Trained, nn.Module], AbstractContextManager[None]]


class Stop(Exception):
    pass


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("scope", [by_mask, by_edit, nested])
def test_a_scope_leaves_no_hook_and_no_changed_bit(trained: Trained, scope: Scope, raises: bool) -> None:
    module = deepcopy(trained.module)
    before, intact = bits(module), run(module)
    try:
        with scope(trained, module):
            assert not torch.equal(run(module), intact)
            if raises:
                raise Stop
    except Stop:
        pass
    assert hook_count(module) == 0
    assert bits(module) == before
    assert torch.equal(run(module), intact)


def test_masks_touch_neither_parameters_nor_buffers_while_they_are_on(trained: Trained) -> None:
    module = deepcopy(trained.module)
    before = bits(module)
    with by_mask(trained, module):
        run(module)
        assert bits(module) == before
        assert hook_count(module) == 3  # one for each layer of the cut


def test_edits_touch_only_what_they_name(trained: Trained) -> None:
    module = deepcopy(trained.module)
    before = bits(module)
    with edited(module, trained.space, [20]):
        changed = {name for name, value in bits(module).items() if value != before[name]}
    assert changed == set(edited_parameters(trained.space, [20])) == {"two.1.weight", "two.1.bias"}


@pytest.mark.parametrize("scope", [by_mask, by_edit])
def test_both_give_what_a_copy_with_zeroed_weights_gives(trained: Trained, scope: Scope) -> None:
    with scope(trained, trained.module):
        found = run(trained.module)
    assert torch.allclose(found, run(cut_copy(trained.module, trained.space, CUT)), atol=1e-5)


def test_scopes_nest_and_the_inner_one_adds_to_the_outer(trained: Trained) -> None:
    module, space = trained.module, trained.space
    with ablated(module, space, space.keep([CUT[:2]])):
        outer = run(module)
        with ablated(module, space, space.keep([CUT[2:]])):
            both = run(module)
        assert torch.equal(run(module), outer)
    with ablated(module, space, space.keep([CUT])):
        assert torch.equal(run(module), both)


def test_a_row_of_its_own_for_each_example(trained: Trained) -> None:
    module, space = trained.module, trained.space
    cuts = [[], [3], CUT, list(range(space.total))]
    with ablated(module, space, space.keep(cuts)):
        together = run(module)
    for row, cut in enumerate(cuts):
        alone = run(cut_copy(module, space, cut), IMAGES[row : row + 1])[0]
        assert torch.allclose(together[row], alone, atol=1e-5)
    assert not torch.equal(together[2], run(module)[2])


def test_units_may_take_their_mean_instead_of_zero(trained: Trained) -> None:
    """On a BatchNorm's output that is gamma = 0 and beta = the mean."""
    module, space = trained.module, trained.space
    fill = [torch.linspace(0.5, 2, site.width) for site in space.sites]
    copy = cut_copy(module, space, CUT)
    flat = torch.cat(fill)
    for unit in CUT:
        site, index = space.sites[int(space.site_of[unit])], space.unit(unit).index
        copy.get_parameter(f"{site.layer}.bias")[index] = flat[unit]
    with ablated(module, space, space.keep([CUT]), fill):
        found = run(module)
    assert torch.allclose(found, run(copy), atol=1e-5)
    assert not torch.allclose(found, run(cut_copy(module, space, CUT)), atol=1e-2)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("cuts", [[CUT], [[], [3], CUT, [0, 40, 60]]])
def test_written_over_or_multiplied_is_the_same(trained: Trained, cuts: list[list[int]], filled: bool) -> None:
    """With a gradient recorded somewhere a new tensor is made; without, the module's own output is written to."""
    space = trained.space
    fill = [torch.linspace(0.5, 2, site.width) for site in space.sites] if filled else None
    with ablated(trained.module, space, space.keep(cuts), fill):
        written = run(trained.module)
        multiplied = trained.module(IMAGES).detach()
    assert torch.equal(written, multiplied)
    assert not torch.equal(written, run(trained.module))


def test_a_unit_may_be_kept_in_part(trained: Trained) -> None:
    keep = torch.full((4, trained.space.total), 0.5)
    with ablated(trained.module, trained.space, keep):
        assert torch.equal(run(trained.module), trained.module(IMAGES).detach())


class Aside(nn.Module):
    """What its one layer is given counts as well, also where the layer returns just that."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, self.layer(x)])


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Flatten(), nn.Dropout().eval()])
def test_nothing_is_written_to_what_a_layer_was_given(layer: nn.Module) -> None:
    module, x = Aside(layer), torch.ones(2, 3)
    space = UnitSpace((Site("layer", "neuron", 3, axis=1),))
    with ablated(module, space, space.keep([[0], [1, 2]])):
        given, returned = run(module, x)
    assert torch.equal(given, torch.ones(2, 3))
    assert torch.equal(returned, torch.tensor([[0.0, 1, 1], [1, 0, 0]]))
    assert torch.equal(x, torch.ones(2, 3))


def test_nothing_is_written_to_a_parameter_that_a_layer_returns() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.ones(2, 3), requires_grad=False)

        def forward(self, _: Tensor) -> Tensor:
            return self.rows

    layer = Table()
    module, space = Aside(layer), UnitSpace((Site("layer", "neuron", 3, axis=1),))
    with ablated(module, space, space.keep([[1]])):
        assert torch.equal(run(module, torch.ones(2, 3))[1], torch.tensor([[1.0, 0, 1], [1, 0, 1]]))
    assert torch.equal(layer.rows, torch.ones(2, 3))


def test_nothing_is_written_to_an_expanded_tensor() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_ones(1, 3).expand(len(x), 3)

    module = Aside(Same())
    space = UnitSpace((Site("layer", "neuron", 3, axis=1),))
    with ablated(module, space, space.keep([[0], []])):
        assert torch.equal(run(module, torch.ones(2, 3))[1], torch.tensor([[0.0, 1, 1], [1, 1, 1]]))


def test_keeping_everything_registers_nothing(trained: Trained) -> None:
    with ablated(trained.module, trained.space, torch.ones(trained.space.total)):
        assert hook_count(trained.module) == 0


def test_a_gated_unit_goes_in_both_halves() -> None:
    module = Oddly().requires_grad_(False)
    space = UnitSpace((Site("wide", "neuron", 48, axis=2, copies=2, edits=(("weight", 0), ("bias", 0))),))
    rows = module.wide.weight.clone()
    with edited(module, space, [5]):
        zero = (module.wide.weight == 0).all(1).nonzero().flatten().tolist()
    assert zero == [5, 53]
    assert torch.equal(module.wide.weight, rows)


def test_a_head_goes_with_all_its_columns() -> None:
    module = Oddly().requires_grad_(False)
    space = UnitSpace((Site("out", "head", 3, side="input", axis=2, span=8, edits=(("weight", 1),)),))
    with edited(module, space, [1]):
        zero = (module.out.weight == 0).all(0).nonzero().flatten().tolist()
        assert module.out.bias.all()
    assert zero == list(range(8, 16))


def test_silence_writes_to_the_given_state_only(trained: Trained) -> None:
    state = {name: value.clone() for name, value in trained.module.state_dict().items()}
    before = bits(trained.module)
    silence(state, trained.space, CUT)
    assert bits(trained.module) == before
    fresh = deepcopy(trained.module)
    fresh.load_state_dict(state)
    assert torch.equal(run(fresh), run(cut_copy(trained.module, trained.space, CUT)))


def test_silence_refuses_a_state_without_the_parameter(trained: Trained) -> None:
    with pytest.raises(BugError, match=r"no parameter 'two\.1\.weight'"):
        silence({}, trained.space, [20])


def test_every_hook_goes_also_when_registering_one_fails() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(AttributeError), hooked(before=[(module, lambda *_: None), (None, lambda *_: None)]):  # type: ignore[list-item]
        pytest.fail("the body must not run")
    assert hook_count(module) == 0
