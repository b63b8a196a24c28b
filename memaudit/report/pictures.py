"""Pictures on a page: which are shown within its budget, and how a later page takes them over from it."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import DataRejected
from memaudit.report.pages import data_url
from memaudit.report.rows import worst_first
from memaudit.text import clean

if TYPE_CHECKING:
    from markupsafe import Markup

    from memaudit.report import Thumbnails
    from memaudit.report.document import Report

# The worst examples, whose pictures are shown large.
LARGE = 3
# Examples that stand open on a page; the others are folded by outcome.
OPEN = 10
# What a picture adds to the page besides itself: a cell and a tag.
TAG_COST = 330
# A page is smaller than this; what is larger is none of ours.
MAX_BYTES = 16 * 2**20
_IMAGE = re.compile(r'<img data-id="([0-9a-f]{16})" src="data:image/png;base64,([A-Za-z0-9+/]+={0,2})"')


def wanted(report: Report, most: int) -> tuple[list[str], list[str]]:
    """Ids of the examples whose pictures a page shows, the worst first: flagged ones, and clean ones near the open."""
    ordered = worst_first(report)
    flagged = dict.fromkeys(f.example.id for f in ordered[:most])
    return list(flagged), list(dict.fromkeys(n.id for f in ordered[:OPEN] for n in f.nearest))


def data_urls(report: Report, thumbnails: Thumbnails, room: int) -> dict[str, Markup]:
    """`data:` URLs by example id, those of the worst and of what is near them first, until `room` bytes are spent."""
    urls: dict[str, Markup] = {}
    for identity, times in _placed(report):
        url = data_url(thumbnails.get(identity, b""))
        if url is None or identity in urls:
            continue
        cost = times * (len(url) + TAG_COST)
        if cost > room:
            break
        room -= cost
        urls[identity] = url
    return urls


def _placed(report: Report) -> Iterator[tuple[str, int]]:
    """Each picture and how often the page holds it, in the order in which it may take room."""
    ordered = worst_first(report)
    large = [f for f in ordered[:LARGE] if f.memorized]
    places = Counter(f.example.id for f in (*ordered, *large))
    near = Counter(n.id for f in (*ordered[:OPEN], *large) for n in f.nearest)
    for finding in ordered[:OPEN]:
        for identity in (finding.example.id, *(n.id for n in finding.nearest)):
            yield identity, places[identity] + near[identity]
    for finding in ordered[OPEN:]:
        yield finding.example.id, places[finding.example.id]


def on_page(path: Path, report: Report) -> Mapping[str, bytes]:
    """The pictures in the page of an earlier rendering; none where it shows another set of examples.

    Raises:
        DataRejected: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataRejected(f"cannot read {clean(path)}: {error.strerror}") from None
    text = raw[:MAX_BYTES].decode("utf-8", "replace")
    ours = {f.example.id for f in report.findings} | {n.id for f in report.findings for n in f.nearest}
    found: dict[str, bytes] = {}
    for match in _IMAGE.finditer(text):
        if match[1] in ours:
            try:
                found[match[1]] = base64.b64decode(match[2], validate=True)
            except binascii.Error:
                continue
    return found


def beside(path: Path, report: Report) -> Mapping[str, bytes]:
    """The pictures of the page that lies beside `report.json`; none where there is no such page."""
    page = path.with_suffix(".html")
    return on_page(page, report) if page.is_file() else {}
