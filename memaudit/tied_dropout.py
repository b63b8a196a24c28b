"""Example-tied dropout: train so that what is memorized sits in units that can be dropped afterwards.

After Maini et al. 2023, section 5. Some channels of a layer, the generalizing ones, are on for every example; each
other channel, a memorizing one, is on for an example with a fixed probability, for the same examples in every epoch.
Which is decided by a hash of (seed, example id, channel): there is no table, and no random state is touched.
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from memaudit.errors import ModelRejected, UsageError
from memaudit.sites import arrives, find_sites
from memaudit.text import clean, closest
from memaudit.trace import record
from memaudit.units import Site

Mode = Literal["train", "test", "drop"]
MODES = ("train", "test", "drop")
CHILD = "tied_dropout"  # the name it has below the layer it is tied to, in checkpoints too
RULE = "rule"

_WORD = 0xFFFFFFFF
_CHUNK = 0x9E3779B9
# Image sizes that a network without a declared one is tried at.
PROBE_SIZES = (32, 64, 224, 28, 16, 8)


class _Ids:
    """The example ids of the batch that is running; None outside of `example_ids`."""

    current: Tensor | None = None


@contextmanager
def example_ids(ids: Tensor | Sequence[int]) -> Iterator[None]:
    """Tell every `ExampleTiedDropout` that runs in the body which training examples the batch holds.

    Args:
        ids: `(N,)`, one integer per example of the batch, any integers, the same for an example in every epoch. With
            activation checkpointing, `backward()` belongs into the body as well.

    Raises:
        UsageError: they are no integers, or not one-dimensional.
    """
    before = _Ids.current
    _Ids.current = _as_ids(ids)
    try:
        yield
    finally:
        _Ids.current = before


def _as_ids(ids: Tensor | Sequence[int]) -> Tensor:
    if not isinstance(ids, Tensor):
        try:
            ids = torch.tensor([_signed(index(i)) for i in ids], dtype=torch.int64)
        except TypeError:
            raise UsageError("example ids must be integers, one per example of the batch") from None
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        kind = str(ids.dtype).removeprefix("torch.")
        raise UsageError(f"example ids must be integers of shape (N,), not {kind} {tuple(ids.shape)}")
    return ids.view(torch.int64) if ids.dtype == torch.uint64 else ids.to(torch.int64)


def _signed(number: int) -> int:
    """`number` as a signed 64-bit integer; a larger one by its hash, so that no two are alike but by accident."""
    if -(1 << 63) <= number < 1 << 63:
        return number
    digest = hashlib.sha256(str(number).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class ExampleTiedDropout(nn.Module):
    """Dropout whose mask belongs to the example: the same in every epoch, batch, process and device.

    Args:
        channels: width of the channel axis.
        p_gen: share of the channels, the first ones, that are on for every example.
        p_mem: probability that another channel is on for an example.
        seed: any integer; layers of one network need different ones.
        axis: the channel axis; by default 1 of `(N, C)` and `(N, C, H, W)`, the last of `(N, L, C)` and, where only
            that fits, of `(N, H, W, C)`.

    Attributes:
        mode: `train`: each example's own mask, whose ids `example_ids` tells. `test`: memorizing channels at their
            expected value, `p_mem` times their own. `drop`: memorizing channels at zero. None, the default: `train`
            while ids are told and in training, otherwise `test`.
        rule: `(5,)` int64, in every checkpoint: channels, axis (-1: none given), number of generalizing channels,
            `p_mem` in units of 2^-32, seed.
    """

    rule: Tensor

    def __init__(
        self, channels: int, p_gen: float = 0.3, p_mem: float = 0.1, seed: int = 0, *, axis: int | None = None
    ) -> None:
        super().__init__()
        if channels < 1:
            raise UsageError(f"{channels} channels; it must be at least 1")
        for name, value in (("p_gen", p_gen), ("p_mem", p_mem)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be between 0 and 1")
        self.channels, self.axis = channels, axis
        self.mode: Mode | None = None
        shape = [channels, -1 if axis is None else axis]
        rule = [*shape, round(p_gen * channels), round(p_mem * (1 << 32)), _signed(seed)]
        self.register_buffer(RULE, torch.tensor(rule, dtype=torch.int64))

    @property
    def p_mem(self) -> float:
        """Probability that a memorizing channel is on for an example."""
        return int(self.rule[3]) / (1 << 32)

    def memorizing(self) -> Tensor:
        """`(channels,)` bool: which channels are not on for every example."""
        return torch.arange(self.channels, device=self.rule.device) >= self.rule[2]

    def mask(self, ids: Tensor | Sequence[int]) -> Tensor:
        """`(N, channels)` bool: the channels that are on for each of the examples `ids`, on the layer's device."""
        ids = _as_ids(ids).to(self.rule.device)
        channel = torch.arange(self.channels, device=ids.device)
        generalizing, threshold, seed = self.rule[2:].unbind()
        low = _mix(_mix(seed & _WORD) ^ (ids & _WORD))
        high = _mix(_mix((seed >> 32) & _WORD) ^ _mix((ids >> 32) & _WORD) ^ low)
        own = _mix((channel * _CHUNK) & _WORD)
        drawn = _mix(_mix(low[:, None] ^ own) ^ high[:, None])
        return (drawn < threshold) | (channel < generalizing)

    def factors(self, mode: Mode) -> Tensor:
        """`(channels,)` float32: what `test` or `drop` multiplies each channel by."""
        share = self.rule[3].double() / (1 << 32) if mode == "test" else self.rule.new_zeros((), dtype=torch.float64)
        return torch.where(self.memorizing(), share, 1.0).float()

    def forward(self, x: Tensor) -> Tensor:
        """`x` with the channels of each example scaled; of any shape that has the examples on axis 0.

        Raises:
            UsageError: no axis has `channels` elements, ids are needed and not told, or there are not as many as
                examples.
        """
        axis = self._axis(x)
        ids, mode = _Ids.current, self.mode
        if mode is None:
            mode = "train" if self.training or ids is not None else "test"
        shape = [1] * x.dim()
        shape[axis] = self.channels
        if mode != "train":
            return x * self.factors(mode).to(x.device, x.dtype).reshape(shape)
        if ids is None:
            raise UsageError(
                "example-tied dropout needs the ids of the batch's examples",
                hint="Write: with memaudit.example_ids(ids): model(images). Or call model.eval() to test.",
            )
        if len(ids) != len(x):
            raise UsageError(
                f"{len(ids)} example ids for {len(x)} rows",
                hint="Give one id per example; a layer that folds windows into the batch cannot be tied.",
            )
        shape[0] = len(x)
        return x * self.mask(ids).to(x.device, x.dtype).reshape(shape)

    def _axis(self, x: Tensor) -> int:
        if self.axis is not None:
            candidates = [self.axis]
        else:
            candidates = [x.dim() - 1, 1] if x.dim() == 3 else [1, x.dim() - 1]
        for axis in candidates:
            if 0 < axis < x.dim() and x.shape[axis] == self.channels:
                return axis
        raise UsageError(f"no channel axis of {self.channels} in a tensor of shape {tuple(x.shape)}")

    def extra_repr(self) -> str:
        return f"{self.channels}, generalizing={int(self.rule[2])}, p_mem={self.p_mem:g}, seed={int(self.rule[4])}"


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words (in int64) that scatters them: xor-shift and multiply, no product past 63 bits.

    The constants are those that Wellons' search ("hash-prospector", 2018) found least biased for two rounds.
    """
    word = word ^ (word >> 16)
    word = (word * 0x21F0AAAD) & _WORD
    word = word ^ (word >> 15)
    word = (word * 0x735A2D97) & _WORD
    return word ^ (word >> 15)


# ---- in any network ------------------------------------------------------------------------------------------------


class _Tied(nn.Module):
    """What a layer becomes when it is tied: the same class, whose output goes through its child `tied_dropout`."""

    tied_dropout: ExampleTiedDropout

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.tied_dropout(super().forward(*args, **kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty_tied, (_plain_class(self),), self.__dict__


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}  # one tied class per class, whatever happens to it


def _tied_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Tied{kind.__name__}", (_Tied, kind), {"__module__": kind.__module__})
    return _KINDS[kind]


def _plain_class(module: nn.Module) -> type[nn.Module]:
    return type(module).__mro__[2]


def _empty_tied(kind: type[nn.Module]) -> nn.Module:
    """An empty tied layer for pickle and deepcopy, which then fill it."""
    tied = _tied_class(kind)
    return tied.__new__(tied)


def layers_of(model: nn.Module) -> dict[str, ExampleTiedDropout]:
    """Every example-tied dropout of the network by the path of the layer it is tied to, or its own if it is in none."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, ExampleTiedDropout):
            owner, _, name = path.rpartition(".")
            tied = name == CHILD and isinstance(model.get_submodule(owner), _Tied)
            found[owner if tied else path] = module
    return found


def add_tied_dropout(
    model: nn.Module,
    layers: str | Sequence[str] = "auto",
    p_gen: float = 0.3,
    p_mem: float = 0.1,
    seed: int = 0,
    *,
    input_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Tie layers of any network, in place: their outputs go through an `ExampleTiedDropout`. Names stay as they are.

    Train with `with memaudit.example_ids(ids): loss = criterion(model(images), labels)`.

    Args:
        layers: `auto`: the deeper half of the layers that can be tied; `all`; a shell pattern (comma separates
            several); or paths of modules.
        p_gen, p_mem, seed: as of `ExampleTiedDropout`; each layer draws from a seed of its own.
        input_size: `(C, H, W)`, where the network does not declare it and small images do not run.

    Returns:
        `model` itself.

    Raises:
        UsageError: a layer does not exist or cannot be tied, or no input is known that runs.
    """
    if layers_of(model):
        raise UsageError("the network has example-tied dropout already", hint="Take it out with strip_tied_dropout.")
    probe = _probe(model, input_size)
    sites = _tieable(model, probe)
    for site in _chosen(sites, layers):
        layer = ExampleTiedDropout(_elements(site), p_gen, p_mem, _seed_of(seed, site.layer), axis=site.axis)
        _tie(model.get_submodule(site.layer), layer)
    return model


def _tie(module: nn.Module, layer: ExampleTiedDropout) -> None:
    parameter = next(module.parameters(), None)
    module.add_module(CHILD, layer if parameter is None else layer.to(parameter.device))
    layer.train(module.training)
    module.__class__ = _tied_class(type(module))


def _elements(site: Site) -> int:
    return site.width * site.span * site.copies


def _seed_of(seed: int, layer: str) -> int:
    return _signed(int.from_bytes(hashlib.sha256(f"{seed}:{layer}".encode()).digest()[:16], "big"))


def _chosen(sites: Sequence[Site], layers: str | Sequence[str]) -> list[Site]:
    if not sites:
        raise UsageError("the network has no layer that can be tied: none where a mask equals a weight edit")
    if layers == "auto":
        return list(sites[len(sites) // 2 :])
    patterns = ["*"] if layers == "all" else layers.split(",") if isinstance(layers, str) else list(layers)
    known = [s.layer for s in sites]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise UsageError(
                f"no layer {clean(pattern)!r} that can be tied{closest(pattern, known)}",
                hint=f"These can: {clean(', '.join(known), 400)}",
            )
    return [s for s in sites if any(fnmatch.fnmatchcase(s.layer, p) for p in patterns)]


def _tieable(model: nn.Module, probe: Tensor) -> list[Site]:
    """Sites whose output is scaled by scaling weights, with the examples on axis 0, one row each."""
    with _evaluating(model), bypassed(model):
        sites = find_sites(model, model, probe)
        seen = record(model, model, probe)
    rows = {op.outputs[0]: op.shape[0] for op in seen.ops if op.shape}
    outputs = [s for s in sites if s.side == "output" and s.batch_axis == 0 and s.copies == 1]
    return [s for s in outputs if rows.get(seen.outputs.get(s.layer, -1)) == len(probe)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Every example-tied dropout of the network lets everything through while the body runs."""
    layers = [m for m in model.modules() if isinstance(m, ExampleTiedDropout)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = _through
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _through(x: Tensor) -> Tensor:
    return x


# ---- out again -----------------------------------------------------------------------------------------------------


def strip_tied_dropout(
    model: nn.Module, mode: Literal["test", "drop"] = "drop", *, input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """A copy of the network without example-tied dropout, whose weights compute what `mode` computes.

    Its state dict has the names and shapes of the network before dropout was added.

    Args:
        mode: `drop`: the memorizing channels are zero. `test`: at their expected value.
        input_size: as in `add_tied_dropout`.

    Raises:
        UsageError: no such mode, nothing to strip, or no input is known that runs.
        ModelRejected: weights cannot do what a dropout layer does where it stands.
    """
    if mode not in ("test", "drop"):
        raise UsageError(f"mode {clean(mode)!r} is not one of: test, drop")
    layers = layers_of(model)
    if not layers:
        raise UsageError("the network has no example-tied dropout")
    probe = _probe(model, input_size)
    wanted = _logits(model, probe, mode)
    plain = copy.deepcopy(model)
    sites = feeding(plain, plain, probe)
    for path in layers:
        if path not in sites:
            raise ModelRejected(
                f"no convolution, norm or linear layer alone feeds the example-tied dropout at {clean(path)!r}",
                hint="Place it directly behind one, or tie layers with add_tied_dropout.",
            )
    for path, site in sites.items():
        factor = layers[path].factors(mode)
        owner = plain.get_submodule(site.layer)
        with torch.no_grad():
            for name, axis in site.edits:
                value = owner.get_parameter(name)
                shape = [1] * value.dim()
                shape[axis] = -1
                value.mul_(factor.to(value.device, value.dtype).reshape(shape))
    for path in layers:
        _take_out(plain, path)
    got = _logits(plain, probe, None)
    if not torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * float(1 + wanted.abs().max())):
        raise ModelRejected(
            f"no weights do what example-tied dropout does here in mode {mode!r}",
            hint="Mode drop, and dropout directly behind a convolution, norm or linear layer, always work.",
        )
    return plain


def _logits(model: nn.Module, probe: Tensor, mode: Mode | None) -> Tensor:
    with _evaluating(model), set_mode(model, mode), torch.no_grad():
        result = model(probe)
    return result[0] if isinstance(result, tuple | list) else result  # type: ignore[no-any-return]


@contextmanager
def set_mode(model: nn.Module, mode: Mode | None) -> Iterator[None]:
    """Every example-tied dropout of the network in one mode while the body runs."""
    layers = [m for m in model.modules() if isinstance(m, ExampleTiedDropout)]
    saved = [layer.mode for layer in layers]
    try:
        for layer in layers:
            layer.mode = mode
        yield
    finally:
        for layer, before in zip(layers, saved, strict=True):
            layer.mode = before


def feeding(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Site]:
    """By path of the dropout layer, the site whose weights scale what goes through it; none where there is none."""
    with _evaluating(model), bypassed(model):
        sites = find_sites(model, forward, images)
        seen = record(model, forward, images)
    found, outputs = {}, seen.outputs
    for path, layer in layers_of(model).items():
        for site in sites:
            known = site.layer in outputs and path in outputs
            feeds = site.layer == path or (known and arrives(seen, outputs[site.layer], outputs[path]))
            if feeds and site.side == "output" and _elements(site) == layer.channels:
                found[path] = site
    return found


def _take_out(model: nn.Module, path: str) -> None:
    module = model.get_submodule(path)
    if isinstance(module, _Tied):
        del module.tied_dropout
        module.__class__ = cast("Any", _plain_class(module))
        return
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())


def _probe(model: nn.Module, input_size: tuple[int, int, int] | None) -> Tensor:
    """Three random images that the network takes.

    Raises:
        UsageError: it takes none of the sizes that may be its own.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    sizes = [input_size] if input_size is not None else _sizes(model)
    generator = torch.Generator().manual_seed(0)
    reason = "no size is known"
    for size in sizes:
        images = torch.rand(3, *size, generator=generator).to(like.device, like.dtype)
        try:
            with _evaluating(model), bypassed(model), torch.no_grad():
                model(images)
        except Exception as error:  # a network says "not my size" in its own words
            reason = f"{type(error).__name__}: {clean(error)}"
            continue
        return images
    raise UsageError(
        f"the network runs on none of the image sizes tried ({reason})",
        hint="Give it: input_size=(channels, height, width).",
    )


def _sizes(model: nn.Module) -> list[tuple[int, int, int]]:
    """Sizes that may be the network's own: declared by it, then common ones."""
    sizes = []
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        declared = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        if isinstance(declared, tuple | list) and len(declared) == 3:
            sizes.append((int(declared[0]), int(declared[1]), int(declared[2])))
    convolutions = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    channels = next(convolutions, sizes[0][0] if sizes else 3)
    return list(dict.fromkeys([*((channels, h, w) for _, h, w in sizes), *((channels, s, s) for s in PROBE_SIZES)]))


# ---- in checkpoints ------------------------------------------------------------------------------------------------


def split_rules(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict in two: the network's own tensors, and by layer the rule of the dropout it is tied to."""
    end = f".{CHILD}.{RULE}"
    rules = {name.removesuffix(end): value for name, value in tensors.items() if name.endswith(end)}
    return {name: value for name, value in tensors.items() if not name.endswith(end)}, rules


def restore(model: nn.Module, rules: Mapping[str, Tensor]) -> None:
    """Tie the layers of a network that was built plain, as the checkpoint's `rules` say.

    Raises:
        ModelRejected: a rule is none, or its layer does not exist.
    """
    for path, rule in rules.items():
        values = rule.tolist() if rule.dtype == torch.int64 and rule.shape == (5,) else []
        module = dict(model.named_modules()).get(path)
        if module is None or not _is_rule(values):
            raise ModelRejected(
                f"the checkpoint's example-tied dropout at {clean(path)!r} is damaged",
                hint="Save the state dict of the network that add_tied_dropout returned.",
            )
        layer = ExampleTiedDropout(values[0], axis=None if values[1] < 0 else values[1])
        layer.rule.copy_(rule)
        _tie(module, layer)


def _is_rule(values: Sequence[int]) -> bool:
    if len(values) != 5:
        return False
    channels, axis, generalizing, threshold, _ = values
    widest = 1 << 20
    return 0 < channels <= widest and -1 <= axis < 8 and 0 <= generalizing <= channels and 0 <= threshold <= 1 << 32
