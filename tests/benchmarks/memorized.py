"""Is a changed label called memorized, and a true one not: ours beside baselines and real retraining.

    python -m tests.benchmarks.memorized CASE --data DIR --work DIR --out reports/benchmarks/memorized-CASE.md

Cases: `resnet10t` (4,000 CIFAR-10 images, 200 labels changed; `tests.benchmarks.resnet10t` trained it into WORK),
`resnet9` and `vit` (10,000 images, 1,000 changed; `tests.benchmarks.cifar` trained a series into WORK).
True labels and changed ones are compared on the same rows by every score; higher is more memorized.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

import memaudit
from memaudit.audits.memorization.verdict import call
from memaudit.data import Preprocess
from memaudit.engine.loop import BACKWARD
from memaudit.intervals import wilson
from tests.benchmarks import resnet10t
from tests.benchmarks.cifar import MEAN, STD, build, change_labels, load, normalise
from tests.benchmarks.table import publish

LEVEL = 0.05
FOLDS = 4
SERIES = 9
Scores = dict[str, np.ndarray]
CIFAR = Preprocess(input_size=(3, 32, 32), mean=MEAN, std=STD)


@dataclass(frozen=True)
class Case:
    """One trained network and the rows that are asked.

    Attributes:
        images: `(N, 32, 32, 3)` uint8, training images first.
        given: labels of the training images; `truth`: the true ones of all.
        asked: training rows that are flagged; `changed` says of each whether its label was changed.
        references: by name, clean rows of `images`.
        learn: trains a new network of the kind on training rows; in evaluation mode.
        series: weights of the run's epochs, the earliest first.
        without: weights of the same network trained without the changed rows.
        shape: how images become inputs, as the audit is told; `prepare` does it here.
    """

    images: np.ndarray
    truth: np.ndarray
    given: np.ndarray
    asked: np.ndarray
    changed: np.ndarray
    references: Mapping[str, np.ndarray]
    fresh: Callable[[], nn.Module]
    final: dict[str, Tensor]
    learn: Callable[[np.ndarray], nn.Module] | None = None
    series: Sequence[dict[str, Tensor]] = ()
    without: dict[str, Tensor] | None = None
    shape: Preprocess = CIFAR
    prepare: Callable[[np.ndarray], Tensor] = normalise
    inputs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", self.prepare(self.images))

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.given[self.asked])

    def network(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        model = self.fresh()
        model.load_state_dict(self.final if weights is None else weights)
        return model.eval()

    def pair(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[rows], labels


def tiny_resnet(data: Path, work: Path) -> Case:
    images, truth, given, changed = resnet10t.data(data)
    rng = np.random.default_rng(7)
    clean = rng.permutation(np.setdiff1d(np.arange(resnet10t.TRAINED), changed))
    true = clean[1500:1800]
    asked = np.concatenate([changed, true])
    return Case(
        images,
        truth,
        given,
        asked,
        np.isin(asked, changed),
        {
            "1,000 clean training images": clean[:1000],
            "500 of them": clean[:500],
            "1,000 validation images": np.arange(resnet10t.TRAINED, resnet10t.TRAINED + 1000),
            "500 of these": np.arange(resnet10t.TRAINED, resnet10t.TRAINED + 500),
        },
        resnet10t.build,
        torch.load(work / "with.pt"),
        lambda rows: resnet10t.learn(normalise(images), torch.from_numpy(given), rows),
        without=torch.load(work / "without.pt"),
    )


def cifar_run(network: str) -> Callable[[Path, Path], Case]:
    def case(data: Path, work: Path) -> Case:
        count, held_out = 10_000, 1500
        images, truth = load(data / "cifar10-train.npz", count + held_out)
        given, changed = change_labels(truth[:count], 0.1, seed=0)
        rng = np.random.default_rng(7)
        clean = rng.permutation(np.setdiff1d(np.arange(count), changed))
        asked = np.concatenate([rng.permutation(changed)[:500], clean[2000:2500]])
        files = sorted(work.glob("epoch-*.safetensors"))

        def learn(rows: np.ndarray) -> nn.Module:
            from tests.benchmarks.cifar import train

            model = build(network)
            y = torch.from_numpy(given)
            adam = network == "vit"
            train(model, normalise(images)[rows], y[rows], len(files), None, lr=0.2, adam=adam, half=True)
            return model.eval()

        return Case(
            images,
            truth,
            given,
            asked,
            np.isin(asked, changed),
            {
                "1,500 clean training images": clean[:1500],
                "1,500 validation images": np.arange(count, count + held_out),
            },
            lambda: build(network),
            load_file(files[-1]),
            learn,
            series=[load_file(f) for f in files],
        )

    return case


CASES: Mapping[str, Callable[[Path, Path], Case]] = {
    "resnet10t": tiny_resnet,
    "resnet9": cifar_run("resnet9"),
    "vit": cifar_run("vit"),
}


def scanned(
    case: Case, rows: np.ndarray, weights: Mapping[str, Tensor] | None = None, **options: Any
) -> memaudit.Report:
    """The audit's memorization estimate alone."""
    return memaudit.audit(
        case.network(weights),
        case.pair(case.asked, case.given[case.asked]),
        case.pair(rows, case.truth[rows]),
        preprocess=case.shape,
        audits=(),
        **options,
    )


def effort(passes: Mapping[str, int]) -> float:
    """Forward passes, backward ones by what they cost."""
    return sum(n * (BACKWARD if stage.endswith(" backward") else 1) for stage, n in passes.items())


def estimates(report: memaudit.Report) -> Scores:
    """By part and joined, p-values turned round: what the verdict rests on. `(N,)` each, in the order given."""
    found = sorted(report.findings, key=lambda f: f.example.index)
    scores = {"estimate": np.array([1 - f.estimate.p_value + 1e-6 * f.estimate.score for f in found])}
    for part in found[0].estimate.parts:
        scores[part.name] = np.array([next(p.score for p in f.estimate.parts if p.name == part.name) for f in found])
    return scores


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(500)]).double()


def simple(case: Case) -> Scores:
    """What the network alone says: loss, confidence, entropy, margin (cleanlab's in-sample scores among them)."""
    said = answers(case.network(), case.inputs[case.asked]).softmax(1)
    own = said.gather(1, case.labels[:, None]).squeeze(1)
    other = said.scatter(1, case.labels[:, None], -1).amax(1)
    return {
        "loss (cleanlab: self-confidence, in sample)": 1 - own.numpy(),
        "confidence of the prediction": -said.amax(1).numpy(),
        "entropy": -(said * said.clamp_min(1e-12).log()).sum(1).numpy(),
        "margin (cleanlab: normalised margin, in sample)": (other - own).numpy(),
    }


def penultimate(case: Case, rows: np.ndarray, k: int = 10) -> np.ndarray:
    """1 - the share of the `k` nearest reference examples, in what the last layer reads, that carry the label."""
    model, kept = case.network(), []
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    answers(model, case.inputs[np.concatenate([case.asked, rows])])
    hook.remove()
    features = F.normalize(torch.cat(kept), dim=1)
    asked, base = features[: len(case.asked)], features[len(case.asked) :]
    near = torch.from_numpy(case.truth[rows])[(asked @ base.T).topk(k).indices]
    return 1 - (near == case.labels[:, None]).double().mean(1).numpy()


def spread(case: Case, count: int) -> list[dict[str, Tensor]]:
    """Weights of `count` epochs, evenly spread, the last included."""
    return [case.series[round((i + 1) * len(case.series) / count) - 1] for i in range(count)]


def along(case: Case, count: int) -> Scores:
    """AUM, CSL and mean probability over `count` epochs."""
    said = torch.stack([answers(case.network(w), case.inputs[case.asked]) for w in spread(case, count)])
    index = case.labels.expand(count, -1)[..., None]
    own, other = said.gather(2, index).squeeze(2), said.scatter(2, index, -torch.inf).amax(2)
    logs = said.log_softmax(2).gather(2, index).squeeze(2)
    return {
        "AUM": (other - own).mean(0).numpy(),
        "CSL": -logs.sum(0).numpy(),
        "mean probability": 1 - logs.exp().mean(0).numpy(),
    }


def retrained(case: Case, work: Path) -> np.ndarray:
    """1 - the label's probability by networks that were trained on the other folds; each fold is kept in WORK."""
    assert case.learn is not None
    order = np.random.default_rng(3).permutation(len(case.given))
    score = np.zeros(len(case.given))
    for k in range(FOLDS):
        out, kept = order[k::FOLDS], work / f"retrained-{k}.npy"
        if not kept.exists():
            said = answers(case.learn(np.sort(np.setdiff1d(order, out))), case.inputs[out]).softmax(1)
            np.save(kept, 1 - said.gather(1, torch.from_numpy(case.given[out])[:, None]).squeeze(1).numpy())
            print("retrained", k, flush=True)
        score[out] = np.load(kept)
    return score[case.asked]


def auroc(yes: np.ndarray, no: np.ndarray) -> float:
    """The chance that a score of `yes` is larger than one of `no`, ties by half; faster than scikit-learn's."""
    ordered = np.sort(no)
    below = np.searchsorted(ordered, yes, "left") + np.searchsorted(ordered, yes, "right")
    return float(below.mean() / 2 / len(no))


def row(name: str, score: np.ndarray, changed: np.ndarray, seconds: float | None = None) -> str:
    """One line: AUROC with a bootstrap interval, average precision, changed labels found at 5 % of true ones."""
    rng = np.random.default_rng(0)
    draws = []
    yes, no = score[changed], score[~changed]
    for _ in range(300):
        a, b = rng.choice(yes, len(yes)), rng.choice(no, len(no))
        draws.append(auroc(a, b))
    low, high = np.quantile(draws, [0.025, 0.975])
    hits = int((yes > np.sort(no)[::-1][int(LEVEL * len(no))]).sum())
    found = wilson(hits, len(yes))
    time_said = "" if seconds is None else f"{seconds:.0f}"
    return (
        f"| {name} | {auroc(yes, no):.3f} ({low:.3f} to {high:.3f}) | "
        f"{average_precision_score(changed, score):.3f} | {hits} of {len(yes)}, {hits / len(yes):.2f} "
        f"({found[0]:.2f} to {found[1]:.2f}) | {time_said} |"
    )


def p_values(report: memaudit.Report) -> Tensor:
    """`(N,)` in the order given; 1 where the label is not fitted."""
    found = sorted(report.findings, key=lambda f: f.example.index)
    return torch.tensor([f.estimate.p_value if f.fitted else 1.0 for f in found], dtype=torch.float64)


def verdict(name: str, report: memaudit.Report, changed: np.ndarray) -> str:
    """One line: how many are called of a list of changed labels, of 300 true ones, and of both together."""
    p, said = p_values(report), report.summary.memorization
    assert said is not None
    yes, no = p[torch.from_numpy(changed)], p[torch.from_numpy(~changed)][:300]
    called = [int(call(one, said.calibration).called.sum()) for one in (yes, no)]
    both = [
        sum(f.memorized for f in report.findings if (f.example.index in set(np.flatnonzero(m))))
        for m in (changed, ~changed)
    ]
    cost = effort(report.passes)
    return (
        f"| {name} | {called[0]} of {len(yes)} | {called[1]} of {len(no)} | {both[0]} + {both[1]} | "
        f"{int((yes <= LEVEL).sum())} / {float((no <= LEVEL).double().mean()):.3f} | {said.power:.2f} | "
        f"{cost / (len(changed) + report.data.reference.count):.0f} |"
    )


def never_seen(case: Case, rows: np.ndarray, repetitions: int) -> str:
    """How often a network trained without the changed rows is said to have memorized any of them.

    Each repetition draws other wrong labels for them, and another half of the reference.
    """
    assert case.without is not None
    reds, counts, asked = 0, [], case.asked[case.changed]
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(rows, len(rows) // 2, replace=False)
        given = case.given.copy()
        given[asked] = (case.truth[asked] + rng.integers(1, 10, len(asked))) % 10
        only = replace(case, given=given, asked=asked, changed=np.ones(len(asked), bool))
        report = scanned(only, chosen, case.without, seed=seed)
        called = sum(f.memorized for f in report.findings)
        reds, counts = reds + bool(called), [*counts, called]
    return f"the network trained without them, {reds} of {repetitions} lists called, {counts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder with the trained weights")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--retrain", action="store_true", help="also train four networks on three quarters each")
    parser.add_argument("--without", type=int, default=0, help="audits of the network trained without the changed rows")
    args = parser.parse_args()
    case = CASES[args.case](args.data, args.work)
    changed, lines, verdicts, notes = case.changed, [], [], [""]
    audits: list[tuple[str, np.ndarray, dict[str, Any]]] = [(name, rows, {}) for name, rows in case.references.items()]
    if len(case.series) >= SERIES:
        earlier = {"checkpoints": spread(case, SERIES)[:-1]}
        audits += [(f"{name}, a series of {SERIES}", rows, earlier) for name, rows, _ in audits]
    for name, rows, options in audits:
        start = time.process_time()
        report = scanned(case, rows, **options)
        spent = time.process_time() - start
        verdicts.append(verdict(name, report, changed))
        for part, score in estimates(report).items():
            lines.append(row(f"{part}; {name}", score, changed, spent if part == "estimate" else None))
        if not options:
            lines.append(row(f"k-NN, penultimate layer; {name}", penultimate(case, rows), changed))
        print(verdicts[-1], *lines[-6:], sep="\n", flush=True)
    lines += [row(name, score, changed) for name, score in simple(case).items()]
    for count in (1, 2, 3, 5, 9, 16) if len(case.series) >= SERIES else ():
        if count <= len(case.series):
            lines += [row(f"{name}, {count} checkpoints", score, changed) for name, score in along(case, count).items()]
    if args.without:
        notes = [f"{name}: {never_seen(case, rows, args.without)}" for name, rows in case.references.items()]
    if args.retrain:
        lines.append(row("retrained, 4 folds", retrained(case, args.work), changed))
    text = TABLE.format(
        case=args.case,
        count=len(changed),
        changed=int(changed.sum()),
        verdicts="\n".join(verdicts),
        lines="\n".join(lines),
        notes="\n\n".join(notes),
    )
    publish(text, args.out)


TABLE = """# Memorized: {case}

Made by `python -m tests.benchmarks.memorized {case}`. Of {count} training images {changed} have a changed label.

| reference | called of the changed | of 300 true | of one list | p <= 0.05 | power said | passes an example |
|---|---|---|---|---|---|---|
{verdicts}

| score; reference | AUROC (95 %) | average precision | found at 5 % of the true labels | processor seconds |
|---|---|---|---|---|
{lines}

{notes}
"""


if __name__ == "__main__":
    main()
