"""Published scores of one network, and of retrained ones: `(N,)` each, larger is more memorized."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.memorized import Case, Scores, along, answers, simple

# Garg and Roy 2023: random signs, this long; so many of them.
STEP, DRAWS = 1e-3, 4
# Second-split forgetting (Maini et al. 2022): passes over the held-out images.
EPOCHS, BATCH, RATE = 10, 64, 0.05


def features(case: Case, rows: np.ndarray) -> Tensor:
    """What the last layer reads, `(n, F)`, of length 1."""
    model, kept = case.network(), []
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    answers(model, case.inputs[rows])
    hook.remove()
    return F.normalize(torch.cat(kept), dim=1)


def neighbours(case: Case, k: int = 10) -> np.ndarray:
    """1 - the share of the `k` nearest other rows that carry the label, in what the last layer reads."""
    own, labels, score = features(case, case.asked), case.labels, []
    for start in range(0, len(own), 1000):
        near = own[start : start + 1000] @ own.T
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = -torch.inf
        score.append(1 - (labels[near.topk(k).indices] == labels[start : start + 1000, None]).double().mean(1))
    return torch.cat(score).numpy()


def curvature(case: Case) -> np.ndarray:
    """How fast the loss's gradient in the input changes: the input-loss curvature of Garg and Roy 2023."""
    model, generator, score = case.network().requires_grad_(False), torch.Generator().manual_seed(0), []

    def gradient(inputs: Tensor, labels: Tensor) -> Tensor:
        x = inputs.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)[0]

    for x, labels in zip(case.inputs[case.asked].split(250), case.labels.split(250), strict=True):
        still, total = gradient(x, labels), torch.zeros(len(x))
        for _ in range(DRAWS):
            signs = torch.randint(0, 2, x.shape, generator=generator).float() * 2 - 1
            total += (gradient(x + STEP * signs, labels) - still).flatten(1).square().sum(1) / DRAWS
        score.append(total)
    return torch.cat(score).double().numpy()


def forgetting(case: Case, rows: np.ndarray) -> Scores:
    """What is forgotten while the network goes on with held-out images, and how much of it (Maini et al. 2022)."""
    order = np.random.default_rng(0)
    model, labels = case.network(), torch.from_numpy(case.truth)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    known, sure = [], []
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.from_numpy(order.permutation(rows)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(case.inputs[batch]), labels[batch]).backward()
            optimizer.step()
        said = answers(model.eval(), case.inputs[case.asked]).softmax(1)
        known.append((said.argmax(1) == case.labels).double())
        sure.append(said.gather(1, case.labels[:, None]).squeeze(1))
    return {
        "second-split forgetting": 1 - torch.stack(known).mean(0).numpy(),
        "second-split forgetting, mean probability": 1 - torch.stack(sure).mean(0).numpy(),
    }


def quality(said: Tensor, labels: Tensor) -> Scores:
    """cleanlab's three `get_label_quality_scores` of probabilities `(N, classes)`, turned round."""
    own = said.gather(1, labels[:, None]).squeeze(1)
    other = said.scatter(1, labels[:, None], -1).amax(1)
    entropy = -(said * said.clamp_min(1e-300).log()).sum(1)
    return {
        "self-confidence": 1 - own.numpy(),
        "normalised margin": (other - own).numpy(),
        "confidence-weighted entropy": (entropy / own.clamp_min(1e-12)).log1p().numpy(),
    }


def baselines(case: Case, held_out: np.ndarray | None = None) -> Scores:
    """All that need no retraining: of the network, of its neighbours, of its series."""
    scores = simple(case)
    in_sample = quality(answers(case.network(), case.inputs[case.asked]).softmax(1), case.labels)
    scores["cleanlab: confidence-weighted entropy, in sample"] = in_sample["confidence-weighted entropy"]
    scores["k-NN, penultimate layer"] = neighbours(case)
    scores["input-loss curvature"] = curvature(case)
    if held_out is not None:
        scores |= forgetting(case, held_out)
    if case.series:
        count = len(case.series)
        scores |= {f"{name}, {count} checkpoints": score for name, score in along(case, count).items()}
    return scores
