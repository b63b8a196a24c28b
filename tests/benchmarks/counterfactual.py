"""What audits of one model say beside models that never saw the examples, through the command line.

    python -m tests.benchmarks.counterfactual --out DIR [--data digits | --data cifar10 PATH [--long]] [--report FILE]

Digits: scikit-learn's, 5 % of the training labels changed, the network of the demo. CIFAR-10: the first 5,000 images of
the file PATH (`tests.benchmarks.cifar` says what it holds), 5 % changed, a small ResNet-9; the next 2,000 are unseen.
On the list are the changed labels and two or three times as many true ones. Trained are: one network with all of it,
two without the list, and eight with random halves of it, as Feldman and Zhang's estimate needs: the probability of a
label with it less without, four networks each way or so. With `--long` networks learn four times as long, from
augmented images. Training is kept in DIR, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import tests.networks
from memaudit.demo import network as demo_network
from memaudit.demo import training as demo
from memaudit.intervals import correlation, wilson
from memaudit.numbers import interval, percent
from memaudit.report.markdown import table
from tests.benchmarks import cifar
from tests.networks import ResNet9

HALVES = 8
LEVEL = 0.05
# True labels that are memorized, too, as the halves say: none of them is a false alarm.
MEMORIZED = 0.5


@dataclass(frozen=True)
class Case:
    """Data, what is trained on it, and how the command line is told of it.

    Attributes:
        option: its words after --data; trained: the words of the report for it.
        images: uint8, `(N, H, W)` or `(N, H, W, 3)`; truth, labels: `(N,)` true and given ones.
        changed, test: rows with a changed label, and rows that no network is trained on.
        true: so many true labels are listed for each changed one.
        source: the file `network.py`, whose `build` makes the network; words: options that say what it is given.
    """

    name: str
    option: str
    trained: str
    images: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    changed: np.ndarray
    test: np.ndarray
    true: int
    inputs: Callable[[np.ndarray], torch.Tensor]
    build: Callable[[], nn.Module]
    learn: Callable[[nn.Module, torch.Tensor, torch.Tensor, np.ndarray, int], None]
    source: str
    words: tuple[str, ...] = ()


def digits() -> Case:
    images, truth, changed, labels, test = demo.split_digits(0)
    return Case(
        name="digits",
        option="digits",
        trained="the demo's network",
        images=images,
        truth=truth,
        labels=labels,
        changed=changed,
        test=test,
        true=3,
        inputs=lambda images: torch.from_numpy(images[:, None]).float() / 255,
        build=demo_network.build,
        learn=lambda network, x, y, rows, seed: demo.train(network, x, y, rows, seed, lambda _: None),
        source=Path(demo_network.__file__).read_text("utf-8"),
    )


# CIFAR-10: images trained on and unseen, and what is trained: for long, the last epochs on images as they are.
SEEN, UNSEEN, WIDTH, EPOCHS, BATCH, RATE = 5000, 2000, 16, 14, 64, 0.1
LONG, PLAIN = 60, 14


def cifar10(path: Path, long: bool) -> Case:
    images, truth = cifar.load(path, SEEN + UNSEEN)
    labels = truth.copy()
    labels[:SEEN], changed = cifar.change_labels(truth[:SEEN], 0.05, seed=0)
    build = whole_resnet if long else small_resnet
    source = Path(tests.networks.__file__).read_text("utf-8")
    quick = f"a ResNet-9 of width {WIDTH} with a first stride of 2, {EPOCHS} epochs, not augmented"
    slow = f"a ResNet-9 of width {WIDTH}, {LONG - PLAIN} epochs of shifted, mirrored images and {PLAIN} of plain"
    return Case(
        name="CIFAR-10",
        option=f"cifar10 PATH{' --long' * long}",
        trained=slow if long else quick,
        images=images,
        truth=truth,
        labels=labels,
        changed=changed,
        test=np.arange(SEEN, SEEN + UNSEEN),
        true=2,
        inputs=cifar.normalise,
        build=build,
        learn=partial(learn, augmented=LONG - PLAIN, epochs=LONG) if long else learn,
        source=f"{source}\n\nWIDTH = {WIDTH}\n\n\n{inspect.getsource(build)}\n\nbuild = {build.__name__}\n",
        words=("--input-size", "3,32,32", "--mean", _joined(cifar.MEAN), "--std", _joined(cifar.STD)),
    )


def small_resnet() -> nn.Module:
    """A ResNet-9 that halves its images first, which trains four times as fast."""
    network = ResNet9(width=WIDTH)
    network.prep[0].stride = (2, 2)
    return network


def whole_resnet() -> nn.Module:
    """A ResNet-9 as it is."""
    return ResNet9(width=WIDTH)


def _joined(numbers: tuple[float, ...]) -> str:
    return ",".join(map(str, numbers))


def learn(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    rows: np.ndarray,
    seed: int,
    augmented: int = 0,
    epochs: int = EPOCHS,
) -> None:
    """Stochastic gradient descent on `rows`, one cycle of the rate; the first `augmented` epochs see changed images."""
    torch.manual_seed(seed)
    network.train().to(memory_format=torch.channels_last)
    steps = len(rows) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps, pct_start=0.25)
    ids = torch.from_numpy(rows)
    for epoch in range(epochs):
        for batch in ids[torch.randperm(len(ids))].split(BATCH)[:steps]:
            images = cifar.augment(x[batch]) if epoch < augmented else x[batch]
            optimizer.zero_grad()
            F.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), y[batch]).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=["digits"], help="digits, or cifar10 and the file")
    parser.add_argument("--long", action="store_true", help="better networks")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--profile", default="standard")
    given = parser.parse_args()
    match given.data:
        case ["digits"]:
            case = digits()
        case ["cifar10", path]:
            case = cifar10(Path(path), given.long)
        case _:
            parser.error("--data digits, or --data cifar10 PATH")
    text = measured(case, given.out, given.profile)
    print(text)
    if given.report:
        given.report.write_text(text, "utf-8")


def plan(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Rows on the list, `(halves, N)` which of them each half holds, and by name the rows a network trains on."""
    rng = np.random.default_rng(1)
    trained = np.setdiff1d(np.arange(len(case.truth)), case.test)
    clean = np.setdiff1d(trained, case.changed)
    true = np.sort(rng.choice(clean, case.true * len(case.changed), replace=False))
    listed = np.concatenate([case.changed, true])
    halves = np.array([rng.permutation(len(listed)) < len(listed) // 2 for _ in range(HALVES)])
    rest = np.setdiff1d(trained, listed)
    sets = {"with": trained, "without1": rest, "without2": rest}
    sets |= {f"half{n}": np.sort(np.concatenate([rest, listed[half]])) for n, half in enumerate(halves)}
    return listed, halves, sets


def trained(case: Case, out: Path, name: str, seed: int, rows: np.ndarray) -> None:
    """Train the network `name` on `rows`, unless `out` has it."""
    path = out / f"{name}.safetensors"
    if path.exists():
        return
    started = time.process_time()
    torch.manual_seed(seed)
    network = case.build()
    case.learn(network, case.inputs(case.images), torch.from_numpy(case.labels), rows, seed)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    print(f"{name}: {time.process_time() - started:.0f} processor seconds", flush=True)


def measured(case: Case, out: Path, profile: str) -> str:
    """Train, audit through the command line, and say what was found."""
    listed, halves, sets = plan(case)
    write(out, case, listed)
    for seed, (name, rows) in enumerate(sets.items()):
        trained(case, out, name, seed, rows)
    x, y = case.inputs(case.images), torch.from_numpy(case.labels)
    fz = feldman_zhang(out, case, x[listed], y[listed], halves)
    scan = command(out, case, "scan", "with", "--without", "without1.safetensors", "--profile", profile)
    first, second = (("--without", f"without{n}.safetensors") for n in (1, 2))
    again = command(out, case, "compare", "with", *second)
    two = command(out, case, "compare", "with", *first, *second)
    seen = command(out, case, "verify", "with", "--unseen", "test", "--without", "without1.safetensors")
    gone = command(out, case, "verify", "without2", "--unseen", "test", "--without", "without1.safetensors")
    return report(case, fz, scan, again, two, seen, gone)


def write(out: Path, case: Case, listed: np.ndarray) -> None:
    """Images in class folders, and the list with a column that says which labels were changed."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    (out / "network.py").write_text(case.source, "utf-8")
    apart = set(listed.tolist()), set(case.test.tolist())
    truth, labels = case.truth, case.labels
    for row, image in enumerate(case.images):
        kind = "listed" if row in apart[0] else "test" if row in apart[1] else "reference"
        place = out / kind if kind == "listed" else out / kind / str(truth[row])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:04d}.png")
    with (out / "flagged.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "true_label", "kind"])
        for row in listed.tolist():
            kind = "changed" if labels[row] != truth[row] else "true"
            writer.writerow([f"listed/{row:04d}.png", labels[row], truth[row], kind])


@torch.no_grad()
def feldman_zhang(out: Path, case: Case, x: torch.Tensor, y: torch.Tensor, halves: np.ndarray) -> np.ndarray:
    """`(N,)`: the label's probability by networks with the example, less by those without it."""
    said = []
    for n in range(len(halves)):
        network = case.build()
        network.load_state_dict(load_file(out / f"half{n}.safetensors"))
        said.append(network.eval()(x).softmax(1).gather(1, y[:, None])[:, 0].numpy())
    p = np.stack(said)
    within = (p * halves).sum(0) / np.maximum(halves.sum(0), 1)
    without = (p * ~halves).sum(0) / np.maximum((~halves).sum(0), 1)
    known = halves.any(0) & (~halves).any(0)
    return np.where(known, within - without, np.nan)


def command(out: Path, case: Case, word: str, model: str, *more: str) -> dict:
    """Run one command in `out`; the JSON it writes."""
    where = f"{word}-{model}"
    line = [sys.executable, "-m", "memaudit", word, f"{model}.safetensors", "--adapter", "network.py:build", "-q"]
    line += ["--flagged", "flagged.csv", "--reference", "reference", "--out", where, "--exit-zero", *case.words, *more]
    if word != "verify":
        line += ["--images", "none"]
    subprocess.run(line, cwd=out, check=True, stdout=subprocess.DEVNULL)
    name = "verification.json" if word == "verify" else "report.json"
    return json.loads((out / where / name).read_text("utf-8"))


def rate(hits: int, count: int) -> str:
    return f"{hits} of {count}: {percent(hits / count)} ({interval(*wilson(hits, count))})"


def report(case: Case, fz: np.ndarray, scan: dict, again: dict, two: dict, seen: dict, gone: dict) -> str:
    findings = scan["findings"]
    kinds = np.array([f["example"]["columns"]["kind"] == "changed" for f in findings])
    known = ~np.isnan(fz)

    def asked(name: str, of: dict = scan) -> np.ndarray:
        return np.array([f["counterfactual"][name] for f in of["findings"]])

    estimate = np.array([f["estimate"]["score"] for f in findings])
    held = asked("held") == "memorized"
    scores = {
        "difference to one network without": asked("difference"),
        "margin with less without": asked("margin") - asked("margin_without"),
        "least margin of the one without": -asked("margin_without"),
        "least support of the one without": -asked("support_without"),
        "least support of the other without": -asked("support_without", again),
        "difference to two": asked("difference", two),
        "least support of the two": -asked("support_without", two),
        "our estimate": estimate,
    }
    scores["truth of eight networks"] = np.where(known, fz, 0.0)
    apart = kinds | (known & (fz < MEMORIZED))
    cut = [f["counterfactual"] for f, k in zip(findings, kinds, strict=True) if k and f["units"]]
    cut = [c for c in cut if c["held"] == "memorized"]
    agree, draws = sum(bool(c["ablated"]) for c in cut), sum(c["random_draws"] for c in cut)
    random = sum(c["random_agrees"] for c in cut)
    truth = (
        f"Truth: the label's probability with the example less without it over {HALVES} networks trained on random "
        "halves of the list (Feldman and Zhang 2020)."
    )
    plain = apart & ~kinds
    lines = [
        f"# Audits beside networks that never saw the examples: {case.name}",
        (
            f"{kinds.sum()} changed labels and {(~kinds).sum()} true ones; {case.trained}, each trained once, "
            f"{percent(seen['unseen']['accuracy'])} right on unseen images. {truth} Intervals: 95 %."
        ),
        f"`python -m tests.benchmarks.counterfactual --data {case.option} --out DIR --report FILE`",
        *pearson(fz, kinds, estimate, asked("difference"), asked("difference", two)),
        "## Called memorized with one network without",
        f"- changed labels: {rate(int(held[kinds].sum()), int(kinds.sum()))}",
        (
            f"- true labels: {rate(int(held[~kinds].sum()), int((~kinds).sum()))}; of those that the truth does not "
            f"call memorized (less than {MEMORIZED}): {rate(int(held[plain].sum()), int(plain.sum()))}"
        ),
        (
            f"Changed labels found where a threshold lets through {percent(LEVEL)} of the true ones: of all "
            f"{int((~kinds).sum())}, and of the {int(plain.sum())} that the truth does not call memorized. Support: "
            "the label's margin, on average over moved, mirrored and zoomed views."
        ),
        table(
            ("score", "found, of all true ones", "found, of true ones that are not memorized"),
            [(name, found_at(v, kinds), found_at(v[apart], kinds[apart])) for name, v in scores.items()],
        ),
        "## Cutting units against never having seen the example",
        (
            "Changed labels with units, that the network without does not give. Share for which the cut network gives "
            "the answer of the network without:"
        ),
        f"- our units: {rate(agree, len(cut))}" if cut else "- none has units",
        f"- as many random units, 10 draws each: {rate(random, draws)}" if draws else "",
        "## Verification",
        table(
            (
                "network",
                "verdict",
                "p",
                "strongest",
                "clear trace that would show",
                *(a["name"] for a in seen["membership"]["attacks"]),
            ),
            [row("saw the list", seen), row("did not", gone)],
        ),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def pearson(fz: np.ndarray, kinds: np.ndarray, estimate: np.ndarray, one: np.ndarray, two: np.ndarray) -> list[str]:
    """The correlations of estimates with the truth `fz`, of all and of either kind of label, as a section."""
    known = ~np.isnan(fz)

    def cell(values: np.ndarray, rows: np.ndarray) -> str:
        found = correlation(values[rows], fz[rows])
        return "–" if found is None else f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"

    named = {
        "our estimate, the audited network alone": estimate,
        "difference to one network without": one,
        "difference to two": two,
    }
    kept = (known, known & kinds, known & ~kinds)
    rows = [[name, *(cell(values, rows) for rows in kept)] for name, values in named.items()]
    return ["## Estimates against the truth (Pearson)", table(("estimate", "all", "changed", "true"), rows)]


def found_at(values: np.ndarray, changed: np.ndarray) -> str:
    """Of the changed, those above a threshold that lets through `LEVEL` of the others."""
    others = np.sort(values[~changed])[::-1]
    above = values[changed] > others[int(LEVEL * len(others))]
    return rate(int(above.sum()), len(above))


def row(name: str, found: dict) -> list[str]:
    said = found["membership"]
    areas = [f"{a['auc']:.3f} ({a['auc_low']:.3f} to {a['auc_high']:.3f})" for a in said["attacks"]]
    verdict = "evidence" if said["found"] else "no evidence"
    return [name, verdict, f"{said['p_value']:.2g}", said["strongest"], f"{said['clear']} of {said['members']}", *areas]


if __name__ == "__main__":
    main()
