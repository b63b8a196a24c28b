"""The words of a report, each in one line, and links to them from where a page first says them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from memaudit.text import clean

if TYPE_CHECKING:
    from markupsafe import Markup

TERMS: dict[str, str] = {
    "flagged": "The training examples under audit, each with the label the model was trained with.",
    "reference": "Clean examples that are not flagged: the accuracy on them is what must survive.",
    "fitted": "The model predicts the label that the example was trained with.",
    "memorized": "Fitted, although the nearest clean examples do not support the label (atypical).",
    "atypical": "Few of the nearest clean examples, in the model's own features, have the label.",
    "unit": "One channel, neuron or attention head of the network: the smallest thing that is cut.",
    "cut": "A unit's output is set to a constant while the model runs; the file stays as it is.",
    "suppress": "The label is no longer predicted with the units cut; what was learned may still be in other units.",
    "localized": "A few units suppress the label, the reference survives, and as many random units do not do it.",
    "entangled": "The label can be suppressed, but the reference pays for it, or random units do it too.",
    "diffuse": "The label was not suppressed within the allowed number of units.",
    "random units": "A control: as many live units of the same layers, drawn by lot and cut instead; "
    "three draws, and on to the planned number where those leave doubt.",
    "set aside": "A half of the reference that no search has seen, kept to measure costs on.",
    "clean example": "An example of the reference; matched ones have the same labels and similar margins.",
    "interval": "Where the true value lies in 95 of 100 such audits, sampling error alone counted.",
    "median": "The value in the middle: half of the examples lie below it, half above.",
    "AUROC": "The chance that a flagged example scores higher than a clean one: 50% is guessing, 100% perfect.",
    "Jaccard index": "How much two sets share: what is in both over what is in either.",
    "checkpoint": "The model as it was saved at one moment of its training.",
    "layer group": "A block of the network whose parameters are rewound or retrained together.",
    "critical": "Clean examples come back without what the layer learned, the flagged labels do not.",
    "redundant": "The flagged labels are predicted without what the layer learned of them.",
    "waived": "A memorized example that your team has accepted by name, with a reason and an end.",
    "policy": "What your team allows a release to ship with; the gate compares the report with it.",
    "p": "The share of clean examples whose own label is at least as little supported: small is atypical.",
}
"""In the order a page says them; a definition is one line."""


def anchor(term: str) -> str:
    """The fragment that leads to a term's line."""
    return "term-" + re.sub(r"[^a-z]+", "-", term.lower())


class Glossary:
    """Links for one page: the first time it says a term, the term leads to its line."""

    def __init__(self) -> None:
        forms = sorted(TERMS, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, forms))})(e?s|ed)?(?![\w-])", re.IGNORECASE)
        self._canonical = {term.lower(): term for term in TERMS}
        self.said: set[str] = set()

    def link(self, text: object, limit: int = 4_000) -> Markup:
        """`text` escaped, with a link on the first mention of each term."""
        from markupsafe import Markup

        if hasattr(text, "__html__"):
            return Markup(text)  # noqa: S704 - ours already
        return Markup("").join(self._pieces(clean(text, limit)))

    def _pieces(self, text: str) -> list[str | Markup]:
        from markupsafe import Markup

        pieces: list[str | Markup] = []
        at = 0
        for match in self._pattern.finditer(text):
            term = self._canonical[match[1].lower()]
            if term in self.said or (term == "p" and match[0] != "p"):
                continue
            self.said.add(term)
            pieces.append(text[at : match.start()])
            link = Markup('<a class="term" href="#{}" title="{}">{}</a>')
            pieces.append(link.format(anchor(term), TERMS[term], match[0]))
            at = match.end()
        return [*pieces, text[at:]]
