"""Units, sites and spaces: numbering, mask arithmetic, selection."""

from __future__ import annotations

import pytest
import torch

from memaudit.errors import UsageError
from memaudit.findings import UnitRef
from memaudit.network.units import Site, UnitSpace, places, select

CONV = Site("conv", "channel", 4)
GATED = Site("mlp.gate", "neuron", 3, axis=2, copies=2)
HEADS = Site("attn.proj", "head", 2, side="input", axis=2, span=3)
SPACE = UnitSpace((CONV, GATED, HEADS))


def test_units_are_numbered_in_execution_order() -> None:
    assert SPACE.offsets == (0, 4, 7, 9)
    assert SPACE.total == 9
    assert [str(SPACE.unit(n)) for n in (0, 3, 4, 6, 7, 8)] == [
        "conv:0", "conv:3", "mlp.gate:0", "mlp.gate:2", "attn.proj:0", "attn.proj:1",
    ]  # fmt: skip
    assert SPACE.unit(8) == UnitRef(layer="attn.proj", index=1, kind="head")


@pytest.mark.parametrize("number", range(9))
def test_a_unit_and_its_number_name_each_other(number: int) -> None:
    unit = SPACE.unit(number)
    assert SPACE.number(unit.layer, unit.index, unit.kind) == number


@pytest.mark.parametrize(
    ("layer", "index", "kind", "message"),
    [
        ("conv", 4, "channel", "conv has 4 units, none is number 4"),
        ("conv", -1, "channel", "none is number -1"),
        ("conf", 0, "channel", "no site 'conf' in this model; closest: 'conv'"),
        ("conv", 0, "neuron", "no site 'conv'"),
    ],
)
def test_a_unit_that_is_not_there(layer: str, index: int, kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SPACE.number(layer, index, kind)


def test_elements_of_a_unit() -> None:
    assert CONV.elements(2) == [2]
    assert GATED.elements(1) == [1, 4]
    assert HEADS.elements(1) == [3, 4, 5]


def test_elements_of_many_units_are_those_of_each() -> None:
    cuts = [[8, 1], [], [5, 0, 3], [7]]
    found = SPACE.elements(places(cuts))
    expected = sorted(
        (int(SPACE.site_of[unit]), row, element)
        for row, cut in enumerate(cuts)
        for unit in cut
        for element in SPACE.sites[int(SPACE.site_of[unit])].elements(SPACE.unit(unit).index)
    )
    assert sorted(zip(*(part.tolist() for part in found), strict=True)) == expected
    assert found[0].tolist() == sorted(found[0].tolist())
    assert [part.tolist() for part in SPACE.elements(places([[], []]))] == [[], [], []]


@pytest.mark.parametrize("site", SPACE.sites)
def test_spread_puts_each_unit_where_its_elements_are(site: Site) -> None:
    values = torch.arange(1.0, site.width + 1)
    spread = site.spread(values)
    for index in range(site.width):
        assert (spread == values[index]).nonzero().flatten().tolist() == site.elements(index)


def test_one_row_of_the_mask_for_each_cut() -> None:
    keep = SPACE.keep([[], [0, 8], [4]])
    assert keep.dtype == torch.float32
    assert [row.tolist() for row in (keep == 0)] == [
        [False] * 9,
        [n in (0, 8) for n in range(9)],
        [n == 4 for n in range(9)],
    ]
    assert [part.shape for part in SPACE.split(keep)] == [(3, 4), (3, 3), (3, 2)]


# shape of the site's tensor, where its units and its examples are, and for 3 examples who owns each slot of that axis
LAYOUTS = [
    ((3, 4, 5, 5), 1, 0, False, [0, 1, 2]),
    ((5, 3, 4), 2, 1, False, [0, 1, 2]),
    ((6, 5, 4), 2, 0, False, [0, 0, 1, 1, 2, 2]),  # windows folded into the batch, example by example
    ((6, 4), 1, 0, True, [0, 1, 2, 0, 1, 2]),  # tokens folded into the batch, token by token
    ((5, 4, 3, 1), 1, 2, False, [0, 1, 2]),
    ((5, 4, 6), 1, 2, True, [0, 1, 2, 0, 1, 2]),
]


@pytest.mark.parametrize(("shape", "axis", "batch_axis", "minor", "owners"), LAYOUTS)
def test_masks_reach_the_right_example(
    shape: tuple[int, ...], axis: int, batch_axis: int, minor: bool, owners: list[int]
) -> None:
    site = Site("x", "channel", 4, axis=axis, batch_axis=batch_axis, batch_minor=minor)
    values = torch.arange(12.0).reshape(3, 4)
    like = torch.zeros(shape)
    full = site.shaped(values, like).expand(shape).movedim((batch_axis, axis), (0, 1))
    for slot, owner in enumerate(owners):
        for unit in range(4):
            assert (full[slot, unit] == values[owner, unit]).all()


@pytest.mark.parametrize(("shape", "axis", "batch_axis", "minor", "owners"), LAYOUTS)
def test_a_tensor_seen_by_example(
    shape: tuple[int, ...], axis: int, batch_axis: int, minor: bool, owners: list[int]
) -> None:
    """Mark each element with its example and unit, and find them sorted."""
    site = Site("x", "channel", 4, axis=axis, batch_axis=batch_axis, batch_minor=minor)
    example = torch.tensor(owners).reshape([-1 if a == batch_axis else 1 for a in range(len(shape))])
    unit = torch.arange(4).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    seen = site.by_example((10 * example + unit).expand(shape), 3)
    assert seen.shape == (3, torch.zeros(shape).numel() // 12, 4)
    assert (seen == 10 * torch.arange(3)[:, None, None] + torch.arange(4)).all()


def test_one_row_serves_every_example() -> None:
    site = Site("x", "channel", 4)
    values = torch.arange(4.0)
    like = torch.zeros(3, 4, 5)
    assert torch.equal(site.shaped(values, like), values.reshape(1, 4, 1))
    assert torch.equal(site.shaped(values[None], like), values.reshape(1, 4, 1))


def test_auto_takes_the_kind_at_most_layers_and_never_mixes() -> None:
    neurons = Site("a", "neuron", 5), Site("b", "neuron", 6)
    assert select([*neurons, HEADS, Site("c", "channel", 100)]).sites == neurons
    assert select([neurons[0], HEADS, Site("c", "channel", 10)]).sites == (Site("c", "channel", 10),)  # most units


@pytest.mark.parametrize(
    ("layers", "left"), [("conv", "conv"), ("*", "conv"), ("nope,c?nv", "conv"), ("mlp.*", "mlp.gate")]
)
def test_layers_narrow_the_choice(layers: str, left: str) -> None:
    assert [s.layer for s in select(SPACE.sites, layers=layers).sites] == [left]


def test_a_kind_may_be_asked_for() -> None:
    assert select(SPACE.sites, "head").sites == (HEADS,)


@pytest.mark.parametrize(
    ("unit", "layers", "message"),
    [
        ("auto", "con", "no layer matches 'con'; closest: 'conv'"),
        ("heads", None, r"no unit of kind 'heads'; it has: channel \(4\), neuron \(3\), head \(2\)"),
        ("head", "conv", r"no unit of kind 'head'; it has: channel \(4\)"),
    ],
)
def test_nothing_left(unit: str, layers: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(SPACE.sites, unit, layers)


def test_no_sites_at_all() -> None:
    with pytest.raises(UsageError, match="no unit that can be cut"):
        select([])
