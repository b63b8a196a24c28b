"""How soon a browser shows a report and filters its table, by the number of findings.

    python -m tests.benchmarks.page [--out reports/benchmarks/page.md]     (needs Chromium and playwright)

Milliseconds, the median of five loads; a filter's time ends when the page is laid out again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from memaudit import report
from tests import report_samples as samples
from tests.benchmarks.table import publish
from tests.report.test_browser import launch, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LOADS = 5
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]"
FILTER = """() => ["d", "dog", "", "layer3", ""].map((query) => {
    const from = performance.now();
    document.getElementById("q").value = query;
    document.getElementById("q").dispatchEvent(new Event("input"));
    document.body.offsetHeight;
    return performance.now() - from;
})"""


def measure(browser: Browser, path: Path, findings: int) -> tuple[float, float, float]:
    """First paint, the median filter and the slowest one."""
    text = report.render(samples.large(findings), ".html")
    path.write_text(text, "utf-8")
    loads: list[tuple[float, list[float]]] = []
    for _ in range(LOADS):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        until(page, PAINT)
        loads.append((page.evaluate(f"{PAINT}.startTime"), page.evaluate(FILTER)))
        page.close()
    paints, filters = zip(*loads, strict=True)
    return median(paints), median(map(median, filters)), median(map(max, filters))


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| findings | first paint | filter | slowest filter |", "|---:|---:|---:|---:|"]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright)
        for findings in (100, 300, 1000, 2000, 5000):
            figures = measure(browser, Path(folder) / "page.html", findings)
            lines.append(f"| {findings:,} | " + " | ".join(f"{f:.0f} ms" for f in figures) + " |")
        browser.close()
    publish("\n".join(["# The report's page in Chromium", "", *lines, ""]), args.out)


if __name__ == "__main__":
    main()
