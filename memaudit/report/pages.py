"""What every page is made of: its template, what a value is printed as, what it may load, its pictures and its size."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar

from memaudit.numbers import MISSING, count, interval, percent, points
from memaudit.report import glossary
from memaudit.report.words import MAX_COMMAND, MAX_MESSAGE, checkpoint
from memaudit.text import clean

if TYPE_CHECKING:
    from jinja2 import BytecodeCache, Environment
    from markupsafe import Markup

    from memaudit.findings import Share

# A page with pictures stays under 2 MB; a few hundred findings without them under 300 KB.
MAX_PAGE = 1_990_000
# How many pieces of the template make one piece of text.
PIECES = 500
PNG = b"\x89PNG\r\n\x1a\n"


def stream(template: str, **names: Any) -> Iterator[str]:
    """The page that `template`, a file beside this one, makes of `names`, piece by piece."""
    page = templates().get_template(template).stream(**names)
    page.enable_buffering(PIECES)
    return page


def data_url(picture: bytes) -> Markup | None:
    """PNG bytes as a `data:` URL; None where they are no PNG."""
    from markupsafe import Markup

    if not picture.startswith(PNG):
        return None
    return Markup("data:image/png;base64," + base64.b64encode(picture).decode())  # noqa: S704 - base64 of our own


def own(name: str) -> Markup:
    """A style or a script beside this file, for the template to print as it is, less its indentation."""
    from markupsafe import Markup

    lines = (resources.files(__package__) / name).read_text("utf-8").strip().splitlines()
    return Markup("\n".join(line.lstrip() for line in lines))  # noqa: S704


def content_policy(style: str, script: str | None, pictures: bool) -> str:
    """The CSP: nothing is loaded, and only the page's own style and script apply."""
    sources = {
        "default-src": "'none'",
        "style-src": f"'sha256-{_digest(style)}'",
        "script-src": "'none'" if script is None else f"'sha256-{_digest(script)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    if pictures:
        sources["img-src"] = "data:"
    return "; ".join(f"{name} {value}" for name, value in sources.items())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _compiled() -> BytecodeCache:
    """Keeps compiled templates for the pages to come: each has an environment of its own, for it links a term once."""
    from jinja2 import BytecodeCache
    from jinja2.bccache import Bucket

    class Kept(BytecodeCache):
        codes: ClassVar[dict[tuple[str, str], Any]] = {}

        def load_bytecode(self, bucket: Bucket) -> None:
            bucket.code = self.codes.get((bucket.key, bucket.checksum))

        def dump_bytecode(self, bucket: Bucket) -> None:
            self.codes[bucket.key, bucket.checksum] = bucket.code

    return Kept()


def templates() -> Environment:
    """Templates beside this file; whatever they print is one printable line, escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("memaudit.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        bytecode_cache=_compiled(),
    )
    found.filters.update(percent=percent, counted=count, setting=_setting, brief=clean, checkpoint=checkpoint)
    found.filters.update(
        multiple=_multiple, signed=_signed, share=_share, change=_change, linked=glossary.Glossary().link
    )
    return found


def _printable(value: Any) -> Any:
    """Every value the template prints: one printable line, then escaped. Markup is our own and passes."""
    return value if hasattr(value, "__html__") else clean(value, MAX_COMMAND)


def _setting(value: object) -> str:
    """A setting as a person writes it."""
    if isinstance(value, (list, tuple)):
        return clean(", ".join(map(_setting, value)) or "none", MAX_MESSAGE)
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    return clean(value, MAX_MESSAGE)


def _multiple(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}×" if value >= 0.1 else f"{value:.2g}×"


def _share(value: Share) -> str:
    ci = interval(value.low, value.high)
    return f"{percent(value.rate)} ({ci})" if ci else percent(value.rate)


def _change(pair: tuple[float, float]) -> str:
    return f"{points(*pair)} pts"


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")
