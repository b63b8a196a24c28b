"""The page in a real browser: quiet, sealed, quick, and usable with a keyboard, a phone and without JavaScript."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memaudit import report
from memaudit.findings import UnitRef
from memaudit.report.document import Report
from tests import report_samples as samples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

pytestmark = pytest.mark.browser

# Debian's Chromium as root, without the services it would call.
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")
ROOT = Path(__file__).parents[2]
AXE = [folder / "node_modules/axe-core/axe.min.js" for folder in (ROOT / ".venv", ROOT)]
TIMEOUT = 60_000  # milliseconds
ROWS = "#examples-table tbody tr:not([hidden])"

Open = Callable[..., "Page"]


def _unavailable(reason: str) -> None:
    """Skip on a developer's machine; a CI run that cannot test the page must not look green."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def launch(playwright: Playwright) -> Browser:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        _unavailable("no Chromium on this machine: apt-get install chromium")
    return playwright.chromium.launch(executable_path=program, args=ARGUMENTS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _unavailable("playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def open_page(browser: Browser, folder: Path) -> Iterator[Open]:
    """Opens a report's page; at the end nothing may have been logged, requested or raised by it."""
    contexts = []
    trouble: list[str] = []
    requested: list[str] = []

    def opened(sample: Report | str, fragment: str = "", width: int = 1280, **options: Any) -> Page:
        text = sample if isinstance(sample, str) else report.render(sample, ".html")
        path = folder / "page.html"
        path.write_text(text, "utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri() + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    own = ((folder / "page.html").as_uri(), "data:image/png;", "blob:", "about:srcdoc")
    assert trouble + [url for url in requested if not url.startswith(own)] == []


def _column(page: Page, number: int) -> list[str]:
    """The first line of a column's cells, top to bottom; rows out of sight included."""
    cells = page.locator(f"{ROWS} td:nth-child({number})")
    texts: list[str] = cells.evaluate_all("cells => cells.map((cell) => cell.firstChild.textContent)")
    return texts


def until(page: Page, condition: str) -> None:
    """`page.wait_for_function` would evaluate the text at each look; the page's policy forbids the second."""
    page.evaluate(f"""async () => {{
        for (const end = performance.now() + {TIMEOUT}; !({condition}); await new Promise(requestAnimationFrame))
            if (performance.now() > end) throw new Error("never came true");
    }}""")


def _width(page: Page) -> int:
    width: int = page.evaluate("document.documentElement.scrollWidth")
    return width


@pytest.mark.parametrize("sample", ["small", "hostile", "incomplete"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("javascript", [True, False])
def test_the_page_is_quiet_and_never_scrolls_sideways(
    open_page: Open, sample: str, width: int, javascript: bool
) -> None:
    page = open_page(getattr(samples, sample)(), width=width, java_script_enabled=javascript)
    assert page.locator("h1").is_visible()
    if javascript:
        assert _width(page) == width
    else:
        assert page.locator("body").bounding_box()["width"] <= width  # type: ignore[index]


def test_a_violation_of_the_policy_would_be_seen(browser: Browser, folder: Path) -> None:
    path = folder / "broken.html"
    text = report.render(samples.small(), ".html").replace("</main>", "<img src='x.png'><script>1</script></main>")
    path.write_text(text, "utf-8")
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(path.as_uri())
    page.close()
    assert sum("Content Security Policy" in message for message in messages) == 2


def test_sorting_by_a_column_says_so_and_puts_missing_values_last(open_page: Open) -> None:
    page = open_page(samples.small())
    head = page.locator("th", has_text="Units").first
    before = _column(page, 1)
    for click, expected in [("descending", ["3", "2", "–", "–"]), ("ascending", ["2", "3", "–", "–"])]:
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == click
        assert _column(page, 6) == expected
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert _column(page, 1) == before


def test_every_column_sorts(open_page: Open) -> None:
    page = open_page(samples.large(40))
    for button in page.locator("#examples-table th button").all():
        button.click()
        assert page.locator("#examples-table th[aria-sort]").count() == 1
        assert page.locator(ROWS).count() == 40


def test_numbers_sort_as_numbers(open_page: Open) -> None:
    page = open_page(samples.large(60), "#sort=cost&dir=asc")
    costs = [float(v.replace("−", "-").replace("±", "").split()[0]) for v in _column(page, 7) if v != "–"]
    assert costs == sorted(costs)
    assert min(costs) < -10


def test_the_filter_narrows_the_table_and_the_address_remembers_it(open_page: Open) -> None:
    page = open_page(samples.small())
    page.get_by_label("Filter").fill("layer4 truck")
    page.locator("#outcome").select_option("entangled")
    page.locator("th", has_text="Reference").first.get_by_role("button").click()
    assert page.locator("#shown").inner_text() == "1 of 4 examples"
    assert page.url.endswith("#q=layer4+truck&outcome=entangled&sort=cost&dir=asc")
    again = open_page(samples.small(), "#" + page.url.split("#")[1])
    assert _column(again, 2) == ["automobile"]
    assert again.get_by_label("Filter").input_value() == "layer4 truck"
    assert again.locator("th[aria-sort=ascending]").inner_text().startswith("Reference")


@pytest.mark.parametrize(
    ("query", "found"), [("layer4.0.bn1:200", 2), ("layer4.0.bn1:20", 0), ("LAYER4.0.BN1", 2), ("3e23e8160039594a", 1)]
)
def test_a_unit_is_matched_whole_and_an_id_in_full(open_page: Open, query: str, found: int) -> None:
    page = open_page(samples.small())
    page.get_by_label("Filter").fill(query)
    assert page.locator(ROWS).count() == found


def test_show_all_lists_exactly_the_examples_of_a_unit(open_page: Open) -> None:
    page = open_page(samples.large(300))
    first = page.locator("#units-list tr").first
    serves = int(first.locator("b").inner_text())
    first.get_by_text("show all").click()
    until(page, "document.getElementById('q').value !== ''")
    assert page.locator(ROWS).count() == serves


def test_going_back_restores_the_table(open_page: Open) -> None:
    page = open_page(samples.small())
    page.goto(page.url + "#outcome=diffuse")
    assert page.locator(ROWS).count() == 1
    page.go_back()
    until(page, f"document.querySelectorAll({ROWS!r}).length === 4")


def test_a_deep_link_shows_its_row(open_page: Open) -> None:
    sample = samples.large(300)
    row = f"#ex-{sample.findings[250].id}"
    page = open_page(sample, row)
    box = f"document.getElementById({row[1:]!r}).getBoundingClientRect()"
    until(page, f"{box}.top >= 0 && {box}.bottom <= innerHeight")


def test_a_deep_link_to_a_filtered_row_clears_the_filter(open_page: Open) -> None:
    page = open_page(samples.small(), "#outcome=diffuse")
    page.locator("#units-list a[href^='#ex-']").first.click()
    until(page, f"document.querySelectorAll({ROWS!r}).length === 4")
    assert page.locator("#outcome").input_value() == ""


@pytest.mark.parametrize("fragment", ["#%", "#nothing", "#sort=none&outcome=none&q=", "#=&=", "#ex-%00"])
def test_a_strange_address_does_no_harm(open_page: Open, fragment: str) -> None:
    page = open_page(samples.small(), fragment)
    assert page.locator(ROWS).count() == 4


def test_everything_is_readable_without_javascript(open_page: Open) -> None:
    page = open_page(samples.small(), java_script_enabled=False)
    assert page.locator(ROWS).count() == 4
    for dead in page.locator("button, input, select").all():
        assert not dead.is_visible()
    page.locator("#units-list a[href^='#ex-']").first.click()
    assert page.url.endswith(f"#ex-{samples.identity('a')}")


def test_the_keyboard_reaches_and_works_the_table(open_page: Open) -> None:
    page = open_page(samples.small())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("cat/")
    assert page.get_by_label("Filter").input_value() == "cat/"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").inner_text().startswith("Example")


def test_the_table_is_a_table_to_a_screen_reader(open_page: Open) -> None:
    page = open_page(samples.small(), width=390)
    assert page.get_by_role("table").count() >= 2
    assert page.locator("#examples-table").get_by_role("row").count() == 5
    assert page.locator("#examples-table").get_by_role("columnheader").count() == 8


@pytest.mark.parametrize("findings", [4, 300])
def test_the_downloaded_report_is_the_report(open_page: Open, tmp_path: Path, findings: int) -> None:
    sample = samples.large(findings) if findings > 4 else samples.small()
    page = open_page(sample)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download report.json").click()
    assert download.value.suggested_filename == "report.json"
    download.value.save_as(tmp_path / "report.json")
    assert report.read(tmp_path / "report.json") == sample


@pytest.mark.parametrize("answers", [True, False])
def test_copying_the_neurons_copies_one_unit_per_line(open_page: Open, answers: bool) -> None:
    page = open_page(samples.small(), permissions=["clipboard-read", "clipboard-write"])
    if not answers:  # as a browser that waits for leave nobody gives
        page.evaluate("() => { navigator.clipboard.writeText = () => new Promise(() => {}) }")
    button = page.get_by_role("button", name="Copy the list")
    # "Copied" stands for a moment only: what the button said is kept, however late this process looks.
    button.evaluate(
        "button => new MutationObserver(() => { button.dataset.said = `${button.dataset.said} ${button.textContent}` })"
        ".observe(button, {childList: true, characterData: true, subtree: true})"
    )
    button.click()
    page.locator("button[data-said*=Copied]").wait_for()
    assert (
        page.evaluate("navigator.clipboard.readText()")
        == "layer4.0.bn1:200\nlayer3.0.bn2:17\nlayer4.0.bn2:7\nconv1.bn:3"
    )


def test_pictures_are_shown(open_page: Open) -> None:
    sample = samples.small()
    page = open_page(report.render(sample, ".html", {sample.findings[0].example.id: samples.PICTURE}))
    until(page, "document.images[0].naturalWidth === 2")
    assert page.locator(f"{ROWS} td:first-child").count() == 4


def test_a_notebook_frame_filters_and_follows_links(open_page: Open) -> None:
    page = open_page(f"<!doctype html><title>notebook</title>{report.embed(samples.small())}")
    frame = page.frame_locator("iframe")
    frame.get_by_label("Filter").fill("airplane")
    assert frame.locator("#shown").inner_text() == "1 of 4 examples"
    frame.locator("#units-list a[href^='#ex-']").first.click()
    frame.locator(".here").wait_for()
    assert frame.locator("#shown").inner_text() == "4 examples"


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's own script, which .ci/run installs from npm."""
    found = next((path for path in AXE if path.is_file()), None)
    if found is None:
        _unavailable("no axe-core on this machine: npm install --no-save --prefix .venv axe-core@4")
    return found.read_text("utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("sample", ["over_time", "settled", "whole"])
def test_axe_finds_nothing_serious(open_page: Open, axe: str, sample: str, width: int, scheme: str) -> None:
    page = open_page(getattr(samples, sample)(), width=width, color_scheme=scheme)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert len(found["passes"]) + len(found["incomplete"]) > 10
    faults = [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found["violations"]]
    assert [fault for fault in faults if fault[1] in ("serious", "critical")] == []


@pytest.mark.parametrize("name", ["officer of a scan", "officer of a verification", "verification"])
def test_axe_finds_nothing_on_pages_without_script(open_page: Open, axe: str, name: str) -> None:
    from memaudit.report.officer import scanned, verified, views
    from memaudit.report.verification import html
    from tests.report.test_officer import verification

    found = verification()
    texts = {
        "officer of a scan": lambda: views.html(scanned.of_report(samples.small())),
        "officer of a verification": lambda: views.html(verified.of_verification(found)),
        "verification": lambda: html.render(found),
    }
    page = open_page(texts[name]())
    page.evaluate(axe)
    said = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert [v["id"] for v in said["violations"] if v["impact"] in ("serious", "critical")] == []


def test_axe_would_notice(open_page: Open, axe: str) -> None:
    page = open_page(report.render(samples.small(), ".html").replace('<html lang="en">', "<html>"))
    page.evaluate(axe)
    found = page.evaluate("axe.run(document)")
    assert "html-has-lang" in [v["id"] for v in found["violations"]]


def _luminance(color: list[float]) -> float:
    channels = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("main *, header *")]
    .filter((node) => node.checkVisibility() && [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
    .filter((node) => !node.closest("svg"))
    .map((node) => [node.tagName + "." + node.className, rgb(getComputedStyle(node).color).slice(0, 3), behind(node)]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sample", ["small", "incomplete"])
def test_text_stands_out_from_its_ground(open_page: Open, scheme: str, sample: str) -> None:
    page = open_page(getattr(samples, sample)(), color_scheme=scheme)
    for name, ink, paper in page.evaluate(CONTRASTS):
        light, dark = sorted((_luminance(ink), _luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ink, paper)


def test_print_hides_the_controls(open_page: Open) -> None:
    page = open_page(samples.small())
    page.emulate_media(media="print")
    assert not page.locator("#q").is_visible()
    assert page.locator(ROWS).count() == 4


A4 = {"width": 725, "height": 1039}  # of paper less its margins, in CSS pixels


def test_two_hundred_findings_fit_twelve_pages(open_page: Open) -> None:
    """With names as long as they are in a ResNet and a folder of images."""
    sample = samples.whole(200)
    units = [UnitRef(layer=f"layer{n % 4}.0.downsample.2", index=100 + n, kind="channel") for n in range(10)]
    for number, finding in enumerate(sample.findings):
        long = finding.example.model_copy(update={"source": f"data/train/automobile/{number:05}.png"})
        sample.findings[number] = finding.model_copy(update={"example": long, "units": units})
    pictures = {f.example.id: samples.PICTURE for f in sample.findings}
    page = open_page(report.render(sample, ".html", pictures))
    printed = page.pdf(format="A4", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= 12


def test_paper_shows_every_row_laid_out(open_page: Open) -> None:
    """A column as narrow as a letter makes rows as high as a word is long."""
    page = open_page(samples.whole(60))
    page.set_viewport_size(A4)  # type: ignore[arg-type]
    page.emulate_media(media="print")
    rows = page.locator("#examples tbody tr")
    sizes = rows.evaluate_all("rows => rows.map((r) => [r.offsetHeight, ...[...r.cells].map((c) => c.offsetWidth)])")
    assert len(sizes) == 60
    assert max(height for height, *_ in sizes) < 60
    assert min(width for _, *widths in sizes for width in widths) > 40
    assert _width(page) <= A4["width"]


def test_the_ten_worst_stand_open_and_a_fold_opens_for_its_row(open_page: Open) -> None:
    sample = samples.large(60)
    page = open_page(sample)
    assert page.locator(ROWS).count() == 10
    assert page.locator("details.fold:not([open])").count() == page.locator("details.fold").count() > 2
    last = page.locator("details.fold tr[id]").last
    page.goto(f"{page.url.split('#')[0]}#{last.get_attribute('id')}")
    last.wait_for(state="visible")


def test_a_filter_is_over_the_folded_rows_too(open_page: Open) -> None:
    page = open_page(samples.large(60))
    page.locator("#outcome").select_option("not_fitted")
    unfitted = sum(not f.fitted for f in samples.large(60).findings)
    assert page.locator(ROWS).count() == unfitted > 0
    page.locator("#outcome").select_option("")
    assert page.locator(ROWS).count() == 10
    assert page.locator("#examples tbody tr").count() == 60


def test_without_javascript_a_fold_opens_by_its_summary(open_page: Open) -> None:
    page = open_page(samples.large(60), java_script_enabled=False)
    page.locator("details.fold summary").first.click()
    assert page.locator("details.fold").first.locator("tbody tr").first.is_visible()


SKIPPED = f"""() => [...document.querySelectorAll({ROWS!r})].filter(
    (row) => !row.cells[0].firstChild.checkVisibility({{ contentVisibilityAuto: true }})
).length"""


@pytest.mark.parametrize(("findings", "skips"), [(300, False), (2000, True)])
def test_only_a_long_table_skips_the_rows_out_of_sight(open_page: Open, findings: int, skips: bool) -> None:
    """What keeps thousands of rows quick (`tests.benchmarks.page`); a short table keeps still under the pointer."""
    page = open_page(samples.large(findings))
    for query in ("", "dog"):
        page.get_by_label("Filter").fill(query)
        rows = page.locator(ROWS).count()
        skipped = page.evaluate(SKIPPED)
        assert skipped > rows - 40 if skips else skipped == 0, (skipped, rows)


def test_nothing_moves_when_a_short_table_comes_into_sight(open_page: Open) -> None:
    page = open_page(samples.small())
    button = page.get_by_role("button", name="Copy the list")
    top = "button => button.getBoundingClientRect().top + scrollY"
    before = button.evaluate(top)
    button.scroll_into_view_if_needed()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert button.evaluate(top) == before
