"""What must hold of a network and of the examples before any figure is believed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memaudit.data import ExampleSet
from memaudit.engine.answers import Answers, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import BugError, DataRejected, PremiseBroken
from memaudit.findings import ReportWarning
from memaudit.intervals import wilson
from memaudit.pipeline.class_order import check_class_order
from memaudit.text import clean

# An accuracy is plausible when it is above chance by this share of the room above chance.
ABOVE_CHANCE = 0.2
# Below this share of that room, figures are refused: half of the least that a trained network should have.
LEVEL = 0.25
# Share of the reference that may be given to outputs that no class of the data has.
SPARE_SHARE = 0.005
# Kernels may sum in another order for another batch size: relative to the largest logit, float32.
BATCH_TOLERANCE = 1e-3
# What to look at where a network does no better than chance.
AT_CHANCE = "Check the class order (--class-order), preprocessing (--mean, --std, --input-size) and model."


def uncuttable(architecture: str) -> PremiseBroken:
    """The error for a network without a unit that can be searched."""
    return PremiseBroken(
        f"no layer of {architecture} can be cut so that a weight edit does the same",
        hint="memaudit follows convolutions, linear layers and attention that run as modules of their own.",
    )


def check_network(evaluator: Evaluator, examples: ExampleSet) -> None:
    """Every figure rests on these: eval mode, finite weights, repeatable logits, examples independent of batch-mates.

    Args:
        examples: some images; the first 8 are used.

    Raises:
        ModelRejected: it does not run on this device.
        PremiseBroken: one does not hold; the message names the likely cause.
        BugError: the forward pass changes the model's buffers.
    """
    module = evaluator.adapter.module
    training = [name or type(module).__name__ for name, m in module.named_modules() if m.training]
    if training:
        raise PremiseBroken(
            f"{len(training)} modules are in training mode, first {clean(training[0])}",
            hint="The adapter must return a network whose .eval() reaches every sub-module.",
        )
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise PremiseBroken(f"the weights are not finite: {clean(name)} holds NaN or infinity")
    before = {name: value.detach().clone() for name, value in module.named_buffers()}
    few = examples.subset(range(min(8, len(examples))))
    with evaluator.adapter.blamed(len(few)):
        first, again = evaluator.logits(few), evaluator.logits(few)
    changed = [name for name, value in module.named_buffers() if not torch.equal(value, before[name])]
    if changed:
        raise BugError(
            f"the forward pass changed the buffer {clean(changed[0])}: the adapter's forward is not in eval mode"
        )
    scale = float(first.nan_to_num().abs().max()) + 1.0
    if not torch.equal(first.nan_to_num(), again.nan_to_num()):
        gap = float((first - again).abs().max())
        raise PremiseBroken(
            f"two passes over the same images differ (by up to {gap:.2g})",
            hint="Likely dropout, noise or sampling that eval() does not switch off.",
        )
    alone = torch.cat([evaluator.logits(few, [i]) for i in range(len(few))])
    gap = float((first - alone).nan_to_num().abs().max())
    if gap > BATCH_TOLERANCE * scale:
        raise PremiseBroken(
            f"an image's logits depend on the other images of its batch (by up to {gap:.2g})",
            hint="Likely BatchNorm in training mode, or a forward that mixes the batch.",
        )


def check_labels(flagged: ExampleSet, reference: ExampleSet, classes: int) -> list[ReportWarning]:
    """Every label is one of the network's classes; a warning where the reference has none of a flagged label.

    Raises:
        DataRejected: a label is out of range.
    """
    for name, examples in (("flagged", flagged), ("reference", reference)):
        wrong = [e for e in examples.examples if e.label >= classes]
        if wrong:
            raise DataRejected(
                f"{len(wrong)} {name} labels are out of range: {wrong[0].source} has label {wrong[0].label}, "
                f"the model has {classes} classes",
                hint="Check --num-classes and the class order.",
            )
    missing = set(flagged.labels.tolist()) - set(reference.labels.tolist())
    if not missing:
        return []
    said = f"{len(missing)} flagged labels have no reference example; their atypicality means little"
    return [ReportWarning(code="MEM103", message=said)]


def check_accuracy(
    said: Answers, labels: Tensor, class_names: tuple[str, ...], fitted: Tensor | None = None, accepted: bool = False
) -> list[ReportWarning]:
    """The network does on the reference what it was trained for; a warning where it does so badly.

    Args:
        said: of the reference; labels: `(R,)`.
        fitted: `(F,)` bool: which flagged labels the network gives. One that gives them is fed as it was trained.
        accepted: the user named an accuracy that is enough, and so knows of a weak network.

    Raises:
        PremiseBroken: the accuracy is near chance, below `LEVEL`, or much better with the classes in another order.
    """
    check_class_order(class_names, said.given, labels)
    warnings = check_spare(class_names, said.given, said.classes)
    given_right, classes = predicted(said.margins), said.classes
    right, count = int(given_right.sum()), len(labels)
    low, high = wilson(right, count)
    if near_chance(given_right, labels, classes):
        raise PremiseBroken(
            f"reference accuracy is {right / count:.3f}, near chance ({1 / classes:.3f} for {classes} classes)",
            hint=AT_CHANCE,
        )
    level = 1 / classes + LEVEL * (1 - 1 / classes)
    given = 0.0 if fitted is None else wilson(int(fitted.sum()), len(fitted))[0]
    if not accepted and high < level and given < level:
        raise PremiseBroken(
            f"reference accuracy is {right / count:.3f}, below {level:.3f}, a quarter of the way from chance to always "
            "right: figures of a network that is not given what it was trained on mean nothing",
            hint="Check the class order (--class-order) and preprocessing (--mean, --std, --input-size, "
            "--channel-order); if it is that weak, say so: "
            f"--min-reference-accuracy {math.floor(100 * right / count) / 100:g}",
        )
    if low >= 0.5:
        return warnings
    shown = f"reference accuracy is only {right / count:.3f}: check class order and preprocessing"
    return [*warnings, ReportWarning(code="MEM104", message=shown)]


def near_chance(right: Tensor, labels: Tensor, classes: int) -> bool:
    """Whether a network does on the reference what one would that learned nothing, or is fed with nonsense.

    Args:
        right: `(n,)` bool: which labels it gives.
        labels: of these images, or of all that they were drawn from.
    """
    by_class = labels.bincount()
    common = int(by_class.max()) / len(labels) if int((by_class > 0).sum()) > 1 else 0.0
    low, high = wilson(int(right.sum()), len(right))
    return high < 1 / classes + ABOVE_CHANCE * (1 - 1 / classes) and low <= max(1 / classes, common) * 1.5


def check_spare(class_names: tuple[str, ...], predictions: Tensor, classes: int) -> list[ReportWarning]:
    """A warning where the network has more outputs than the data has classes, as timm's default of 1000 leaves it.

    Raises:
        PremiseBroken: it predicts the others as well: then the data names another selection of its classes.
    """
    spare = classes - len(class_names)
    if not class_names or spare <= 0:
        return []
    used = int((predictions >= len(class_names)).sum())
    if used > SPARE_SHARE * len(predictions):
        raise PremiseBroken(
            f"the data names {len(class_names)} classes, the network has {classes} and gives {used} of "
            f"{len(predictions)} reference images to the others; a label would name the wrong class",
            hint="list all of the network's classes, one per line in label order, in a file: --class-order FILE",
        )
    said = f"the network has {classes} outputs and the data {len(class_names)} classes; it never predicts the others"
    return [ReportWarning(code="MEM913", message=said)]
