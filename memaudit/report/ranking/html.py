"""A ranking as one HTML page: a gallery to go through and what to expect of it, without network and without script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from memaudit.numbers import interval, percent
from memaudit.report import pages
from memaudit.report.ranking import words
from memaudit.report.words import named, short

if TYPE_CHECKING:
    from markupsafe import Markup

    from memaudit.findings import Example
    from memaudit.findings.ranking import Ranked
    from memaudit.report.ranked import Ranking

# Cards of the gallery, pairs of classes and near-duplicates that the page holds; the document has more.
CARDS, PAIRS, TWINS = 200, 60, 40
# What an image grows by for its tag, besides its bytes.
TAG_COST = 140


def render(ranking: Ranking, thumbnails: Mapping[str, bytes] | None = None) -> str:
    """The page; `thumbnails` are PNG bytes by content id, left out from where the page would grow too large."""
    return "".join(parts(ranking, thumbnails))


def parts(ranking: Ranking, thumbnails: Mapping[str, bytes] | None = None) -> Iterator[str]:
    """What `render` gives, piece by piece."""
    if not thumbnails:
        return _page(ranking, {}, 0)
    room = pages.MAX_PAGE - sum(len(part.encode()) for part in _page(ranking, {}, 0))
    urls, cards = _urls(ranking, thumbnails, room)
    return _page(ranking, urls, cards)


def pictured(ranking: Ranking) -> set[str]:
    """The content ids of the examples that the page shows."""
    cards = {e.id for one in ranking.ranked[:CARDS] for e in _of(one)}
    return cards | {e.id for pair in ranking.twins[:TWINS] for e in (pair.first, pair.second)}


def _page(ranking: Ranking, pictures: Mapping[str, Markup], cards: int) -> Iterator[str]:
    """The page.

    Args:
        cards: how many of the gallery's first cards have pictures.
    """
    from markupsafe import Markup

    style = Markup("{}\n{}").format(pages.own("page.css"), pages.own("ranking.css"))
    return pages.stream(
        "ranking.html.jinja",
        policy=pages.content_policy(style, None, bool(pictures)),
        style=style,
        ranking=ranking,
        words=words,
        cards=ranking.ranked[:CARDS],
        shown=cards,
        pictures=pictures,
        pairs=ranking.pairs[:PAIRS],
        twins=ranking.twins[:TWINS],
        label=lambda index: words.label(ranking, index),
        named=named,
        short=short,
        interval=interval,
        percent=percent,
    )


def _of(one: Ranked) -> list[Example]:
    """The examples a card shows: its own, then the nearest."""
    return [one.example, *(similar.example for similar in one.nearest)]


def _urls(ranking: Ranking, thumbnails: Mapping[str, bytes], room: int) -> tuple[dict[str, Markup], int]:
    """`data:` URLs by content id; near-duplicates first, then card by card until `room` bytes are spent."""
    urls: dict[str, Markup] = {}

    def take(examples: list[Example]) -> bool:
        nonlocal room
        found = {e.id: url for e in examples if (url := pages.data_url(thumbnails.get(e.id, b"")))}
        room -= sum(len(found.get(e.id, "")) + TAG_COST for e in examples)
        if room < 0:
            return False
        urls.update(found)
        return True

    for pair in ranking.twins[:TWINS]:
        if not take([pair.first, pair.second]):
            return urls, 0
    for number, one in enumerate(ranking.ranked[:CARDS]):
        if not take(_of(one)):
            return urls, number
    return urls, len(ranking.ranked[:CARDS])
