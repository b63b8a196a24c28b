"""Example-tied dropout: masks that belong to the example and to nothing else, in any network, and out of it again."""

from __future__ import annotations

import copy
import io
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import memaudit
from memaudit import ExampleTiedDropout, add_tied_dropout, example_ids, strip_tied_dropout
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.network.tied_dropout import bypassed, layers_of, set_mode
from tests.networks import DigitsNet, Oddly, ResNet9

M = 0xFFFFFFFF


def slow_mask(layer: ExampleTiedDropout, example: int) -> list[bool]:
    """The mask of one example with Python's own integers: no tensors, no tricks."""
    channels, _, generalizing, threshold, seed = layer.rule.tolist()

    def mix(w: int) -> int:
        w ^= w >> 16
        w = w * 0x21F0AAAD & M
        w ^= w >> 15
        w = w * 0x735A2D97 & M
        return w ^ w >> 15

    low = mix(mix(seed & M) ^ (example & M))
    high = mix(mix(seed >> 32 & M) ^ mix(example >> 32 & M) ^ low)
    return [c < generalizing or mix(mix(low ^ mix(c * 0x9E3779B9 & M)) ^ high) < threshold for c in range(channels)]


IDS = [0, 1, -1, 7, 2**31, 2**32, 2**63 - 1, -(2**63), 123456789012345]


def test_masks_agree_with_plain_integers() -> None:
    for seed in (0, 1, -5, 2**40, 2**63 - 1):
        layer = ExampleTiedDropout(50, 0.2, 0.3, seed)
        assert layer.mask(IDS).tolist() == [slow_mask(layer, i) for i in IDS]


def test_a_mask_is_the_examples_own_in_any_batch_and_dtype_of_ids() -> None:
    layer = ExampleTiedDropout(64, 0.25, 0.2, seed=3)
    masks = layer.mask(IDS)
    for row, example in enumerate(IDS):
        assert torch.equal(layer.mask([example])[0], masks[row])
    assert torch.equal(layer.mask(torch.tensor(IDS).flip(0)).flip(0), masks)
    assert torch.equal(layer.mask(torch.tensor([5, 6], dtype=torch.int32)), layer.mask([5, 6]))
    assert torch.equal(layer.mask(np.array([5, 6])), layer.mask([5, 6]))
    assert masks[:, :16].all()
    assert len({tuple(m.tolist()) for m in masks}) == len(IDS)


def test_ids_beyond_64_bits_have_masks_of_their_own() -> None:
    layer = ExampleTiedDropout(256, 0.0, 0.5)
    huge = [2**64, 2**64 + 1, 2**200, -(2**100), 0]
    masks = layer.mask(huge)
    assert torch.equal(masks, layer.mask(huge))
    assert len({tuple(m.tolist()) for m in masks}) == len(huge)


def test_channels_and_examples_are_drawn_independently() -> None:
    layer = ExampleTiedDropout(400, 0.25, 0.1, seed=1)
    drawn = layer.mask(range(20_000))[:, 100:].float()
    assert abs(float(drawn.mean()) - 0.1) < 0.001
    # binomial: each channel's share over 20,000 examples, each example's share over 300 channels
    assert float((drawn.mean(0) - 0.1).abs().max()) < 5 * (0.09 / 20_000) ** 0.5
    assert abs(float(drawn.sum(1).var()) / (300 * 0.09) - 1) < 0.05
    correlation = torch.corrcoef(drawn.T)
    assert float(correlation.fill_diagonal_(0).abs().max()) < 6 / 20_000**0.5


@pytest.mark.parametrize(("p_gen", "p_mem"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.0)])
def test_extreme_shares(p_gen: float, p_mem: float) -> None:
    mask = ExampleTiedDropout(10, p_gen, p_mem).mask(range(50))
    expected = torch.arange(10) < round(p_gen * 10) if p_mem == 0 else torch.ones(10, dtype=torch.bool)
    assert torch.equal(mask, expected.expand(50, 10))


SHAPES = {
    "(N, C)": (4, 12),
    "NCHW": (4, 12, 3, 5),
    "NLC": (4, 7, 12),
    "NCL": (4, 12, 7),
    "NHWC": (4, 3, 5, 12),
    "square NLC": (4, 12, 12),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_each_layout_is_scaled_along_its_channels(shape: tuple[int, ...]) -> None:
    layer = ExampleTiedDropout(12, 0.25, 0.5, seed=2)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 1
    axis = {12: 1}.get(shape[1], len(shape) - 1) if shape != (4, 12, 12) else 2
    with example_ids(IDS[:4]):
        own = layer(x)
    expected = torch.stack([x[i].movedim(axis - 1, -1) * layer.mask(IDS[:4])[i] for i in range(4)]).movedim(-1, axis)
    assert torch.equal(own, expected)
    for mode, factor in (("drop", 0.0), ("test", 0.5)):
        layer.mode = mode  # type: ignore[assignment]
        scaled = x.movedim(axis, -1) * torch.tensor([1.0] * 3 + [factor] * 9)
        assert torch.equal(layer(x), scaled.movedim(-1, axis))


def test_modes_follow_training_and_ids() -> None:
    layer, x = ExampleTiedDropout(8, 0.25, 0.5), torch.ones(2, 8)
    with pytest.raises(UsageError, match="ids of the batch"):
        layer(x)
    with example_ids([1, 2]):
        own = layer(x)
        assert torch.equal(own, layer.mask([1, 2]).float())
        layer.eval()
        assert torch.equal(layer(x), own)
        with example_ids([3, 4]):
            assert torch.equal(layer(x), layer.mask([3, 4]).float())
        assert torch.equal(layer(x), own)
        layer.mode = "drop"
        assert layer(x).sum() == 4
        layer.mode = None
    assert layer(x).sum() == 2 * (2 + 6 * 0.5)


def test_wrong_ids_are_refused() -> None:
    layer = ExampleTiedDropout(8)
    with example_ids([1, 2]), pytest.raises(UsageError, match="2 example ids for 3 rows"):
        layer(torch.ones(3, 8))
    for wrong in ([0.5], ["a"], torch.ones(2), torch.ones(2, 2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(UsageError, match="ids must be integers"), example_ids(wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(UsageError, match="no channel axis of 8"):
        layer.eval()(torch.ones(3, 9))
    for arguments in ((0,), (8, 1.5), (8, 0.2, -0.1), (8, float("nan"))):
        with pytest.raises(UsageError):
            ExampleTiedDropout(*arguments)  # type: ignore[arg-type]


def test_ids_are_gone_when_the_body_raises() -> None:
    layer = ExampleTiedDropout(4)
    with pytest.raises(ZeroDivisionError), example_ids([1]):
        raise ZeroDivisionError
    with pytest.raises(UsageError, match="ids of the batch"):
        layer(torch.ones(1, 4))


def test_no_random_state_is_touched() -> None:
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    with example_ids([1, 2, 3]):
        ExampleTiedDropout(16)(torch.ones(3, 16))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_adding_touches_no_random_state_and_no_mode() -> None:
    model = DigitsNet().train()
    before = torch.get_rng_state()
    add_tied_dropout(model, "all")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(m.training for m in model.modules())


def test_nothing_grows_with_ids() -> None:
    layer = ExampleTiedDropout(16)
    size = len(pickle.dumps(layer))
    for start in range(0, 50_000, 5_000):
        layer.mask(range(start, start + 5_000))
    assert len(pickle.dumps(layer)) == size
    assert sum(t.numel() for t in layer.state_dict().values()) == 5


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_masks_are_the_same(backend: str) -> None:
    torch.manual_seed(0)
    model = add_tied_dropout(DigitsNet().eval(), "all", 0.25, 0.3)
    x, ids = torch.rand(5, 1, 8, 8), torch.tensor([3, -4, 2**62, 0, 9])
    with torch.no_grad(), example_ids(ids):
        expected = model(x)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        with example_ids(ids):
            assert torch.allclose(compiled(x), expected, atol=1e-6)
        with example_ids(ids + 1):
            other = compiled(x)
        with example_ids(ids + 1):
            assert torch.allclose(model(x), other, atol=1e-6)
    assert not torch.allclose(other, expected)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_makes_one_graph_for_all_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # the shared one may hold another processor's code
    torch.manual_seed(0)
    layer = ExampleTiedDropout(24, 0.25, 0.3, seed=5)
    model = nn.Sequential(nn.Linear(6, 24), layer)
    x, ids = torch.rand(len(IDS), 6), torch.tensor(IDS)
    torch.compiler.reset()
    # The processor's vectors are not tried by compiling a program for each kind first.
    compiled = torch.compile(model, fullgraph=True, options={"cpp.vec_isa_ok": True})
    with torch.no_grad(), example_ids(ids):
        compiled(x)
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        for batch in (ids, ids.flip(0), ids * 3 + 1):
            with example_ids(batch):
                got, expected = compiled(x), model(x)
            assert torch.equal(got != 0, layer.mask(batch))
            assert torch.allclose(got, expected, atol=1e-6)


def test_an_index_is_never_multiplied_as_it_is() -> None:
    """Of an index times a number PyTorch's compiler makes int32 for a GPU, and 0x9E3779B9 has no place there."""
    layer = ExampleTiedDropout(24)
    graph = make_fx(lambda ids: layer.mask(ids))(torch.tensor(IDS)).graph
    indices = [node for node in graph.nodes if "arange" in str(node.target)]
    used = {str(user.target) for node in indices for user in node.users}
    assert indices
    assert used
    assert not [name for name in used if "mul" in name]


def test_saved_and_loaded_masks_are_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = add_tied_dropout(DigitsNet().eval(), "two*,three*", 0.25, 0.3, seed=11)
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad(), example_ids([1, 2, 3]):
        expected = model(x)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    other = add_tied_dropout(DigitsNet().eval(), "two*,three*", 0.5, 0.1, seed=12)
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (other, copy.deepcopy(model), torch.load(buffer, weights_only=False), copy.deepcopy(model).double()):
        dtype = next(again.parameters()).dtype
        with torch.no_grad(), example_ids([1, 2, 3]):
            assert torch.allclose(again(x.to(dtype)).float(), expected, atol=1e-5)
    for path, layer in layers_of(model.half()).items():
        assert torch.equal(layer.mask(IDS), layers_of(other)[path].mask(IDS))


def test_two_layers_have_different_masks_and_a_seed_gives_others() -> None:
    masks = {}
    for seed in (0, 1):
        model = add_tied_dropout(Oddly(), "all", 0.0, 0.5, seed, input_size=(3, 16, 16))
        for path, layer in layers_of(model).items():
            masks[seed, path] = tuple(layer.mask(range(20))[:, :24].flatten().tolist())
    assert len(masks) >= 4
    assert len(set(masks.values())) == len(masks)


def lively(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.data.add_(0.3 * noise if value.dim() == 1 or "running" in name else 0.02 * (noise - 0.5))
    return model.eval()


def inverted() -> nn.Module:
    return timm.create_model("mobilenetv3_small_050", num_classes=5)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "digits": DigitsNet,
    "resnet9": lambda: ResNet9(width=8),
    "oddly": Oddly,
    "timm resnet": lambda: timm.create_model("test_resnet", num_classes=5),
    "timm vit": vit,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_stripped_weights_compute_what_the_mode_computes(name: str) -> None:
    torch.manual_seed(0)
    plain = BUILDERS[name]()
    lively(plain)
    size = {"digits": (1, 8, 8), "oddly": (3, 16, 16), "timm resnet": (3, 64, 64)}.get(name, (3, 32, 32))
    x = torch.rand(4, *size)
    model = add_tied_dropout(copy.deepcopy(plain), "all", 0.3, 0.4, input_size=size)
    assert layers_of(model)
    with torch.no_grad(), bypassed(model):
        assert torch.equal(model(x), plain(x))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for mode in ("drop", "test"):
        stripped = strip_tied_dropout(model, mode, input_size=size)
        assert not layers_of(stripped)
        again = BUILDERS[name]()
        again.load_state_dict(stripped.state_dict())
        assert [type(m) for m in again.modules()] == [type(m) for m in stripped.modules()]
        with torch.no_grad(), set_mode(model, mode):
            expected = model(x)
            got = again.eval()(x)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, plain(x), atol=1e-3)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


class Placed(nn.Module):
    """A network whose author put the layers in."""

    def __init__(self, where: str = "behind relu") -> None:
        super().__init__()
        self.conv, self.norm, self.where = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), where
        self.hidden, self.head = nn.Linear(12, 20), nn.Linear(20, 4)
        self.one, self.two = ExampleTiedDropout(12, 0.25, 0.3, 1), ExampleTiedDropout(20, 0.25, 0.3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.relu(self.norm(self.conv(x)))).mean((2, 3))
        if self.where == "behind softmax":
            return self.head(self.two(self.hidden(x).softmax(1)))
        return self.head(self.two(F.relu(self.hidden(x))))


def test_layers_that_their_author_placed_are_stripped_too() -> None:
    torch.manual_seed(0)
    model = lively(Placed())
    x = torch.rand(4, 1, 8, 8)
    for mode in ("drop", "test"):
        stripped = strip_tied_dropout(model, mode, input_size=(1, 8, 8))
        with torch.no_grad(), set_mode(model, mode):
            assert torch.allclose(stripped(x), model(x), atol=1e-6)
        assert not any(k.startswith(("one", "two")) for k in stripped.state_dict())


def test_what_weights_cannot_do_is_refused() -> None:
    with pytest.raises(ModelRejected, match="alone feeds"):
        strip_tied_dropout(lively(Placed("behind softmax")), input_size=(1, 8, 8))
    with pytest.raises(UsageError, match="no example-tied dropout"):
        strip_tied_dropout(DigitsNet())
    with pytest.raises(UsageError, match="not one of"):
        strip_tied_dropout(Placed(), "train")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="already"):
        add_tied_dropout(Placed())
    with pytest.raises(UsageError, match=r"no layer 'thre\.1' that can be tied.*three\.1"):
        add_tied_dropout(DigitsNet(), "thre.1")
    with pytest.raises(UsageError, match="none of the image sizes"):
        add_tied_dropout(DigitsNet(), input_size=(3, 8, 8))


def test_auto_takes_the_deeper_half() -> None:
    model = add_tied_dropout(ResNet9(width=8))
    assert list(layers_of(model)) == ["layer2.0.1", "layer3.0.1", "layer3.2.body.0.1", "layer3.2.body.1.1"]
    assert set(model.state_dict()) - set(ResNet9(width=8).state_dict()) == {
        f"{path}.tied_dropout.rule" for path in layers_of(model)
    }


def test_gradients_reach_what_the_mask_lets_through() -> None:
    torch.manual_seed(0)
    model = add_tied_dropout(DigitsNet().train(), "three*", 0.25, 0.0)
    with example_ids(range(4)):
        model(torch.rand(4, 1, 8, 8)).sum().backward()
    gradient = model.three[1].weight.grad
    assert gradient is not None
    assert (gradient[8:] == 0).all()
    assert (gradient[:8] != 0).any()


def test_public_names() -> None:
    for name in ("ExampleTiedDropout", "add_tied_dropout", "example_ids", "strip_tied_dropout"):
        assert name in dir(memaudit)
        assert getattr(memaudit, name) is globals()[name]
    assert issubclass(UsageError, MemauditError)
