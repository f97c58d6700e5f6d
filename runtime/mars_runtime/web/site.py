"""The server of the browser page: its files, the model, the recorded rig; nothing can be changed through it.

GET /             the page and its files
GET /served.json  what is served: the model's name, whether there is a rig, and onnxruntime for graphics processors
GET /model        the model file as it is
GET /rig          a recorded play of the simulated rig
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mars_edge.errors import UsageError
from mars_runtime.services import access
from mars_runtime.services.addresses import addresses_of, bracketed
from mars_runtime.services.server import BoundedServer
from mars_runtime.web.assets import Asset, page_assets

_SOCKET_S = 10.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self'; media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Both together let the page share memory between threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Only in pages that were built with it.
WEBGPU = "/ort-wasm-simd-threaded.asyncify.wasm"
RIG = "/rig"
_DATA = "application/octet-stream"
Contents = Mapping[str, Callable[[], Asset]]


def contents(
    model: bytes, name: str, play: Callable[[], bytes] | None, *, page: Mapping[str, Asset] | None = None
) -> Contents:
    """What is served by path; `play` makes the recorded rig when it is asked for first."""
    page = page or page_assets()
    table = json.dumps({"model": name, "rig": play is not None, "webgpu": WEBGPU in page}).encode()
    files = {path: _constant(asset) for path, asset in page.items()}
    files["/served.json"] = _constant(Asset(stored=table, content_type="application/json"))
    files["/model"] = _constant(Asset(stored=model, content_type=_DATA))
    if play is not None:
        files[RIG] = _once(play)
    return files


def _constant(asset: Asset) -> Callable[[], Asset]:
    return lambda: asset


def _once(make: Callable[[], bytes]) -> Callable[[], Asset]:
    lock = threading.Lock()
    made = cache(lambda: Asset(stored=make(), content_type=_DATA))

    def asset() -> Asset:
        with lock:
            return made()

    return asset


class WebSite:
    """A web server in threads of its own; it listens from the moment it is made.

    Args:
        files: what is served by path.
        token: asked of every client; None serves whoever names this machine as its host.
        tls: certificate and key; None serves plain HTTP.

    Raises:
        UsageError: the address cannot be listened on.
    """

    def __init__(
        self, address: access.Address, files: Contents, *, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        try:
            self._server = _Server(address, files, token, tls)
        except OSError as error:
            raise UsageError(f"--host {address.host} --port {address.port}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="web-site", daemon=True)
        self._thread.start()
        self._base = f"http{'s' if tls else ''}://{{}}:{self._server.server_port}/"
        self.url = self._base.format(bracketed(address.host))

    @property
    def urls(self) -> tuple[str, ...]:
        """The page by every address of this machine that is listened on."""
        return tuple(self._base.format(bracketed(each)) for each in addresses_of(self._server.here.host))

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _Server(BoundedServer):
    """The files, under TLS where there is a certificate."""

    def __init__(self, address: access.Address, files: Contents, token: str | None, tls: ssl.SSLContext | None) -> None:
        self.files = files
        self.token = token
        self.tls = tls
        super().__init__(address, _Answer)

    def get_request(self) -> tuple[Any, Any]:
        """A connection, under TLS where there is a certificate; the handshake is left to the client's own thread."""
        connection, client = super().get_request()
        if self.tls is None:
            return connection, client
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), client


class _Answer(BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    timeout = _SOCKET_S
    server_version = "mars-edge"
    sys_version = ""

    def do_GET(self) -> None:
        """A file, or why there is none."""
        url = urlsplit(self.path)
        token = parse_qs(url.query).get("token", [None])[0]
        server = self.server
        reason = access.allowed(self.headers, token, server.token, server.here, tls=server.tls is not None)
        if reason is not None:
            status = HTTPStatus.MISDIRECTED_REQUEST if server.token is None else HTTPStatus.UNAUTHORIZED
            self._refuse(status, reason)
        elif server.token is not None and token is not None and url.path == "/":
            self._remember(server.token)
        elif url.path in server.files:
            self._send(server.files[url.path]())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"nothing at {url.path[:100]}")

    def do_HEAD(self) -> None:
        """What GET says of a file, without the file."""
        self.do_GET()

    def _remember(self, token: str) -> None:
        """The token moves from the address, which is seen and kept, into a cookie."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", access.cookie(token, tls=self.server.tls is not None))
        self._end(b"")

    def _send(self, asset: Asset) -> None:
        if self.headers.get("If-None-Match") == asset.tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self._tagged(asset)
            self.end_headers()
            return
        packed = asset.packed and "gzip" in self.headers.get("Accept-Encoding", "")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", asset.content_type)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self._tagged(asset)
        self._end(asset.stored if packed else asset.plain)

    def _tagged(self, asset: Asset) -> None:
        self.send_header("ETag", asset.tag)
        for name, value in HEADERS.items():
            self.send_header(name, value)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self._end(json.dumps({"error": reason}).encode())

    def _end(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, template: str, *values: object) -> None:
        """Requests are not logged."""
