"""What audits of one model say beside models that never saw the examples, through the command line.

    python -m tests.benchmarks.counterfactual --out DIR [--report reports/benchmarks/counterfactual-digits.md]

scikit-learn's digits, 5 % of the training labels changed, the network of the demo. On the list are the changed labels
and as many true ones times three. Trained are: one network with all of it, two without the list, and two with random
halves of it, as Feldman and Zhang's estimate needs: the probability of a label with it less without, four networks each
way or so. Training is kept in DIR, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from memaudit.demo import network as demo_network
from memaudit.demo import training as demo
from memaudit.demo.network import build
from memaudit.intervals import correlation, wilson
from memaudit.numbers import interval, percent
from memaudit.report.markdown import table

HALVES, TRUE = 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--profile", default="standard")
    given = parser.parse_args()
    out: Path = given.out
    images, truth, changed, labels, test = demo.split_digits(0)
    rng = np.random.default_rng(1)
    trained = np.setdiff1d(np.arange(len(truth)), test)
    true = np.sort(rng.choice(np.setdiff1d(trained, changed), TRUE * len(changed), replace=False))
    listed = np.concatenate([changed, true])
    write(out, images, truth, labels, listed, test)
    halves = np.stack([rng.permutation(len(listed)) < len(listed) // 2 for _ in range(HALVES)])
    rest = np.setdiff1d(trained, listed)
    sets = {"with": trained, "without1": rest, "without2": rest}
    sets |= {f"half{n}": np.sort(np.concatenate([rest, listed[half]])) for n, half in enumerate(halves)}
    x, y = torch.from_numpy(images[:, None]).float() / 255, torch.from_numpy(labels)
    for seed, (name, rows) in enumerate(sets.items()):
        path = out / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            network = build()
            demo.train(network, x, y, rows, seed, lambda _: None)
            save_file(dict(network.state_dict()), path)
            print(name, flush=True)
    fz = feldman_zhang(out, x[listed], y[listed], halves)
    scan = command(out, "scan", "with", "--without", "without1.safetensors", "--profile", given.profile)
    others = [word for n in (1, 2) for word in ("--without", f"without{n}.safetensors")]
    two = command(out, "compare", "with", *others)
    seen = command(out, "verify", "with", "--unseen", "test", "--without", "without1.safetensors")
    clean = command(out, "verify", "without2", "--unseen", "test", "--without", "without1.safetensors")
    text = report(fz, len(changed), scan, two, seen, clean)
    print(text)
    if given.report:
        given.report.write_text(text, "utf-8")


def write(
    out: Path, images: np.ndarray, truth: np.ndarray, labels: np.ndarray, listed: np.ndarray, test: np.ndarray
) -> None:
    """Images in class folders, and the list with a column that says which labels were changed."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(demo_network.__file__, out / "network.py")
    apart = set(listed.tolist()), set(test.tolist())
    for row, image in enumerate(images):
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
def feldman_zhang(out: Path, x: torch.Tensor, y: torch.Tensor, halves: np.ndarray) -> np.ndarray:
    """`(N,)`: the label's probability by networks with the example, less by those without it."""
    said = []
    for n in range(len(halves)):
        network = build()
        network.load_state_dict(load_file(out / f"half{n}.safetensors"))
        said.append(network.eval()(x).softmax(1).gather(1, y[:, None])[:, 0].numpy())
    p = np.stack(said)
    within = (p * halves).sum(0) / np.maximum(halves.sum(0), 1)
    without = (p * ~halves).sum(0) / np.maximum((~halves).sum(0), 1)
    known = halves.any(0) & (~halves).any(0)
    return np.where(known, within - without, np.nan)


def command(out: Path, word: str, model: str, *more: str) -> dict:
    """Run one command in `out`; the JSON it writes."""
    where = f"{word}-{model}"
    line = [sys.executable, "-m", "memaudit", word, f"{model}.safetensors", "--adapter", "network.py:build", "-q"]
    line += ["--flagged", "flagged.csv", "--reference", "reference", "--out", where, "--exit-zero", *more]
    if word != "verify":
        line += ["--images", "none"]
    subprocess.run(line, cwd=out, check=True, stdout=subprocess.DEVNULL)
    name = "verification.json" if word == "verify" else "report.json"
    return json.loads((out / where / name).read_text("utf-8"))


def rate(hits: int, count: int) -> str:
    return f"{hits} of {count}: {percent(hits / count)} ({interval(*wilson(hits, count))})"


def report(fz: np.ndarray, changed: int, scan: dict, two: dict, seen: dict, clean: dict) -> str:
    findings = scan["findings"]
    kinds = np.array([f["example"]["columns"]["kind"] == "changed" for f in findings])
    known = ~np.isnan(fz)

    def pearson(name: str, values: list[float], rows: np.ndarray) -> list[str]:
        found = correlation(np.array(values)[rows], fz[rows])
        return [name, "–" if found is None else f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"]

    estimate = [f["estimate"]["score"] for f in findings]
    one = [f["counterfactual"]["difference"] for f in findings]
    both = [f["counterfactual"]["difference"] for f in two["findings"]]
    held = np.array([f["counterfactual"]["held"] == "memorized" for f in findings])
    cut = [f["counterfactual"] for f, k in zip(findings, kinds, strict=True) if k and f["units"]]
    cut = [c for c in cut if c["held"] == "memorized"]
    agree, draws = sum(bool(c["ablated"]) for c in cut), sum(c["random_draws"] for c in cut)
    random = sum(c["random_agrees"] for c in cut)
    lines = [
        "# Audits beside networks that never saw the examples: digits",
        (
            f"{changed} changed labels and {len(kinds) - changed} true ones; the demo's network, each trained once. "
            f"Truth: the label's probability with the example less without it over {HALVES} networks trained on "
            "random halves of the list (Feldman and Zhang 2020). Intervals: 95 %."
        ),
        "`python -m tests.benchmarks.counterfactual --out DIR --report FILE`",
        "## Estimates against the truth (Pearson)",
        table(
            ("estimate", "all", "changed", "true"),
            [
                [name, *(pearson("", values, rows)[1] for rows in (known, known & kinds, known & ~kinds))]
                for name, values in (
                    ("our estimate, the audited network alone", estimate),
                    ("difference to one network without", one),
                    ("difference to two", both),
                )
            ],
        ),
        "## Called memorized with one network without",
        f"- changed labels: {rate(int(held[kinds].sum()), int(kinds.sum()))}",
        f"- true labels: {rate(int(held[~kinds].sum()), int((~kinds).sum()))}",
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
            [row("saw the list", seen), row("did not", clean)],
        ),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def row(name: str, found: dict) -> list[str]:
    said = found["membership"]
    areas = [f"{a['auc']:.3f} ({a['auc_low']:.3f} to {a['auc_high']:.3f})" for a in said["attacks"]]
    verdict = "evidence" if said["found"] else "no evidence"
    return [name, verdict, f"{said['p_value']:.2g}", said["strongest"], f"{said['clear']} of {said['members']}", *areas]


if __name__ == "__main__":
    main()
