"""The live page of a stream, its events, pictures, metrics and health, served over HTTP to a bounded number of clients.

GET /                 the page
GET /about            what the page is about: model, sensors, whether faults can be injected
GET /events           server-sent events: the JSON of the newest decision, at most ten a second
GET /picture/NAME     the newest sample of a sensor as JPEG
GET /metrics          Prometheus text
GET /healthz          200 while decisions come in time, else 503 with the reason
POST /faults          {"sensor": NAME, "kind": FAULT}: break a sensor of the simulated rig; DELETE mends all
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mars_edge.errors import UsageError
from mars_edge.faults import FAULTS, Fault
from mars_edge.manifest import Manifest
from mars_runtime.capture import Sample
from mars_runtime.decision import Decision
from mars_runtime.sensors.pace import Clock
from mars_runtime.services import access
from mars_runtime.services.addresses import bracketed
from mars_runtime.services.board import Board
from mars_runtime.services.metrics import Metrics
from mars_runtime.services.pictures import Album
from mars_runtime.services.server import BoundedServer

_EVENT_S = 0.1
_QUIET_S = 5.0
_SOCKET_S = 10.0
_LONGEST_BODY = 1000
# Without a decision in time for this long the stream does not work.
STALLED_S = 2.0
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the page shows and may do.

    Attributes:
        latest: the newest sample of a sensor that has a source.
        inject, mend: break a sensor, mend all; None where the sensors are real.
        truth: who is on stage of the simulated rig; None where the sensors are real.
    """

    manifest: Manifest
    sensors: Mapping[str, str]
    latest: Callable[[str], Sample | None]
    inject: Callable[[Fault], None] | None = None
    mend: Callable[[], None] | None = None
    truth: Callable[[], str] | None = None


class Site:
    """A sink with a web server; it listens from the moment it is made.

    Raises:
        UsageError: the address cannot be listened on.
    """

    def __init__(
        self,
        address: access.Address,
        subject: Subject,
        *,
        token: str | None = None,
        metrics: Metrics | None = None,
        stalled_s: float = STALLED_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self.board = Board(clock=clock)
        self._metrics = metrics
        try:
            self._server = _Server(address, _Context(subject, self.board, metrics, token, stalled_s, clock))
        except OSError as error:
            raise UsageError(f"--serve {address.host}:{address.port}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="site", daemon=True)
        self._thread.start()
        self._open = True
        self.url = f"http://{bracketed(address.host)}:{self._server.server_address[1]}/"

    def write(self, decision: Decision) -> None:
        """Post one decision; no client is waited for."""
        if self._metrics is not None:
            self._metrics.write(decision)
        self.board.write(decision)

    def close(self) -> None:
        """Stop listening and end every open answer; may be called twice."""
        if not self._open:
            return
        self._open = False
        self.board.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _Context:
    """What every request is answered from."""

    def __init__(
        self,
        subject: Subject,
        board: Board,
        metrics: Metrics | None,
        token: str | None,
        stalled_s: float,
        clock: Clock,
    ) -> None:
        self.subject = subject
        self.album = Album()
        self.board = board
        self.metrics = metrics
        self.token = token
        self._stalled_s = stalled_s
        self._clock = clock

    def illness(self) -> str | None:
        """Why the stream does not work; None while it does."""
        newest = self.board.newest
        if self.board.closed:
            return "the stream has ended"
        if newest is None:
            return "no decision yet"
        now_s = self._clock()
        if now_s - newest.at_s > self._stalled_s:
            return f"no decision for {now_s - newest.at_s:.1f} s"
        late_s = now_s - newest.punctual_s
        return f"every decision of the last {late_s:.1f} s was late" if late_s > self._stalled_s else None

    def picture(self, name: str) -> bytes | None:
        """The newest sample of a sensor as JPEG; None where there is none, or no such sensor."""
        if name not in self.subject.sensors:
            return None
        sample = self.subject.latest(name)
        return None if sample is None else self.album.jpeg(sample, self.subject.manifest.modality(name))

    def about(self) -> dict[str, Any]:
        """What the page needs to know once."""
        manifest, subject = self.subject.manifest, self.subject
        return {
            "name": manifest.name,
            "labels": list(manifest.labels),
            "precision": manifest.precision,
            "experts": manifest.experts,
            "active_experts": manifest.active_experts,
            "sensors": [
                {"name": m.name, "kind": m.kind, "source": subject.sensors.get(m.name)} for m in manifest.modalities
            ],
            "faults": list(FAULTS) if subject.inject is not None else [],
        }

    def event(self, decision: Decision) -> dict[str, Any]:
        """One decision, and the truth of a simulation beside it."""
        truth = None if self.subject.truth is None else self.subject.truth()
        return decision.to_dict() | {"truth": truth}


class _Server(BoundedServer):
    """What every answer needs."""

    def __init__(self, address: access.Address, context: _Context) -> None:
        self.context = context
        super().__init__(address, _Answer)


class _Answer(BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    timeout = _SOCKET_S
    server_version = "mars-edge"
    sys_version = ""

    def do_GET(self) -> None:
        """Reading."""
        url = urlsplit(self.path)
        query_token = parse_qs(url.query).get("token", [None])[0]
        if self._refused(query_token):
            return
        token = self.server.context.token
        if token is not None and query_token is not None and url.path == "/":
            self._remember(token)
        elif url.path in _FILES:
            self._file(*_FILES[url.path])
        elif url.path.startswith("/picture/"):
            self._picture(url.path.removeprefix("/picture/"))
        else:
            self._data(url.path)

    def _data(self, path: str) -> None:
        context = self.server.context
        if path == "/about":
            self._json(HTTPStatus.OK, context.about())
        elif path == "/events":
            self._events()
        elif path == "/healthz":
            illness = context.illness()
            status = HTTPStatus.OK if illness is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._json(status, {"ok": illness is None, "reason": illness})
        elif path == "/metrics" and context.metrics is not None:
            self._send(HTTPStatus.OK, context.metrics.content_type, context.metrics.text())
        elif path == "/metrics":
            self._json(HTTPStatus.NOT_IMPLEMENTED, {"error": "pip install 'mars-edge[metrics]'"})
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"nothing at {path[:100]}"})

    def do_POST(self) -> None:
        """Break a sensor of the simulated rig."""
        self._change(self._inject)

    def do_DELETE(self) -> None:
        """Mend every sensor of the simulated rig."""
        self._change(self._mend)

    def _change(self, act: Callable[[], None]) -> None:
        if self._refused(None):
            return
        if urlsplit(self.path).path != "/faults" or self.server.context.subject.inject is None:
            self._json(HTTPStatus.NOT_FOUND, {"error": "only sensors of the simulated rig can be broken"})
            return
        reason = access.may_change(self.headers)
        if reason is not None:
            self._json(HTTPStatus.FORBIDDEN, {"error": reason})
            return
        try:
            act()
        except (UsageError, ValueError, TypeError, AttributeError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            self._json(HTTPStatus.OK, {"ok": True})

    def _inject(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _LONGEST_BODY:
            raise UsageError(f"the body has {length or 'no'} bytes, at most {_LONGEST_BODY} are read")
        asked = json.loads(self.rfile.read(int(length)))
        sensor, kind, subject = str(asked.get("sensor")), str(asked.get("kind")), self.server.context.subject
        if kind not in FAULTS:
            raise UsageError(f"unknown fault {kind!r}; faults: {', '.join(FAULTS)}")
        assert subject.inject is not None
        subject.inject(Fault(sensor=sensor, kind=kind))

    def _mend(self) -> None:
        subject = self.server.context.subject
        assert subject.mend is not None
        subject.mend()

    def _refused(self, query_token: str | None) -> bool:
        context = self.server.context
        reason = access.allowed(self.headers, query_token, context.token, self.server.here)
        if reason is None:
            return False
        status = HTTPStatus.UNAUTHORIZED if context.token is not None else HTTPStatus.MISDIRECTED_REQUEST
        self._json(status, {"error": reason})
        return True

    def _remember(self, token: str) -> None:
        """The token moves from the address, which is seen and kept, into a cookie."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", access.cookie(token))
        self._end(0)

    def _file(self, name: str, content_type: str) -> None:
        content = resources.files("mars_runtime.services").joinpath("page", name).read_bytes()
        self._send(HTTPStatus.OK, f"{content_type}; charset=utf-8", content)

    def _picture(self, name: str) -> None:
        content = self.server.context.picture(name)
        if content is None:
            self._json(HTTPStatus.NOT_FOUND, {"error": "no picture"})
        else:
            self._send(HTTPStatus.OK, "image/jpeg", content)

    def _events(self) -> None:
        context, number = self.server.context, 0
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self._end(None)
        try:
            while not context.board.closed:
                posted = context.board.after(number, _QUIET_S)
                if posted is None:
                    # A comment keeps the connection, and finds out whether the client is still there.
                    self.wfile.write(b": quiet\n\n")
                    continue
                number = posted.number
                line = json.dumps(context.event(posted.decision), allow_nan=False, separators=(",", ":"))
                self.wfile.write(f"data: {line}\n\n".encode())
                self.wfile.flush()
                time.sleep(_EVENT_S)
        except OSError:
            return

    def _json(self, status: HTTPStatus, table: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(table).encode())

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self._end(len(content))
        self.wfile.write(content)

    def _end(self, length: int | None) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *values: Any) -> None:
        """Requests are not logged: stderr is for people who run a stream."""
