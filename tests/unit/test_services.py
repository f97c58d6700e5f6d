"""The live page and what else listens to a stream: who may ask, what they get, and that nobody is waited for."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mars_edge.errors import UsageError
from mars_edge.faults import Fault
from mars_edge.modality import Modality
from mars_runtime.capture import Counts, Sample
from mars_runtime.decision import Decision
from mars_runtime.health import Summary
from mars_runtime.policy import Outcome
from mars_runtime.sensors.driver import Frame
from mars_runtime.services import access, mqtt, notify, pictures
from mars_runtime.services.addresses import addresses_of
from mars_runtime.services.board import Board
from mars_runtime.services.metrics import Metrics
from mars_runtime.services.server import CLIENTS
from mars_runtime.services.site import Site, Subject
from tests.fake_engine import manifest

JSON = {"Content-Type": "application/json"}


def decision(seq: int, *, verdict: Any = "accept", missing: str | None = None, late_ms: float = 0.0) -> Decision:
    names = manifest().names
    modalities = {
        name: Summary(
            status="missing" if name == missing else "ok", reason="stale" if name == missing else None, age_s=0.1
        )
        for name in names
    }
    return Decision(
        seq=seq,
        t_utc_s=0.0,
        outcome=Outcome(label="live", score=0.9, threshold=0.5, verdict=verdict, reason=None),
        subset="+".join(name for name in names if name != missing),
        modalities=modalities,
        experts=((1, 0.7), (0, 0.3)),
        latency_ms={"preprocess": 0.5, "total": 2.0},
        age_ms=20.0,
        late_ms=late_ms,
    )


class Rig:
    """What the page is about: one picture, and a list of the faults asked for."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def latest(self, name: str) -> Sample | None:
        if name != manifest().names[0]:
            raise UsageError(f"no sensor {name!r} in this stream")
        return Sample(frame=Frame(data=np.full((8, 8, 3), 40, np.uint8)), at_s=0.0)

    def inject(self, fault: Fault) -> None:
        if fault.sensor not in manifest().names:
            raise UsageError(f"no sensor {fault.sensor!r}")
        self.faults.append(fault)

    def subject(self, *, breakable: bool = True) -> Subject:
        return Subject(
            manifest=manifest(),
            sensors={manifest().names[0]: "a camera"},
            latest=self.latest,
            inject=self.inject if breakable else None,
            mend=self.faults.clear if breakable else None,
            truth=(lambda: "print") if breakable else None,
        )


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def site(rig: Rig) -> Iterator[Site]:
    counts = {manifest().names[0]: Counts(received=9, dropped=2, reconnects=1)}
    metrics = Metrics(manifest(), counts=lambda: counts, undelivered=lambda: 5)
    made = Site(access.address_of("0"), rig.subject(), metrics=metrics)
    yield made
    made.close()


def port_of(site: Site) -> int:
    return int(site.url.rstrip("/").rpartition(":")[2])


def ask(
    site: Site, path: str, method: str = "GET", body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Message, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(site), timeout=5)
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


# What is served.


def test_the_page_loads_nothing_from_elsewhere_and_allows_nothing_inline(site: Site) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/icon.svg", "image/svg"),
    ):
        status, headers, content = ask(site, path)
        assert status == 200 and headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        content = content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"http://" not in content and b"https://" not in content
        assert b" style=" not in content and b"onclick=" not in content


def test_events_carry_the_newest_decision_and_end_with_the_stream(site: Site) -> None:
    site.write(decision(0))
    site.write(decision(1))
    connection = http.client.HTTPConnection("127.0.0.1", port_of(site), timeout=5)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    first = json.loads(answer.fp.readline().removeprefix(b"data: "))
    assert first == decision(1).to_dict() | {"truth": "print"}
    site.write(decision(2, missing=manifest().names[1]))
    lines = iter(answer.fp.readline, b"")
    second = json.loads(next(line for line in lines if line.startswith(b"data:")).removeprefix(b"data: "))
    assert second["seq"] == 2 and second["modalities"][manifest().names[1]]["status"] == "missing"
    site.close()
    assert b"data:" not in answer.fp.read()
    connection.close()


def test_a_picture_is_the_newest_sample_and_an_unknown_sensor_has_none(site: Site) -> None:
    status, headers, content = ask(site, f"/picture/{manifest().names[0]}?7")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (8, 8, 3)
    assert ask(site, "/picture/nothing")[0] == 404
    assert ask(site, "/picture/..%2f..%2fetc%2fpasswd")[0] == 404


def test_health_is_bad_before_the_first_decision_and_when_they_stop_coming(rig: Rig) -> None:
    now = [100.0]
    site = Site(access.address_of("0"), rig.subject(), clock=lambda: now[0])

    def health() -> tuple[int, Any]:
        status, _, content = ask(site, "/healthz")
        return status, json.loads(content)["reason"]

    try:
        assert health() == (503, "no decision yet")
        site.write(decision(0))
        assert health() == (200, None)
        now[0] += 2.5
        assert health() == (503, "no decision for 2.5 s")
        for seq in range(30):
            site.write(decision(seq, late_ms=5.0))
            now[0] += 0.1
        assert health() == (503, "every decision of the last 5.5 s was late")
        site.write(decision(30))
        assert health() == (200, None)
        assert ask(site, "/metrics")[0] == 501
    finally:
        site.close()


def test_a_stream_that_is_asked_to_decide_rarely_is_well_between_its_decisions(rig: Rig) -> None:
    now = [0.0]
    site = Site(access.address_of("0"), rig.subject(), stalled_s=30.0, clock=lambda: now[0])
    try:
        site.write(decision(0))
        now[0] = 29.0
        assert ask(site, "/healthz")[0] == 200
        now[0] = 31.0
        assert ask(site, "/healthz")[0] == 503
    finally:
        site.close()


def test_metrics_count_decisions_by_verdict_and_subset_and_sensors_by_state(site: Site) -> None:
    other = manifest().names[1]
    for seq in range(3):
        site.write(decision(seq, missing=other if seq else None))
    status, headers, content = ask(site, "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = content.decode().splitlines()
    whole, rest = "+".join(manifest().names), "+".join(n for n in manifest().names if n != other)
    assert f'mars_edge_decisions_total{{subset="{whole}",verdict="accept"}} 1.0' in lines
    assert f'mars_edge_decisions_total{{subset="{rest}",verdict="accept"}} 2.0' in lines
    assert f'mars_edge_sensor_missing_total{{reason="stale",sensor="{other}"}} 1.0' in lines
    assert f'mars_edge_sensor_state{{sensor="{other}",state="missing"}} 1.0' in lines
    assert f'mars_edge_sensor_state{{sensor="{other}",state="ok"}} 0.0' in lines
    assert 'mars_edge_latency_seconds_sum{stage="total"} 0.006' in lines
    assert f'mars_edge_sensor_decisions_total{{sensor="{other}",state="missing"}} 2.0' in lines
    assert f'mars_edge_sensor_age_seconds_count{{sensor="{whole.split("+")[0]}"}} 3.0' in lines
    name = manifest().names[0]
    assert f'mars_edge_samples_total{{sensor="{name}"}} 9.0' in lines
    assert f'mars_edge_dropped_samples_total{{sensor="{name}"}} 2.0' in lines
    assert f'mars_edge_reconnects_total{{sensor="{name}"}} 1.0' in lines
    assert "mars_edge_mqtt_dropped_messages_total 5.0" in lines


# Who may ask.


def test_a_strangers_host_name_is_turned_away(site: Site) -> None:
    for host in ("evil.example", f"evil.example:{port_of(site)}", "127.0.0.1:1", ""):
        status, _, content = ask(site, "/about", headers={"Host": host})
        assert (status, json.loads(content)) == (421, {"error": "unknown host"})
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert ask(site, "/about", headers={"Host": f"{name}:{port_of(site)}"})[0] == 200


def test_a_token_is_asked_for_everywhere_and_moves_from_the_address_to_a_cookie(rig: Rig) -> None:
    site = Site(access.address_of("0"), rig.subject(), token="long-enough")
    try:
        for path in ("/", "/about", "/events", "/metrics", "/healthz", "/picture/rgb"):
            assert ask(site, path)[0] == 401, path
            assert ask(site, f"{path}?token=wrong-one")[0] == 401
        assert ask(site, "/faults", "POST", "{}", JSON)[0] == 401
        status, headers, _ = ask(site, "/?token=long-enough")
        assert (status, headers["Location"]) == (303, "/")
        assert headers["Set-Cookie"] == f"{access.COOKIE}=long-enough; HttpOnly; SameSite=Strict; Path=/"
        assert ask(site, "/about", headers={"Cookie": f"{access.COOKIE}=long-enough"})[0] == 200
        assert ask(site, "/about", headers={"Authorization": "Bearer long-enough"})[0] == 200
    finally:
        site.close()


@pytest.mark.parametrize("token", ["a%0d%0aSet-Cookie:%20evil=1", "anything-else"])
def test_without_a_token_nothing_a_client_sends_is_remembered(site: Site, token: str) -> None:
    status, headers, _ = ask(site, f"/?token={token}")
    assert (status, headers["Set-Cookie"]) == (200, None)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Content-Type": "text/plain"}, "content type is not JSON"),
        ({}, "content type is not JSON"),
        ({**JSON, "Origin": "http://evil.example"}, "another page's request"),
        ({**JSON, "Origin": "null"}, "another page's request"),
    ],
)
def test_another_page_cannot_break_a_sensor(site: Site, rig: Rig, headers: dict[str, str], reason: str) -> None:
    body = json.dumps({"sensor": manifest().names[0], "kind": "off"})
    for method in ("POST", "DELETE"):
        status, _, content = ask(site, "/faults", method, body, headers)
        assert (status, json.loads(content)) == (403, {"error": reason})
    assert rig.faults == []


def test_the_page_breaks_and_mends_a_sensor_of_the_rig(site: Site, rig: Rig) -> None:
    own = {**JSON, "Origin": site.url.rstrip("/")}
    name = manifest().names[0]
    assert ask(site, "/faults", "POST", json.dumps({"sensor": name, "kind": "unplug"}), own)[0] == 200
    assert rig.faults == [Fault(sensor=name, kind="unplug")]
    assert ask(site, "/faults", "DELETE", None, own)[0] == 200
    assert rig.faults == []


@pytest.mark.parametrize("body", ["", "[]", "7", "{", '{"sensor": "rgb"}', '{"sensor": "nobody", "kind": "off"}'])
def test_a_fault_that_makes_no_sense_is_refused(site: Site, rig: Rig, body: str) -> None:
    status, _, content = ask(site, "/faults", "POST", body, JSON)
    assert status == 400 and json.loads(content)["error"]
    assert ask(site, "/faults", "POST", "x" * 2000, JSON)[0] == 400
    assert rig.faults == []


def test_real_sensors_cannot_be_broken_from_a_page(rig: Rig) -> None:
    site = Site(access.address_of("0"), rig.subject(breakable=False))
    try:
        assert json.loads(ask(site, "/about")[2])["faults"] == []
        body = json.dumps({"sensor": manifest().names[0], "kind": "off"})
        assert ask(site, "/faults", "POST", body, JSON)[0] == 404
    finally:
        site.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8350", ("127.0.0.1", 8350, True)), ("localhost:1", ("localhost", 1, True)), ("[::1]:2", ("::1", 2, True)),
     ("0.0.0.0:80", ("0.0.0.0", 80, False)), (":81", ("127.0.0.1", 81, True))],
)  # fmt: skip
def test_an_address_is_a_port_or_a_host_and_a_port(text: str, expected: tuple[str, int, bool]) -> None:
    found = access.address_of(text)
    assert (found.host, found.port, found.loopback) == expected


def test_addresses_and_tokens_that_cannot_be_used_are_refused_with_what_is_allowed() -> None:
    refused = {
        "80a": "--serve '80a': '80a' is no port; allowed: [HOST:]PORT with a port of 0 to 65535",
        "99999": "--serve '99999': '99999' is no port; allowed: [HOST:]PORT with a port of 0 to 65535",
        "host:80": "--serve 'host:80': 'host' is no IP address of this machine; an example: 127.0.0.1:8350",
    }
    for text, message in refused.items():
        with pytest.raises(UsageError) as caught:
            access.address_of(text)
        assert str(caught.value) == message
    everywhere, here = access.address_of("0.0.0.0:0"), access.address_of("0")
    assert access.token_for(here, None) is None
    first, second = (access.token_for(everywhere, None) for _ in range(2))
    assert first and second and first != second and len(first) >= 20
    for token in ("short", "with space in it", "semi;colon;cookie", "line-feed\n", "kein-äöü-bitte"):
        with pytest.raises(UsageError, match=r"^--token has \d+ characters; allowed: 8 and more of A-Z, "):
            access.token_for(here, token)


@pytest.mark.parametrize(
    ("serve", "tls", "host", "may"),
    [
        ("8350", False, "localhost:8350", True),
        ("8350", False, "LocalHost:8350", True),
        ("8350", False, "localhost", False),
        ("80", False, "127.0.0.1", True),
        ("80", False, "[::1]", True),
        ("80", False, "localhost:80", True),
        ("80", False, "evil.example", False),
        ("80", False, "evil.example:80", False),
        ("80", True, "127.0.0.1", False),
        ("443", True, "127.0.0.1", True),
        ("443", True, "evil.example", False),
        ("443", False, "127.0.0.1", False),
        ("127.0.0.2:8350", False, "127.0.0.2:8350", True),
        ("127.0.0.2:8350", False, "127.0.0.3:8350", False),
        ("127.0.0.2:80", False, "127.0.0.2", True),
        ("[0:0:0:0:0:0:0:1]:8350", False, "[::1]:8350", True),
        ("8350", False, "", False),
        ("8350", False, ":8350", False),
    ],
)
def test_a_host_is_a_loopback_name_or_the_address_listened_on_and_a_port_the_scheme_may_imply(
    serve: str, tls: bool, host: str, may: bool
) -> None:
    headers = Message()
    headers["Host"] = host
    reason = access.allowed(headers, None, None, access.address_of(serve), tls=tls)
    assert reason == (None if may else "unknown host")


def test_every_address_is_named_by_those_that_can_be_asked_for() -> None:
    assert addresses_of("127.0.0.2") == ("127.0.0.2",)
    for host in ("0.0.0.0", "::"):
        named = addresses_of(host)
        assert named[-1] == "127.0.0.1"
        assert len(set(named)) == len(named)
        assert not [each for each in named if ipaddress.ip_address(each).is_unspecified]
        for each in named:
            # Only what belongs to this machine can be bound.
            with socket.socket(socket.AF_INET6 if ":" in each else socket.AF_INET) as bound:
                bound.bind((each, 0))


def test_a_port_that_is_taken_is_named(site: Site, rig: Rig) -> None:
    port = port_of(site)
    with pytest.raises(UsageError) as caught:
        Site(access.address_of(str(port)), rig.subject())
    assert str(caught.value) == f"--serve 127.0.0.1:{port}: Address already in use"


# Nobody is waited for.


def test_a_client_that_reads_nothing_delays_no_decision_and_too_many_are_turned_away(site: Site) -> None:
    idle = [socket.create_connection(("127.0.0.1", port_of(site))) for _ in range(CLIENTS)]
    try:
        for client in idle[: CLIENTS // 2]:
            client.sendall(b"GET /events HTTP/1.0\r\nHost: localhost:%d\r\n\r\n" % port_of(site))
        until_s = time.monotonic() + 5.0
        while time.monotonic() < until_s:
            try:
                status = ask(site, "/healthz")[0]
            except (ConnectionError, http.client.HTTPException):
                break
            assert status == 503
            time.sleep(0.05)
        else:
            pytest.fail("no client was turned away")
        begin_s = time.monotonic()
        for seq in range(2000):
            site.write(decision(seq))
        assert time.monotonic() - begin_s < 2.0
    finally:
        for client in idle:
            client.close()


def test_closing_ends_every_thread_of_the_site(rig: Rig) -> None:
    before = threading.active_count()
    site = Site(access.address_of("0"), rig.subject())
    site.write(decision(0))
    client = socket.create_connection(("127.0.0.1", port_of(site)))
    client.sendall(b"GET /events HTTP/1.0\r\nHost: localhost:%d\r\n\r\n" % port_of(site))
    assert client.recv(10)
    site.close()
    site.close()
    client.close()
    until_s = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < until_s:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_a_reader_of_the_board_gets_the_newest_once_and_is_sent_home_at_the_end() -> None:
    board = Board()
    assert board.after(0, 0.0) is None
    board.write(decision(0))
    board.write(decision(1))
    newest = board.after(0, 1.0)
    assert newest is not None and (newest.decision.seq, newest.number) == (1, 2)
    assert board.after(newest.number, 0.0) is None
    threading.Timer(0.05, board.close).start()
    assert board.after(newest.number, 5.0) is None and board.closed


# Pictures.


def test_depth_is_coloured_by_distance_and_black_where_nothing_was_seen() -> None:
    depth = np.array([[0, 300], [550, 800]], np.uint16)
    shown = pictures.visible(depth, (300.0, 800.0))
    assert shown.shape == (2, 2, 3)
    assert not shown[0, 0].any()
    assert len({tuple(pixel) for pixel in shown.reshape(4, 3)}) == 4


def test_colour_keeps_its_colours_and_a_large_picture_is_made_small() -> None:
    red = np.zeros((10, 10, 3), np.uint8)
    red[..., 0] = 200
    assert tuple(pictures.visible(red, None)[0, 0]) == (0, 0, 200)
    modality = manifest().modality(manifest().names[0])
    content = pictures.jpeg(np.zeros((1080, 1920, 3), np.uint8), modality)
    assert content is not None
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (360, 640, 3)
    assert pictures.jpeg(np.zeros((0, 4), np.uint8), modality) is None


def test_a_loud_sound_fills_more_of_its_picture_than_a_quiet_one() -> None:
    wave = np.sin(np.arange(8000) / 5.0)
    areas = [int((pictures.waveform((scale * wave).astype(np.int16))[..., 0] < 200).sum()) for scale in (300, 30000)]
    assert areas[1] > 20 * areas[0] > 0
    meters = [pictures.waveform((scale * wave).astype(np.int16))[-1] for scale in (30, 3000, 32767)]
    lengths = [int((meter[:, 1] < 200).sum()) for meter in meters]
    assert lengths == sorted(set(lengths))
    assert [tuple(meter[0]) == pictures._LOUD for meter in meters] == [False, False, True]
    audio = Modality(name="a", kind="audio", rate_hz=8000, window_s=1.0, mel_bands=32)
    assert pictures.jpeg(wave.astype(np.float32), audio) is not None
    assert pictures.jpeg(np.zeros(0, np.float32), audio) is not None


def test_a_sample_is_encoded_once_for_many_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(pictures, "jpeg", lambda data, modality: calls.append(modality.name) or b"j")
    album, modality = pictures.Album(), manifest().modality(manifest().names[0])
    first, second = (Sample(frame=Frame(data=np.zeros((8, 8, 3), np.uint8)), at_s=0.0) for _ in range(2))
    assert [album.jpeg(first, modality) for _ in range(5)] == [b"j"] * 5
    assert len(calls) == 1
    album.jpeg(second, modality)
    assert len(calls) == 2


# The service manager.


def test_systemd_hears_ready_then_life_from_decisions_alone_then_stopping(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.setblocking(False)
        now = [0.0]
        notifier = notify.Notifier(str(path), 2.0, clock=lambda: now[0])
        for seq in range(61):
            now[0] = seq / 30.0
            notifier.write(decision(seq))
        heard = [manager.recv(1000).decode() for _ in range(5)]
        assert heard[0] == f"READY=1\nWATCHDOG=1\nSTATUS=decision 0: accept on {'+'.join(manifest().names)}"
        assert all(text.startswith("WATCHDOG=1\n") for text in heard[1:])
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
        notifier.close()
        notifier.close()
        assert manager.recv(1000) == b"STOPPING=1"


def test_a_notifier_is_made_only_where_systemd_asks_and_survives_its_silence(tmp_path: Path) -> None:
    assert notify.from_environment({}) is None
    assert notify.from_environment({"NOTIFY_SOCKET": "relative"}) is None
    notifier = notify.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"})
    assert notifier is not None
    notifier.write(decision(0))
    notifier.close()


# MQTT addresses.


def test_a_broker_is_read_from_its_address() -> None:
    found = mqtt.broker_of("mqtts://door@broker.local/cameras/front%20door")
    assert found == mqtt.Broker(host="broker.local", port=8883, topic="cameras/front door", tls=True, user="door")
    assert mqtt.broker_of("mqtt://h:99/t/").port == 99


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h/t", "is not mqtt://[USER@]HOST[:PORT]/TOPIC"),
        ("mqtt://h", "is not mqtt://[USER@]HOST[:PORT]/TOPIC"),
        ("mqtt:///t", "is not mqtt://[USER@]HOST[:PORT]/TOPIC"),
        ("mqtt://h:port/t", "an example: mqtt://broker.local:1883/cameras/door"),
        ("mqtt://h/a/+", "the topic 'a/+' holds a wildcard; allowed: none of + and #"),
    ],
)
def test_an_address_that_names_no_broker_is_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        mqtt.broker_of(url)
    assert message in str(caught.value) and str(caught.value).startswith(f"--mqtt {url!r}")


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        mqtt.broker_of("mqtt://door:secret@h/t")
    assert "secret" not in str(caught.value) and mqtt.PASSWORD in str(caught.value)


def test_without_a_broker_decisions_are_dropped_at_once_and_counted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        sink = mqtt.Mqtt(mqtt.broker_of(f"mqtt://127.0.0.1:{taken.getsockname()[1]}/t"))
        begin_s = time.monotonic()
        for seq in range(1000):
            sink.write(decision(seq))
        assert time.monotonic() - begin_s < 1.0 and sink.dropped == 1000
        sink.close()
        sink.close()


class DeafBroker:
    """Accepts a client and then reads nothing more, as a broker does that was stopped."""

    def __init__(self) -> None:
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(1)
        self.port = int(self._listening.getsockname()[1])
        self.accepted: socket.socket | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        self.accepted, _ = self._listening.accept()
        self.accepted.recv(1000)
        # CONNACK of MQTT 3.1.1: accepted.
        self.accepted.sendall(bytes([0x20, 2, 0, 0]))

    def close(self) -> None:
        if self.accepted is not None:
            self.accepted.close()
        self._listening.close()


def test_a_broker_that_reads_nothing_costs_neither_time_nor_memory() -> None:
    broker = DeafBroker()
    sink = mqtt.Mqtt(mqtt.broker_of(f"mqtt://127.0.0.1:{broker.port}/t"))
    try:
        until_s = time.monotonic() + 5.0
        while not sink.connected and time.monotonic() < until_s:
            time.sleep(0.01)
        assert sink.connected
        longest_s, seq = 0.0, 0
        until_s = time.monotonic() + 10.0
        while sink.dropped < 500 and time.monotonic() < until_s:
            begin_s = time.monotonic()
            sink.write(decision(seq))
            longest_s, seq = max(longest_s, time.monotonic() - begin_s), seq + 1
            assert sink.waiting <= 100
        assert sink.dropped >= 500 and longest_s < 1.0
    finally:
        broker.close()
        sink.close()


def test_a_broker_that_cannot_be_reached_is_told_once_and_what_was_dropped_at_the_end() -> None:
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        sink = mqtt.Mqtt(mqtt.broker_of(f"mqtt://{where}/t"), say=said.append)
        until_s = time.monotonic() + 5.0
        while not said and time.monotonic() < until_s:
            time.sleep(0.01)
        sink.write(decision(0))
        sink.close()
    assert said == [
        f"MQTT broker {where} cannot be reached: decisions are dropped until it can",
        f"MQTT broker {where}: 1 decisions were dropped",
    ]


@pytest.mark.parametrize("url", ["mqtt://h/a/#", "mqtt://h/a?b", "mqtt://h/a#b"])
def test_a_topic_is_never_cut_short(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        mqtt.broker_of(url)
    assert str(caught.value) == (
        f"--mqtt {url!r}: a topic holds neither ? nor #; an example: mqtt://broker.local:1883/cameras/door"
    )
