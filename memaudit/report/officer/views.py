"""The officer's page as HTML that prints on one or two sheets of A4, and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.report.officer import sheet as sheets
from memaudit.report.pages import content_policy, own, templates
from memaudit.report.words import outside

if TYPE_CHECKING:
    from memaudit.report.officer.sheet import Sheet

VERDICTS = {True: "The rule is met", False: "The rule is not met", None: "Incomplete: no verdict"}


def html(sheet: Sheet) -> str:
    """The page."""
    style = own("officer.css")
    return (
        templates()
        .get_template("officer.html.jinja")
        .render(
            policy=content_policy(style, None, False),
            style=style,
            sheet=sheet,
            verdicts=VERDICTS,
            sheets=sheets,
        )
    )


def markdown(sheet: Sheet) -> str:
    """The same, ending in one newline."""
    from memaudit.report.markdown import code, table

    def listed(title: str, lines: list[str]) -> str:
        return f"## {title}\n\n" + "\n".join(
            f"- {code(line, 1000)}" if not line else f"- {_plain(line)}" for line in lines
        )

    blocks = [
        f"# {sheet.title}",
        f"**{_plain(sheet.headline)}** {VERDICTS[sheet.good]}.",
        listed("What was asked", sheet.asked),
        "## What was examined\n\n" + table(("", ""), ((code(n), code(v, 600)) for n, v in sheet.examined)),
        listed("What was found", sheet.found),
        listed("How sure this is", sheet.sure),
        listed("What it does not show", sheet.not_shown),
        listed("What was done", sheet.done),
        listed("What remains", sheet.remains),
        "## Which requirements this evidence serves\n\n"
        + table(("source", "it asks for", "here"), ((p.source, p.asks, p.stands) for p in sheet.points)),
        sheets.ADVICE + " Sources: " + " ".join(sheets.SOURCES),
        table(sheets.SIGNED, [("&nbsp;",) * len(sheets.SIGNED)]),
    ]
    return "\n\n".join(blocks) + "\n"


_MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|!&~@"})


def _plain(text: str) -> str:
    """A sentence with outside strings in it: no markup, link, mention or tag in it is acted on."""
    return outside(text, 2000).translate(_MARKUP)
