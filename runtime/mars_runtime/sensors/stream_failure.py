"""Why a network camera gave no stream: asked once more by hand, in words."""

from __future__ import annotations

import base64
import http.client
import socket
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtmp": 1935}
_TIMEOUT_S = 1.0
_STATUS = {
    401: "the user name or the password is missing or wrong; write {scheme}://USER:PASSWORD@{host}",
    403: "this user may not see it",
    404: "nothing is at {path}",
    454: "the server does not know the session",
    503: "the server is overloaded or allows no further viewer",
}


def without_password(url: str) -> str:
    """The address as it may be shown and recorded."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1)))


def why_no_stream(url: str, timeout_s: float = _TIMEOUT_S) -> str:
    """One line without the address; takes about `timeout_s`, or as long as the name's look-up."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return f"{without_password(url)!r} is no address"
    where = f"{host}:{port}"
    try:
        status = _status(parts, host, port, timeout_s)
    except socket.gaierror:
        return f"there is no host {host!r}"
    except ConnectionRefusedError:
        return f"connection refused by {where}: no server is running there"
    except TimeoutError:
        return f"{where} does not answer within {timeout_s:g} s"
    except http.client.HTTPException:
        return f"{where} answers, but not in {parts.scheme}"
    except OSError as error:
        return f"{where}: {(error.strerror or str(error)).lower()}"
    return _in_words(status, parts, host)


def _in_words(status: int | None, parts: SplitResult, host: str) -> str:
    if status is None or 200 <= status < 300:
        return "the server answers, but sends no video that can be decoded"
    reason = _STATUS.get(status, "the server refuses").format(scheme=parts.scheme, host=host, path=parts.path or "/")
    return f"{parts.scheme} {status}: {reason}"


def _status(parts: SplitResult, host: str, port: int, timeout_s: float) -> int | None:
    """The server's status for this address; None where the scheme has none."""
    if parts.scheme in ("http", "https"):
        return _http_status(parts, host, port, timeout_s)
    with socket.create_connection((host, port), timeout_s) as connection:
        connection.settimeout(timeout_s)
        return _rtsp_status(connection, parts) if parts.scheme == "rtsp" else None


def _http_status(parts: SplitResult, host: str, port: int, timeout_s: float) -> int:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=timeout_s)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers=_credentials(parts))
        return connection.getresponse().status
    finally:
        connection.close()


def _rtsp_status(connection: socket.socket, parts: SplitResult) -> int:
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    headers = "".join(f"{key}: {value}\r\n" for key, value in _credentials(parts).items())
    connection.sendall(f"DESCRIBE {bare} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n{headers}\r\n".encode())
    line = connection.recv(4096).split(b"\r\n")[0].split()
    if len(line) < 2 or not line[0].startswith(b"RTSP/") or not line[1].isdigit():
        raise http.client.HTTPException
    return int(line[1])


def _credentials(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
