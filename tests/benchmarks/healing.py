"""How many of all changed labels are healed when a share of them is known: ours beside published ways to unlearn.

    python -m tests.benchmarks.healing --data DIR --model FILE [--known 1 0.5 0.1] [--steps 300] [--pattern]
        [--method "retrained from nothing" ...] [--out FILE.md]

The protocol of REM (Schoepf et al. 2026): 1,000 of the training labels are changed, a share of these is known, and
the rest stays among the examples that are kept. `--model` is the last checkpoint of `python -m tests.benchmarks.cifar`.
Utility is the accuracy on test images, healed the share of all changed images that get their true label back. Every
method trains the last stage and the classifier, for as many steps of 64 kept examples; what comes before is as it was.
Ours are shown these moved, mirrored and zoomed into, as `erase` does it; published methods as they are. With wrong
labels: as with `erase --wrong-labels`, all known ones in place of a part of them.
`retrained from nothing` is another network, which learned the kept examples alone; it takes as long as all the others.
Relearning probe: how many steps of 64 known labels it takes until half of these are given again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data.examples import ExampleSet
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.train import AdamW, Descent
from memaudit.engine.views import VIEWS, View
from memaudit.erase.finetune import BATCH, RATE, WARM
from memaudit.erase.ground import Edit, Ground, first_uses
from memaudit.erase.relearn import Relearning, supported
from memaudit.network.layer_groups import LayerGroup
from memaudit.network.scoped import holding, needing_gradients
from tests.benchmarks.cifar import build, change_labels, load, normalise, train
from tests.benchmarks.erasing import cached, seen_by_tail
from tests.benchmarks.search import example_set, preprocess
from tests.benchmarks.table import options

# How much a step away from the known labels counts beside one towards the others, and SCRUB's share of such steps.
ASCENT, SCRUB = 0.1, 1 / 3
# Epochs and rate of the network that learns from nothing, as the audited one did; steps after which the probe gives up.
EPOCHS, LEARNING_RATE = 16, 0.2
MOST_STEPS = 300


@dataclass(frozen=True)
class Bench:
    """A network's last stage, and who is asked what.

    Attributes:
        training: with the labels that were given; `truth` `(N,)`.
        changed: rows of the training examples; `known` are those of them that are handed over.
        images: the training and the test examples as any network takes them.
        half: networks are trained with products in bfloat16.
    """

    evaluator: Evaluator
    training: ExampleSet
    truth: Tensor
    changed: list[int]
    known: list[int]
    test: ExampleSet
    steps: int
    images: tuple[ExampleSet, ExampleSet]
    width: int
    half: bool

    @property
    def ground(self) -> Ground:
        """What the tool has: known labels, and all others as a reference."""
        known = set(self.known)
        order = torch.randperm(len(self.training), generator=generator_for(0, "healing", "kept")).tolist()
        kept = Panel(self.training, [row for row in order if row not in known])
        use, known = first_uses(self.evaluator, self.training), Panel(self.training, self.known)
        return Ground(self.evaluator, kept, known, kept, use, shown=shown)

    @property
    def plain(self) -> Ground:
        """The same, but all examples are shown as they are."""
        return replace(self.ground, shown=None)

    @property
    def told(self) -> Ground:
        """The same, but clean steps learn that the known labels are wrong."""
        return replace(self.ground, wrong=Panel(self.training, self.known))

    @property
    def everything(self) -> LayerGroup:
        """All parameters of the last stage and the classifier."""
        parameters = dict(self.evaluator.adapter.module.named_parameters())
        return LayerGroup("last stage", tuple(parameters), sum(p.numel() for p in parameters.values()))


def shown(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Of the views of each image that lie along the channels `(n, views x channels, height, width)`, one that is drawn.

    As `memaudit.engine.views.Drawn` draws them of images.
    """
    views = inputs.unflatten(1, (1 + len(VIEWS), -1))
    return views[torch.arange(len(views)), torch.randint(1 + len(VIEWS), (len(views),), generator=generator)]


@dataclass(frozen=True)
class Row:
    """One method with one share known."""

    method: str
    known: float
    utility: float
    healed: float
    left: float
    back: int | None
    seconds: float

    @property
    def product(self) -> float:
        """Of utility and healed, as percent."""
        return 100 * self.utility * self.healed


Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]


def descended(bench: Bench, loss_of: Callable[[int], Loss]) -> Edit:
    """The network after the steps: of a loss of kept and of known examples, at the rate of our clean steps."""
    module, generator = deepcopy(bench.evaluator.adapter.module), generator_for(0, "healing", "steps")
    kept, known = list(bench.ground.clean.rows), bench.known
    module.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(bench.steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / (WARM * bench.steps))
        (x, y), (away, wrong) = (
            (bench.training.batch(rows), bench.training.labels[rows])
            for rows in (drawn(kept, generator), drawn(known, generator))
        )
        optimizer.zero_grad()
        loss_of(step)(module, x, y, away, wrong).backward()
        optimizer.step()
    return {n: t.detach() for n, t in module.eval().state_dict().items()}


def drawn(rows: list[int], generator: torch.Generator) -> list[int]:
    return [rows[i] for i in torch.randperm(len(rows), generator=generator)[:BATCH].tolist()]


def finetuned(bench: Bench) -> Edit:
    """Steps on the kept examples, with the weights of the second half averaged as ours are."""
    return bench.plain.mended({}, 0, bench.steps)


def finetuned_on_views(bench: Bench) -> Edit:
    """Ours: the same steps, which show views of the kept examples."""
    return bench.ground.mended({}, 0, bench.steps)


def finetuned_away(bench: Bench) -> Edit:
    """Ours: these steps learn that the known labels are wrong, too."""
    return bench.told.mended({}, 0, bench.steps)


def ascended(bench: Bench) -> Edit:
    """NegGrad+ (Kurmanji et al. 2023, section 3): down the loss of the kept examples, up that of the known labels."""

    def loss(module: nn.Module, x: Tensor, y: Tensor, away: Tensor, wrong: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y) - ASCENT * F.cross_entropy(module(away), wrong)

    return descended(bench, lambda _: loss)


def scrubbed(bench: Bench) -> Edit:
    """SCRUB (Kurmanji et al. 2023, section 3): away from the teacher on the known, near to it and the labels elsewhere.

    Both kinds of steps take turns in the first third; only such on kept examples follow.
    """
    teacher = bench.evaluator.adapter.module

    def divergence(module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            taught = teacher(x).log_softmax(1)
        return F.kl_div(module(x).log_softmax(1), taught, log_target=True, reduction="batchmean")

    def near(module: nn.Module, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y) + divergence(module, x)

    def far(module: nn.Module, x: Tensor, y: Tensor, away: Tensor, wrong: Tensor) -> Tensor:
        return -divergence(module, away)

    return descended(bench, lambda step: far if step % 2 and step < SCRUB * bench.steps else near)


def relearned(bench: Bench) -> Edit:
    """Ours: put back to random weights and learned again from the kept examples."""
    return Relearning(bench.everything, 1.0, bench.steps).edit(bench.ground)


def relearned_away(bench: Bench) -> Edit:
    """Ours: the same, and the steps learn that the known labels are wrong, too."""
    return Relearning(bench.everything, 1.0, bench.steps).edit(bench.told)


def relearned_from_supported(bench: Bench) -> Edit:
    """Ours, from those kept examples whose label came back when it was not shown."""
    edit = Relearning(bench.everything, 1.0, bench.steps)
    return edit.edit(supported(edit, bench.ground))


def from_nothing(bench: Bench) -> Bench:
    """A new network that learned the kept examples alone, in place of the audited one."""
    model, kept = build("resnet9", bench.width), sorted(bench.ground.clean.rows)
    pixels = bench.images[0].pixels[kept].permute(0, 2, 3, 1).numpy()
    train(model, normalise(pixels), bench.training.labels[kept], EPOCHS, None, lr=LEARNING_RATE, half=bench.half)
    return replace(bench, **behind(model.eval(), bench.images, ()))


def steps_back(bench: Bench, edit: Edit) -> int | None:
    """Steps of 64 known labels until half of these are given again; None: more than `MOST_STEPS`."""
    module, known = bench.evaluator.adapter.module, Panel(bench.training, bench.known)
    generator = generator_for(0, "healing", "back")
    with holding(module, edit):
        values = {name: p.detach().clone() for name, p in module.named_parameters()}
        with holding(module, values), needing_gradients(module) as parameters:
            step = Descent(AdamW(parameters.values(), RATE))
            for number in range(MOST_STEPS + 1):
                if float(bench.evaluator.predicted(known).double().mean()) >= 0.5:
                    return number
                bench.evaluator.each(known.examples, drawn(bench.known, generator), step, batch=BATCH, backward=1)
    return None


FROM_NOTHING, OURS = "retrained from nothing", "relearn (ours)"
METHODS: Mapping[str, Callable[[Bench], Edit]] = {
    "base model": lambda bench: {},
    "fine-tuning on the kept": finetuned,
    "NegGrad+": ascended,
    "SCRUB": scrubbed,
    "finetune (ours)": finetuned_on_views,
    "finetune (ours), wrong labels": finetuned_away,
    OURS: relearned,
    f"{OURS}, wrong labels": relearned_away,
    f"{OURS}, supported examples": relearned_from_supported,
}


def setup(args: argparse.Namespace) -> Bench:
    pixels, truth = load(args.data / "cifar10-train.npz", args.images)
    given, changed = change_labels(truth, args.share, seed=0, pattern=args.pattern)
    model = build("resnet9", args.width)
    model.load_state_dict(load_file(args.model))
    images = (
        example_set(pixels, given, "training"),
        example_set(*load(args.data / "cifar10-test.npz", args.tested), "test"),
    )
    return Bench(
        truth=torch.from_numpy(truth),
        changed=changed.tolist(),
        known=[],
        steps=args.steps,
        images=images,
        width=args.width,
        half=args.half,
        **behind(model.eval(), images, VIEWS if any("ours" in name for name in args.method) else ()),
    )


def behind(model: nn.Module, images: tuple[ExampleSet, ExampleSet], views: Sequence[View]) -> dict[str, Any]:
    """The last stage of `model`, and both sets as it sees them; the training images with `views` of them."""
    adapter = Adapter(model, architecture="resnet9", preprocess=preprocess(32))
    tail, (test,) = cached(adapter, images[1])
    return {"evaluator": Evaluator(tail, 250), "training": seen_by_tail(adapter, images[0], views), "test": test}


def measured(bench: Bench, method: str, known: float) -> Row:
    """One line."""
    drawn = np.random.default_rng(5).permutation(bench.changed)[: round(known * len(bench.changed))]
    bench, start = replace(bench, known=sorted(drawn.tolist())), time.process_time()
    bench, edit = (from_nothing(bench), {}) if method == FROM_NOTHING else (bench, METHODS[method](bench))
    seconds, evaluator = time.process_time() - start, bench.evaluator
    with holding(evaluator.adapter.module, edit):
        said = evaluator.logits(bench.training, bench.changed).argmax(1)
        right = evaluator.logits(bench.test).argmax(1) == bench.test.labels
    shares = [
        float(found.double().mean())
        for found in (right, said == bench.truth[bench.changed], said == bench.training.labels[bench.changed])
    ]
    return Row(method, known, shares[0], shares[1], shares[2], steps_back(bench, edit), seconds)


def rows(bench: Bench, shares: list[float], methods: Sequence[str]) -> Iterator[Row]:
    """Every method with every share known."""
    for known in shares:
        for method in methods:
            found = measured(bench, method, known)
            print(found, file=sys.stderr, flush=True)
            yield found


def table(found: list[Row], args: argparse.Namespace) -> str:
    lines = [
        "# Healing: resnet9, CIFAR-10",
        "",
        (
            f"{args.images:,} training images, {100 * args.share:g} % of the labels changed, "
            f"{'each to the next class' if args.pattern else 'to a random class'}; a share of these known. "
            f"Utility: accuracy on {args.tested:,} test images. Healed: true label back, of all changed. Left: flagged "
            f"label still given. Back: steps of {BATCH} known labels until half of these are given again. {args.steps} "
            f"steps of {BATCH} examples on the last stage and the classifier each; ours are shown views of these. "
            f"torch {torch.__version__}, cpu. Written by `python -m tests.benchmarks.healing`."
        ),
        "",
        "| known | method | utility | healed | product | left | back | processor seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        lines.append(
            f"| {100 * r.known:g} % | {r.method} | {r.utility:.3f} | {r.healed:.3f} | {r.product:.1f} | {r.left:.3f} | "
            f"{f'more than {MOST_STEPS}' if r.back is None else r.back} | {r.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options(__doc__, "model")
    parser.add_argument("--known", type=float, nargs="+", default=[1.0, 0.8, 0.5, 0.3, 0.1])
    parser.add_argument("--tested", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--pattern", action="store_true", help="changed labels are those of the next class")
    parser.add_argument("--half", action="store_true", help="the audited network was trained with it")
    parser.add_argument("--method", nargs="+", choices=[*METHODS, FROM_NOTHING], default=list(METHODS))
    args = parser.parse_args()
    found: list[Row] = []
    with exact_arithmetic():
        for row in rows(setup(args), args.known, args.method):
            found.append(row)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(table(found, args), encoding="utf-8")
    print(table(found, args))


if __name__ == "__main__":
    main()
