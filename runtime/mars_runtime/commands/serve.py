"""`mars-edge serve`: the model in a browser, with its cameras and microphones, or with the simulated rig."""

from __future__ import annotations

import argparse
import ipaddress
import ssl
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mars_edge.artifact import onnx_manifest, verify
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest
from mars_edge.options import OneLineParser, positive, say
from mars_runtime.commands.signals import stopping_on_signals
from mars_runtime.models import find_model
from mars_runtime.sensors.simulated import RIG_MODALITIES
from mars_runtime.services import access
from mars_runtime.stream import rig_rate_hz
from mars_runtime.web.play import recorded_play
from mars_runtime.web.site import RIG, Contents, WebSite, contents

_EXAMPLE = "example: mars-edge serve --model face_antispoof.onnx"
PORT = 8360


def main(argv: Sequence[str]) -> int:
    """Serve until stopped; 0."""
    return run(_parser().parse_args(argv), threading.Event())


def run(options: argparse.Namespace, stop: threading.Event) -> int:
    """Serve until `stop` is set or a signal comes; 0."""
    address = _address(options.host, options.port)
    token = access.token_for(address, options.token)
    tls = _tls(options.cert, options.key)
    files = _contents(options)
    site = WebSite(address, files, token=token, tls=tls)
    # Rendered before a page asks for it: that takes as long as everything else a page loads.
    rendering = threading.Thread(target=files.get(RIG), name="render-rig")
    rendering.start()
    try:
        with stopping_on_signals(stop.set):
            _announce(site, address, token, tls, options)
            stop.wait()
    finally:
        site.close()
        # A thread that is inside OpenCV when the interpreter ends takes the process down with it.
        rendering.join()
    return 0


def _contents(options: argparse.Namespace) -> Contents:
    path = find_model(options.model)
    sealed = verify(path)
    if sealed.format != "onnx":
        raise UsageError(f"--model {path.name}: a browser runs .onnx files; `mars-edge export RUN -o NAME.onnx`")
    manifest = Manifest.from_json(onnx_manifest(sealed))
    rig = set(manifest.names) & set(RIG_MODALITIES)
    play = partial(recorded_play, seed=options.seed, rate_hz=rig_rate_hz(manifest)) if rig else None
    return contents(sealed.data, path.name, play)


def _address(host: str, port: int) -> access.Address:
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise UsageError(f"--host {host!r} is no IP address of this machine; an example: 127.0.0.1") from error
    return access.Address(host=host, port=port)


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError("--cert and --key go together: a certificate and its private key, both PEM")
    for path in (cert, key):
        if not path.is_file():
            raise UsageError(f"no file {path}")
    return _context(cert, key)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def passphrase() -> str:
        # Without this OpenSSL asks the terminal, which a service does not have.
        raise UsageError(f"--key {key} has a passphrase; without one: openssl pkey -in {key} -out NEW.pem")

    try:
        tls.load_cert_chain(cert, key, passphrase)
    except ssl.SSLError as error:
        raise UsageError(f"--cert {cert} --key {key}: {_refusal(error)}") from error
    except OSError as error:
        raise UsageError(f"--cert {cert} --key {key}: {error.strerror}") from error
    return tls


def _refusal(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if "MISMATCH" in reason:
        return "the key is not the one of the certificate"
    if reason in ("", "PEM lib", "NO_START_LINE"):
        return "not a certificate and its private key, both PEM"
    return f"the certificate or the key cannot be used: {reason.lower().replace('_', ' ')}"


def _announce(
    site: WebSite,
    address: access.Address,
    token: str | None,
    tls: ssl.SSLContext | None,
    options: argparse.Namespace,
) -> None:
    shown = "" if token is None else f"?token={token}"
    line = "page at " + " or ".join(f"{url}{shown}" for url in site.urls)
    if options.quiet and token is not None and options.token is None:
        # Nobody knows a token that was made just now, and without it nobody gets in.
        print(f"mars-edge: {line}", file=sys.stderr, flush=True)
    say(line, options)
    if not address.loopback and tls is None:
        say(
            "browsers give cameras and checksums to https and 127.0.0.1 only: add --cert and --key, e.g. of"
            " openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=mars-edge",
            options,
        )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mars-edge serve", description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="an .onnx file, or the name of a bundled model")
    add("--host", default="127.0.0.1", metavar="IP", help="where to listen; others than loopback need a token")
    add("--port", type=positive(int, zero=True, most=65535), default=PORT, help=f"default: {PORT}; 0 takes a free one")
    add("--token", metavar="TEXT", help="what clients must show; default off loopback: a new one, printed")
    add("--cert", type=Path, metavar="FILE.pem", help="serve https with this certificate")
    add("--key", type=Path, metavar="FILE.pem", help="its private key")
    add("--seed", type=positive(int, zero=True), default=0, help="of the simulated rig (default 0)")
    add("--quiet", action="store_true", help="nothing on stderr but errors and a token that was made")
    return parser
