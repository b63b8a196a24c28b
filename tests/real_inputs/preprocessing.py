"""What the network ends in, what its checkpoint says, and what its pictures went through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.real_inputs.harness import Case, Expected, Ran, scan
from tests.real_inputs.pictures import CODE, Fresh, Net, fit, pictures, placed, save, write_code, write_model

FLAGGED, TRAIN = 12, 120
NAMES = ("ant", "bee", "cat")
DATA = ("--flagged", "flagged", "--reference", "val")
MODEL = ("model.safetensors", "--adapter", CODE, "--input-size", "3,16,16")


def write(
    root: Path,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    names: Sequence[str] = NAMES,
    places: Sequence[int] = (0, 1, 2),
    outputs: int = 3,
    network: Callable[[], nn.Module] = Net,
) -> nn.Module:
    """A network trained on `prepare` of pictures in [0, 1], with class `k` at output `places[k]`; and its folders."""
    x, truth = pictures()
    labels = truth.copy()
    labels[:FLAGGED] = (labels[:FLAGGED] + 1) % 3
    for n in range(FLAGGED):
        save(root / "flagged" / names[int(labels[n])] / f"{n}.png", x[n])
    for n in range(300, 500):
        save(root / "val" / names[int(truth[n])] / f"{n}.png", x[n])
    inputs = prepare(torch.tensor(x[:TRAIN]).permute(0, 3, 1, 2).float() / 255)
    return placed(fit(inputs, labels[:TRAIN].tolist(), network=network), places, outputs)


def all_fitted(ran: Ran) -> None:
    fitted = sum(f.fitted for f in ran.report.findings)
    assert (len(ran.report.findings), fitted) == (FLAGGED, FLAGGED), f"{fitted} fitted"


def all_known(ran: Ran) -> None:
    accuracy = ran.report.data.reference.accuracy
    assert accuracy is not None
    assert accuracy > 0.95, accuracy


def trained(prepare: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Callable[[Path], None]:
    return lambda root: write_model(root, write(root, prepare))


def ending(body: str) -> Callable[[Path], None]:
    """The factory returns the trained network with something after its logits."""

    def build(root: Path) -> None:
        write_model(root, write(root))
        write_code(root, body)

    return build


def with_logits(ran: Ran) -> None:
    """As the same network audited on its logits: margins, not differences of probabilities."""
    all_fitted(ran)
    assert "logits below it" in ran.warned("MEM912"), "no word of it"
    assert max(f.before.margin for f in ran.report.findings) > 1.5


def wrapped(call: str) -> str:
    return f"class Ending(Net):\n    def forward(self, x):\n        return {call}\n\nreturn Ending()"


def checkpoint(**beside: object) -> Callable[[Path], None]:
    """Outputs in an order that no folder shows, said in the checkpoint."""

    def build(root: Path) -> None:
        module = write(root, places=(1, 2, 0))  # cat is output 0, ant 1, bee 2
        write_code(root)
        torch.save({"state_dict": module.state_dict(), **beside}, root / "model.pt")

    return build


def thousand(root: Path) -> None:
    """timm's default of 1000 outputs, trained on three folders."""
    module = write(root, outputs=1000)
    write_code(root, "return Net(classes=1000)")
    from safetensors.torch import save_file

    save_file(module.state_dict(), root / "model.safetensors")


def permuted(root: Path) -> None:
    write_model(root, write(root, places=(1, 2, 0)))
    (root / "order.txt").write_text("cat\nant\nbee\n")


def arrays(root: Path) -> None:
    write_model(root, write(root))
    x, truth = pictures()
    np.savez(root / "flagged.npz", x=x[:FLAGGED], y=(truth[:FLAGGED] + 1) % 3)
    np.savez(root / "val.npz", x=x[300:500], y=truth[300:500])


def swapped_hues(root: Path) -> None:
    """Ant is red and cat is blue; a network of colours that takes them in the other order calls each the other."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(TRAIN + 120, 3, 16, 16, generator=generator) * 0.6, torch.arange(TRAIN + 120) % 3
    images[torch.arange(len(images)), labels] += 0.4
    said = torch.where(torch.arange(len(images)) < FLAGGED, (labels + 1) % 3, labels)
    for n, image in enumerate(images.mul(255).to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        if n < FLAGGED or n >= TRAIN:
            save(root / ("flagged" if n < FLAGGED else "val") / NAMES[int(said[n])] / f"{n}.png", image)
    seen = images[:TRAIN].mul(255).to(torch.uint8).flip(1).float() / 255
    write_model(root, fit(seen, labels[:TRAIN].tolist()))


def weak(root: Path) -> None:
    """Trained on noise: nothing raises its accuracy."""
    generator = torch.Generator().manual_seed(1)
    write_model(root, write(root, lambda x: torch.rand(x.shape, generator=generator)))


def model(name: str) -> tuple[str, ...]:
    return (name, *MODEL[1:])


IMAGENET = (torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
FITTED = Expected(0, holds=all_fitted)
CASES = [
    Case("preparation", "pictures in [0, 1]", trained(), scan(*MODEL, *DATA), FITTED),
    Case(
        "preparation",
        "mean and std said",
        trained(lambda x: (x - 0.5) / 0.5),
        scan(*MODEL, *DATA, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"),
        FITTED,
    ),
    Case(
        "preparation",
        "values from 0 to 255, not said",
        trained(lambda x: 255 * x - 128),
        scan(*MODEL, *DATA, "--mean", "0.501961,0.501961,0.501961", "--std", "0.00392157,0.00392157,0.00392157"),
        FITTED,
    ),
    Case(
        "preparation",
        "blue, green, red, not said",
        lambda root: write_model(root, write(root, lambda x: x.flip(1), network=Fresh)),
        scan(*MODEL, *DATA),
        Expected(3, says="MEM909", then=("--channel-order", "bgr"), holds=all_fitted),
    ),
    Case(
        "preparation",
        "blue, green, red, which another order of the classes explains as well",
        swapped_hues,
        scan(*MODEL, *DATA),
        Expected(3, says="MEM902", then=("--channel-order", "bgr"), holds=all_known),
    ),
    Case(
        "preparation",
        "ends in softmax(1)",
        ending(wrapped("super().forward(x).softmax(1)")),
        scan(*MODEL, *DATA),
        Expected(0, holds=with_logits),
    ),
    Case(
        "preparation",
        "ends in nn.Softmax",
        ending(wrapped("nn.Softmax(dim=1)(super().forward(x))")),
        scan(*MODEL, *DATA),
        Expected(0, holds=with_logits),
    ),
    Case(
        "preparation",
        "ends in log_softmax",
        ending(wrapped("F.log_softmax(super().forward(x), 1)")),
        scan(*MODEL, *DATA),
        FITTED,
    ),
    Case(
        "preparation",
        "ends in a sigmoid for each class",
        ending(wrapped("super().forward(x).sigmoid()")),
        scan(*MODEL, *DATA),
        Expected(0, holds=with_logits),
    ),
    Case(
        "preparation",
        "logits (N, C, 1, 1)",
        ending(wrapped("super().forward(x)[..., None, None]")),
        scan(*MODEL, *DATA),
        FITTED,
    ),
    Case(
        "preparation",
        "class_to_idx in the checkpoint",
        checkpoint(class_to_idx={"cat": 0, "ant": 1, "bee": 2}),
        scan(*model("model.pt"), *DATA),
        FITTED,
    ),
    Case(
        "preparation",
        "classes in the checkpoint",
        checkpoint(classes=["cat", "ant", "bee"]),
        scan(*model("model.pt"), *DATA),
        FITTED,
    ),
    Case(
        "preparation",
        "class_names in the checkpoint",
        checkpoint(class_names=("cat", "ant", "bee")),
        scan(*model("model.pt"), *DATA),
        FITTED,
    ),
    Case(
        "preparation",
        "an order of classes that nothing says",
        permuted,
        scan(*MODEL, *DATA),
        Expected(3, says="MEM902", then=("--class-order",), then_code=2),
    ),
    Case(
        "preparation", "that order, said in a file", permuted, scan(*MODEL, *DATA, "--class-order", "order.txt"), FITTED
    ),
    Case("preparation", "1000 outputs, three folders", thousand, scan(*MODEL, *DATA), FITTED),
    Case(
        "preparation",
        "arrays of one shape say the input size",
        arrays,
        scan("model.safetensors", "--adapter", CODE, "--flagged", "flagged.npz", "--reference", "val.npz"),
        FITTED,
    ),
    Case(
        "preparation",
        "a network that was never given such pictures",
        weak,
        scan(*MODEL, *DATA),
        Expected(3, says="reference accuracy is"),
    ),
]
