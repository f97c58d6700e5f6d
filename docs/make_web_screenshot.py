"""Pictures of a model in a browser: the served page at the size of a phone and of a desk.

    python docs/make_web_screenshot.py -o docs/pictures

Needs `pip install playwright` and Debian's chromium. Every page is a real one: the bundled model decides in the
browser on the simulated rig, and the depth sensor is unplugged by the page's own button. A request that leaves this
machine, or anything on the page's console, fails the script.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
# Fake devices: a moving test picture and beeps.
FAKE_DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
DECIDED = "() => document.documentElement.dataset.firstDecisionMs"
OFFLINE = "() => document.getElementById('offline').textContent === 'works offline'"
# A picture of a machine that is busy with other work shows that work.
CALM = """() => document.querySelectorAll("#sensors > .ok").length === 2
    && document.querySelector('[data-sensor="depth"]').className === "missing"
    && document.getElementById("offline").textContent !== ""
    && parseFloat(document.getElementById("total").textContent) < 15"""


@dataclass(kw_only=True)
class Visit:
    """A page and what it did that nobody must see: requests to other hosts, words on its console."""

    page: Any
    requests: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`mars-edge serve` on a free port: the address of the page, and the process."""
    command = [sys.executable, "-m", "mars_edge", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            if "page at " not in line:
                raise RuntimeError(f"mars-edge serve: {line.strip() or 'ended'}")
            yield line.partition("page at ")[2].strip(), process
        finally:
            process.terminate()


@contextmanager
def browser(*arguments: str) -> Iterator[Any]:
    """A headless Chromium with a fake camera and microphone."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        raise RuntimeError("no chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *FAKE_DEVICES, *arguments],
        )
        try:
            yield found
        finally:
            found.close()


@contextmanager
def visit(found: Any, *, size: tuple[int, int] = SIZES["desktop"], dark: bool = False) -> Iterator[Visit]:
    """A fresh page that has stored nothing; leaving fails where it asked another host or complained."""
    width, height = size
    context = found.new_context(
        viewport={"width": width, "height": height},
        has_touch=width < 600,
        color_scheme="dark" if dark else "light",
    )
    page = context.new_page()
    seen = Visit(page=page)
    # Of the context: requests of workers and of the service worker are not the page's.
    context.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda m: seen.strange.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.strange.append(str(error)))
    try:
        yield seen
    finally:
        context.close()
    strange = [url for url in seen.requests if not url.startswith(("http://127.0.0.1:", "blob:"))] + seen.strange
    if strange:
        raise RuntimeError(f"the page asked or said what it must not: {strange[:3]}")


def main() -> int:
    """Writes web-phone.png and web-desktop.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the pictures go")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    with served("--model", "face_antispoof.onnx") as (url, _), browser() as found:
        for name, size in SIZES.items():
            with visit(found, size=size, dark=name == "phone") as seen:
                seen.page.goto(url)
                seen.page.wait_for_function(DECIDED, timeout=30_000)
                seen.page.click('[data-sensor="depth"] [data-fault="unplug"]')
                seen.page.wait_for_function(CALM, timeout=120_000)
                seen.page.screenshot(path=folder / f"web-{name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
