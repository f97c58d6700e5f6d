"""The built page in the package is the one of these sources, whole, and small enough for a phone."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from mars_edge.errors import UsageError
from mars_runtime.web import assets
from mars_runtime.web.assets import page_assets
from mars_runtime.web.site import WEBGPU

# As runtime/web/pack.mjs has it.
SOURCES = ("index.html", "package-lock.json", "pack.mjs", "vite.config.ts", "src", "static")
PAGE = "runtime/mars_runtime/web/page"
MOST_BYTES = 15_000_000


def sources_digest(folder: Path) -> str:
    files = [folder / name for name in SOURCES if (folder / name).is_file()]
    files += [path for name in SOURCES for path in (folder / name).rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(folder).as_posix() for path in files):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return digest.hexdigest()


def test_the_page_was_built_from_these_sources(repository: Path) -> None:
    stamp = json.loads((repository / PAGE / "build.json").read_text())
    assert stamp["sources_sha256"] == sources_digest(repository / "runtime/web"), "cd runtime/web && npm run build"


def test_the_onnxruntime_of_the_page_is_the_locked_one(repository: Path) -> None:
    stamp = json.loads((repository / PAGE / "build.json").read_text())
    lock = json.loads((repository / "runtime/web/package-lock.json").read_text())
    assert stamp["onnxruntime_web"] == lock["packages"]["node_modules/onnxruntime-web"]["version"]


def test_the_lock_file_names_no_registry(repository: Path) -> None:
    lock = json.loads((repository / "runtime/web/package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]


def test_the_page_without_a_model_weighs_at_most_15_megabytes() -> None:
    assert sum(len(asset.plain) for asset in page_assets().values()) <= MOST_BYTES


def test_what_is_kept_offline_is_what_is_served() -> None:
    worker = page_assets()["/sw.js"].plain.decode()
    match = re.search(r"const FILES = (\[.*?\]);", worker)
    assert match is not None
    kept = {name.removeprefix(".") for name in json.loads(match.group(1))}
    # The worker for graphics processors is of use only where a build adds its runtime, and is kept when it was used.
    assert kept == set(page_assets()) - {"/sw.js", "/webgpu.js"}


def test_the_runtime_for_graphics_processors_is_left_out() -> None:
    assert WEBGPU not in page_assets()


def test_the_page_names_only_files_that_are_there() -> None:
    page = page_assets()["/"].plain.decode()
    named = re.findall(r'(?:src|href)="\./([^"]+)"', page)
    assert "page.js" in named
    assert {f"/{name}" for name in named} <= set(page_assets())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/ort-wasm-simd-threaded.mjs", "text/javascript; charset=utf-8"),
        ("/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ("/page.webmanifest", "application/manifest+json"),
    ],
)
def test_a_file_has_its_own_type(path: str, kind: str) -> None:
    assert page_assets()[path].content_type == kind


def test_the_webassembly_is_stored_packed() -> None:
    asset = page_assets()["/ort-wasm-simd-threaded.wasm"]
    assert asset.packed
    assert asset.plain.startswith(b"\0asm")
    assert len(asset.stored) < len(asset.plain) / 3


def test_nothing_in_the_page_names_another_host() -> None:
    # onnxruntime's own scripts hold the address of their documentation; the browser test asserts that none is asked.
    for path in ("/", "/page.js", "/page.css", "/sw.js", "/worklet.js", "/page.webmanifest"):
        assert re.findall(r"https?://(?!127\.0\.0\.1)[\w.]+", page_assets()[path].plain.decode()) == [], path


def test_an_installation_without_the_page_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets.resources, "files", lambda package: tmp_path)
    with pytest.raises(UsageError) as caught:
        page_assets()
    assert str(caught.value) == (
        "this installation lacks the page; in a checkout: cd runtime/web && npm ci && npm run build"
    )
