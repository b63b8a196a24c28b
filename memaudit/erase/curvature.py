"""K-FAC factors of a network's layers, and weights with only their high-curvature components kept.

What a network learned of many examples lies in directions of high curvature of the loss; what it memorized of one
lies in directions that are flat on average (Merullo et al. 2025, "From memorization to reasoning in the spectrum of
loss curvature"). The factors are those of Martens and Grosse 2015, for convolutions of Grosse and Martens 2016: A, the
second moment of a layer's inputs, and G, of the gradients at its outputs, with labels drawn from the network's own
predictions. Neither true labels nor the flagged examples are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.hooks import hooked

Layer = nn.Conv2d | nn.Linear
# Widest factor; the inputs or outputs of a wider layer are cut into blocks that are taken as independent.
WIDEST = 4608
# Positions of one image or sequence that enter the factors, drawn anew for each batch.
POSITIONS = 64
# Bytes of factors that are gathered in one pass over the data; more layers take more passes.
MEMORY = 2**30


@dataclass(frozen=True)
class Block:
    """A part of one layer's weight matrix in the eigenbasis of its curvature.

    Attributes:
        rows, columns: where the part is in the weight as `(out, in / groups * kernel)`.
        outputs, inputs: eigenvectors `(o, o)` of G and `(d, d)` of A, as columns.
        curvature: `(o, d)` of each component: products of eigenvalues.
        weight: `(o, d)` the part itself in that basis.
    """

    rows: slice
    columns: slice
    outputs: Tensor
    inputs: Tensor
    curvature: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Spectrum:
    """One layer's weight in the eigenbasis of its curvature, block by block."""

    layer: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    def kept(self, rho: float) -> Tensor:
        """The weight `shape`, with the fewest components that hold a share `rho` of the curvature."""
        return self.rebuilt(self._strongest(rho))

    def components(self, rho: float) -> float:
        """Share of the components that `kept` keeps."""
        return 1 - self.cut(rho) / sum(b.curvature.numel() for b in self.blocks)

    def cut(self, rho: float) -> int:
        """How many components `kept` takes out."""
        return sum(int((~mask).sum()) for mask in self._strongest(rho))

    def shuffled(self, generator: torch.Generator) -> Spectrum:
        """The same curvatures dealt to random components: as many are kept at every share, but any."""
        every = torch.cat([b.curvature.flatten() for b in self.blocks])
        dealt = every[torch.randperm(len(every), generator=generator).to(every.device)]
        parts = torch.split(dealt, [b.curvature.numel() for b in self.blocks])
        blocks = zip(self.blocks, parts, strict=True)
        return replace(self, blocks=tuple(replace(b, curvature=p.reshape(b.curvature.shape)) for b, p in blocks))

    def _strongest(self, rho: float) -> list[Tensor]:
        every = torch.cat([b.curvature.flatten() for b in self.blocks])
        order = every.sort(descending=True).values.cpu().double()
        share = order.cumsum(0) / order.sum().clamp_min(torch.finfo(torch.float64).tiny)
        count = int((share < rho).sum()) + 1
        least = float(order[min(count, len(order)) - 1]) if rho > 0 else float("inf")
        return [b.curvature >= least for b in self.blocks]

    def rebuilt(self, keep: Sequence[Tensor]) -> Tensor:
        """The weight with only the components `keep`, per block `(o, d)` bool."""
        out = self.blocks[0].weight.new_empty(self.shape[0], max(b.columns.stop for b in self.blocks))
        for block, mask in zip(self.blocks, keep, strict=True):
            out[block.rows, block.columns] = block.outputs @ (block.weight * mask) @ block.inputs.T
        return out.reshape(self.shape)


def editable(module: nn.Module) -> dict[str, Layer]:
    """Convolutions and linear layers with a weight of their own, by path, in the order the module tree has them."""
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        path: m
        for path, m in module.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and owners.get(id(m._parameters.get("weight")), 0) == 1
    }


# Fast path; its slow twin: tests/twins.py.
def spectra(
    evaluator: Evaluator,
    panel: Panel,
    layers: Mapping[str, Layer],
    generator: torch.Generator,
    memory: int = MEMORY,
) -> Iterator[Spectrum]:
    """The layers' spectra, from one pass over `panel` for as many layers as fit in `memory` at a time.

    Args:
        panel: examples that the network was not trained on; their labels are not looked at.
        generator: draws the labels.
    """
    for part in _fitting(layers, memory):
        gathered = {path: _Gather(layer) for path, layer in part.items()}
        _gather(evaluator, panel, part, gathered, generator)
        for path, layer in part.items():
            yield gathered.pop(path).spectrum(path, layer)


def _fitting(layers: Mapping[str, Layer], memory: int) -> Iterator[dict[str, Layer]]:
    part: dict[str, Layer] = {}
    size = 0
    for path, layer in layers.items():
        need = _Gather.bytes_for(layer)
        if part and size + need > memory:
            yield part
            part, size = {}, 0
        part[path] = layer
        size += need
    if part:
        yield part


@dataclass(frozen=True)
class Factors:
    """A pass: each layer's inputs and the gradients at its outputs, with drawn labels, added to what is gathered."""

    layers: Mapping[str, Layer]
    gathered: Mapping[str, _Gather]
    generator: torch.Generator

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> None:
        outputs: list[tuple[str, Tensor, Tensor]] = []

        def at(path: str) -> Callable[..., Tensor]:
            def see(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                if not output.requires_grad:  # nothing before it does: token ids have no gradient
                    output = output.detach().requires_grad_()
                outputs.append((path, args[0].detach(), output))
                return output.clone()  # what follows may write into it

            return see

        with torch.enable_grad(), hooked(after=[(layer, at(path)) for path, layer in self.layers.items()]):
            logits = network.forward(inputs.detach().requires_grad_(inputs.is_floating_point()))
            shares = logits.detach().float().softmax(1).cpu()
            drawn = torch.multinomial(shares, 1, generator=self.generator).squeeze(1)
            loss = F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
        gradients = torch.autograd.grad(loss, [o for _, _, o in outputs], allow_unused=True)
        for (path, given, _), gradient in zip(outputs, gradients, strict=True):
            if gradient is not None:
                self.gathered[path].add(given, gradient, self.generator)


def _gather(
    evaluator: Evaluator,
    panel: Panel,
    layers: Mapping[str, Layer],
    gathered: Mapping[str, _Gather],
    generator: torch.Generator,
) -> None:
    evaluator.each(panel.examples, panel.rows, Factors(layers, gathered, generator), backward=1)


class _Gather:
    """Sums of a a^T and g g^T of one layer, per group and block of at most `WIDEST`."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.groups, self.out, self.inside = _sizes(layer)
        self.columns, self.rows = _cuts(self.inside), _cuts(self.out)
        like = layer.weight
        self.a = [like.new_zeros(self.groups, c.stop - c.start, c.stop - c.start) for c in self.columns]
        self.g = [like.new_zeros(self.groups, r.stop - r.start, r.stop - r.start) for r in self.rows]

    @staticmethod
    def bytes_for(layer: Layer) -> int:
        groups, out, inside = _sizes(layer)
        return 4 * groups * sum(int(c.stop - c.start) ** 2 for c in (*_cuts(inside), *_cuts(out)))

    def add(self, given: Tensor, gradient: Tensor, generator: torch.Generator) -> None:
        """One batch: the layer's input and the loss's gradient by its output."""
        inputs, outputs = _unfolded(self.layer, given, self.groups), _positions(self.layer, gradient, self.groups)
        if inputs.shape[2] > POSITIONS:
            drawn = torch.randperm(inputs.shape[2], generator=generator)[:POSITIONS].to(inputs.device)
            inputs, outputs = inputs[:, :, drawn], outputs[:, :, drawn]
        inputs, outputs = inputs.flatten(1, 2), outputs.flatten(1, 2)
        for total, cut in zip(self.a, self.columns, strict=True):
            part = inputs[..., cut]
            total.baddbmm_(part.mT, part)
        for total, cut in zip(self.g, self.rows, strict=True):
            part = outputs[..., cut]
            total.baddbmm_(part.mT, part)

    def spectrum(self, path: str, layer: Layer) -> Spectrum:
        weight = layer.weight.detach().reshape(self.groups, self.out, self.inside)
        blocks = []
        for group in range(self.groups):
            inputs = [_eigen(a[group]) for a in self.a]
            for rows, g in zip(self.rows, self.g, strict=True):
                strong, outward = _eigen(g[group])
                for columns, (weights, inward) in zip(self.columns, inputs, strict=True):
                    blocks.append(
                        Block(
                            slice(group * self.out + rows.start, group * self.out + rows.stop),
                            columns,
                            outward,
                            inward,
                            strong[:, None] * weights[None, :],
                            outward.T @ weight[group, rows, columns] @ inward,
                        )
                    )
        return Spectrum(path, tuple(layer.weight.shape), tuple(blocks))


def _sizes(layer: Layer) -> tuple[int, int, int]:
    """Groups, outputs per group, and inputs per output (channels times kernel)."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return groups, layer.weight.shape[0] // groups, layer.weight[0].numel()


def _cuts(width: int) -> list[slice]:
    count = -(-width // WIDEST)
    edges = [width * n // count for n in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _unfolded(layer: Layer, given: Tensor, groups: int) -> Tensor:
    """`(groups, N, positions, inputs)`: what each output of the layer was computed from."""
    if isinstance(layer, nn.Linear):
        return given.reshape(1, len(given), -1, given.shape[-1])
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        given = F.pad(given, layer._reversed_padding_repeated_twice, mode=mode)
        padding: Any = 0
    else:
        padding = layer.padding
    patches = F.unfold(given, layer.kernel_size, layer.dilation, padding, layer.stride)  # (N, channels * kernel, L)
    split = patches.reshape(len(given), groups, -1, patches.shape[-1])
    return split.permute(1, 0, 3, 2)


def _positions(layer: Layer, gradient: Tensor, groups: int) -> Tensor:
    """`(groups, N, positions, outputs)`: the gradient at each output."""
    if isinstance(layer, nn.Linear):
        return gradient.reshape(1, len(gradient), -1, gradient.shape[-1])
    split = gradient.reshape(len(gradient), groups, gradient.shape[1] // groups, -1)
    return split.permute(1, 0, 3, 2)


def _eigen(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(factor.cpu().double())
    return values.clamp_min(0).to(factor), vectors.to(factor)
