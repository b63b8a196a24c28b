"""A verification as one HTML page, without network and without script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import interval, percent
from memaudit.report.pages import content_policy, own, templates
from memaudit.report.verification import words
from memaudit.report.words import named, short

if TYPE_CHECKING:
    from memaudit.report.verified import Verification

# Rows the page holds; the JSON has all.
SLICES, EXAMPLES = 40, 300


def render(found: Verification) -> str:
    """The page."""
    style = own("page.css")
    examples = sorted(found.membership.examples, key=lambda one: (one.share, one.id))
    return (
        templates()
        .get_template("verification.html.jinja")
        .render(
            policy=content_policy(style, None, False),
            style=style,
            found=found,
            words=words,
            examples=examples[:EXAMPLES],
            slices=words.slices(found)[:SLICES],
            label=lambda index: found.class_names[index] if index < len(found.class_names) else str(index),
            named=named,
            short=short,
            interval=interval,
            percent=percent,
        )
    )
