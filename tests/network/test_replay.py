"""Layer groups, replayed passes and borrowed states: every tensor once, the same bits, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from memaudit.errors import BugError, UsageError
from memaudit.network.hooks import hook_count
from memaudit.network.layer_groups import layer_groups, tensors_of
from memaudit.network.replay import Diverged, Replayer, Tape, watch
from memaudit.network.scoped import holding, unchanged
from memaudit.network.states import digest
from tests.networks import Oddly, ResNet9, TiedInPlace, TokenMajor
from tests.timeline import case


class Chance(nn.Module):
    """Calls another layer each time: no pass is like the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(192, 192) for _ in range(2))
        self.head = nn.Linear(192, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.layers[self.calls % 2](x.flatten(1)))


class Views(nn.Module):
    """Returns lists and views, and writes into a view of an earlier output."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.Linear(192, 24)
        self.halve = Halves()
        self.late = nn.Linear(12, 12)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.split(x.flatten(1))
        one, two = self.halve(whole)
        one += 1.0  # in place: `whole` changes too
        return self.head(torch.cat([self.late(two["two"]), one], 1) + whole)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> list[object]:
        return [x[:, :12], {"two": x[:, 12:]}]


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 16), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(48, 5)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet9": (lambda: ResNet9(classes=5, width=4), 16),
    "resnet18": (lambda: timm.create_model("test_resnet", num_classes=5), 32),
    "vit": (lambda: timm.create_model("test_vit", num_classes=5, img_size=16, patch_size=8), 16),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5), 32),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=5), 32),
    "oddly": (Oddly, 16),
    "token major": (TokenMajor, 16),
    "tied in place": (TiedInPlace, 8),
    "transformer": (transformer, 8),
    "views": (Views, 8),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    build, side = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval().requires_grad_(False), torch.rand(4, 3, side, side)


def test_every_tensor_is_in_exactly_one_group_whatever_the_grain(network: tuple[nn.Module, Tensor]) -> None:
    module, images = network
    order = watch(module, module, images).first_use
    for depth in (None, 1, 2, 3, 9):
        groups = layer_groups(module, order, depth=depth)
        names = [name for group in groups for name in group.names]
        assert sorted(names) == sorted(tensors_of(module))
        assert all(n == g.layer or n.startswith(g.layer + ".") for g in groups for n in g.names)
        assert sum(g.parameters for g in groups) == sum(p.numel() for p in module.parameters())


def test_groups_stand_in_the_order_the_network_runs_them() -> None:
    backwards = nn.ModuleDict({"c": nn.Linear(4, 2), "b": nn.Linear(4, 4), "a": nn.Linear(4, 4)})

    def forward(x: Tensor) -> Tensor:
        return backwards["c"](backwards["b"](backwards["a"](x)))

    order = watch(backwards, forward, torch.rand(1, 4)).first_use
    assert [g.layer for g in layer_groups(backwards, order)] == ["a", "b", "c"]


def test_the_automatic_grain_is_that_of_the_paper_on_its_network() -> None:
    module = ResNet9(width=4)
    groups = layer_groups(module, watch(module.eval(), module, torch.rand(1, 3, 16, 16)).first_use)
    assert [g.layer for g in groups] == [
        "prep", "layer1.0", "layer1.2.body.0", "layer1.2.body.1", "layer2.0", "layer3.0", "layer3.2.body.0",
        "layer3.2.body.1", "head",
    ]  # fmt: skip


def test_blocks_of_one_class_are_cut_alike() -> None:
    module = timm.create_model("resnet18").eval()  # only some of its blocks have a shortcut with weights
    layers = [g.layer for g in layer_groups(module, {})]
    assert layers == ["conv1", "bn1", *(f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1)), "fc"]


def test_a_pattern_chooses_groups_and_an_unknown_one_names_the_nearest() -> None:
    module = ResNet9(width=4)
    assert [g.layer for g in layer_groups(module, {}, layers="layer3.*,head")][-1] == "head"
    assert len(layer_groups(module, {}, layers="layer3.*")) == 3
    with pytest.raises(UsageError, match=r"no layer group matches 'laier1.0'; closest: 'layer1.0'"):
        layer_groups(module, {}, layers="laier1.0")
    with pytest.raises(UsageError, match="a group depth of 0"):
        layer_groups(module, {}, depth=0)


def test_a_replay_gives_the_bits_of_a_plain_pass(network: tuple[nn.Module, Tensor]) -> None:
    module, images = network
    groups = [g.names for g in layer_groups(module, watch(module, module, images).first_use)]
    replayer = Replayer(module, module, groups)
    intact = digest(module)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            for batch in (images, images.flip(0)):
                assert torch.equal(replayer.start(batch), module(batch))
                for _ in range(2):
                    for number, names in enumerate(groups):
                        own = tensors_of(module)
                        values = {n: own[n] + 0.1 if own[n].is_floating_point() else own[n] for n in names}
                        with holding(module, values):
                            assert torch.equal(replayer.run(number, batch), module(batch))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert digest(module) == intact
    assert hook_count(module) == 0
    assert not any("forward" in m.__dict__ for m in module.modules())
    assert sum(t is True for t in replayer.trusted) >= len(groups) - 2, "only what runs first cannot be replayed"


def test_a_replay_leaves_the_untouched_modules_out() -> None:
    module = ResNet9(width=4).eval()
    images = torch.rand(2, 3, 16, 16)
    groups = [g.names for g in layer_groups(module, watch(module, module, images).first_use)]
    replayer = Replayer(module, module, groups)
    ran: list[nn.Module] = []
    with torch.no_grad():
        replayer.start(images)
        replayer.run(8, images)  # compared with a plain pass the first time
        for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
            conv.register_forward_pre_hook(lambda m, _: ran.append(m))
        replayer.run(8, images)
    assert not ran, "the head needs no convolution again"


def test_a_network_that_never_does_the_same_twice_is_not_replayed() -> None:
    module = Chance()
    replayer = Replayer(module, lambda x: module(x), [["head.weight"], ["layers.0.weight"]])
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        replayer.start(images)
        replayer.run(0, images)
        assert replayer.trusted[0] is False
        tape = Tape(watch(module, module, images), frozenset())
        with tape.record(module), pytest.raises(Diverged):
            module(images)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ["resnet", "vit", "tied"])
def test_a_borrowed_state_is_given_back_bit_by_bit(name: str, error: type[BaseException]) -> None:
    found = case(name)
    before, expected = digest(found.module), found.module(found.examples.batch([0, 1]))
    with pytest.raises(error), holding(found.module, found.states[0].tensors):  # noqa: PT012
        assert digest(found.module) != before
        raise error
    assert digest(found.module) == before
    assert torch.equal(found.module(found.examples.batch([0, 1])), expected)


def test_a_tied_tensor_is_one_tensor() -> None:
    module = TiedInPlace()
    assert "first.weight" in tensors_of(module)
    assert "second.weight" not in tensors_of(module)


def test_a_changed_bit_or_mode_is_a_bug() -> None:
    module = nn.Linear(2, 2)
    for change in (lambda: module.bias.data.add_(1e-6), lambda: module.train(not module.training)):
        with pytest.raises(BugError, match="the audit left the model changed"), unchanged(module, "the audit"):
            change()
