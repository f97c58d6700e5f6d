"""The services beside a running stream of the simulated rig: asked for by options, told by the loop alone."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mars_edge.manifest import Policy
from mars_edge.options import OneLineParser
from mars_runtime.engines import Inference
from mars_runtime.pipeline import Settings
from mars_runtime.services.options import add_service_options, check, services
from mars_runtime.sinks import Sink
from mars_runtime.stream import Stream, default_specs
from tests.fake_engine import FakeEngine, manifest


class Stallable:
    """An engine that waits while `go` is not set, as one does whose device hangs."""

    def __init__(self) -> None:
        self.name = "stallable"
        self.manifest = manifest()
        self.go = threading.Event()
        self.go.set()
        self._inner = FakeEngine(self.manifest)

    def infer(self, samples: Any, features: Any) -> Inference:
        self.go.wait(30.0)
        return self._inner.infer(samples, features)

    def close(self) -> None:
        self._inner.close()


def parsed(*words: str) -> argparse.Namespace:
    parser = OneLineParser(prog="test")
    add_service_options(parser)
    parser.add_argument("--rate-hz", type=float)
    options = parser.parse_args(words)
    check(options)
    return options


@contextlib.contextmanager
def running(engine: Stallable, *words: str) -> Iterator[list[Sink]]:
    """A stream of the rig that decides in a thread of its own, and the sinks that `words` ask for."""
    specs = default_specs(engine.manifest)
    stream = Stream(engine, specs, Settings(policy=Policy()), live_faults=True)
    sinks = services(parsed(*words), stream, engine.manifest)

    def decide() -> None:
        for decision in stream.decisions():
            for sink in sinks:
                sink.write(decision)

    with stream:
        loop = threading.Thread(target=decide)
        loop.start()
        try:
            yield sinks
        finally:
            engine.go.set()
            stream.stop()
            loop.join(10.0)
            for sink in sinks:
                sink.close()
    assert not loop.is_alive()


def until(true: Callable[[], Any], timeout_s: float = 10.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while not true() and time.monotonic() < end_s:
        time.sleep(0.02)
    return bool(true())


class Client:
    """Asks the page of a site."""

    def __init__(self, site: Any) -> None:
        self._port = int(site.url.rstrip("/").rpartition(":")[2])

    def ask(self, path: str, method: str = "GET", table: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        body = None if table is None else json.dumps(table)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def event(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        connection.request("GET", "/events")
        with connection.getresponse() as answer:
            line = answer.fp.readline()
        connection.close()
        return json.loads(line.removeprefix(b"data: "))

    def state(self, sensor: str) -> str:
        return str(self.event()["modalities"][sensor]["status"])


@pytest.fixture(autouse=True)
def no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


def test_a_sensor_broken_from_the_page_leaves_the_mask_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Stallable()
    with running(engine, "--serve", "0") as sinks:
        client = Client(sinks[0])
        assert until(lambda: client.ask("/healthz")[0] == 200)
        assert until(lambda: client.state("depth") == "ok")
        assert client.ask("/picture/depth")[1].startswith(b"\xff\xd8")
        assert client.ask("/picture/nothing")[0] == 404
        assert client.ask("/faults", "POST", {"sensor": "depth", "kind": "unplug"})[0] == 200
        assert until(lambda: client.event()["subset"] == "rgb+ir")
        event = client.event()
        assert event["modalities"]["depth"]["reason"] in ("disconnected", "stale", "lost")
        assert "encode.depth" not in event["latency_ms"]
        assert event["truth"]
        assert client.ask("/faults", "DELETE")[0] == 200
        assert until(lambda: client.event()["subset"] == "rgb+depth+ir", 30.0)
        metrics = client.ask("/metrics")[1].decode()
        assert 'mars_edge_reconnects_total{sensor="depth"} 0.0' not in metrics
        assert 'mars_edge_reconnects_total{sensor="rgb"} 0.0' in metrics
        assert 'subset="rgb+ir"' in metrics
    assert capsys.readouterr().err.startswith("mars-edge: live page at http://127.0.0.1:")


def test_a_loop_that_hangs_is_ill_and_pets_the_watchdog_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        engine = Stallable()
        with running(engine, "--serve", "0") as sinks:
            client = Client(sinks[0])
            assert manager.recv(1000).startswith(b"READY=1\nWATCHDOG=1\n")
            for _ in range(3):
                assert manager.recv(1000).startswith(b"WATCHDOG=1\n")
            engine.go.clear()
            time.sleep(0.3)
            manager.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while manager.recv(1000):
                    pass
            assert until(lambda: client.ask("/healthz")[0] == 503)
            assert json.loads(client.ask("/healthz")[1])["reason"].startswith("no decision for ")
            with pytest.raises(BlockingIOError):
                manager.recv(1000)
            engine.go.set()
            manager.settimeout(10.0)
            assert manager.recv(1000).startswith(b"WATCHDOG=1\n")
        manager.setblocking(False)
        heard = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                heard = manager.recv(1000)
        assert heard == b"STOPPING=1"


def test_a_page_that_others_can_reach_asks_for_a_token_that_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with running(Stallable(), "--serve", "0.0.0.0:0") as sinks:
        said = capsys.readouterr().err
        token = said.partition("?token=")[2].strip()
        assert len(token) >= 20 and said.count(token) == 1
        client = Client(sinks[0])
        assert client.ask("/about")[0] == 401
        assert client.ask(f"/about?token={token}")[0] == 200
        assert client.ask("/faults", "POST", {"sensor": "depth", "kind": "unplug"})[0] == 401


def test_options_that_cannot_be_followed_are_refused_before_anything_is_opened() -> None:
    from mars_edge.errors import UsageError

    refused = {
        ("--token", "long-enough"): "--token has no meaning without --serve",
        ("--serve", "host:1"): "--serve 'host:1': 'host' is no IP address",
        ("--mqtt", "http://h/t"): "--mqtt 'http://h/t' is not mqtt://",
    }
    for words, message in refused.items():
        with pytest.raises(UsageError) as caught:
            parsed(*words)
        assert str(caught.value).startswith(message)
