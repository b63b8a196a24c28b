"""Sites: every one a mask that equals a weight edit, in networks of every kind, found without naming rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.engine.device import exact_arithmetic
from memaudit.network import sites
from memaudit.network.ablate import ablated, edited, silence
from memaudit.network.sites import find_sites
from memaudit.network.units import Site, UnitSpace, select
from tests.networks import Oddly, ResNet9, TokenMajor

# What weights were edited and what was masked differ by rounding only, relative to the largest logit.
TOLERANCE = 1e-5
TIMM = [
    *timm.list_models("test_*"),
    *("resnet18", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"),
    *("swin_tiny_patch4_window7_224", "mixer_s32_224", "regnety_002", "densenet121"),
]
OWN = {"Oddly": Oddly, "ResNet9": lambda: ResNet9(5, width=8), "TokenMajor": TokenMajor}
SMALLER: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 8, "block_config": (2, 3, 2)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2)},
    "vit_tiny_patch16_224": {"depth": 4},
}
SIDE = {"swin_tiny_patch4_window7_224": 56, "densenet121": 32, "resnet18": 32, "test_nfnet": 32}


@dataclass(frozen=True)
class Built:
    name: str
    make: Callable[[], nn.Module]
    module: nn.Module
    images: Tensor
    space: UnitSpace


def make(name: str) -> nn.Module:
    """Weights as a trained network might have them: nothing zero, no norm at its initial identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in OWN:
            module = OWN[name]()
        else:
            sized = any(word in name for word in ("vit", "swin", "mixer", "coatnet"))
            options = SMALLER.get(name, {}) | ({"img_size": side(name)} if sized else {})
            module = timm.create_model(name, num_classes=5, **options)
        for path, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            if path.endswith(("bias", "running_mean")):
                nn.init.normal_(value, std=0.3)
            elif value.dim() < 2:  # affine weights, running variances, layer scales, gains
                nn.init.uniform_(value, 0.5, 1.5)
            else:
                nn.init.kaiming_normal_(value)
    return module.eval().requires_grad_(False)


def side(name: str) -> int:
    return SIDE.get(name, 16 if name in OWN else 64)


@pytest.fixture(scope="module", params=[*TIMM, *OWN])
def built(request: pytest.FixtureRequest) -> Built:
    name = request.param
    module = make(name)
    images = torch.rand(3, 3, side(name), side(name), generator=torch.Generator().manual_seed(2))
    return Built(name, lambda: make(name), module, images, UnitSpace(tuple(find_sites(module, module, images))))


def run(built: Built, images: Tensor | None = None) -> Tensor:
    with torch.no_grad(), exact_arithmetic():
        return built.module(built.images if images is None else images)


def different_units(site: Site, rows: int) -> list[int]:
    """One unit for each row, all different where the site is wide enough: the first, the last and one between."""
    return [[0, site.width - 1, site.width // 2][row % 3] for row in range(rows)]


def test_each_row_loses_its_own_unit_as_if_its_weights_were_zeroed(built: Built) -> None:
    """Every site: three rows, each with another unit masked, against three edited networks that see one row each."""
    intact = run(built)
    assert intact.std() > 1e-3  # a network whose logits are constant would prove nothing
    scale = max(1.0, float(intact.abs().max()))
    moved: list[float] = []
    assert built.space.sites
    for site, offset in zip(built.space.sites, built.space.offsets, strict=False):
        units = [offset + index for index in different_units(site, 3)]
        with ablated(built.module, built.space, built.space.keep([[u] for u in units])):
            masked = run(built)
        for row, unit in enumerate(units):
            with edited(built.module, built.space, [unit]):
                alone = run(built, built.images[row : row + 1])[0]
            gap = float((masked[row] - alone).abs().max())
            # One row and three are rounded differently, and by how much depends on the processor.
            assert gap < 3 * TOLERANCE * scale, f"{site.layer}:{unit - offset} row {row} differs by {gap}"
        moved.append(float((masked - intact).abs().max()))
    # Nearly every site matters, by far more than the tolerance, so that the equality above is not 0 == 0.
    assert sum(m > 10 * TOLERANCE * scale for m in moved) >= 0.9 * len(moved)


def test_a_mask_equals_an_edited_checkpoint_in_a_fresh_model(built: Built) -> None:
    """One unit of every site at once, silenced in a state dict that a new model loads."""
    cut = [offset + site.width // 2 for site, offset in zip(built.space.sites, built.space.offsets, strict=False)]
    state = {name: value.clone() for name, value in built.module.state_dict().items()}
    silence(state, built.space, cut)
    fresh = built.make()
    fresh.load_state_dict(state, strict=True)
    with torch.no_grad():
        expected = fresh(built.images)
    with ablated(built.module, built.space, built.space.keep([cut])):
        masked = run(built)
    with edited(built.module, built.space, cut):
        by_edit = run(built)
    scale = max(1.0, float(expected.abs().max()))
    assert torch.equal(by_edit, expected)
    assert (masked - expected).abs().max() < TOLERANCE * scale
    assert (masked - run(built)).abs().max() > 10 * TOLERANCE * scale


def test_heads_of_the_classifier_and_gates_are_no_sites(built: Built) -> None:
    layers = [site.layer for site in built.space.sites]
    if built.name in OWN:
        heads = [{"ResNet9": "head"}.get(built.name, "omega")]
    else:
        last = built.module.get_classifier()
        heads = [path for path, module in built.module.named_modules() if module is last]
    assert heads
    gates = [layer for layer in layers if layer.endswith(("se.conv_expand", "se.fc2", "attn.fc2"))]
    assert not gates
    assert not any(layer == head or layer.startswith(f"{head}.") for layer in layers for head in heads)


def test_sites_come_in_execution_order_and_once_each(built: Built) -> None:
    seen: list[str] = []
    hooks = [
        m.register_forward_hook(lambda *_, path=path: seen.append(path)) for path, m in built.module.named_modules()
    ]
    run(built)
    for hook in hooks:
        hook.remove()
    places = [seen.index(site.layer) for site in built.space.sites if site.side == "output"]
    assert places == sorted(places)
    assert len({(s.layer, s.kind) for s in built.space.sites}) == len(built.space.sites)


# ---- what exactly is found ----------------------------------------------------------------------------------------


def sites_of(module: nn.Module, side: int = 16, channels: int = 3) -> dict[str, Site]:
    module.eval().requires_grad_(False)
    images = torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(0))
    return {site.layer: site for site in find_sites(module, module, images)}


def test_a_vit_has_its_heads_its_mlp_neurons_and_the_channels_its_blocks_read() -> None:
    module = make("test_vit")
    heads = {f"blocks.{i}.attn.proj": block.attn.num_heads for i, block in enumerate(module.blocks)}
    neurons = {f"blocks.{i}.mlp.fc1": block.mlp.fc1.out_features for i, block in enumerate(module.blocks)}
    found = find_sites(module, module, torch.rand(3, 3, 64, 64))
    assert {s.layer: s.width for s in found if s.kind == "head"} == heads
    assert {s.layer: s.width for s in found if s.kind == "neuron"} == neurons
    read = {f"blocks.{i}.norm{k}" for i in range(len(module.blocks)) for k in (1, 2)}
    assert {s.layer for s in found if s.kind == "channel"} == {"patch_embed.proj", *read}
    assert {(s.width, s.edits) for s in found if s.layer in read} == {(64, (("weight", 0), ("bias", 0)))}
    assert {s.kind for s in select(found).sites} == {"channel"}
    assert all(s.span * s.width == 64 and s.side == "input" for s in found if s.kind == "head")


def test_norms_of_queries_and_keys_are_no_sites() -> None:
    module = timm.create_model("test_vit", num_classes=5, img_size=32, qk_norm=True).eval().requires_grad_(False)
    assert isinstance(module.blocks[0].attn.q_norm, nn.LayerNorm)
    found = {s.layer for s in find_sites(module, module, torch.rand(3, 3, 32, 32)) if s.kind == "channel"}
    assert "blocks.0.norm1" in found
    assert not any(layer.endswith(("q_norm", "k_norm")) for layer in found)


def test_images_that_rounding_alone_tells_apart_still_show_where_the_examples_are() -> None:
    """As in a deep network of random weights; 9 rows of pixels could be 3 examples' as well."""
    values = torch.rand(3, 8, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = values.clone()
    other[1, 0, 4, 4] += 1e-9
    candidate = sites._Candidate(Site("layer", "channel", 8), nn.Identity(), None)
    sites._place_batch(candidate, sites._sums(values), sites._sums(other), 3)
    assert (candidate.problem, candidate.site.batch_axis, candidate.site.batch_minor) == (None, 0, False)


def test_convolutions_are_cut_behind_their_batch_norm() -> None:
    layers = sites_of(ResNet9(5, width=8))
    assert list(layers) == [
        "prep.1", "layer1.0.1", "layer1.2.body.0.1", "layer1.2.body.1.1", "layer2.0.1",
        "layer3.0.1", "layer3.2.body.0.1", "layer3.2.body.1.1",
    ]  # fmt: skip
    assert [s.width for s in layers.values()] == [8, 16, 16, 16, 32, 64, 64, 64]
    assert all(s.edits == (("weight", 0), ("bias", 0)) for s in layers.values())


def test_a_network_no_rule_knows() -> None:
    layers = sites_of(make("Oddly"))
    assert {layer: site.kind for layer, site in layers.items()} == {
        "beth": "channel", "gimel": "channel", "out": "head", "wide": "neuron",
    }  # fmt: skip
    assert (layers["out"].width, layers["out"].span) == (3, 8)


def test_a_gated_mlp_is_cut_in_both_halves() -> None:
    wide = sites_of(make("Oddly"))["wide"]
    assert (wide.width, wide.copies) == (48, 2)
    assert wide.elements(5) == [5, 53]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_sites_do_not_depend_on_the_precision(dtype: torch.dtype) -> None:
    module = make("ResNet9")
    images = torch.rand(3, 3, 16, 16)
    expected = find_sites(module, module, images)
    assert expected
    assert find_sites(module.to(dtype), module, images.to(dtype)) == expected


def test_examples_are_found_wherever_the_tensor_keeps_them() -> None:
    layers = sites_of(make("TokenMajor"))
    places = {layer: (site.axis, site.batch_axis, site.batch_minor) for layer, site in layers.items()}
    assert places == {
        "patch": (1, 0, False),
        "second": (2, 1, False),
        "folded": (1, 0, True),
        "aside": (1, 2, False),
    }


class Layered(nn.Module):
    """`body` between a convolution and a head."""

    def __init__(self, *body: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


class InPlace(nn.Module):
    """The norm's output is overwritten by what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x += 1
        return self.head(F.relu_(x).mean((2, 3)))


class Keyword(nn.Module):
    """Calls its layers by keyword, as some hand-written networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(torch.relu(self.named(input=x)))).mean((2, 3)))


class Jumbled(Oddly):
    """Flattens `(heads, tokens, head_dim)` without turning it: a column of the projection belongs to no head."""

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (m(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.out((torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v).reshape(b, n, c))


class Transposed(nn.Module):
    """A linear layer that keeps its weight the other way round: inputs first."""

    def __init__(self, inputs: int = 6, outputs: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t())


class Padded(nn.Module):
    """Runs a sub-module before it convolves with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias)


class Backwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.odd, self.head = nn.Conv2d(3, 6, 3), Transposed(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.odd(torch.relu(self.conv(x)).mean((2, 3)))))


CASES = {
    # A norm without parameters has nothing to zero: the convolution under it is the site.
    "norm without affine": (
        lambda: Layered(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
        {"body.0"},
    ),
    "conv, norm, act": (lambda: Layered(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), {"body.1"}),
    "conv alone": (lambda: Layered(nn.Conv2d(3, 8, 3), nn.ReLU()), {"body.0"}),
    "group norm": (lambda: Layered(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU()), {"body.1"}),
    "transposed conv": (lambda: Layered(nn.ConvTranspose2d(3, 8, 3), nn.ReLU()), {"body.0"}),
    "grouped transposed conv": (
        lambda: Layered(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=2), nn.ReLU()),
        {"body.0"},
    ),
    "weight norm": (
        lambda: Layered(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()
        ),
        {"body.0", "body.2"},
    ),
    # Without one row every other row of the weight is divided by another number.
    "spectral norm": (
        lambda: Layered(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()
        ),
        {"body.2"},
    ),
    "weights beside a sub-module": (lambda: Layered(Padded(), nn.ReLU()), {"body.0"}),
    "tied weights": (Tied, {"stem"}),
    "a convolution as head": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        {"0"},
    ),
    "heads that a reshape mixes": (Jumbled, {"beth", "gimel", "wide"}),
    "in place": (InPlace, {"norm"}),
    "called by keyword": (Keyword, {"conv"}),
    "weights the other way round": (Backwards, {"conv", "odd"}),
    "transformer of torch": (
        lambda: Layered(
            nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Turned(nn.TransformerEncoderLayer(8, 2, 20, batch_first=True))
        ),
        {"body.0", "body.2.body.linear1", "body.2.body.norm1"},
    ),
}


class Turned(nn.Module):
    """`body` on `(N, tokens, channels)`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("case", CASES)
def test_only_what_a_weight_edit_can_silence_is_a_site(case: str) -> None:
    build, expected = CASES[case]
    torch.manual_seed(0)
    with exact_arithmetic():
        assert set(sites_of(build())) == expected


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"])
def test_a_weight_norm_is_silenced_by_its_length(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    network = Layered(norm(nn.Conv2d(3, 8, 3)), nn.ReLU())
    space = UnitSpace((sites_of(network)["body.0"],))
    images = torch.rand(2, 3, 16, 16)
    with exact_arithmetic(), torch.no_grad():
        intact = network(images)
        with ablated(network, space, space.keep([[2]])[0]):
            masked = network(images)
        with edited(network, space, [2]):
            assert torch.allclose(network(images), masked, atol=1e-6)
        assert torch.equal(network(images), intact)
    assert not torch.allclose(intact, masked, atol=1e-3)


@pytest.mark.parametrize(("network", "found"), [(Oddly, True), (Jumbled, False)])
def test_as_many_heads_as_tokens_are_told_apart_by_how_they_are_moved(network: type[Oddly], found: bool) -> None:
    assert ("out" in sites_of(network(heads=4), side=8)) is found  # 8 px: 2 x 2 patches


def test_finding_sites_leaves_no_hook_and_no_changed_bit(built: Built) -> None:
    before = {name: value.clone() for name, value in built.module.state_dict().items()}
    find_sites(built.module, built.module, built.images)
    assert all(torch.equal(value, before[name]) for name, value in built.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in built.module.modules())
