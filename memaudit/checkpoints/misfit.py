"""Why a checkpoint's names are not a network's: what most likely happened to it, and what to do about that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from memaudit.text import clean

STATISTICS = ("running_mean", "running_var")
ANOTHER = "the architecture is another one; name it with --arch, or give a factory with --adapter file.py:name"


def diagnose(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], missing: Sequence[str], unexpected: Sequence[str]
) -> tuple[str, str]:
    """What is the matter, in words that continue a message (or none), and the hint.

    Args:
        wanted: the network's tensors by name; tensors: the checkpoint's.
        missing: names that only the network has; unexpected: that only the checkpoint has.
    """
    if missing and not unexpected:
        if all(n.endswith(STATISTICS) for n in missing):
            return (
                "; they are the running statistics of its normalisation, without which it cannot be run",
                "where it was trained, save model.state_dict(): model.parameters() leaves the statistics out",
            )
        if all("." not in n and not isinstance(wanted[n], nn.Parameter) for n in missing):
            return (
                "; they are buffers of the module around the network",
                "keep them out of its state: register_buffer(name, value, persistent=False)",
            )
    agreeing = sum(n in tensors and tensors[n].shape == t.shape for n, t in wanted.items())
    if 2 * agreeing < len(wanted):
        return "", ANOTHER
    nearest = f"; the other {agreeing:,} agree"
    if replaced := _replaced(wanted, tensors, missing, unexpected):
        layer, place = replaced
        before = ", ".join(["..."] * place)
        sequence = f"torch.nn.Sequential({before}{', ' if before else ''}net.{clean(layer)})"
        how = "build it so, with training's layers in place of the dots, in a factory (--adapter file.py:build)"
        return (
            f"{nearest}: the layer {clean(layer)!r} was replaced by a sequence in which it is number {place}",
            f"{how}: net.{clean(layer)} = {sequence}",
        )
    if not missing:
        return (
            f"{nearest}: the file holds more than this network",
            "save the network's own tensors alone, without these names",
        )
    return (
        nearest,
        "build the network as training did in a factory: --adapter file.py:build; the names show what differs",
    )


def _replaced(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], missing: Sequence[str], unexpected: Sequence[str]
) -> tuple[str, int] | None:
    """`(layer, number)` where the file has `layer.<number>.*` of the same shapes for every missing `layer.*`."""
    layers, numbers = {n.rpartition(".")[0] for n in missing}, {n.rpartition(".")[0] for n in unexpected}
    if len(layers) != 1 or len(numbers) != 1:
        return None
    layer, inside = layers.pop(), numbers.pop()
    parent, _, number = inside.rpartition(".")
    ends = {n.rpartition(".")[2] for n in missing}
    same = ends == {n.rpartition(".")[2] for n in unexpected}
    if parent != layer or not number.isdecimal() or not same:
        return None
    # The number of classes may not be known without the layer's own name: only what goes in must agree.
    fits = all(wanted[f"{layer}.{e}"].shape[1:] == tensors[f"{inside}.{e}"].shape[1:] for e in ends)
    return (layer, int(number)) if fits else None
