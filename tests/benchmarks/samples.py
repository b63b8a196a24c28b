"""Remakes the sample reports: `make samples`, and `make samples CIFAR10=DIR` for both of them.

`reports/sample-digits` is the demo, run as its README says, in an empty folder; its picture is taken where there is a
Chromium. `reports/sample-cifar10-resnet9` is `tests.benchmarks.over_time`, which trains its network first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from memaudit import report
from memaudit.__main__ import run
from memaudit.errors import ExitCode
from tests.benchmarks import over_time

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "reports" / "sample-digits"
PICTURE = (1200, 760)


def main() -> int:
    """The exit code of the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, help="folder of cifar10-train.npz and cifar10-test.npz")
    parser.add_argument("--series", type=Path, help="checkpoints that tests.benchmarks.cifar has written already")
    options = parser.parse_args()
    if options.cifar10 is not None:
        with TemporaryDirectory() as folder:
            series = options.series or Path(folder) / "series"
            over_time.main(["--data", str(options.cifar10), "--series", str(series)])
    return demo()


def demo() -> int:
    """Run the demo and keep its report."""
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            code = run(["demo", "demo"])
            if code == ExitCode.OK:
                TARGET.mkdir(parents=True, exist_ok=True)
                for name in ("report.json", "report.html"):
                    shutil.copyfile(Path("demo/report") / name, TARGET / name)
                report.write(report.read(TARGET / "report.json"), TARGET / "report.md")
        finally:
            os.chdir(here)
    if code == ExitCode.OK:
        picture(TARGET / "report.html", TARGET / "report.png")
    return code


def picture(page: Path, target: Path) -> None:
    """The first screen of a page, as a reader sees it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.stderr.write("no Chromium: the picture stays as it is\n")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": PICTURE[0], "height": PICTURE[1]}, color_scheme="light")
        view.goto(page.as_uri())
        view.screenshot(path=str(target))
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
