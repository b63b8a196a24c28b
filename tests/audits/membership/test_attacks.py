"""Membership scores, recomputed from the papers' formulas in another way."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from memaudit.audits.membership import attacks


def _case(seed: int = 0, models: int = 5, n: int = 40, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(models, n, classes, generator=generator)
    return logits, torch.randint(0, classes, (n,), generator=generator)


def _probability(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    z = logits.double().numpy()
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.take_along_axis(
        e / e.sum(-1, keepdims=True), np.broadcast_to(labels.numpy()[:, None], (*z.shape[:-1], 1)), -1
    )[..., 0]


def test_log_odds_and_loss() -> None:
    logits, labels = _case()
    p = _probability(logits, labels)
    assert np.allclose(attacks.scaled(logits, labels), np.log(p / (1 - p)))
    assert np.allclose(attacks.by_loss(logits[0], labels), np.log(p[0]))


def test_log_odds_do_not_saturate() -> None:
    sure = attacks.scaled(torch.tensor([[60.0, 0.0, 0.0], [90.0, 0.0, 0.0]]), torch.tensor([0, 0]))
    assert sure[1] - sure[0] == 30


def test_lira_is_the_normal_tail_of_the_paper() -> None:
    logits, labels = _case()
    p = _probability(logits, labels)
    odds = np.log(p / (1 - p))
    own, out = odds[0], odds[1:]
    expected = stats.norm.cdf(own, out.mean(0), np.sqrt(out.var(0, ddof=1).mean()))
    found = attacks.lira(torch.tensor(own), torch.tensor(out))
    assert np.allclose(stats.norm.cdf(found), expected)
    many = np.random.default_rng(0).normal(size=(attacks.OWN_VARIANCE, len(own)))
    expected = stats.norm.cdf(own, many.mean(0), many.std(0, ddof=1))
    assert np.allclose(stats.norm.cdf(attacks.lira(torch.tensor(own), torch.tensor(many))), expected)


def test_with_one_out_model_lira_ranks_by_the_difference() -> None:
    logits, labels = _case()
    odds = attacks.scaled(logits, labels)
    assert torch.equal(attacks.lira(odds[0], odds[1:2]), attacks.calibrated(odds[0], odds[1:2]))


def test_rmia_is_the_papers_count() -> None:
    logits, labels = _case(models=3)
    others, theirs = _case(seed=1, models=3, n=25)
    p, z = _probability(logits, labels), _probability(others, theirs)
    a, gamma = 0.3, 1.4
    px, pz = 0.5 * ((1 + a) * p[1:].mean(0) + 1 - a), 0.5 * ((1 + a) * z[1:].mean(0) + 1 - a)
    expected = [
        np.mean([(x / m) / (y / k) > gamma for y, k in zip(z[0], pz, strict=True)])
        for x, m in zip(p[0], px, strict=True)
    ]
    found = attacks.rmia(*(torch.tensor(v) for v in (p[0], p[1:], z[0], z[1:])), gamma=gamma)
    assert np.allclose(found, expected)
