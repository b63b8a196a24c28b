"""The counterfactual beside an audit: figures against plain forward passes, and the cut against random ones."""

from __future__ import annotations

import copy

import pytest
import torch

from memaudit.audits.counterfactual import held
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.others import SMALLEST, Other, views
from memaudit.engine.views import TRIED, VIEWS, usable
from memaudit.errors import PremiseBroken
from memaudit.findings import Held
from memaudit.network.ablate import edited
from memaudit.numbers import MISSING
from memaudit.pipeline.auditor import Auditor
from memaudit.report import counterfactual, render
from memaudit.report.document import Report
from memaudit.report.words import named
from memaudit.settings import Settings
from tests.conftest import Trained

ROWS = range(16)


def other_of(network: Trained, name: str = "without", sha256: str = "1") -> Other:
    adapter = copy.deepcopy(network).adapter
    return Other(name, sha256, adapter, {"flagged": network.flagged, "reference": network.reference})


@pytest.fixture(scope="module")
def report(trained: Trained, untainted: Trained) -> Report:
    settings = Settings(profile="fast", max_units=4)
    flagged = trained.flagged.subset(ROWS)
    return Auditor(
        copy.deepcopy(trained).adapter, flagged, trained.reference, settings, without=[other_of(untainted)]
    ).run()


def test_what_each_label_rests_on(report: Report, trained: Trained, untainted: Trained) -> None:
    with torch.no_grad():
        own, other = (m.module(trained.flagged.pixels[:16]) for m in (trained, untainted))
    labels = trained.flagged.labels[:16]
    for row, finding in enumerate(report.findings):
        found = finding.counterfactual
        assert found is not None
        p, q = (logits[row].softmax(0)[labels[row]].item() for logits in (own, other))
        assert found.difference == pytest.approx(p - q, abs=1e-5)
        assert found.answer == int(other[row].argmax())
        assert found.right == int(other[row].argmax() == labels[row])
        assert (found.held is Held.MEMORIZED) == (finding.fitted and not found.right)
        assert found.low is None
    assert report.counterfactuals is not None
    assert report.counterfactuals.memorized.hits >= 14


def test_support_is_the_mean_margin_over_the_views_that_the_other_model_knows(
    report: Report, trained: Trained, untainted: Trained
) -> None:
    """Against one plain pass an image and view; the page begins with the labels it supports least."""
    run = Evaluator(copy.deepcopy(untainted).adapter)
    known = usable(run, Panel(trained.reference, range(0, len(trained.reference), -(-len(trained.reference) // TRIED))))
    assert 0 < len(known) < len(VIEWS)
    assert not any(view.mirror for view in known)  # digits are not read in a mirror
    plain = []
    for row in ROWS:
        image, label = trained.flagged.pixels[row : row + 1], int(trained.flagged.labels[row])
        gaps = []
        for view in (None, *known):
            with torch.no_grad():
                logits = untainted.module(image if view is None else view(image))[0].tolist()
            gaps.append(logits.pop(label) - max(logits))
        plain.append(sum(gaps) / len(gaps))
    said = [f.counterfactual.support_without for f in report.findings if f.counterfactual]
    assert said == pytest.approx(plain, abs=1e-4)
    _, (first,) = counterfactual.rows(report, 1)
    assert first[0] == named(report.findings[plain.index(min(plain))].example)


def test_whether_a_cut_gives_the_answer_is_a_column_only_where_units_were_looked_for(report: Report) -> None:
    head, rows = counterfactual.rows(report, 100)
    said = [f.counterfactual.ablated for f in report.findings if f.counterfactual]
    assert head[-1] == counterfactual.CUT
    assert sorted(row[-1] for row in rows) == sorted({None: MISSING, True: "yes", False: "no"}[cut] for cut in said)
    bare = [
        f.model_copy(update={"counterfactual": f.counterfactual.model_copy(update={"ablated": None})})
        for f in report.findings
        if f.counterfactual
    ]
    fewer, shorter = counterfactual.rows(report.model_copy(update={"findings": bare}), 100)
    assert (*fewer, counterfactual.CUT) == head
    assert [row[:-1] for row in rows] == shorter


def test_the_cut_is_compared_with_the_answer(report: Report, trained: Trained) -> None:
    space = trained.space
    for row, finding in enumerate(report.findings):
        found = finding.counterfactual
        assert found is not None
        if not finding.units:
            assert found.ablated is None
            continue
        module = copy.deepcopy(trained.module)
        with edited(module, space, [space.number(u.layer, u.index, u.kind) for u in finding.units]), torch.no_grad():
            said = int(module(trained.flagged.pixels[row : row + 1]).argmax())
        assert found.ablated == (said == found.answer)
        assert 0 <= found.random_agrees <= found.random_draws == 10
    brought = report.counterfactuals.brought if report.counterfactuals else None
    assert brought is not None
    cut = [f.counterfactual for f in report.findings if f.units and f.counterfactual]
    asked = [one for one in cut if one.held is Held.MEMORIZED]
    assert (brought.examples, brought.ours.hits) == (len(asked), sum(bool(one.ablated) for one in asked))
    assert (brought.random.rate or 0) < (brought.ours.rate or 0)


def test_several_models_give_an_interval(trained: Trained, untainted: Trained) -> None:
    second = copy.deepcopy(untainted)
    with torch.no_grad():
        for parameter in second.module.parameters():
            parameter.mul_(1.02)
    settings = Settings(profile="fast", audits=())
    others = [other_of(untainted), other_of(second, "second", "2")]
    found = Auditor(
        copy.deepcopy(trained).adapter, trained.flagged.subset([0, 1, 2]), trained.reference, settings, without=others
    ).run()
    one = found.findings[0].counterfactual
    assert one is not None
    assert one.models == 2
    assert one.low is not None
    assert one.low <= one.difference <= (one.high or 0)
    assert found.findings[0].outcome == "not_searched"


def test_a_stranger_is_refused_by_name(trained: Trained) -> None:
    stranger = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in stranger.module.parameters():
            parameter.zero_()
    settings = Settings(profile="fast", audits=())
    audit = Auditor(
        copy.deepcopy(trained).adapter,
        trained.flagged,
        trained.reference,
        settings,
        without=[other_of(stranger, "bad")],
    )
    with pytest.raises(PremiseBroken, match="--without bad"):
        audit.run()


def test_every_view_shows_it(report: Report) -> None:
    page = render(report, ".html")
    assert 'id="counterfactual"' in page
    assert "## Without the examples" in render(report, ".md")
    header = render(report, ".csv").splitlines()[0]
    assert {"held", "difference", "without_support", "cut_as_without"} <= set(header.split(","))


@pytest.mark.parametrize(
    ("fitted", "right", "models", "expected"),
    [
        (True, 0, 1, Held.MEMORIZED),
        (True, 1, 1, Held.LEARNED),
        (True, 1, 3, Held.MEMORIZED),
        (False, 0, 1, Held.NOT_FITTED),
    ],
)
def test_held(fitted: bool, right: int, models: int, expected: Held) -> None:
    assert held(fitted, right, models) is expected


def test_views_of_large_images_only() -> None:
    assert len(views(torch.rand(2, 3, SMALLEST - 1, 40))) == 1
    image = torch.rand(2, 3, 64, 64)
    shown = views(image)
    assert torch.equal(shown[0], image)
    assert len(shown) == 5
    assert torch.equal(shown[1][..., 2:], image[..., :-2])
