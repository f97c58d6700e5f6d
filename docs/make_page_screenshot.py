"""Pictures of the live page: all sensors well, and the depth sensor pulled out, on a desk and on a phone.

    python docs/make_page_screenshot.py -o docs/pictures

Needs `pip install playwright` and Debian's chromium. Every page is a real stream of the simulated rig; nothing else is
loaded: a request to any other host fails the script.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = {"desktop": (1100, 900), "phone": (390, 844)}
# A picture of a machine that is busy with other work shows that work: wait until the two other sensors are well and
# a decision takes under 10 ms.
CALM = """() => document.querySelectorAll("#sensors > .ok").length === 2
    && document.querySelector('[data-sensor="depth"]').className === "missing"
    && parseFloat(document.getElementById("total").textContent) < 10"""


@contextmanager
def served(port: int) -> Iterator[str]:
    """A stream of the simulated rig with its page; the address of the page."""
    command = [sys.executable, "-m", "mars_edge", "run", "--model", "face_antispoof.pte", "--serve", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "live page at " in line:
                    break
            else:
                raise RuntimeError("the stream ended before its page was there")
            yield line.partition("live page at ")[2].strip()
        finally:
            process.terminate()


@contextmanager
def browser_page(size: tuple[int, int], *, dark: bool = False) -> Iterator[Any]:
    """A page of a headless Chromium; leaving fails when it asked another host, or said something on its console."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        raise RuntimeError("no chromium; on Debian: apt-get install chromium")
    strange: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        width, height = size
        page = browser.new_page(
            viewport={"width": width, "height": height},
            has_touch=width < 600,
            color_scheme="dark" if dark else "light",
        )
        page.on("request", lambda r: None if "//127.0.0.1:" in r.url else strange.append(r.url))
        page.on("console", lambda m: strange.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: strange.append(str(error)))
        try:
            yield page
        finally:
            browser.close()
    if strange:
        raise RuntimeError(f"the page asked or said what it must not: {strange[:3]}")


def state(page: Any, sensor: str) -> str:
    """What the page says of a sensor."""
    return str(page.text_content(f'[data-sensor="{sensor}"] .state'))


def break_sensor(page: Any, sensor: str, kind: str) -> float:
    """Break a sensor by the page's own button; seconds until the page says that it is missing."""
    page.select_option(f'[data-sensor="{sensor}"] select', kind)
    begin_s = time.monotonic()
    page.click(f'[data-sensor="{sensor}"] button')
    page.wait_for_selector(f'[data-sensor="{sensor}"].missing', timeout=10_000)
    return time.monotonic() - begin_s


def main() -> int:
    """Write page-desktop.png and page-phone.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("docs/pictures"), metavar="DIR", help="default: docs/pictures"
    )
    folder = parser.parse_args().output
    with served(0) as url:
        for name, size in SIZES.items():
            with browser_page(size, dark=name == "phone") as page:
                page.goto(url)
                page.wait_for_selector('[data-sensor="depth"].ok', timeout=60_000)
                took_s = break_sensor(page, "depth", "unplug")
                page.wait_for_function(CALM, timeout=120_000)
                path = folder / f"page-{name}.png"
                page.screenshot(path=path, full_page=name == "phone")
                page.click("#mend")
                page.wait_for_selector('[data-sensor="depth"].ok', timeout=60_000)
            print(f"{path}: depth was missing on the page {1000.0 * took_s:.0f} ms after its button was pressed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
