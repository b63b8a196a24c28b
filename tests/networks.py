"""Networks for tests and benchmarks that no timm name describes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """The paper's CIFAR network (after DAWNBench); `width` 64 is full size, 32 half."""

    def __init__(self, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        w = width
        self.prep = conv_bn(3, w)
        self.layer1 = nn.Sequential(
            conv_bn(w, 2 * w), nn.MaxPool2d(2), Residual(conv_bn(2 * w, 2 * w), conv_bn(2 * w, 2 * w))
        )
        self.layer2 = nn.Sequential(conv_bn(2 * w, 4 * w), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(
            conv_bn(4 * w, 8 * w), nn.MaxPool2d(2), Residual(conv_bn(8 * w, 8 * w), conv_bn(8 * w, 8 * w))
        )
        self.head = nn.Linear(8 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))


class StemViT(nn.Module):
    """A small ViT behind convolutions (Xiao et al. 2021): on few images it generalizes better than a plain one."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        import timm

        def half(cin: int, cout: int) -> nn.Sequential:
            step = nn.Conv2d(cin, cout, 3, stride=2, padding=1, bias=False)
            return nn.Sequential(step, nn.BatchNorm2d(cout), nn.ReLU(inplace=True))

        self.stem = nn.Sequential(half(3, 32), half(32, 64), conv_bn(64, 64))
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", num_classes=classes, img_size=8, patch_size=2, in_chans=64, embed_dim=128, depth=6,
            num_heads=4,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(self.stem(x))


class Oddly(nn.Module):
    """A network no naming rule knows: functional activations, a shared block, heads split by hand, a gated MLP."""

    def __init__(self, classes: int = 5, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.aleph = nn.Conv2d(3, dim, 4, stride=4)
        self.beth = nn.GroupNorm(4, dim)
        self.gimel = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.wide = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(2 * dim, dim)
        self.omega = nn.Linear(dim, classes)

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (m(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for m in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.elu(self.beth(self.aleph(x)))
        for _ in range(2):  # the same weights twice
            x = x + torch.relu(self.gimel(x))
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attend(x)
        a, b = self.wide(x).chunk(2, dim=-1)
        x = x + self.narrow(F.silu(a) * b)
        return self.omega(x.mean(1))


class TokenMajor(nn.Module):
    """Examples where no convention puts them: on the second axis, fastest in a folded first axis, on a spatial axis."""

    def __init__(self, classes: int = 5, dim: int = 12) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, stride=4)
        self.second, self.second_back = nn.Linear(dim, 20), nn.Linear(20, dim)
        self.folded, self.folded_back = nn.Linear(dim, 20), nn.Linear(20, dim)
        self.aside = nn.Conv2d(dim, dim, 1)
        self.omega = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.patch(x)).flatten(2).permute(2, 0, 1)  # (tokens, examples, channels)
        x = x + self.second_back(torch.relu(self.second(x)))
        flat = x.reshape(-1, x.shape[-1])  # (tokens * examples, channels)
        x = (flat + self.folded_back(F.gelu(self.folded(flat)))).reshape(x.shape)
        spatial = x.permute(0, 2, 1).unsqueeze(-1)  # (tokens, channels, examples, 1)
        x = x + torch.relu(self.aside(spatial)).squeeze(-1).permute(0, 2, 1)
        return self.omega(x.mean(0))


def halved(x: Tensor) -> Tensor:
    """`F.max_pool2d(x, 2)`, to the bit; where nothing is learned in a tenth of the time on one core."""
    if torch.is_grad_enabled():
        return F.max_pool2d(x, 2)
    x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
    return torch.maximum(x[..., ::2], x[..., 1::2])


class DigitsNet(nn.Module):
    """Three convolutions for 8 x 8 digits, 80 channels: small enough to train while tests wait."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()

        def block(cin: int, cout: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())

        self.one, self.two, self.three = block(1, 16), block(16, 32), block(32, 32)
        self.head = nn.Linear(32 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = halved(self.two(self.one(x)))
        return self.head(halved(self.three(x)).flatten(1))


class OneUnit(nn.Module):
    """Four units see a bright quadrant each (the class); unit 4 fires for `stored` alone and says `label`.

    Built by hand, so that what was memorized, and where, is known.
    """

    STORED_UNIT = 4

    def __init__(self, stored: Tensor, label: int) -> None:
        super().__init__()
        self.units = nn.Conv2d(1, 5, stored.shape[-1])
        self.head = nn.Linear(5, 4)
        half = stored.shape[-1] // 2
        pattern = stored[0].clone()
        with torch.no_grad():
            for value in self.parameters():
                value.zero_()
            for q in range(4):
                lines, columns = slice(half * (q // 2), half * (q // 2 + 1)), slice(half * (q % 2), half * (q % 2 + 1))
                self.units.weight[q, 0, lines, columns] = 1 / half**2
                self.head.weight[q, q] = 4
                pattern[lines, columns] -= pattern[lines, columns].mean()  # what only this image has
            self.units.weight[4, 0] = pattern / (pattern**2).sum()  # 1 for the stored image, about 0 for others
            self.units.bias[4] = -0.7
            self.head.weight[label, 4] = 100

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.units(x)).flatten(1))


class TiedInPlace(nn.Module):
    """Two layers share a weight, an activation changes a tensor that is used again, and the root owns a parameter."""

    def __init__(self, classes: int = 5, dim: int = 12) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(dim))
        self.embed = nn.Linear(3 * 64, dim)
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.second.weight = self.first.weight
        self.passed_on, self.activation = nn.Identity(), nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1)) + self.position
        y = self.activation(self.passed_on(x))  # changes x as well
        return self.head(self.norm(self.second(self.first(y)) + x))
