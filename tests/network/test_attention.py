"""Heads of `nn.MultiheadAttention`, alone, in PyTorch's own layers and in torchvision's transformer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from memaudit.adapters.base import Adapter
from memaudit.data.images.preprocess import Preprocess
from memaudit.network.ablate import ablated
from memaudit.network.units import select
from tests.reference import cut_copy

HEADS, WIDTH, IMAGES = 4, 16, torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Own(nn.Module):
    """Attention as users write it, with or without the examples first, with or without the weights."""

    def __init__(self, first: bool, weights: bool) -> None:
        super().__init__()
        self.first, self.weights = first, weights
        self.patches, self.norm = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH)
        self.attention, self.head = nn.MultiheadAttention(WIDTH, HEADS, batch_first=first), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute((0, 2, 1) if self.first else (2, 0, 1))
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=self.weights)[0])
        return self.head(tokens.mean(1 if self.first else 0))  # type: ignore[no-any-return]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 4, 4), nn.Flatten(2), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(256, 5)
    )


def vision() -> nn.Module:
    network = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=24, num_classes=5
    )
    nn.init.normal_(network.heads.head.weight)  # type: ignore[union-attr, arg-type]
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "its own": lambda: Own(first=True, weights=True),
    "tokens first": lambda: Own(first=False, weights=True),
    "without weights": lambda: Own(first=True, weights=False),
    "encoder": encoder,
    "torchvision": vision,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_head_cut_on_the_way_is_one_cut_in_a_copys_weights(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[name]()
    adapter = Adapter(network, architecture=name, preprocess=Preprocess((3, 16, 16)))
    space = select(adapter.sites(IMAGES), "head")
    assert all(site.width == HEADS for site in space.sites)
    assert len(space.sites) == sum(isinstance(m, nn.MultiheadAttention) for m in network.modules())
    cuts = [[0], [1], [2, space.total - 1], [3]]
    with torch.no_grad():
        intact = adapter.forward(IMAGES)
        with ablated(network, space, space.keep(cuts)):
            together = adapter.forward(IMAGES)
        for row, cut in enumerate(cuts):
            copy = Adapter(cut_copy(network, space, cut), architecture=name, preprocess=adapter.preprocess)
            expected = copy.forward(IMAGES)[row]
            assert torch.allclose(together[row], expected, rtol=1e-5, atol=1e-6)
            assert (expected - intact[row]).abs().max() > 1e-3
        assert torch.equal(adapter.forward(IMAGES), intact)


def test_looking_at_the_projection_changes_no_bit_and_shows_what_it_makes() -> None:
    network = Own(first=True, weights=True).eval()
    adapter = Adapter(network, architecture="own", preprocess=Preprocess((3, 16, 16)))
    made: list[Tensor] = []
    with torch.no_grad():
        intact = adapter.forward(IMAGES)
        watch = network.attention.out_proj.register_forward_hook(lambda _, __, output: made.append(output))
        assert torch.equal(adapter.forward(IMAGES), intact)
        watch.remove()
        tokens = network.patches(IMAGES).flatten(2).permute(0, 2, 1)
        expected = network.attention(tokens, tokens, tokens)[0]
    assert torch.allclose(made[0].transpose(0, 1), expected, atol=1e-6)
