"""The built page as files in memory, each with what HTTP must say of it."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePath

from mars_edge.errors import UsageError

# WebAssembly is compiled while it arrives only under its own type.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
_NOT_SERVED = ("build.json",)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One answer: `stored` is gzip where `packed` says so."""

    stored: bytes
    content_type: str
    packed: bool = False

    @cached_property
    def plain(self) -> bytes:
        """The content itself."""
        return gzip.decompress(self.stored) if self.packed else self.stored

    @cached_property
    def tag(self) -> str:
        """Changes when the content does; an HTTP entity tag."""
        return f'"{hashlib.sha256(self.stored).hexdigest()[:32]}"'


def page_assets(folder: Traversable | None = None) -> Mapping[str, Asset]:
    """The page's files by their path in an address; "/" is the page. None takes those of this installation.

    Raises:
        UsageError: this installation has no built page; says how to build it.
    """
    folder = folder or resources.files("mars_runtime.web").joinpath("page")
    found = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name not in _NOT_SERVED:
            name = file.name.removesuffix(".gz")
            kind = TYPES[PurePath(name).suffix]
            asset = Asset(stored=file.read_bytes(), content_type=kind, packed=name != file.name)
            found["/" if name == "index.html" else f"/{name}"] = asset
    if "/" not in found:
        raise UsageError("this installation lacks the page; in a checkout: cd runtime/web && npm ci && npm run build")
    return found
