"""The server of the browser page: what it answers, to whom, and the recorded rig."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from mars_edge import rig
from mars_edge.errors import ModelFileError, UsageError
from mars_runtime.commands import serve
from mars_runtime.models import bundled_models, find_model
from mars_runtime.services.access import Address
from mars_runtime.services.addresses import addresses_of
from mars_runtime.web import play
from mars_runtime.web.play import FRAMES_PER_TURN, TURNS, recorded_play
from mars_runtime.web.site import HEADERS, WebSite, contents

LOOPBACK = Address(host="127.0.0.1", port=0)
MODEL = b"model " * 100


@contextmanager
def served(*, make_play: Callable[[], bytes] | None = None, token: str | None = None) -> Iterator[WebSite]:
    site = WebSite(LOOPBACK, contents(MODEL, "a.onnx", make_play), token=token)
    try:
        yield site
    finally:
        site.close()


def ask(site: WebSite, path: str, *, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", int(urlsplit(site.url).port or 0), timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_the_page_the_model_and_what_is_served() -> None:
    with served() as site:
        page, html = ask(site, "/")
        assert (page.status, html[:15]) == (200, b"<!doctype html>")
        assert ask(site, "/model")[1] == MODEL
        assert json.loads(ask(site, "/served.json")[1]) == {"model": "a.onnx", "rig": False, "webgpu": False}
        assert ask(site, "/rig")[0].status == 404


@pytest.mark.parametrize("path", ["/", "/page.js", "/ort-wasm-simd-threaded.wasm", "/model", "/served.json"])
def test_every_answer_forbids_other_hosts_and_allows_threads(path: str) -> None:
    with served() as site:
        answer, _ = ask(site, path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; ")
    assert "http" not in policy and "*" not in policy and "unsafe-inline" not in policy


def test_a_packed_file_goes_out_packed_or_plain_as_the_client_takes_it() -> None:
    path = "/ort-wasm-simd-threaded.wasm"
    with served() as site:
        packed, content = ask(site, path, Accept_Encoding="gzip, br")
        plain, whole = ask(site, path)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert plain.headers["Content-Encoding"] is None
    assert gzip.decompress(content) == whole
    assert packed.headers["Content-Type"] == plain.headers["Content-Type"] == "application/wasm"


def test_a_file_the_client_has_is_not_sent_again() -> None:
    with served() as site:
        tag = ask(site, "/page.js")[0].headers["ETag"]
        again, content = ask(site, "/page.js", If_None_Match=tag)
        other, _ = ask(site, "/page.js", If_None_Match='"other"')
    assert (again.status, content, again.headers["ETag"]) == (304, b"", tag)
    assert other.status == 200


def test_a_page_of_another_name_is_refused() -> None:
    with served() as site:
        answer, content = ask(site, "/model", Host="attacker.example")
    assert (answer.status, json.loads(content)) == (421, {"error": "unknown host"})


@pytest.mark.parametrize("path", ["/build.json", "/../site.py", "/page", "/%2e%2e/site.py", "//etc/passwd"])
def test_nothing_but_the_listed_files_is_served(path: str) -> None:
    with served() as site:
        assert ask(site, path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(method: str) -> None:
    with served() as site:
        assert ask(site, "/model", method=method)[0].status == 501


def test_another_loopback_address_is_served_under_its_own_name() -> None:
    site = WebSite(Address(host="127.0.0.2", port=0), contents(MODEL, "a.onnx", None))
    try:
        with urllib.request.urlopen(f"{site.url}model", timeout=10) as answer:
            assert answer.read() == MODEL
    finally:
        site.close()


@pytest.mark.parametrize("token", ["a%0d%0aSet-Cookie:%20evil=1", "anything-else"])
def test_without_a_token_nothing_a_client_sends_is_remembered(token: str) -> None:
    with served() as site:
        answer, html = ask(site, f"/?token={token}")
    assert (answer.status, answer.headers["Set-Cookie"], html[:15]) == (200, None, b"<!doctype html>")


def test_what_a_client_sends_is_in_no_header() -> None:
    with served(token="correct-horse") as site:
        for path in ("/?token=a%0d%0aevil:%201", "/?token=correct-horse&token=a%0d%0aevil:%201", "/a%0d%0aevil:%201"):
            answer, _ = ask(site, path)
            assert "evil" not in str(answer.headers)


@pytest.mark.parametrize("path", ["/", "/model", "/ort-wasm-simd-threaded.wasm", "/nowhere"])
def test_head_says_what_get_says_without_the_content(path: str) -> None:
    with served() as site:
        get, content = ask(site, path)
        head, _ = ask(site, path, method="HEAD")
        # A client's library would not read what follows the headers.
        with socket.create_connection(("127.0.0.1", int(urlsplit(site.url).port or 0)), timeout=10) as asking:
            host = urlsplit(site.url).netloc
            asking.sendall(f"HEAD {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            with asking.makefile("rb") as answer:
                assert answer.read().partition(b"\r\n\r\n")[1:] == (b"\r\n\r\n", b"")
    assert head.status == get.status
    kept = [(name, value) for name, value in get.getheaders() if name != "Date"]
    assert [(name, value) for name, value in head.getheaders() if name != "Date"] == kept
    assert head.headers["Content-Length"] == str(len(content))


def test_without_the_token_nothing_is_read() -> None:
    with served(token="correct-horse") as site:
        for path in ("/", "/model", "/sw.js"):
            assert ask(site, path)[0].status == 401
            assert ask(site, f"{path}?token=wrong-horse")[0].status == 401
        moved, _ = ask(site, "/?token=correct-horse")
        assert (moved.status, moved.headers["Location"]) == (303, "/")
        cookie = moved.headers["Set-Cookie"].split(";")[0]
        assert ask(site, "/model", Cookie=cookie)[1] == MODEL
        # Another machine may ask: it holds the token.
        assert ask(site, "/model", Cookie=cookie, Host="192.0.2.7:8360")[0].status == 200


def test_an_address_in_use_is_one_line() -> None:
    with served() as site:
        port = int(urlsplit(site.url).port or 0)
        with pytest.raises(UsageError) as caught:
            WebSite(Address(host="127.0.0.1", port=port), {})
    assert str(caught.value) == f"--host 127.0.0.1 --port {port}: Address already in use"


def test_the_rig_is_rendered_once_when_it_is_asked_for() -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"frames"

    with served(make_play=make) as site:
        assert made == []
        assert json.loads(ask(site, "/served.json")[1])["rig"] is True
        asked = [threading.Thread(target=ask, args=(site, "/rig")) for _ in range(4)]
        for thread in asked:
            thread.start()
        for thread in asked:
            thread.join()
        assert ask(site, "/rig")[1] == b"frames"
    assert made == [1]


def test_a_recorded_play_holds_the_frames_of_the_live_rig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "TURNS", 2)
    file = recorded_play(seed=3, rate_hz=10.0)
    (length,) = struct.unpack_from("<I", file)
    header = json.loads(file[4 : 4 + length])
    assert (header["seed"], header["rate_hz"], header["turn_s"]) == (3, 10.0, 3.0)
    assert header["frames_per_turn"] == FRAMES_PER_TURN
    live, at = rig.Rig(seed=3, rate_hz=10.0), 4 + length
    for sensor in header["sensors"]:
        size = int(np.prod(sensor["shape"])) * np.dtype(sensor["dtype"]).itemsize
        for turn in range(2):
            for index in range(FRAMES_PER_TURN):
                given = np.frombuffer(file[at : at + size], np.dtype(sensor["dtype"]).newbyteorder("<"))
                wanted = live.frame(sensor["name"], turn * 3.0 + index / 10.0)
                assert np.array_equal(given.reshape(sensor["shape"]), wanted)
                at += size
    assert at == len(file)
    assert header["species"] == [live.species_at(0.0), live.species_at(3.0)]


def test_a_play_shows_every_attack_and_live_subjects() -> None:
    live = rig.Rig(seed=0, rate_hz=15.0)
    assert {live.species_at(3.0 * turn) for turn in range(TURNS)} == set(rig.SPECIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "face_antispoof.pte"], "--model face_antispoof.pte: a browser runs .onnx files; "
         "`mars-edge export RUN -o NAME.onnx`"),
        (["--model", "nowhere.onnx"], "no model file nowhere.onnx; bundled models: " + ", ".join(bundled_models())),
        (["--model", "face_antispoof.onnx", "--host", "phone"], "--host 'phone' is no IP address of this machine; "
         "an example: 127.0.0.1"),
        (["--model", "face_antispoof.onnx", "--port", "70000"], "serve: argument --port: 70000 is above 65535"),
        (["--model", "face_antispoof.onnx", "--cert", "cert.pem"], "--cert and --key go together: a certificate and "
         "its private key, both PEM"),
        (["--model", "face_antispoof.onnx", "--cert", "no.pem", "--key", "no.pem"], "no file no.pem"),
        (["--model", "face_antispoof.onnx", "--token", "short"], "--token has 5 characters; allowed: 8 and more of "
         "A-Z, a-z, 0-9, -, _ and ."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        serve.main(arguments)
    assert str(caught.value) == message


def test_a_certificate_that_is_none_is_one_line(tmp_path: Path) -> None:
    pem = tmp_path / "cert.pem"
    pem.write_text("no certificate")
    with pytest.raises(UsageError) as caught:
        serve.main(
            ["--model", "face_antispoof.onnx", "--cert", f"{tmp_path}/cert.pem", "--key", f"{tmp_path}/cert.pem"]
        )
    assert str(caught.value).startswith(f"--cert {pem} --key {pem}: ")


def test_a_damaged_model_is_not_served(tmp_path: Path) -> None:
    data = bytearray(find_model("face_antispoof.onnx").read_bytes())
    data[1000] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(data)
    with pytest.raises(ModelFileError, match="is damaged: its SHA-256 is not the one in its digest property"):
        serve.main(["--model", str(tmp_path / "damaged.onnx")])


def certificate(folder: Path, name: str, *passphrase: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.cert.pem", folder / f"{name}.key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", *(passphrase or ("-nodes",)), "-keyout", str(key), "-out",
            str(cert), "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_key_that_cannot_be_used_is_one_line_without_a_question(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    other, locked = certificate(tmp_path, "other", "-passout", "pass:secret")
    garbled = tmp_path / "garbled.pem"
    garbled.write_text(key.read_text()[:600])
    messages = {
        (other, locked): f"--key {locked} has a passphrase; without one: openssl pkey -in {locked} -out NEW.pem",
        (other, key): f"--cert {other} --key {key}: the key is not the one of the certificate",
        (key, key): f"--cert {key} --key {key}: not a certificate and its private key, both PEM",
        (cert, cert): f"--cert {cert} --key {cert}: not a certificate and its private key, both PEM",
    }
    for (given, its), message in messages.items():
        command = [sys.executable, "-m", "mars_edge", "serve", "--model", "face_antispoof.onnx", "--cert", str(given)]
        done = subprocess.run([*command, "--key", str(its)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              start_new_session=True, timeout=60)  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mars-edge: {message}\n")
    with pytest.raises(UsageError) as caught:
        serve.main(["--model", "face_antispoof.onnx", "--cert", str(cert), "--key", str(garbled)])
    assert str(caught.value).startswith(f"--cert {cert} --key {garbled}: ")


@contextmanager
def running(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The command in a thread; what it says on stderr."""
    stop, said = threading.Event(), threading.Event()
    announce = serve._announce

    def announced(*given: Any) -> None:
        announce(*given)
        said.set()

    monkeypatch.setattr(serve, "_announce", announced)
    options = serve._parser().parse_args(["--model", "face_antispoof.onnx", "--port", "0", *arguments])
    thread = threading.Thread(target=serve.run, args=(options, stop))
    thread.start()
    try:
        assert said.wait(20)
        yield capsys.readouterr().err
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_the_command_serves_the_bundled_model_on_loopback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running([], capsys, monkeypatch) as said:
        assert said.startswith("mars-edge: page at http://127.0.0.1:")
        url = said.split(" at ")[1].strip()
        with urllib.request.urlopen(f"{url}model", timeout=10) as answer:
            assert answer.read() == find_model("face_antispoof.onnx").read_bytes()
        with urllib.request.urlopen(f"{url}served.json", timeout=10) as answer:
            assert json.load(answer) == {"model": "face_antispoof.onnx", "rig": True, "webgpu": False}


def test_off_loopback_it_asks_for_a_token_and_hints_at_tls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(["--host", "0.0.0.0"], capsys, monkeypatch) as said:
        first, second = said.splitlines()
        named = [f"http://{each}:" for each in addresses_of("0.0.0.0")]
        urls = first.removeprefix("mars-edge: page at ").split(" or ")
        assert len(urls) == len(named)
        assert all("/?token=" in url and url.startswith(each) for url, each in zip(urls, named, strict=True))
        assert second == (
            "mars-edge: browsers give cameras and checksums to https and 127.0.0.1 only: add --cert and --key, e.g. of"
            " openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=mars-edge"
        )
        port = urlsplit(first.split(" at ")[1]).port
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/model", timeout=10)


def test_quiet_says_nothing_but_a_token_that_was_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(["--quiet"], capsys, monkeypatch) as said:
        assert said == ""
    with running(["--quiet", "--host", "0.0.0.0", "--token", "correct-horse"], capsys, monkeypatch) as said:
        assert said == ""
    with running(["--quiet", "--host", "0.0.0.0"], capsys, monkeypatch) as said:
        (line,) = said.splitlines()
        url = urlsplit(line.split(" or ")[-1])
        with urllib.request.urlopen(f"http://127.0.0.1:{url.port}/model?{url.query}", timeout=10) as answer:
            assert answer.status == 200


def test_a_command_that_is_stopped_at_once_ends_in_good_order() -> None:
    command = [sys.executable, "-m", "mars_edge", "serve", "--model", "face_antispoof.onnx", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "page at http://127.0.0.1:" in process.stderr.readline()
        # The rig is being rendered now.
        process.terminate()
        assert (process.wait(20), process.stderr.read()) == (0, "")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_it_serves_https_with_a_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path, "one")
    trusting = ssl.create_default_context(cafile=cert)
    arguments = ["--host", "0.0.0.0", "--token", "correct-horse", "--cert", str(cert), "--key", str(key)]
    with running(arguments, capsys, monkeypatch) as said:
        assert len(said.splitlines()) == 1
        assert said.startswith("mars-edge: page at https://") and "0.0.0.0" not in said
        port = urlsplit(said.split(" at ")[1]).port
        asked = urllib.request.Request(f"https://127.0.0.1:{port}/served.json?token=correct-horse")
        with urllib.request.urlopen(asked, timeout=10, context=trusting) as answer:
            assert json.load(answer)["model"] == "face_antispoof.onnx"
        # A client that speaks no TLS ends nothing but its own connection.
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        with urllib.request.urlopen(asked, timeout=10, context=trusting) as answer:
            assert answer.status == 200
